package tumble_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// Reading goes back for one lane; what the other lanes have seen must neither
// make the events late that were on time, nor let events in that were late.
func TestReplayJudgesAsBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 3))
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(4)
		events := faketest.Several(rng, 3000, 0)
		topic.Add("a", events...)
		topic.Rand = rng
		cfg := tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink, DropLate: true, Grace: 5 * time.Second}
		p := faketest.Start(t, cfg)
		require.NoError(t, <-p.Done)
		want := sink.Counts()
		require.NotZero(t, p.Stats().DroppedLate)

		faults := rand.New(rand.NewPCG(4, 4)) // rng is the topic's
		again := faketest.NewStore(4)
		again.SetFault(func(shard int, b *tumble.Batch) faketest.Fault {
			if b != nil && faults.IntN(4) == 0 {
				old := again.Shards[shard].Clone()
				time.AfterFunc(time.Duration(faults.IntN(300))*time.Millisecond, func() { again.Restore(shard, old) })
			}
			return faketest.Fine
		})
		cfg.Sink, cfg.Source = again, &faketest.Source{Topic: topic}
		cfg.FlushInterval = 10 * time.Millisecond
		cfg.Idle = -1 // promises are not in the log
		p = faketest.Start(t, cfg)
		time.Sleep(20 * time.Second)
		again.SetFault(nil)
		time.Sleep(time.Minute)
		require.NoError(t, p.Stop())
		faketest.Balanced(t, p.Stats())
		require.Positive(t, p.Stats().Replayed)
		require.Equal(t, want, again.Counts())
	})
}

// What was ahead of the clock when it was read first is not any more when it is
// read again, for one shard that lost its data. It must not make that shard's
// events late that were on time.
func TestReplayOfWhatWasAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		var events []tumble.Event
		for i := range 100 {
			events = append(events, at(float64(i)/10, fmt.Sprint("key-", i)))
		}
		topic.Add("a", at(3*3600, "ahead"))
		topic.Add("a", events...)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, DropLate: true, Idle: -1})
		time.Sleep(4 * time.Hour)
		want := sink.Counts()
		require.Len(t, want, 101)
		sink.Restore(0, faketest.NewShard())
		time.Sleep(20 * time.Second)
		require.Equal(t, want, sink.Counts())
		require.NoError(t, p.Stop())
	})
}

func TestRetentionGap(t *testing.T) {
	gap := func(t *testing.T, skip bool) (*faketest.Process, *faketest.Store) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", faketest.Several(rand.New(rand.NewPCG(1, 1)), 100, 0)...)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: skip}, Sink: sink, FlushInterval: time.Hour})
		time.Sleep(time.Second)
		// Reading stands at 100 with increments that were never flushed.
		topic.Change("a", func(l *faketest.Log) {
			for range 50 {
				l.Append(at(0, "gone"))
			}
			l.First = 150
		})
		topic.Add("a", at(100, "x"))
		time.Sleep(10 * time.Second)
		return p, sink
	}
	t.Run("skipped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, sink := gap(t, true)
			require.NoError(t, p.Stop())
			s := p.Stats()
			faketest.Balanced(t, s)
			require.EqualValues(t, 50, s.Lost, "each offset once, not once a shard")
			require.EqualValues(t, 101, s.Counted, "what was read before is flushed, not dropped")
			require.EqualValues(t, 151, sink.Stored(0, "a").Offset)
		})
	})
	t.Run("an error", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, _ := gap(t, false)
			require.ErrorContains(t, <-p.Done, "events from 100 to 150 are gone")
			require.EqualValues(t, 100, p.Stats().Counted)
		})
	})
}

