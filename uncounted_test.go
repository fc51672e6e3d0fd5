package tumble_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// uncounted returns the partitions of which a process says that nobody counts them.
func uncounted(p *faketest.Process) (ids []string) {
	for _, s := range p.Stats().Partitions {
		if s.Uncounted {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// feed appends an event a second, of the time that it is, until the test ends.
func feed(ctx context.Context, topic *faketest.Topic, id string) {
	for ; ctx.Err() == nil; wait(ctx, time.Second) {
		topic.Add(id, tumble.Event{Key: "k", Time: time.Now()})
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func TestEveryProcessSaysWhichPartitionsNobodyCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("busy", "silent", "left", "never"), faketest.NewStore(3)
		var log bytes.Buffer
		logger := slog.New(slog.NewTextHandler(&log, nil))
		start := func(own ...string) *faketest.Process {
			return faketest.Start(t, tumble.Config{
				Source: &faketest.Source{Topic: topic, Own: own}, Sink: sink, Logger: logger,
			})
		}
		feeding, full := context.WithCancel(t.Context())
		defer full()
		for _, id := range []string{"busy", "left"} {
			go feed(feeding, topic, id)
		}
		topic.Add("silent", tumble.Event{Key: "k", Time: time.Now()})
		one, two := start("busy"), start("silent", "left")

		time.Sleep(uncountedSoon)
		require.Empty(t, uncounted(one), "a process may still come")
		time.Sleep(3 * time.Minute)
		require.Equal(t, []string{"never"}, uncounted(one), "but not a silent one that is counted")
		require.Equal(t, []string{"never"}, uncounted(two))
		require.Equal(t, 2, strings.Count(log.String(), "nobody counts"), "each process says it once: %s", log.String())
		require.Contains(t, log.String(), "partitions=[never]")

		require.NoError(t, two.Stop())
		time.Sleep(4 * time.Minute)
		require.Equal(t, []string{"left", "never", "silent"}, uncounted(one))
		for _, s := range one.Stats().Partitions {
			if s.ID == "left" {
				require.Positive(t, s.Offset, "it is where it was left")
				require.False(t, s.Watermark.IsZero())
				require.EqualValues(t, -1, s.End)
			}
		}
		require.Equal(t, 3, strings.Count(log.String(), "nobody counts"), log.String())

		three := start("left", "never", "silent")
		time.Sleep(30 * time.Second)
		require.Empty(t, uncounted(one), "they are counted again")
		require.Len(t, three.Stats().Partitions, 3)
		full()
		require.NoError(t, one.Stop())
		require.NoError(t, three.Stop())
	})
}

// uncountedSoon is too short for a verdict.
const uncountedSoon = 55 * time.Second

// A partition whose process reads old events holds windows open, and is counted.
func TestOneThatCatchesUpIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("new", "old"), faketest.NewStore(2)
		feeding, full := context.WithCancel(t.Context())
		defer full()
		go feed(feeding, topic, "new")
		go func() {
			for ; feeding.Err() == nil; wait(feeding, 5*time.Second) {
				topic.Add("old", tumble.Event{Key: "k", Time: time.Now().Add(-24 * time.Hour)})
			}
		}()
		one := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Own: []string{"new"}}, Sink: sink})
		two := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Own: []string{"old"}}, Sink: sink})
		for range 60 {
			time.Sleep(5 * time.Second)
			require.Empty(t, uncounted(one))
		}
		full()
		require.NoError(t, one.Stop())
		require.NoError(t, two.Stop())
	})
}

// A process may restart at leisure as long as no window waits for it.
func TestNoWindowWaitsYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(2)
		feeding, full := context.WithCancel(t.Context())
		defer full()
		go feed(feeding, topic, "a")
		go feed(feeding, topic, "b")
		start := func(own string) *faketest.Process {
			return faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Own: []string{own}}, Sink: sink, Window: tumble.Window{Size: time.Hour}})
		}
		a, b := start("a"), start("b")
		time.Sleep(10 * time.Second)
		require.NoError(t, b.Stop())
		time.Sleep(59 * time.Minute)
		require.Empty(t, uncounted(a))
		time.Sleep(3 * time.Minute)
		require.Equal(t, []string{"b"}, uncounted(a))
		full()
		require.NoError(t, a.Stop())
	})
}

// Where nothing is promised of a silent partition, nothing tells it from one that
// nobody counts. And one that has ended holds nobody up.
func TestSilentWithoutPromisesOrEndedIsNotUncounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, idle := range []time.Duration{-1, 10 * time.Second} {
			topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(2)
			topic.Add("b", tumble.Event{Key: "k", Time: time.Now()})
			feeding, full := context.WithCancel(t.Context())
			go feed(feeding, topic, "a")
			b := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Own: []string{"b"}}, Sink: sink.Defined()})
			time.Sleep(time.Second)
			require.NoError(t, b.Stop())
			if idle >= 0 {
				require.NoError(t, tumble.EndPartition(t.Context(), sink.Defined(), "b"))
			}
			a := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic.Only("a")}, Sink: sink, Idle: idle})
			time.Sleep(5 * time.Minute)
			require.Empty(t, uncounted(a), "Idle %v", idle)
			full()
			require.NoError(t, a.Stop())
		}
	})
}

// What holds up reading is told once, and stays in the books while it lasts.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic := faketest.NewTopic("a", "b", "c")
		var log bytes.Buffer
		source := &waiting{Source: &faketest.Source{Topic: topic}}
		p := faketest.Start(t, tumble.Config{Source: source, Sink: faketest.NewStore(1), Logger: slog.New(slog.NewTextHandler(&log, nil))})
		waits := func() (all []string) {
			for _, s := range p.Stats().Partitions {
				all = append(all, s.Waits)
			}
			return all
		}
		time.Sleep(time.Minute)
		require.Equal(t, []string{"", "", ""}, waits())
		source.why.Store("a quota")
		time.Sleep(time.Minute)
		require.Equal(t, []string{"a quota", "a quota", "a quota"}, waits())
		require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), log.String())
		require.Contains(t, log.String(), `for="a quota"`)
		source.why.Store("")
		time.Sleep(time.Second)
		require.Equal(t, []string{"", "", ""}, waits())
		require.NoError(t, p.Stop())
	})
}

// waiting is a source that says why nothing comes.
type waiting struct {
	*faketest.Source
	why atomic.Value // a string
}

func (s *waiting) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return s.Source.Run(ctx, func(ctx context.Context, p tumble.Partition) error { return consume(ctx, held{p, s}) })
}

type held struct {
	tumble.Partition
	s *waiting
}

func (h held) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	ch, err := h.Partition.Fetch(ctx, from)
	ch.Waits, _ = h.s.why.Load().(string)
	return ch, err
}
