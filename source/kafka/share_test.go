package kafka

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// A namedSink is a memory.Sink that says which counts it holds.
type namedSink struct {
	*memory.Sink
	sinkID
}

func newNamedSink(name, store string) *namedSink {
	return &namedSink{Sink: memory.New(memory.Config{}), sinkID: sinkID{id: idOf(name, store)}}
}

func (s *namedSink) Identity(ctx context.Context) (tumble.Identity, error) { return s.get(ctx) }

// count returns the sum of a key's counts.
func (s *namedSink) count(t testing.TB, key string) (n int64) {
	counts, err := s.Range(t.Context(), key, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil { // nothing is stored yet
		return 0
	}
	for _, c := range counts {
		n += c.N
	}
	return n
}

// A counter is a pipeline at work.
type counter struct {
	*tumble.Pipeline
	cancel context.CancelFunc
	done   chan error
}

func startCounter(t testing.TB, s *Source, sink tumble.Sink) *counter {
	p, err := tumble.New(tumble.Config{Source: s, Sink: sink, Window: tumble.Window{Size: time.Minute}, Logger: s.cfg.Logger})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	c := &counter{p, cancel, make(chan error, 1)}
	go func() { c.done <- p.Run(ctx) }()
	t.Cleanup(cancel)
	return c
}

func (c *counter) stop(t testing.TB) {
	c.cancel()
	select {
	case err := <-c.done:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		require.Fail(t, "Run does not return")
	}
}

// Two pipelines that count into different places in one group: the second is
// refused before it joins, and the first counts every event.
func shareOtherName(t *testing.T, c cluster) {
	const n = 4
	topic := c.create(t, n)
	group := newTopic()
	cl := c.client(t)
	produced := 0
	write := func() {
		for p := range int32(n) {
			produce(t, cl, topic, p, "k")
			produced++
		}
	}
	start := func(sink tumble.Sink) *counter {
		cfg := c.config(topic)
		cfg.Group, cfg.SessionTimeout = group, 6*time.Second
		s, err := New(cfg)
		require.NoError(t, err)
		return startCounter(t, s, sink)
	}
	write()
	clicks := newNamedSink("clicks", "s1")
	first := start(clicks)
	require.Eventually(t, func() bool { return clicks.count(t, "k") == int64(produced) }, 20*time.Second, 10*time.Millisecond)
	second := start(clicks)
	require.Eventually(t, func() bool {
		return len(first.Stats().Partitions) == n/2 && len(second.Stats().Partitions) == n/2
	}, 20*time.Second, 10*time.Millisecond)

	views := newNamedSink("views", "s1")
	begin := time.Now()
	stranger := start(views)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				write()
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	select {
	case err := <-stranger.done:
		require.ErrorContains(t, err, fmt.Sprintf("kafka: group %s: its members count under the name %q, this process under %q", group, "clicks", "views"))
	case <-time.After(10 * time.Second):
		require.Fail(t, "it is not refused")
	}
	require.Less(t, time.Since(begin), 10*time.Second)
	require.Zero(t, stranger.Stats().Read)
	time.Sleep(1500 * time.Millisecond)
	close(stop)
	wg.Wait()
	require.Eventually(t, func() bool { return clicks.count(t, "k") == int64(produced) }, 20*time.Second, 10*time.Millisecond)
	require.Zero(t, views.count(t, "k"))
	require.Len(t, first.Stats().Partitions, n/2, "nobody noticed")
	first.stop(t)
	second.stop(t)
}

// Two that start at one time: one wins and counts all, the other says why not.
func shareRace(t *testing.T, c cluster) {
	topic := c.create(t, 4)
	group := newTopic()
	cl := c.client(t)
	for p := range int32(4) {
		produce(t, cl, topic, p, "k", "k", "k")
	}
	var counters []*counter
	sinks := []*namedSink{newNamedSink("clicks", "s1"), newNamedSink("views", "s1")}
	for _, sink := range sinks {
		cfg := c.config(topic)
		cfg.Group, cfg.SessionTimeout = group, 6*time.Second
		s, err := New(cfg)
		require.NoError(t, err)
		counters = append(counters, startCounter(t, s, sink))
	}
	var lost int
	select {
	case err := <-counters[0].done:
		require.ErrorContains(t, err, "a new name needs a new Config.Group")
	case err := <-counters[1].done:
		lost = 1
		require.ErrorContains(t, err, "a new name needs a new Config.Group")
	case <-time.After(20 * time.Second):
		require.Fail(t, "both go on")
	}
	require.Eventually(t, func() bool { return sinks[1-lost].count(t, "k") == 12 }, 20*time.Second, 10*time.Millisecond)
	require.Zero(t, sinks[lost].count(t, "k"))
	counters[1-lost].stop(t)
}

// A Source is for one pipeline at a time, and the first is not disturbed.
func shareSource(t *testing.T, c cluster) {
	for _, group := range []string{"", newTopic()} {
		topic := c.create(t, 2)
		cl := c.client(t)
		produce(t, cl, topic, 0, "k")
		cfg := c.config(topic)
		cfg.Group, cfg.SessionTimeout = group, 6*time.Second
		s, err := New(cfg)
		require.NoError(t, err)
		clicks, views := newNamedSink("clicks", "s1"), newNamedSink("views", "s1")
		first := startCounter(t, s, clicks)
		require.Eventually(t, func() bool { return clicks.count(t, "k") == 1 }, 20*time.Second, 10*time.Millisecond)
		second := startCounter(t, s, views)
		select {
		case err := <-second.done:
			require.ErrorContains(t, err, fmt.Sprintf("topic %q is being read by another Run of this Source", topic))
		case <-time.After(10 * time.Second):
			require.Fail(t, "it is not refused")
		}
		produce(t, cl, topic, 0, "k", "k")
		produce(t, cl, topic, 1, "k")
		require.Eventually(t, func() bool { return clicks.count(t, "k") == 4 }, 20*time.Second, 10*time.Millisecond)
		first.stop(t)

		// One after the other is fine, also with another sink.
		third := startCounter(t, s, views)
		require.Eventually(t, func() bool { return views.count(t, "k") == 4 }, 20*time.Second, 10*time.Millisecond)
		third.stop(t)
	}
}

func runShareScenarios(t *testing.T, c cluster) {
	for name, scenario := range map[string]func(*testing.T, cluster){
		"OtherName": shareOtherName, "Race": shareRace, "Source": shareSource,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scenario(t, c)
		})
	}
}

func TestShareOnFakeCluster(t *testing.T) {
	t.Parallel()
	c := fakeCluster(t)
	t.Run("", func(t *testing.T) { runShareScenarios(t, c) })
}