func TestAnotherLogIsARebase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(3)
		topic.Add("a", at(100, "x"), at(101, "y"))
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink})
		time.Sleep(time.Second)
		require.NoError(t, p.Stop())
		topic.Change("a", func(l *faketest.Log) { l.Recreate("log-2") })
		topic.Add("a", at(90, "x"), at(5, "late"))
		p = faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink})
		time.Sleep(10 * time.Second)
		require.NoError(t, p.Stop())
		require.Equal(t, map[faketest.Cell]int64{
			faketest.CellAt(t0.Add(time.Minute), "x"): 2,
			faketest.CellAt(t0.Add(time.Minute), "y"): 1,
			faketest.CellAt(t0, "late"):               1,
		}, sink.Counts())
		require.EqualValues(t, 1, p.Stats().Late, "the watermark outlives the log")
		for i := range 3 {
			c := sink.Stored(i, "a")
			require.Equal(t, "log-2", c.Log)
			require.EqualValues(t, 2, c.Offset)
			require.False(t, c.Watermark.Before(t0.Add(101*time.Second)))
		}
	})
}

// One lane finds the new log before the others do: offsets of the two must not
// be compared.
func TestLanesMeetInOneLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		for i := range 20 {
			topic.Add("a", at(0, fmt.Sprint("old-", i)))
		}
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink})
		early := faketest.NewShard()
		early.Checkpoints["a"] = tumble.Checkpoint{Log: "log-1"}
		time.Sleep(300 * time.Millisecond)
		topic.Add("a", at(0, "old-0")) // so that no Fetch returns when the poll comes
		time.Sleep(4550 * time.Millisecond)
		require.Len(t, sink.Counts(), 20)
		topic.ChangeUnnoticed("a", func(l *faketest.Log) {
			l.Recreate("log-2")
			for i := range 30 {
				l.Append(at(0, fmt.Sprint("new-", i)))
			}
		})
		sink.Restore(0, early)
		time.Sleep(20 * time.Second)
		require.NoError(t, p.Stop())
		for i := range 30 {
			require.EqualValues(t, 1, sink.Counts()[faketest.CellAt(t0, fmt.Sprint("new-", i))], "new-%d", i)
		}
	})
}

// A Resume that makes no sense stops the pipeline; what was dropped then must not be
// passed over by the last flush.
func TestAWrongResumeLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		topic.Add("a", at(0, "x"))
		source := &wrongSource{Source: &faketest.Source{Topic: topic}}
		p := faketest.Start(t, tumble.Config{Source: source, Sink: sink})
		time.Sleep(time.Second)
		early := sink.Snapshot(0)
		topic.Add("a", at(0, "y"), at(0, "z"))
		time.Sleep(time.Second)
		source.resume = func(c *tumble.Checkpoint) error { c.Origin = 5; return nil }
		sink.Restore(0, early)
		require.ErrorContains(t, p.Ends(), "which begins elsewhere")
		p = faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink})
		require.NoError(t, <-p.Done)
		require.Equal(t, faketest.Count(tumble.Window{Size: time.Minute}, topic.Log("a").Events), sink.Counts())
	})
}

// A rival is found by the last flush before the end: what it had not counted is
// read again.
func TestAConflictAtTheEndReadsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		topic.Add("a", at(0, "x"), at(1, "y"))
		first := true
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if b != nil && first {
				first = false
				c := tumble.Batch{Partition: "a", Writer: 1, From: b.From, To: b.From, Deltas: []tumble.Delta{{Start: t0, Key: "x", N: 1}}}
				c.To.Offset, c.To.Watermark = 1, t0
				require.NoError(t, sink.ApplyLocked(0, c))
			}
			return faketest.Fine
		})
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink, FlushInterval: time.Hour})
		require.NoError(t, <-p.Done)
		require.Len(t, sink.Counts(), 2)
	})
}

func TestRivalsShareExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(4)
		events := faketest.Several(rand.New(rand.NewPCG(1, 1)), 50_000, 0)
		topic.Add("a", events...)
		topic.Rand = rand.New(rand.NewPCG(2, 2))
		a := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink, FlushInterval: time.Millisecond})
		b := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink, FlushInterval: time.Millisecond})
		require.NoError(t, <-a.Done)
		require.NoError(t, <-b.Done)
		require.Equal(t, faketest.Count(tumble.Window{Size: time.Minute}, topic.Log("a").Events), sink.Counts())
		require.EqualValues(t, 50_000, a.Stats().Counted+b.Stats().Counted)
		// One gives way: without that every batch of either is contested.
		s, u := a.Stats(), b.Stats()
		require.Less(t, s.Conflicts+u.Conflicts, (s.Flushes+u.Flushes)/5, "%+v %+v", s, u)
	})
}

