package redis

import (
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestARefusalEndsAConnection has answers that say that the server is not the one to
// ask, cut in all places.
func TestARefusalEndsAConnection(t *testing.T) {
	for answer, ends := range map[string]bool{
		"+OK\r\n": false,
		"-READONLY You can't write against a read only replica.\r\n":                                                    true,
		"$3\r\nabc\r\n-MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.\r\n":            true,
		"-ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against a read only...\r\n": true,
		"*2\r\n-CLUSTERDOWN Hash slot not served\r\n:1\r\n":                                                             true,
		"-ERR READONLY is no word of mine\r\n":                                                                          false,
		"$9\r\n-READONLY\r\n":                                                                                           false,
	} {
		for cut := range len(answer) {
			server, client := net.Pipe()
			go func() {
				_, _ = io.WriteString(server, answer[:cut])
				_, _ = io.WriteString(server, answer[cut:])
				_, _ = io.WriteString(server, "+PONG\r\n")
				server.Close()
			}()
			got, err := io.ReadAll(&watchedConn{Conn: client})
			require.NoError(t, err)
			if !ends {
				require.Equal(t, answer+"+PONG\r\n", string(got), "cut at %d", cut)
				continue
			}
			require.Truef(t, strings.HasPrefix(answer, string(got)), "cut at %d: %q", cut, got)
			require.Regexp(t, "-(READONLY|MASTERDOWN|CLUSTERDOWN) ", string(got), "cut at %d", cut)
		}
	}
}
