package redisdial

import (
	"bufio"
	"fmt"
	"net"
	"strings"
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

	for addr, says := range map[string]string{
		silent.Addr().String(): "no answer",
		stuck(t):               "no answer",
		closed.Addr().String(): "refused",
	} {
		began := time.Now()
		_, err := Connect(t.Context(), rueidis.ClientOption{InitAddress: strings.Split(addr, ",")})
		require.ErrorContains(t, err, "redis "+addr+": ")
		require.ErrorContains(t, err, says)
		require.Less(t, time.Since(began), 5*time.Second)
	}
}

// stuck returns the address of a server that greets, and then hangs.
func stuck(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer c.Close()
				for s := bufio.NewScanner(c); s.Scan(); {
					switch s.Text() {
					case "HELLO":
						fmt.Fprint(c, "%2\r\n+version\r\n+7.0.0\r\n+proto\r\n:3\r\n")
					case "CLIENT":
						fmt.Fprint(c, "+OK\r\n")
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}
