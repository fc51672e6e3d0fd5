package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// However early and for whatever reason a run ends, no goroutine and no connection
// stays. It runs alone: the goroutines of others would come and go.
func TestNothingStays(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 3)
	produce(t, c.client(t), topic, 0, numbered("k", 50)...)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, gone.Close())

	// Connections of our own transport do not end with the run, nor those of a
	// group, while anything of it runs.
	group := func(cfg *Config) { cfg.Group = newTopic() }
	for name, one := range map[string]struct {
		sink   func() tumble.Sink
		change func(*Config)
		within time.Duration // 0: it ends by itself
		fails  bool
	}{
		"stopped at once":             {within: time.Nanosecond},
		"stopped while it begins":     {within: 2 * time.Millisecond},
		"stopped while it registers":  {sink: func() tumble.Sink { return &hung{Sink: memory.New(memory.Config{}), from: 2} }, within: 200 * time.Millisecond},
		"stopped while it counts":     {within: 200 * time.Millisecond},
		"group, stopped at once":      {change: group, within: time.Nanosecond},
		"group, stopped in its join":  {change: group, within: 5 * time.Millisecond},
		"group, stopped as it counts": {change: group, within: 500 * time.Millisecond},
		"until the end":               {change: func(cfg *Config) { cfg.UntilEnd = true }},
		"a fatal sink":                {sink: func() tumble.Sink { return fatal{memory.New(memory.Config{})} }, fails: true},
		"a fatal sink, group":         {sink: func() tumble.Sink { return fatal{memory.New(memory.Config{})} }, change: group, fails: true},
		"a sink that does not open":   {sink: func() tumble.Sink { return shut{} }, fails: true},
		"no such topic":               {change: func(cfg *Config) { cfg.Topic = "missing" }, fails: true},
		"no such topic, group":        {change: func(cfg *Config) { cfg.Topic = "missing"; group(cfg) }, fails: true},
		"no broker":                   {change: func(cfg *Config) { cfg.Brokers = []string{gone.Addr().String()} }, fails: true},
		"a fatal record": {change: func(cfg *Config) {
			cfg.Decode = func([]tumble.Event, Message) ([]tumble.Event, error) {
				return []tumble.Event{{Key: "its own", Time: time.Now()}}, nil
			}
		}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			var conns atomic.Int64
			run := func() {
				cfg := c.config(topic)
				if one.change != nil {
					one.change(&cfg)
				}
				own := newTransport(cfg.Brokers, "", cfg.Topic)
				cfg.Transport = counted(own, &conns)
				s, err := New(cfg)
				require.NoError(t, err)
				s.own = own // which New would have made
				var sink tumble.Sink = memory.New(memory.Config{})
				if one.sink != nil {
					sink = one.sink()
				}
				p, err := tumble.New(tumble.Config{Source: s, Sink: sink, Window: tumble.Window{Size: time.Minute}, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
				require.NoError(t, err)
				ctx := t.Context()
				if one.within > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, one.within)
					defer cancel()
				}
				err = p.Run(ctx)
				require.Equal(t, one.fails, err != nil, "%v", err)
			}
			run() // what is made once
			before := settled(func() int { return runtime.NumGoroutine() })
			for range 2 {
				run()
			}
			deadline := time.Now().Add(10 * time.Second)
			for runtime.NumGoroutine() > before || conns.Load() > 0 {
				if time.Now().After(deadline) {
					require.FailNow(t, "something stays", "%d goroutines, %d before; %d connections; %s", runtime.NumGoroutine(), before, conns.Load(), creators())
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
}

// settled waits until a number no longer falls.
func settled(n func() int) int {
	least := n()
	for range 5 {
		time.Sleep(20 * time.Millisecond)
		least = min(least, n())
	}
	return least
}

// creators tells where the goroutines come from that run.
func creators() string {
	text := make([]byte, 1<<20)
	text = text[:runtime.Stack(text, true)]
	by := map[string]int{}
	for _, g := range strings.Split(string(text), "\n\n") {
		if i := strings.LastIndex(g, "created by "); i >= 0 {
			by[strings.SplitN(g[i:], " in goroutine", 2)[0]]++
		}
	}
	return fmt.Sprint(by)
}

// counted has a Transport's open connections counted.
func counted(t *kafkago.Transport, open *atomic.Int64) *kafkago.Transport {
	dial := t.Dial
	t.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		open.Add(1)
		return &closing{Conn: conn, open: open}, nil
	}
	return t
}

type closing struct {
	net.Conn
	open *atomic.Int64
	once atomic.Bool
}

func (c *closing) Close() error {
	if c.once.CompareAndSwap(false, true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// hung is a sink whose Load hangs from the nth call on.
type hung struct {
	tumble.Sink
	calls atomic.Int64
	from  int64
}

func (h *hung) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := h.Sink.Open(ctx, def)
	for i := range shards {
		shards[i] = hungShard{shards[i], h}
	}
	return shards, err
}

type hungShard struct {
	tumble.Shard
	h *hung
}

func (s hungShard) Load(ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	if s.h.calls.Add(1) >= s.h.from {
		<-ctx.Done()
		return tumble.ShardState{}, ctx.Err()
	}
	return s.Shard.Load(ctx, r)
}

// fatal is a sink that refuses each batch for good.
type fatal struct{ tumble.Sink }

func (f fatal) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := f.Sink.Open(ctx, def)
	for i := range shards {
		shards[i] = fatalShard{shards[i]}
	}
	return shards, err
}

type fatalShard struct{ tumble.Shard }

func (fatalShard) Apply(context.Context, tumble.Batch) error { return tumble.ErrDefinition }

type shut struct{}

func (shut) Open(context.Context, tumble.Definition) ([]tumble.Shard, error) {
	return nil, errors.New("shut")
}
