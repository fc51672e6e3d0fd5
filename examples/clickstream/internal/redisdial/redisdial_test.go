package redisdial

import (
	"net"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

func TestConnectNamesTheAddress(t *testing.T) {
	silent, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	defer silent.Close()
	closed, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())

	for _, addr := range []string{silent.Addr().String(), closed.Addr().String()} {
		began := time.Now()
		_, err := Connect(t.Context(), rueidis.ClientOption{InitAddress: []string{addr}})
		require.ErrorContains(t, err, "redis "+addr+": ")
		require.Less(t, time.Since(began), 5*time.Second)
	}
}
