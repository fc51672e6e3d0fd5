//go:build servers

package redis_test

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/channel"
)

// leading returns an address that leads to whatever server to holds when somebody
// connects. Connections that are open stay.
func leading(t *testing.T, to *atomic.Pointer[server]) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to.Load().addr)
			if err != nil {
				in.Close()
				continue
			}
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(pair[0], pair[1])
					pair[0].Close()
				}()
			}
		}
	}()
	return l.Addr().String()
}

// TestTheMasterMovesBehindAnAddress lets an address lead to a promoted replica, while
// the old master stays alive as its replica and keeps the connections open.
func TestTheMasterMovesBehindAnAddress(t *testing.T) {
	first, second := start(t), start(t)
	do(t, second.connect(t), "REPLICAOF", "127.0.0.1", strings.Split(first.addr, ":")[1])
	require.Eventually(t, func() bool {
		text, err := do(t, second.connect(t), "INFO", "replication").ToString()
		return err == nil && strings.Contains(text, "master_link_status:up")
	}, 20*time.Second, 100*time.Millisecond)

	var to atomic.Pointer[server]
	to.Store(first)
	client := connect(t, []string{leading(t, &to)}, func(o *rueidis.ClientOption) {
		o.ForceSingleClient = true
		o.DialCtxFn = redis.Dial
	})
	sink := newSink(t, redis.Config{Client: client, Name: "moved", Shards: 2})
	events := make(chan tumble.Event)
	source, err := channel.New(channel.Config{ID: "p", Events: events})
	require.NoError(t, err)
	p, err := tumble.New(tumble.Config{Source: source, Sink: sink, Window: minutes.Window})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context()) }()
	count := func() int64 {
		c, err := sink.Count(t.Context(), "k", noon)
		require.NoError(t, err)
		return c.N
	}
	for range 100 {
		events <- tumble.Event{Key: "k", Time: noon}
	}
	require.Eventually(t, func() bool { return p.Stats().Counted == 100 }, 10*time.Second, 10*time.Millisecond)

	to.Store(second)
	do(t, second.connect(t), "REPLICAOF", "NO", "ONE")
	do(t, first.connect(t), "REPLICAOF", "127.0.0.1", strings.Split(second.addr, ":")[1])
	for range 100 {
		events <- tumble.Event{Key: "k", Time: noon}
	}
	require.Eventually(t, func() bool { return p.Stats().Counted == 200 }, 5*time.Second, 10*time.Millisecond, "healed within 5 s")
	require.Equal(t, int64(200), count())
	close(events)
	require.NoError(t, <-done)
}
