package redis

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"
)

// Dial connects to a server for the DialCtxFn of a [rueidis.ClientOption]. It ends a
// connection once the server answers that it is not the one to ask: a master that
// became a replica (READONLY), a replica without its master (MASTERDOWN), a node of a
// cluster that does not serve (CLUSTERDOWN). The client then dials again.
//
// That matters where an address leads to whoever is master: a virtual address, a
// proxy, a name whose record changes. The client knows nothing of the change, and the
// old master, alive as a replica, keeps the connection open for good. A read that the
// old master still answers does not tell: it shows the old master's counts.
func Dial(ctx context.Context, addr string, dialer *net.Dialer, config *tls.Config) (net.Conn, error) {
	var conn net.Conn
	var err error
	if config != nil {
		conn, err = (&tls.Dialer{NetDialer: dialer, Config: config}).DialContext(ctx, "tcp", addr)
	} else {
		conn, err = dialer.DialContext(ctx, "tcp", addr)
	}
	if err != nil {
		return nil, err
	}
	return &watchedConn{Conn: conn}, nil
}

// A watchedConn ends after an answer that its server is not the one to ask.
type watchedConn struct {
	net.Conn
	over atomic.Bool
	tail []byte // the last bytes read, where such an answer may begin
}

// refusals are how such answers begin, each on a line of its own. A value that holds
// one ends a connection for nothing, which does no harm.
var refusals = [][]byte{[]byte("-READONLY "), []byte("-MASTERDOWN "), []byte("-CLUSTERDOWN ")}

const longestRefusal = len("-CLUSTERDOWN ")

// Read hands on the server's answers, and then ends if one of them refuses.
func (c *watchedConn) Read(p []byte) (int, error) {
	if c.over.Load() {
		_ = c.Close() // the client hears of it by the error
		return 0, io.EOF
	}
	n, err := c.Conn.Read(p)
	if c.refuses(p[:n]) {
		c.over.Store(true)
	}
	return n, err
}

// refuses looks for a refusal in the bytes read, and across those before them.
func (c *watchedConn) refuses(read []byte) bool {
	if len(read) == 0 {
		return false
	}
	seam := append(c.tail, read[:min(len(read), longestRefusal)]...)
	found := false
	for _, r := range refusals {
		found = found || bytes.Contains(seam, r) || bytes.Contains(read, r)
	}
	if len(read) >= longestRefusal {
		c.tail = append(c.tail[:0], read[len(read)-longestRefusal+1:]...)
	} else {
		c.tail = append(c.tail[:0], seam[max(0, len(seam)-longestRefusal+1):]...)
	}
	return found
}
