package program

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// pipes is a listener whose connections are pipes, so that their deadlines are
// those of a test's clock.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// TestSlowClients has clients that take their time: each is hung up on, and none
// keeps a request or a connection for good.
func TestSlowClients(t *testing.T) {
	const request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	for name, test := range map[string]struct {
		send   string
		answer bool // it reads what comes
		within time.Duration
	}{
		"says nothing":               {"", true, 10 * time.Second},
		"stops in the request":       {"GET / HT", true, 10 * time.Second},
		"stops in the headers":       {"GET / HTTP/1.1\r\nHost: x\r\nA: b", true, 10 * time.Second},
		"stops in the body":          {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc", true, 15 * time.Second},
		"asks no more":               {request, true, 65 * time.Second},
		"does not read the answer":   {request, false, 35 * time.Second},
		"never ends the headers":     {"GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 100_000), true, 10 * time.Second},
		"never ends the first line":  {"GET /" + strings.Repeat("x", 200_000), true, 10 * time.Second},
		"has a body of unknown size": {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", true, 15 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
				ctx, stop := context.WithCancel(t.Context())
				served := make(chan error, 1)
				go func() {
					served <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						_, _ = io.Copy(io.Discard, r.Body)
						_, _ = w.Write(make([]byte, 1<<20))
					}))
				}()
				client, server := net.Pipe()
				defer client.Close()
				began := time.Now()
				gone := make(chan struct{})
				l.conns <- &notified{Conn: server, gone: gone}
				go func() { _, _ = io.WriteString(client, test.send) }()
				if test.answer {
					go func() { _, _ = io.Copy(io.Discard, client) }()
				}
				<-gone
				require.LessOrEqual(t, time.Since(began), test.within)
				stop()
				require.NoError(t, <-served)
			})
		})
	}
}

// notified tells when it is closed.
type notified struct {
	net.Conn
	gone chan struct{}
	once sync.Once
}

func (n *notified) Close() error {
	n.once.Do(func() { close(n.gone) })
	return n.Conn.Close()
}

// TestLocalhostIsThisMachine checks that the default address is reached from
// nowhere else.
func TestLocalhostIsThisMachine(t *testing.T) {
	l, err := Listen("localhost:0")
	require.NoError(t, err)
	defer l.Close()
	require.True(t, l.Addr().(*net.TCPAddr).IP.IsLoopback(), l.Addr())
}