// A log that has ended holds nobody up. Only one that has ended for good closes
// its last window, too: else events of a next run may belong to it.
func TestEnded(t *testing.T) {
	for _, final := range []bool{false, true} {
		t.Run(fmt.Sprint("final ", final), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
				topic.Add("a", at(10, "x"))
				topic.Change("a", func(l *faketest.Log) { l.Ended, l.Final = true, final })
				cfg := tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink}
				p := faketest.Start(t, cfg)
				require.NoError(t, p.Ends())
				end := t0.Add(10 * time.Second)
				if final {
					end = t0.Add(time.Minute)
				}
				// Another run on the same log has nothing to add, however often.
				for range 3 {
					for i := range 2 {
						require.True(t, sink.Stored(i, "a").Ended)
						require.True(t, sink.Stored(i, "a").Watermark.Equal(end), "%v", sink.Stored(i, "a"))
						require.True(t, sink.Frontier(i).Equal(end))
					}
					p = faketest.Start(t, cfg)
					require.NoError(t, p.Ends())
				}
				// A new log goes on at the frontier: what is closed stays so.
				topic.Change("a", func(l *faketest.Log) { l.Recreate("log-2") })
				p = faketest.Start(t, cfg)
				time.Sleep(time.Second)
				for i := range 2 {
					require.Equal(t, "log-2", sink.Stored(i, "a").Log)
					require.True(t, sink.Frontier(i).Equal(end))
				}
				topic.Add("a", at(20, "y"), at(70, "x"))
				time.Sleep(time.Second)
				require.NoError(t, p.Stop())
				require.Equal(t, final, p.Stats().Late == 1)
				require.EqualValues(t, 2, p.Stats().Counted)
			})
		})
	}
}

// A crash came while a channel was being closed: it has ended in one shard only.
func TestHalfEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", at(10, "x"))
		cfg := tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink, Idle: -1}
		p := faketest.Start(t, cfg)
		time.Sleep(time.Second)
		open := sink.Snapshot(1)
		topic.Change("a", func(l *faketest.Log) { l.Ended = true })
		require.NoError(t, <-p.Done)
		sink.Restore(1, open)

		topic.Change("a", func(l *faketest.Log) { l.Recreate("log-2") })
		p = faketest.Start(t, cfg)
		time.Sleep(time.Second)
		require.Equal(t, "log-2", sink.Stored(0, "a").Log)
		require.Equal(t, "log-2", sink.Stored(1, "a").Log)
		require.True(t, sink.Frontier(0).Equal(t0.Add(10*time.Second)), "%v", sink.Frontier(0))
		topic.Add("a", at(20, "x"))
		time.Sleep(time.Second)
		require.NoError(t, p.Stop())
		require.EqualValues(t, 2, sink.Counts()[faketest.CellAt(t0, "x")])
	})
}

// Nobody waited for a partition that was said to be over. If it goes on after
// all, it begins where the others are.
func TestAPartitionThatGoesOnAfterItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(1)
		topic.Add("a", at(10, "x"))
		topic.Add("b", at(10, "x"), at(300, "x"))
		cfg := tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink, DropLate: true, Idle: -1}
		p := faketest.Start(t, cfg)
		require.NoError(t, <-p.Done)
		c := sink.Shards[0].Checkpoints["a"]
		c.Ended = true
		sink.Shards[0].Checkpoints["a"] = c
		require.True(t, sink.Frontier(0).Equal(t0.Add(300*time.Second)))
		topic.Add("a", at(20, "x"), at(301, "x"))
		p = faketest.Start(t, cfg)
		require.NoError(t, <-p.Done)
		require.EqualValues(t, 2, sink.Counts()[faketest.CellAt(t0, "x")], "the window was final")
		require.EqualValues(t, 1, p.Stats().DroppedLate)
	})
}

