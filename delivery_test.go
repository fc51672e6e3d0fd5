package tumble_test

import (
	"fmt"
	"slices"
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
