package tumble_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

func TestAnswerThatIsLostIsAskedForAgain(t *testing.T) {
	for name, kind := range map[string]faketest.Fault{"applied": faketest.Lost, "not applied": faketest.Refused} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
				topic.Add("a", at(0, "x"), at(1, "x"))
				var sent []tumble.Batch
				sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
					if b == nil {
						return faketest.Fine
					}
					c := *b
					c.Deltas = slices.Clone(b.Deltas)
					if sent = append(sent, c); len(sent) == 1 {
						topic.Add("a", at(0, "x")) // while the answer is awaited
						return kind
					}
					return faketest.Fine
				})
				p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
				time.Sleep(10 * time.Second)
				require.NoError(t, p.Stop())
				require.Equal(t, map[faketest.Cell]int64{faketest.CellAt(t0, "x"): 3}, sink.Counts())
				require.NotEqual(t, sent[0].Writer, sent[1].Writer, "the store may have lost the first")
				require.Equal(t, sent[1].Writer, sent[2].Writer)
				sent[0].Writer = sent[1].Writer
				require.Equal(t, sent[0], sent[1], "the batch is frozen once it was sent")
				s := p.Stats()
				faketest.Balanced(t, s)
				require.EqualValues(t, 3, s.Counted)
				require.Zero(t, s.Replayed)
			})
		})
	}
}

func TestRivalsBatchIsReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		topic.Add("a", at(0, "x"), at(1, "y"))
		first := true
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if b != nil && first {
				first = false // another process sends the same, a moment earlier
				require.NoError(t, sink.ApplyLocked(0, *b))
			}
			return faketest.Fine
		})
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink})
		require.NoError(t, <-p.Done)
		s := p.Stats()
		faketest.Balanced(t, s)
		require.EqualValues(t, 2, s.Replayed)
		require.Zero(t, s.Counted)
		require.EqualValues(t, 1, s.Conflicts)
		require.Len(t, sink.Counts(), 2)
	})
}

func TestADeadShardDoesNotStopTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(4)
		sink.SetFault(func(shard int, b *tumble.Batch) faketest.Fault {
			if shard == 1 && b != nil {
				return faketest.Hung
			}
			return faketest.Fine
		})
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		var events []tumble.Event
		for i := range 400 {
			events = append(events, at(0, fmt.Sprint("key-", i)))
		}
		topic.Add("a", events...)
		time.Sleep(time.Second)
		for i := range 4 {
			require.Equal(t, i != 1, len(sink.Snapshot(i).Counts) > 50, "shard %d", i)
		}
		began := time.Now()
		require.NoError(t, p.Stop())
		require.Equal(t, 10*time.Second, time.Since(began).Round(time.Second), "ShutdownTimeout")
		s := p.Stats()
		faketest.Balanced(t, s)
		require.Positive(t, s.Pending)
		require.Zero(t, s.Increments)
	})
}

// A stop does not wait for a retry that is seconds away, if the store is back.
func TestAStopHurriesRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, ShutdownTimeout: 100 * time.Millisecond})
		time.Sleep(time.Second)
		var tries atomic.Int64
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if b != nil {
				tries.Add(1)
			}
			return faketest.Refused
		})
		topic.Add("a", at(0, "x"))
		time.Sleep(time.Minute)
		for before := tries.Load(); tries.Load() == before; { // just after a try
			time.Sleep(time.Millisecond)
		}
		sink.SetFault(nil)
		require.NoError(t, p.Stop())
		require.Len(t, sink.Counts(), 1)
	})
}

// A stop while pending increments that cannot be read again are flushed must
// not drop them.
func TestStopWhileFlushingWhatCannotBeReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		topic.Add("a", at(0, "x"), at(0, "y"))
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink})
		time.Sleep(time.Second)
		sink.SetFault(func(int, *tumble.Batch) faketest.Fault { return faketest.Refused })
		topic.Add("a", at(0, "v"))
		time.Sleep(time.Second)
		topic.Add("a", at(0, "w")) // while the first is under way
		time.Sleep(time.Second)
		topic.Change("a", func(l *faketest.Log) { l.Append(at(0, "gone")); l.First = 5 })
		time.Sleep(2 * time.Second)
		sink.SetFault(nil)
		p.Cancel()
		require.NoError(t, <-p.Done)
		require.Len(t, sink.Counts(), 4)
	})
}

// A batch names its writer: another one after each settling, so that a store
// that fell back is known by who counts in it.
func TestWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		var writers []uint64
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if b != nil {
				writers = append(writers, b.Writer)
			}
			return faketest.Fine
		})
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, Idle: -1})
		add := func() {
			topic.Add("a", at(0, "x"))
			time.Sleep(time.Second)
		}
		add()
		early := sink.Snapshot(0)
		add()
		sink.Restore(0, early)
		add() // a conflict, and then what was lost
		add()
		require.NoError(t, p.Stop())
		require.Len(t, writers, 5)
		require.Equal(t, writers[0], writers[1])
		require.Equal(t, writers[1], writers[2], "the conflict")
		require.NotEqual(t, writers[2], writers[3])
		require.Equal(t, writers[3], writers[4])
		require.NotContains(t, writers, uint64(0))
	})
}