// What a reader was told is final stays so, also if a partition goes on that was
// taken for gone.
func TestAnEndedPartitionGoesOnAtTheFrontier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, both := ender(t)
		require.NoError(t, tumble.EndPartition(t.Context(), sink.Defined(), "gone"))
		window := faketest.CellAt(t0, "x")
		was := sink.Counts()[window]
		again := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: both, Own: []string{"gone"}}, Sink: sink, Idle: -1, DropLate: true})
		time.Sleep(10 * time.Second)
		require.True(t, sink.Stored(0, "gone").Ended, "as long as nothing comes nobody waits for it")
		both.Change("gone", func(l *faketest.Log) { l.Skip(faketest.Rejected) })
		both.Add("gone", at(30, "x"), at(110, "x"), at(110, "y"))
		time.Sleep(time.Second)
		require.NoError(t, again.Stop())
		require.NoError(t, p.Stop())
		s := again.Stats()
		faketest.Balanced(t, s)
		require.EqualValues(t, 1, s.DroppedLate)
		require.EqualValues(t, 2, s.Counted)
		require.EqualValues(t, 1, s.Rejected)
		require.Zero(t, s.Conflicts)
		require.Equal(t, was, sink.Counts()[window])
		require.EqualValues(t, 2, sink.Counts()[faketest.CellAt(t0.Add(time.Minute), "x")])
		for i := range sink.Shards {
			c := sink.Stored(i, "gone")
			require.False(t, c.Ended)
			require.False(t, c.Watermark.Before(t0.Add(100*time.Second)), "%v", c)
			require.False(t, sink.Closed(i).Before(t0.Add(time.Minute)))
		}
	})
}

// The frontier moves on between the look of a partition that goes on and its
// step: the shard refuses, and it tries again, without a word about rivals.
func TestAFrontierThatPassesARevival(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, both := ender(t)
		require.NoError(t, tumble.EndPartition(t.Context(), sink.Defined(), "gone"))
		require.NoError(t, p.Stop())
		again := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: both, Own: []string{"gone"}}, Sink: sink, Idle: -1, DropLate: true})
		time.Sleep(time.Second)
		passed := 0
		sink.SetFault(func(shard int, b *tumble.Batch) faketest.Fault {
			if b == nil || b.Partition != "gone" || !b.From.Ended || passed >= 5 || shard != 0 {
				return faketest.Fine
			}
			passed++
			c := sink.Shards[0].Checkpoints["a"]
			c.Watermark = c.Watermark.Add(time.Minute)
			sink.Shards[0].Checkpoints["a"] = c
			return faketest.Fine
		})
		both.Add("gone", at(390, "x"), at(1000, "x"))
		time.Sleep(2 * time.Second)
		require.NoError(t, again.Stop())
		require.Equal(t, 5, passed)
		require.Zero(t, again.Stats().Conflicts)
		for i := range sink.Shards {
			c := sink.Stored(i, "gone")
			require.False(t, c.Ended)
			require.EqualValues(t, 3, c.Offset)
			require.False(t, sink.Frontier(0).Before(t0.Add(400*time.Second)), "%v", sink.Frontier(0))
		}
	})
}

// onBothSides returns a store of two shards, one of which stands at offset 40,
// one at 60, and the log that they were counted from.
func onBothSides(t *testing.T) (*faketest.Topic, *faketest.Store) {
	topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
	topic.Add("a", faketest.Several(rand.New(rand.NewPCG(1, 1)), 40, 0)...)
	p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink})
	require.NoError(t, p.Ends())
	behind := sink.Snapshot(0)
	topic.Add("a", faketest.Several(rand.New(rand.NewPCG(2, 1)), 20, 0)...)
	p = faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink})
	require.NoError(t, p.Ends())
	sink.Restore(0, behind)
	require.EqualValues(t, 40, sink.Stored(0, "a").Offset)
	require.EqualValues(t, 60, sink.Stored(1, "a").Offset)
	return topic, sink
}

