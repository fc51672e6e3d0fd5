package channel_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

// A remoteSink is a map behind a network that may be down.
type remoteSink struct {
	*memory.Sink
	down  atomic.Bool
	hangs bool // Open, until its context ends
}

func (s *remoteSink) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	if s.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	shards, err := s.Sink.Open(ctx, def)
	for i := range shards {
		shards[i] = remoteShard{shards[i], s}
	}
	return shards, err
}

type remoteShard struct {
	tumble.Shard
	sink *remoteSink
}

var errRefused = errors.New("connection refused")

func (s remoteShard) Load(ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	if s.sink.down.Load() {
		return tumble.ShardState{}, errRefused
	}
	return s.Shard.Load(ctx, r)
}

func (s remoteShard) Apply(ctx context.Context, b tumble.Batch) error {
	if s.sink.down.Load() {
		return errRefused
	}
	return s.Shard.Apply(ctx, b)
}

// A counting is a pipeline over a channel.
type counting struct {
	events   chan tumble.Event
	source   *channel.Source
	sink     *remoteSink
	pipeline *tumble.Pipeline
}

// newCounting returns one into sink.
func newCounting(t *testing.T, sink *remoteSink, cfg tumble.Config, final bool) *counting {
	t.Helper()
	c := &counting{events: make(chan tumble.Event, 100), sink: sink}
	var err error
	c.source, err = channel.New(channel.Config{ID: "pod-0", Events: c.events, Final: final})
	require.NoError(t, err)
	cfg.Source, cfg.Sink, cfg.Logger = c.source, sink, slog.New(slog.DiscardHandler)
	if cfg.Window == (tumble.Window{}) {
		cfg.Window = tumble.Window{Size: time.Minute}
	}
	c.pipeline, err = tumble.New(cfg)
	require.NoError(t, err)
	return c
}

func newRemote() *remoteSink { return &remoteSink{Sink: memory.New(memory.Config{Shards: 4})} }

// start runs the pipeline until ctx ends or the channel is closed.
func (c *counting) start(ctx context.Context) <-chan error {
	ended := make(chan error, 1)
	go func() { ended <- c.pipeline.Run(ctx) }()
	return ended
}

var noon = time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)

// send sends n events of as many keys.
func (c *counting) send(n int, at time.Time) {
	for i := range n {
		c.events <- tumble.Event{Key: string(rune('a' + i%26)), Time: at}
	}
}

// total returns how many events are counted in the window that holds at.
func (c *counting) total(t *testing.T, at time.Time) (sum int64, state tumble.State) {
	t.Helper()
	page, err := c.sink.Top(t.Context(), at, 1000)
	require.NoError(t, err)
	for _, one := range page.Counts {
		sum += one.N
	}
	return sum, page.State
}

func requireLost(t *testing.T, n int64, err error) {
	t.Helper()
	var lost *channel.LostError
	require.ErrorAs(t, err, &lost)
	require.Equal(t, channel.LostError{ID: "pod-0", Events: n}, *lost)
}

// A store that is away when the service is stopped keeps nothing, and whoever
// stopped it is told.
func TestStoppedWhileTheStoreIsDown(t *testing.T) {
	for name, closed := range map[string]bool{"open": false, "closed": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCounting(t, newRemote(), tumble.Config{ShutdownTimeout: 2 * time.Second}, false)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := c.start(ctx)
				c.send(3, noon)
				time.Sleep(10 * time.Second) // until shards without a count have the offset, too
				c.sink.down.Store(true)
				c.send(5, noon)
				if closed {
					close(c.events)
				}
				time.Sleep(time.Minute)
				require.Empty(t, ended, "it waits for the store")
				begun := time.Now()
				cancel()
				requireLost(t, 5, <-ended)
				require.Equal(t, 2*time.Second, time.Since(begun))
				require.EqualValues(t, 5, c.pipeline.Stats().Pending)

				// The same source, while the process lives, still has them.
				c.sink.down.Store(false)
				if !closed {
					close(c.events)
				}
				require.NoError(t, <-c.start(t.Context()))
				n, _ := c.total(t, noon)
				require.EqualValues(t, 8, n)
			})
		})
	}
}

// What is sent after the stop is received by nobody.
// A store that is away from the start holds up the pipeline before it has asked
// the source for anything. What senders have sent by then is lost all the same.
func TestStoppedBeforeItBegan(t *testing.T) {
	for name, away := range map[string]func(*remoteSink){
		"Load fails": func(s *remoteSink) { s.down.Store(true) },
		"Open hangs": func(s *remoteSink) { s.hangs = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCounting(t, newRemote(), tumble.Config{}, false)
				away(c.sink)
				ctx, cancel := context.WithCancel(t.Context())
				ended := c.start(ctx)
				c.send(3, noon)
				time.Sleep(time.Second)
				cancel()
				var lost *channel.LostError
				require.ErrorAs(t, <-ended, &lost)
				require.EqualValues(t, 3, lost.Events)
			})
		})
	}
}

func TestStopTellsWhatLiesInTheChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounting(t, newRemote(), tumble.Config{}, false)
		ctx, cancel := context.WithCancel(t.Context())
		ended := c.start(ctx)
		time.Sleep(time.Second)
		c.sink.down.Store(true)
		c.send(10, noon)
		time.Sleep(time.Second)
		cancel()
		synctest.Wait()
		c.send(4, noon)
		c.sink.down.Store(false) // so that the last flush goes through
		requireLost(t, 4, <-ended)
		n, _ := c.total(t, noon)
		require.EqualValues(t, 10, n)
	})
}

func TestCloseAndWaitLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounting(t, newRemote(), tumble.Config{}, false)
		ended := c.start(t.Context())
		go func() {
			defer close(c.events)
			for range 100 {
				c.send(100, noon)
			}
		}()
		require.NoError(t, <-ended)
		n, _ := c.total(t, noon)
		require.EqualValues(t, 10_000, n)
	})
}

// A service that is restarted goes on in the day in which it stopped; a batch
// has its last day final.
func TestWindowsOfTheLastEvents(t *testing.T) {
	days := tumble.Config{Window: tumble.Window{Calendar: tumble.Day}, DropLate: true}
	sink := newRemote()
	for i, final := range []bool{false, false, true} {
		c := newCounting(t, sink, days, final)
		c.send(3, noon.Add(time.Duration(i)*time.Hour))
		close(c.events)
		require.NoError(t, <-c.start(t.Context()))
		n, state := c.total(t, noon)
		require.EqualValues(t, 3*(i+1), n)
		require.Zero(t, c.pipeline.Stats().DroppedLate)
		require.Equal(t, map[bool]tumble.State{false: tumble.Open, true: tumble.Final}[final], state)
	}
	c := newCounting(t, sink, days, false)
	c.send(1, noon.Add(3*time.Hour))
	c.send(1, noon.Add(24*time.Hour))
	close(c.events)
	require.NoError(t, <-c.start(t.Context()))
	n, state := c.total(t, noon)
	require.EqualValues(t, 9, n, "final is final, whoever comes later")
	require.Equal(t, tumble.Final, state)
	require.EqualValues(t, 1, c.pipeline.Stats().DroppedLate)
	require.EqualValues(t, 1, c.pipeline.Stats().Counted)
}

// Handlers that run beside close, as those do that Shutdown has given up: none
// sends on a closed channel, and what was accepted was received.
func TestHandlersBesideClose(t *testing.T) {
	for range 100 {
		s := &clickServer{events: make(chan tumble.Event)}
		var accepted atomic.Int64
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				for {
					w := httptest.NewRecorder()
					s.ServeHTTP(w, httptest.NewRequest("POST", "/?user=user_1", nil))
					if w.Code != http.StatusAccepted {
						return
					}
					accepted.Add(1)
				}
			})
		}
		received := make(chan int64)
		go func() {
			n := int64(0)
			for range s.events {
				if n++; n == 100 {
					go s.close()
				}
			}
			received <- n
		}()
		require.Equal(t, <-received, func() int64 { clients.Wait(); return accepted.Load() }())
	}
}

// The whole service under load: what was answered with 202 is counted, and more
// only where the answer did not arrive.
func TestServiceStoppedUnderLoad(t *testing.T) {
	c := newCounting(t, newRemote(), tumble.Config{}, false)
	l, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- (&clickServer{events: c.events}).run(ctx, l, c.pipeline) }()
	var accepted, unknown atomic.Int64
	var clients sync.WaitGroup
	for range 8 {
		clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				answer, err := client.Post("http://"+l.Addr().String()+"/?user=user_1", "", nil)
				if err != nil {
					unknown.Add(1)
					return
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				if answer.StatusCode == http.StatusAccepted {
					accepted.Add(1)
				}
			}
		})
	}
	for accepted.Load() < 1000 {
		time.Sleep(time.Millisecond)
	}
	stop()
	require.NoError(t, <-ended)
	clients.Wait()
	counted := c.pipeline.Stats().Counted
	require.LessOrEqual(t, accepted.Load(), counted)
	require.LessOrEqual(t, counted, accepted.Load()+unknown.Load())
}

// A pipe is a listener of one connection, for fake time.
type pipe struct {
	conns chan net.Conn
	once  sync.Once
}

func (p *pipe) Accept() (net.Conn, error) {
	if conn, ok := <-p.conns; ok {
		return conn, nil
	}
	return nil, net.ErrClosed
}

func (p *pipe) Close() error {
	p.once.Do(func() { close(p.conns) })
	return nil
}

func (p *pipe) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// The service does not wait for a store for ever, and says what that costs.
func TestServiceGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCounting(t, newRemote(), tumble.Config{}, false)
		ours, theirs := net.Pipe()
		l := &pipe{conns: make(chan net.Conn, 1)}
		l.conns <- theirs
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- (&clickServer{events: c.events}).run(ctx, l, c.pipeline) }()
		time.Sleep(time.Second)
		c.sink.down.Store(true)
		client := &http.Client{Transport: &http.Transport{
			DialContext: func(context.Context, string, string) (net.Conn, error) { return ours, nil },
		}}
		answer, err := client.Post("http://pipe/?user=user_1", "", nil)
		require.NoError(t, err)
		answer.Body.Close()
		require.Equal(t, http.StatusAccepted, answer.StatusCode)
		begun := time.Now()
		stop()
		requireLost(t, 1, <-ended)
		require.Equal(t, 30*time.Second, time.Since(begun), "20 seconds, and the pipeline's ShutdownTimeout")
	})
}
