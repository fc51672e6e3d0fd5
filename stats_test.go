package tumble_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// The books of a second run are its own, also where the first left some of what
// it read.
func TestBooksOfASecondRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", at(0, "x"), at(0, "y"))
		sink.SetFault(func(shard int, b *tumble.Batch) faketest.Fault {
			if b != nil {
				return faketest.Refused
			}
			return faketest.Fine
		})
		p, err := tumble.New(tumble.Config{
			Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink, Logger: quiet,
			Window: tumble.Window{Size: time.Minute}, ShutdownTimeout: time.Second,
		})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, p.Run(ctx))
		require.EqualValues(t, 2, p.Stats().Pending)
		sink.SetFault(nil)
		require.NoError(t, p.Run(t.Context()))
		books := p.Stats()
		require.Equal(t, []int64{2, 2, 0, 0}, []int64{books.Read, books.Counted, books.Pending, books.Increments})
	})
}

// What was counted and is then lost by the store, beside a gap that was booked
// before, is lost as well.
func TestLostBeforeAGapThatWasBooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		for range 50 {
			topic.Add("a", at(0, "x"))
		}
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink})
		empty := sink.Snapshot(0)
		time.Sleep(time.Second)
		topic.Change("a", func(l *faketest.Log) {
			for range 50 {
				l.Append(at(0, "gone"))
			}
			l.First = 100
		})
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 50, p.Stats().Lost)
		sink.Restore(0, empty)
		time.Sleep(10 * time.Second)
		require.NoError(t, p.Stop())
		require.Empty(t, sink.Counts())
		require.EqualValues(t, 100, p.Stats().Lost, "the first 50 cannot be read again either")
	})
}

func TestMaxPendingStopsReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(2)
		topic.Rand = rand.New(rand.NewPCG(1, 1))
		var events []tumble.Event
		for i := range 20_000 {
			events = append(events, at(float64(i)/1000, fmt.Sprint("key-", i)))
		}
		topic.Add("a", events...)
		topic.Add("b", events...)
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if b != nil {
				return faketest.Refused
			}
			return faketest.Fine
		})
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, MaxPending: 5000})
		time.Sleep(time.Minute)
		s := p.Stats()
		require.GreaterOrEqual(t, s.Increments, int64(5000))
		require.Less(t, s.Increments, int64(5200), "at most a chunk of each partition beyond the limit")
		require.Error(t, s.Partitions[0].Err)
		sink.SetFault(nil)
		time.Sleep(time.Minute)
		require.NoError(t, p.Stop())
		require.EqualValues(t, 40_000, p.Stats().Counted)
		require.Len(t, sink.Counts(), 20_000)
	})
}

// Long keys fill what MaxPending allows before their number does.
func TestLongKeysStopReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Rand = rand.New(rand.NewPCG(1, 1))
		for i := range 3000 {
			topic.Add("a", at(float64(i)/1000, fmt.Sprintf("%01000d", i)))
		}
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if b != nil {
				return faketest.Refused
			}
			return faketest.Fine
		})
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, MaxPending: 4000})
		time.Sleep(time.Minute)
		s := p.Stats()
		require.GreaterOrEqual(t, s.KeyBytes, int64(4000*256))
		require.Less(t, s.KeyBytes, int64(4000*256+200*1000), "at most a chunk beyond the limit")
		require.Equal(t, s.KeyBytes, 1000*s.Increments)
		sink.SetFault(nil)
		time.Sleep(time.Minute)
		require.NoError(t, p.Stop())
		s = p.Stats()
		require.EqualValues(t, 3000, s.Counted)
		require.Zero(t, s.KeyBytes)
	})
}

// An event whose key is too long is rejected and told, now and then, in the log.
func TestLongKeysAreRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		for i := range 1000 {
			topic.Add("a", at(0, fmt.Sprintf("%011d", i)), at(0, fmt.Sprintf("%010d", i)))
		}
		var log strings.Builder
		p := faketest.Start(t, tumble.Config{
			Source: &faketest.Source{Topic: topic}, Sink: sink, MaxKey: 10,
			Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		time.Sleep(time.Second)
		require.NoError(t, p.Stop())
		s := p.Stats()
		faketest.Balanced(t, s)
		require.EqualValues(t, 1000, s.Rejected)
		require.EqualValues(t, 1000, s.Counted)
		require.Len(t, sink.Counts(), 1000)
		require.Equal(t, 1, strings.Count(log.String(), "its key is too long"), log.String())
	})
}

// A partition that holds nothing waits for room that others fill, and goes on as
// soon as they are done.
func TestRoomIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(1)
		held := make(chan struct{})
		source := holding{sink, held}
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: source, MaxPending: 10})
		time.Sleep(time.Second)
		for i := range 20 {
			topic.Add("a", at(0, fmt.Sprint("key-", i)))
		}
		time.Sleep(time.Second)
		topic.Add("b", at(0, "x"), at(0, "y"))
		time.Sleep(time.Second)
		topic.Add("b", at(0, "z"))
		time.Sleep(5500 * time.Millisecond) // between two polls
		require.LessOrEqual(t, sink.Stored(0, "b").Offset, int64(2))
		close(held)
		time.Sleep(500 * time.Millisecond)
		require.EqualValues(t, 3, sink.Stored(0, "b").Offset)
		require.NoError(t, p.Stop())
	})
}

// holding is a sink that holds up partition a.
type holding struct {
	*faketest.Store
	held chan struct{}
}

func (h holding) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := h.Store.Open(ctx, def)
	return []tumble.Shard{holdingShard{shards[0], h.held}}, err
}

type holdingShard struct {
	tumble.Shard
	held chan struct{}
}

func (h holdingShard) Apply(ctx context.Context, b tumble.Batch) error {
	if b.Partition == "a" {
		<-h.held
	}
	return h.Shard.Apply(ctx, b)
}