// A store that is too slow for what it gets, and does what it was given all the
// same, gets no more for it: calls on a shard are bounded, and a call that was
// given up is repeated no sooner than it took.
func TestASlowStoreGetsNoMoreToDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []string
		for i := range 200 {
			ids = append(ids, fmt.Sprint("p-", i))
		}
		topic, sink := faketest.NewTopic(ids...), faketest.NewStore(1)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		time.Sleep(time.Second)
		var calls []time.Time
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if b == nil {
				return faketest.Fine
			}
			calls = append(calls, time.Now())
			return faketest.Overdue
		})
		began := time.Now()
		for _, id := range ids {
			topic.Add(id, at(0, id))
		}
		time.Sleep(time.Minute)
		sink.SetFault(nil)
		for i, call := range calls {
			under := 0 // way, with those that were given up in the last 10 seconds
			for _, before := range calls[:i] {
				if call.Sub(before) < faketest.Timeout {
					under++
				}
			}
			require.Less(t, under, 64, "%v after the start", call.Sub(began))
		}
		require.Greater(t, len(calls), 200)
		sink.Repeat()
		time.Sleep(30 * time.Second)
		require.Len(t, sink.Counts(), 200)
		require.NoError(t, p.Stop())
		faketest.Balanced(t, p.Stats())
		for cell, n := range sink.Counts() {
			require.EqualValues(t, 1, n, cell)
		}
	})
}

// unreadable is a source with one partition, that has a record which cannot be read:
// errors and empty Chunks come by turns.
type unreadable struct {
	faketest.Source
	mended atomic.Bool
	calls  atomic.Int64
}

func (s *unreadable) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return s.Source.Run(ctx, func(ctx context.Context, p tumble.Partition) error { return consume(ctx, stuck{p, s}) })
}

type stuck struct {
	tumble.Partition
	s *unreadable
}

func (p stuck) Fetch(ctx context.Context, at tumble.Position) (tumble.Chunk, error) {
	if p.s.mended.Load() {
		return p.Partition.Fetch(ctx, at)
	}
	if p.s.calls.Add(1)%2 == 0 {
		return tumble.Chunk{}, errors.New("garbled")
	}
	time.Sleep(time.Millisecond)
	return tumble.Chunk{Next: at.Offset, End: at.Offset + 1, AsOf: time.Now()}, nil
}

// Trouble passes with progress, not with a call that happens to succeed, and the log
// is told once when it begins and once when it has passed.
func TestTroubleIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic := faketest.NewTopic("a")
		source := &unreadable{Source: faketest.Source{Topic: topic}}
		var log strings.Builder
		p := faketest.Start(t, tumble.Config{Source: source, Sink: faketest.NewStore(2), Logger: slog.New(slog.NewTextHandler(&log, nil))})
		time.Sleep(time.Second)
		for range 1000 {
			time.Sleep(61 * time.Millisecond)
			require.ErrorContains(t, p.Stats().Partitions[0].Err, "garbled", "throughout")
		}
		require.Less(t, source.calls.Load(), int64(100), "with back-off")
		source.mended.Store(true)
		topic.Add("a", at(0, "x"))
		time.Sleep(20 * time.Second)
		require.NoError(t, p.Stats().Partitions[0].Err)
		require.NoError(t, p.Stop())
		require.Equal(t, 1, strings.Count(log.String(), "partition is in trouble"), log.String())
		require.Equal(t, 1, strings.Count(log.String(), "partition works again"), log.String())
	})
}

// A store that is away brings every partition into trouble: three lines say so, and that
// it has passed. One that is given up meanwhile holds nothing back.
func TestTroubleOfAllIsFewLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []string
		for n := range 200 {
			ids = append(ids, fmt.Sprint("p", n))
		}
		topic, sink := faketest.NewTopic(ids...), faketest.NewStore(2)
		var log strings.Builder
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		away := func(d time.Duration) {
			sink.SetFault(func(int, *tumble.Batch) faketest.Fault { return faketest.Refused })
			for i, id := range ids {
				topic.Add(id, at(float64(i), fmt.Sprint(i)))
			}
			time.Sleep(d)
			sink.SetFault(nil)
			time.Sleep(20 * time.Second)
		}
		time.Sleep(20 * time.Second)
		for range 3 {
			away(2 * time.Minute)
		}
		require.NoError(t, p.Stop())
		require.Equal(t, 6, strings.Count(log.String(), "in trouble"), log.String())
		require.Contains(t, log.String(), "others=199")
		require.Equal(t, 3, strings.Count(log.String(), "works again"), log.String())
		require.LessOrEqual(t, strings.Count(log.String(), "\n"), 10)
	})
}

// Trouble that comes and goes is told of once in 10 seconds at most.
func TestTroubleThatComesAndGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		n := 0
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if n++; b != nil && n%2 == 0 {
				return faketest.Refused
			}
			return faketest.Fine
		})
		var log strings.Builder
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		for i := range 600 {
			topic.Add("a", at(float64(i)/10, "x"))
			time.Sleep(100 * time.Millisecond)
		}
		require.NoError(t, p.Stop())
		require.Greater(t, p.Stats().Retries, int64(100))
		require.LessOrEqual(t, strings.Count(log.String(), "partition is in trouble"), 7, log.String())
		require.LessOrEqual(t, strings.Count(log.String(), "\n"), 14)
	})
}
