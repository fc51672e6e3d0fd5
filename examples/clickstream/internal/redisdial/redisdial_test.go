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

	for addr, says := range map[string]string{silent.Addr().String(): "no answer", closed.Addr().String(): "refused"} {
		began := time.Now()
		_, err := Connect(t.Context(), rueidis.ClientOption{InitAddress: []string{addr}})
		require.ErrorContains(t, err, "redis "+addr+": ")
		require.ErrorContains(t, err, says)
		require.Less(t, time.Since(began), 5*time.Second)
	}
}
