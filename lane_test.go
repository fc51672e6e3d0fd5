package tumble_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// A batch must not end within a record: what came after it would be taken for
// counted.
func TestBatchesAreSealedBetweenRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		for r := range 5 {
			var events []tumble.Event
			for i := range 1700 * (r + 1) {
				events = append(events, at(0, fmt.Sprint(r, "-", i)))
			}
			topic.Change("a", func(l *faketest.Log) { l.Append(events...) })
		}
		counted := int64(0)
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if b != nil {
				counted += int64(len(b.Deltas))
				n := b.To.Offset
				require.Equal(t, 1700*n*(n+1)/2, counted, "up to offset %d", n)
			}
			return faketest.Fine
		})
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink})
		require.NoError(t, <-p.Done)
		require.Len(t, sink.Counts(), 1700*15)
	})
}

func TestQuietLanesWriteTheirCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		var key string // of shard 0
		for i := 0; tumble.Hash(key)%2 != 0 || key == ""; i++ {
			key = fmt.Sprint("key-", i)
		}
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, Idle: -1})
		time.Sleep(100 * time.Millisecond)
		topic.Add("a", at(0, key))
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 1, sink.Stored(0, "a").Offset)
		require.EqualValues(t, 1, sink.Stored(1, "a").Offset, "the first watermark is written at once")
		topic.Add("a", at(1, key))
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 1, sink.Stored(1, "a").Offset, "nothing new to say")
		topic.Add("a", at(60, key))
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 3, sink.Stored(1, "a").Offset, "a window has closed")
		topic.Add("a", at(61, key))
		time.Sleep(6 * time.Second)
		require.EqualValues(t, 4, sink.Stored(1, "a").Offset, "5 seconds")
		topic.Add("a", slices.Repeat([]tumble.Event{at(62, key)}, 10_000)...)
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 10_004, sink.Stored(1, "a").Offset, "10,000 offsets")
		require.NoError(t, p.Stop())
	})
}

// One flush that came while a batch was under way must not make every later
// batch leave at once.
func TestFlushesAtTheIntervalAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: &slowSink{sink, 3 * time.Millisecond, time.Now().Add(time.Second)}, FlushInterval: 100 * time.Millisecond})
		for i := range 10_000 {
			topic.Add("a", at(0, fmt.Sprint(i%100)))
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, p.Stop())
		require.Less(t, p.Stats().Flushes, int64(150), "10 seconds, 10 flushes a second")
	})
}

// A slowSink takes a while for each batch, and half a second in the beginning.
type slowSink struct {
	*faketest.Store
	d    time.Duration
	slow time.Time
}

func (s *slowSink) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.Store.Open(ctx, def)
	for i := range shards {
		shards[i] = slowShard{shards[i], s}
	}
	return shards, err
}

type slowShard struct {
	tumble.Shard
	s *slowSink
}

func (s slowShard) Apply(ctx context.Context, b tumble.Batch) error {
	time.Sleep(s.s.d)
	if time.Now().Before(s.s.slow) {
		time.Sleep(500 * time.Millisecond)
	}
	return s.Shard.Apply(ctx, b)
}
