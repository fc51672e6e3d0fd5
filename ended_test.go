package tumble_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// ender counts "gone" once and never again, while "a" goes on in a pipeline that
// does not know of it.
func ender(t *testing.T) (sink *store, p *process, log *topic) {
	both := newTopic("a", "gone")
	both.add("gone", at(10, "x"))
	both.add("a", at(10, "x"))
	sink = newStore(3)
	first := start(t, tumble.Config{Source: &logSource{topic: both}, Sink: sink, Idle: -1, DropLate: true})
	time.Sleep(time.Second)
	require.NoError(t, first.stop())
	log = &topic{parts: map[string]*logPart{"a": both.parts["a"]}}
	p = start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, Idle: -1, DropLate: true})
	log.add("a", at(100, "x"))
	time.Sleep(time.Second)
	return sink, p, both
}

func closed(sink *store, shard int) time.Time { return sink.def.ClosedAt(sink.frontier(shard)) }

func TestEndPartitionReleasesWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, _ := ender(t)
		require.False(t, closed(sink, 0).After(t0))
		began := time.Now()
		require.NoError(t, tumble.EndPartition(t.Context(), definedSink{sink, nil}, "gone"))
		require.Equal(t, 15*time.Second, time.Since(began))
		for i := range sink.shards {
			require.True(t, sink.stored(i, "gone").Ended)
			require.True(t, closed(sink, i).Equal(t0.Add(time.Minute)), "%v", closed(sink, i))
		}
		require.NoError(t, tumble.EndPartition(t.Context(), definedSink{sink, nil}, "gone"), "nothing is left to do")
		require.ErrorContains(t, tumble.EndPartition(t.Context(), definedSink{sink, nil}, "never"), "tumble: end never: shard 0 knows no such partition")
		require.NoError(t, p.stop())
	})
}

// A pipeline objects to the end of a partition that its source has, also while
// another process, or none, reads it.
func TestEndPartitionIsObjectedTo(t *testing.T) {
	for _, own := range [][]string{{"a", "gone"}, {"a"}} {
		t.Run(fmt.Sprint(own), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink, p, both := ender(t)
				other := start(t, tumble.Config{Source: &logSource{topic: both, own: own}, Sink: sink, Idle: -1, DropLate: true})
				time.Sleep(time.Second)
				err := tumble.EndPartition(t.Context(), definedSink{sink, nil}, "gone")
				require.ErrorIs(t, err, tumble.ErrObjected)
				for i := range sink.shards {
					require.False(t, sink.stored(i, "gone").Ended, "shard %d", i)
				}
				require.NoError(t, other.stop())
				// What was objected to is no objection to the next.
				require.NoError(t, tumble.EndPartition(t.Context(), definedSink{sink, nil}, "gone"))
				require.NoError(t, p.stop())
			})
		})
	}
}

// A partition that moves on between the ender's look and its step has a reader,
// whatever became of that one's objections.
func TestEndPartitionOfOneThatMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, _ := ender(t)
		done := make(chan error)
		go func() { done <- tumble.EndPartition(t.Context(), definedSink{sink, nil}, "gone") }()
		time.Sleep(14 * time.Second)
		sink.setFault(func(shard int, b *tumble.Batch) fault {
			if shard == 1 && b != nil && b.Token != 0 {
				c := sink.shards[1].stored["gone"]
				c.Offset++
				sink.shards[1].stored["gone"] = c
			}
			return fine
		})
		err := <-done
		require.ErrorIs(t, err, tumble.ErrConflict)
		require.ErrorContains(t, err, "tumble: end gone: shard 1: ")
		require.ErrorContains(t, err, "(it has ended in the shards [0])")
		require.NoError(t, p.stop())
	})
}

func TestEndPartitionGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, _ := ender(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.ErrorIs(t, tumble.EndPartition(ctx, definedSink{sink, nil}, "gone"), context.DeadlineExceeded)
		require.False(t, sink.stored(0, "gone").Ended)
		require.NoError(t, p.stop())
	})
}

// What a reader was told is final stays so, also if a partition goes on that was
// taken for gone.
func TestAnEndedPartitionGoesOnAtTheFrontier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, both := ender(t)
		require.NoError(t, tumble.EndPartition(t.Context(), definedSink{sink, nil}, "gone"))
		window := cell{t0.UnixNano(), "x"}
		was := sink.counts()[window]
		again := start(t, tumble.Config{Source: &logSource{topic: both, own: []string{"gone"}}, Sink: sink, Idle: -1, DropLate: true})
		time.Sleep(10 * time.Second)
		require.True(t, sink.stored(0, "gone").Ended, "as long as nothing comes nobody waits for it")
		both.change("gone", func(p *logPart) { p.skip(rejected) })
		both.add("gone", at(30, "x"), at(110, "x"), at(110, "y"))
		time.Sleep(time.Second)
		require.NoError(t, again.stop())
		require.NoError(t, p.stop())
		s := again.Stats()
		balanced(t, s)
		require.EqualValues(t, 1, s.DroppedLate)
		require.EqualValues(t, 2, s.Counted)
		require.EqualValues(t, 1, s.Rejected)
		require.Zero(t, s.Conflicts)
		require.Equal(t, was, sink.counts()[window])
		require.EqualValues(t, 2, sink.counts()[cell{t0.Add(time.Minute).UnixNano(), "x"}])
		for i := range sink.shards {
			c := sink.stored(i, "gone")
			require.False(t, c.Ended)
			require.False(t, c.Watermark.Before(t0.Add(100*time.Second)), "%v", c)
			require.False(t, closed(sink, i).Before(t0.Add(time.Minute)))
		}
	})
}

// The frontier moves on between the look of a partition that goes on and its
// step: the shard refuses, and it tries again, without a word about rivals.
func TestAFrontierThatPassesARevival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, both := ender(t)
		require.NoError(t, tumble.EndPartition(t.Context(), definedSink{sink, nil}, "gone"))
		require.NoError(t, p.stop())
		again := start(t, tumble.Config{Source: &logSource{topic: both, own: []string{"gone"}}, Sink: sink, Idle: -1, DropLate: true})
		time.Sleep(time.Second)
		passed := 0
		sink.setFault(func(shard int, b *tumble.Batch) fault {
			if b == nil || b.Partition != "gone" || !b.From.Ended || passed >= 5 || shard != 0 {
				return fine
			}
			passed++
			c := sink.shards[0].stored["a"]
			c.Watermark = c.Watermark.Add(time.Minute)
			sink.shards[0].stored["a"] = c
			return fine
		})
		both.add("gone", at(390, "x"), at(1000, "x"))
		time.Sleep(2 * time.Second)
		require.Equal(t, 5, passed)
		require.NoError(t, again.stop())
		require.Zero(t, again.Stats().Conflicts)
		for i := range sink.shards {
			c := sink.stored(i, "gone")
			require.False(t, c.Ended)
			require.EqualValues(t, 3, c.Offset)
			require.False(t, sink.frontier(0).Before(t0.Add(400*time.Second)), "%v", sink.frontier(0))
		}
	})
}