// A log that is cut at 50 and grows again, with lanes on both sides of the cut:
// what is in the log is counted once, in every shard, and what no longer is stays
// as it was counted.
func TestTruncatedBetweenTheLanes(t *testing.T) {
	for _, grown := range []int{0, 5, 100} {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := onBothSides(t)
			gone := map[faketest.Cell]int64{}
			for _, e := range topic.Log("a").Events[50:] {
				if tumble.Hash(e.Key)%2 == 1 {
					gone[faketest.CellAt(t0, e.Key)]++
				}
			}
			topic.Change("a", func(l *faketest.Log) { l.Truncate(50) })
			topic.Add("a", faketest.Several(rand.New(rand.NewPCG(3, 1)), grown, 0)...)
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink})
			time.Sleep(10 * time.Second)
			topic.Add("a", faketest.Keyed("more", 3)...)
			time.Sleep(time.Second)
			require.NoError(t, p.Stop())
			want := faketest.Count(tumble.Window{Size: time.Minute}, topic.Log("a").Events)
			for c, n := range gone {
				want[c] += n
			}
			require.Equal(t, want, sink.Counts())
			s := p.Stats()
			faketest.Balanced(t, s)
			require.EqualValues(t, 10, s.Lost)
			for i := range 2 {
				c := sink.Stored(i, "a")
				require.EqualValues(t, 53+grown, c.Offset)
				require.EqualValues(t, 1, c.Epoch)
				require.Equal(t, "log-1", c.Log)
			}
		})
	}
}

// A pipeline that runs through it: what was read and not stored is dropped, and
// counted from the log as it is now.
func TestTruncatedWhileItIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		source := &faketest.Source{Topic: topic, SkipGap: true}
		topic.Add("a", faketest.Keyed("stored", 10)...)
		p := faketest.Start(t, tumble.Config{Source: source, Sink: sink, FlushInterval: 3 * time.Second})
		time.Sleep(5 * time.Second)
		topic.Add("a", faketest.Keyed("read", 10)...)
		time.Sleep(500 * time.Millisecond) // read, and not flushed yet
		topic.Change("a", func(l *faketest.Log) { l.Truncate(12) })
		topic.Add("a", faketest.Keyed("new", 30)...)
		time.Sleep(10 * time.Second)
		committed := p.Stats().Partitions[0].Committed
		require.NoError(t, p.Stop())
		require.EqualValues(t, 42, committed)
		require.Equal(t, faketest.Count(tumble.Window{Size: time.Minute}, topic.Log("a").Events), sink.Counts())
		s := p.Stats()
		faketest.Balanced(t, s)
		require.Zero(t, s.Lost, "nothing that was stored is gone")
		require.EqualValues(t, 10, s.Replayed)
	})
}

// Committed falls with the log, and rises again from there.
func TestTruncatedBelowWhatIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", faketest.Keyed("old", 100)...)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink})
		time.Sleep(time.Second)
		require.EqualValues(t, 100, p.Stats().Partitions[0].Committed)
		topic.Change("a", func(l *faketest.Log) { l.Truncate(70) })
		time.Sleep(time.Second)
		require.EqualValues(t, 70, p.Stats().Partitions[0].Committed)
		topic.Add("a", faketest.Keyed("new", 10)...)
		time.Sleep(6 * time.Second) // a quiet lane takes its time
		require.EqualValues(t, 80, p.Stats().Partitions[0].Committed)
		require.NoError(t, p.Stop())
		require.EqualValues(t, 100, sink.Counts()[faketest.CellAt(t0, "old")])
		require.EqualValues(t, 10, sink.Counts()[faketest.CellAt(t0, "new")])
		require.EqualValues(t, 30, p.Stats().Lost)
	})
}

// Twice at the same offsets is twice as much.
func TestTruncatedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, SkipGap: true}, Sink: sink})
		for range 2 {
			topic.Add("a", faketest.Keyed("x", 20)...)
			time.Sleep(time.Second)
			topic.Change("a", func(l *faketest.Log) { l.Truncate(l.End - 20) })
			time.Sleep(time.Second)
		}
		require.NoError(t, p.Stop())
		require.EqualValues(t, 40, sink.Counts()[faketest.CellAt(t0, "x")])
		require.EqualValues(t, 40, p.Stats().Lost)
	})
}

// A lane that is ahead, when reading passes a cut that it has not heard of, must
// not go on as though it had read what is there now.
func TestTruncatedBelowALaneThatIsAhead(t *testing.T) {
	for _, grown := range []int{100, 5} { // beyond the lane's place, and not yet
		synctest.Test(t, func(t *testing.T) {
			topic, sink := onBothSides(t)
			source := &faketest.Source{Topic: topic, SkipGap: true}
			reads := 0
			cut := &wrongSource{Source: source, before: func(from tumble.Position) {
				// Both lanes have resumed, in the log as it was.
				if reads++; reads == 1 {
					topic.Change("a", func(l *faketest.Log) { l.Truncate(50) })
					topic.Add("a", faketest.Several(rand.New(rand.NewPCG(3, 1)), grown, 0)...)
				}
			}}
			p := faketest.Start(t, tumble.Config{Source: cut, Sink: sink})
			time.Sleep(10 * time.Second)
			require.NoError(t, p.Stop())
			for c, n := range faketest.Count(tumble.Window{Size: time.Minute}, topic.Log("a").Events) {
				require.GreaterOrEqual(t, sink.Counts()[c], n, "%v", c)
			}
			require.EqualValues(t, 10, p.Stats().Lost)
			for i := range 2 {
				require.EqualValues(t, 50+grown, sink.Stored(i, "a").Offset)
			}
		})
	}
}

// Told to fail, the source ends the run, and nothing of what is gone is stored on
// the way out.
func TestTruncatedFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", faketest.Keyed("stored", 10)...)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, FlushInterval: 3 * time.Second})
		time.Sleep(5 * time.Second)
		topic.Add("a", faketest.Keyed("read", 10)...)
		time.Sleep(500 * time.Millisecond)
		topic.Change("a", func(l *faketest.Log) { l.Truncate(5) })
		require.ErrorContains(t, p.Ends(), "are gone")
		require.NotContains(t, sink.Counts(), faketest.CellAt(t0, "read"))
		faketest.Balanced(t, p.Stats())
	})
}

// shared is a source whose partitions may belong to another process by now.
type shared struct {
	*faketest.Source
	yield func() bool
}

func (s *shared) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return s.Source.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		return consume(ctx, sharedPartition{p, s.yield})
	})
}

type sharedPartition struct {
	tumble.Partition
	yield func() bool
}

func (p sharedPartition) Yield() bool { return p.yield() }

// Of two processes that count one partition the one that may have lost it stops at its
// first rival, with the counts as if there had been one.
func TestYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		asked := 0
		old := faketest.Start(t, tumble.Config{Sink: sink, Idle: -1, Source: &shared{&faketest.Source{Topic: topic}, func() bool { asked++; return true }}})
		topic.Add("a", at(0, "x"), at(0, "y"))
		time.Sleep(time.Second)
		require.Zero(t, asked)
		owner := faketest.Start(t, tumble.Config{Sink: sink, Idle: -1, FlushInterval: 20 * time.Millisecond, Source: &shared{&faketest.Source{Topic: topic}, func() bool { return false }}})
		for i := range 100 {
			topic.Add("a", at(0, fmt.Sprint(i%7)))
			time.Sleep(30 * time.Millisecond)
		}
		select {
		case err := <-old.Done: // it has nothing to read
			require.NoError(t, err)
		case <-time.After(time.Second):
			require.Fail(t, "it goes on")
		}
		require.Equal(t, 1, asked)
		require.NotZero(t, owner.Stats().Counted)
		require.NoError(t, owner.Stop())
		var n int64
		for _, c := range sink.Counts() {
			n += c
		}
		require.Equal(t, int64(102), n)
	})
}
