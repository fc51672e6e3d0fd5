package tumble_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// Every test below is of one rule, and fails when the rule is taken out.

func TestAnswerThatIsLostIsAskedForAgain(t *testing.T) {
	for name, kind := range map[string]fault{"applied": lost, "not applied": refused} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, sink := newTopic("a"), newStore(1)
				log.add("a", at(0, "x"), at(1, "x"))
				var sent []tumble.Batch
				sink.setFault(func(_ int, b *tumble.Batch) fault {
					if b == nil {
						return fine
					}
					c := *b
					c.Deltas = slices.Clone(b.Deltas)
					if sent = append(sent, c); len(sent) == 1 {
						log.add("a", at(0, "x")) // while the answer is awaited
						return kind
					}
					return fine
				})
				p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
				time.Sleep(10 * time.Second)
				require.NoError(t, p.stop())
				require.Equal(t, map[cell]int64{{t0.UnixNano(), "x"}: 3}, sink.counts())
				require.NotEqual(t, sent[0].Writer, sent[1].Writer, "the store may have lost the first")
				require.Equal(t, sent[1].Writer, sent[2].Writer)
				sent[0].Writer = sent[1].Writer
				require.Equal(t, sent[0], sent[1], "the batch is frozen once it was sent")
				s := p.Stats()
				balanced(t, s)
				require.EqualValues(t, 3, s.Counted)
				require.Zero(t, s.Replayed)
			})
		})
	}
}

func TestRivalsBatchIsReplayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		log.add("a", at(0, "x"), at(1, "y"))
		first := true
		sink.setFault(func(_ int, b *tumble.Batch) fault {
			if b != nil && first {
				first = false // another process sends the same, a moment earlier
				require.NoError(t, sink.shards[0].apply(sink.def, *b))
			}
			return fine
		})
		p := start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink})
		require.NoError(t, <-p.done)
		s := p.Stats()
		balanced(t, s)
		require.EqualValues(t, 2, s.Replayed)
		require.Zero(t, s.Counted)
		require.EqualValues(t, 1, s.Conflicts)
		require.Len(t, sink.counts(), 2)
	})
}

func TestLossOnAQuietTopicIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a", "b"), newStore(3)
		log.add("a", several(rand.New(rand.NewPCG(1, 2)), 500, 0)...)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
		time.Sleep(62 * time.Second) // not when a poll is due, which may then see half of it
		want := sink.counts()
		for i := range sink.shards {
			sink.restore(i, newShard())
		}
		time.Sleep(20 * time.Second)
		require.Equal(t, want, sink.counts())
		require.NoError(t, p.stop())
		balanced(t, p.Stats())
	})
}

// The first shard of which a loss is known has the others looked at, before
// reading goes back.
func TestALossIsReadAgainOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(3)
		log.add("a", several(rand.New(rand.NewPCG(1, 2)), 500, 0)...)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
		time.Sleep(62 * time.Second)
		for i := range sink.shards {
			sink.restore(i, newShard())
		}
		log.add("a", at(0, "one shard hears of it now"))
		time.Sleep(20 * time.Second)
		require.NoError(t, p.stop())
		require.Equal(t, count(tumble.Window{Size: time.Minute}, log.parts["a"].events), sink.counts())
		require.EqualValues(t, 501+501, p.Stats().Read)
	})
}

func TestNoRereadWhileNothingIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(3)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
		for i := range 600 {
			log.add("a", at(float64(i)/10, fmt.Sprint("key-", i%7)))
			time.Sleep(97 * time.Millisecond)
		}
		require.NoError(t, p.stop())
		s := p.Stats()
		require.Zero(t, s.Replayed)
		require.Zero(t, s.Conflicts)
		require.EqualValues(t, 600, s.Counted)
	})
}

// A batch must not end within a record: what came after it would be taken for
// counted.
func TestBatchesAreSealedBetweenRecords(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		for r := range 5 {
			var events []tumble.Event
			for i := range 1700 * (r + 1) {
				events = append(events, at(0, fmt.Sprint(r, "-", i)))
			}
			log.change("a", func(p *logPart) { p.append(events...) })
		}
		counted := int64(0)
		sink.setFault(func(_ int, b *tumble.Batch) fault {
			if b != nil {
				counted += int64(len(b.Deltas))
				n := b.To.Offset
				require.Equal(t, 1700*n*(n+1)/2, counted, "up to offset %d", n)
			}
			return fine
		})
		p := start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink})
		require.NoError(t, <-p.done)
		require.Len(t, sink.counts(), 1700*15)
	})
}

// verdicts counts one partition's events one by one, so that each is judged by
// those before it.
func verdicts(t *testing.T, cfg tumble.Config, events ...tumble.Event) (tumble.Stats, *store, []tumble.Late) {
	t.Helper()
	log, sink := newTopic("a"), newStore(2)
	log.add("a", events...)
	var late []tumble.Late
	cfg.OnLate = func(l tumble.Late) {
		l.Event.Key = string([]byte(l.Event.Key))
		late = append(late, l)
	}
	cfg.Source, cfg.Sink = &logSource{topic: log, untilEnd: true}, sink
	p := start(t, cfg)
	require.NoError(t, <-p.done)
	balanced(t, p.Stats())
	return p.Stats(), sink, late
}

func TestLate(t *testing.T) {
	events := []tumble.Event{at(0, "x"), at(70, "y"), at(59, "late"), at(80, "y")}
	t.Run("counted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, sink, late := verdicts(t, tumble.Config{}, events...)
			require.EqualValues(t, 4, s.Counted)
			require.EqualValues(t, 1, s.Late)
			require.EqualValues(t, 1, sink.counts()[cell{t0.UnixNano(), "late"}])
			require.Equal(t, []tumble.Late{{Partition: "a", Event: tumble.Event{Key: "late", Time: t0.Add(59 * time.Second), Offset: 2}, Start: t0, End: t0.Add(time.Minute), Watermark: t0.Add(70 * time.Second), Counted: true}}, late)
		})
	})
	t.Run("dropped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, sink, late := verdicts(t, tumble.Config{DropLate: true}, events...)
			require.EqualValues(t, 3, s.Counted)
			require.EqualValues(t, 1, s.DroppedLate)
			require.Zero(t, sink.counts()[cell{t0.UnixNano(), "late"}])
			require.Len(t, late, 1)
			require.False(t, late[0].Counted)
		})
	})
	t.Run("within grace", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, _, late := verdicts(t, tumble.Config{DropLate: true, Grace: 11 * time.Second}, events...)
			require.EqualValues(t, 4, s.Counted)
			require.Zero(t, s.Late)
			require.Empty(t, late)
		})
	})
	t.Run("grace is over when the watermark reaches it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, _, _ := verdicts(t, tumble.Config{DropLate: true, Grace: 10 * time.Second}, events...)
			require.EqualValues(t, 1, s.DroppedLate)
		})
	})
	t.Run("expired", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			seconds := func(s int) int64 { return t0.Add(time.Duration(s) * time.Second).UnixNano() }
			s, sink, late := verdicts(t, tumble.Config{Window: tumble.Window{Size: 10 * time.Second}, Retention: 10 * time.Second}, events...)
			require.EqualValues(t, 3, s.Counted)
			require.EqualValues(t, 1, s.Expired)
			require.Equal(t, map[cell]int64{{seconds(70), "y"}: 1, {seconds(80), "y"}: 1}, sink.counts(), "the first window is past retention")
			require.True(t, late[0].Expired)
			require.False(t, late[0].Counted)
		})
	})
}

func TestOneBrokenClockDoesNotMakeTheRestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, sink, _ := verdicts(t, tumble.Config{DropLate: true}, at(0, "x"), at(3*3600, "ahead"), at(1, "x"))
		require.EqualValues(t, 3, s.Counted)
		require.EqualValues(t, 1, s.Ahead)
		require.EqualValues(t, 2, sink.counts()[cell{t0.UnixNano(), "x"}])
		require.EqualValues(t, 1, sink.counts()[cell{t0.Add(3 * time.Hour).UnixNano(), "ahead"}])
		require.True(t, sink.stored(0, "a").Watermark.Equal(t0.Add(time.Second)))
	})
}

// Of a partition whose every event was beyond MaxAhead no window would ever
// close: once the clock has passed them they say how far event time is, if nothing
// comes that says more.
func TestTheClockPassesWhatWasAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		log.add("a", at(3*3600, "ahead"), at(3*3600-30, "ahead"))
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, DropLate: true})
		time.Sleep(3*time.Hour - time.Minute)
		require.True(t, sink.stored(0, "a").Watermark.IsZero(), "%v", sink.stored(0, "a"))
		time.Sleep(time.Minute + 5*time.Second)
		w := sink.stored(0, "a").Watermark
		require.True(t, w.Equal(t0.Add(3*time.Hour)), "%v", w)
		time.Sleep(2 * time.Minute)
		require.False(t, closed(sink, 0).Before(t0.Add(3*time.Hour+time.Minute)), "%v", closed(sink, 0))
		require.NoError(t, p.stop())
		require.EqualValues(t, 2, p.Stats().Ahead)
	})
}

// A busy partition goes by what it reads: the clock says nothing there.
func TestWhatWasAheadSaysNothingToABusyPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		log.add("a", at(2*3600, "ahead"))
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, DropLate: true})
		for range 3 * 3600 * 4 {
			log.add("a", at(1, "x"))
			time.Sleep(250 * time.Millisecond)
		}
		require.True(t, sink.stored(0, "a").Watermark.Equal(t0.Add(time.Second)))
		require.NoError(t, p.stop())
		require.Zero(t, p.Stats().DroppedLate)
	})
}

// Another process, with a shorter Retention, has had windows deleted. That they
// would be kept longer now brings none of them back.
func TestAWindowBelowTheFloorIsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		log.add("a", at(0, "x"), at(600, "x"))
		cfg := tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink, Idle: -1, Retention: time.Minute}
		require.NoError(t, start(t, cfg).ends())
		require.NotContains(t, sink.counts(), cell{t0.UnixNano(), "x"})
		time.Sleep(2 * time.Minute) // no process asks for the shorter one any more
		cfg.Retention = time.Hour
		log.add("a", at(10, "x"), at(599, "x"))
		p := start(t, cfg)
		require.NoError(t, p.ends())
		s := p.Stats()
		balanced(t, s)
		require.EqualValues(t, 1, s.Expired)
		require.EqualValues(t, 1, s.Counted)
		require.NotContains(t, sink.counts(), cell{t0.UnixNano(), "x"})
	})
}

// The same while it runs: the poll tells it of the floor.
func TestAFloorThatRises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		log.add("a", at(0, "x"), at(600, "x"))
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, Idle: -1, Retention: time.Hour})
		time.Sleep(time.Second)
		sink.mu.Lock()
		sink.shards[0].floor = t0.Add(5 * time.Minute)
		sink.mu.Unlock()
		time.Sleep(6 * time.Second)
		log.add("a", at(10, "x"), at(599, "x"))
		time.Sleep(time.Second)
		require.NoError(t, p.stop())
		require.EqualValues(t, 1, p.Stats().Expired)
		require.EqualValues(t, 1, p.Stats().Late)
	})
}

func TestRetentionMayDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		cfg := tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink, Retention: time.Minute}
		require.NoError(t, start(t, cfg).ends())
		cfg.Retention = 0
		require.NoError(t, start(t, cfg).ends())
		cfg.Grace = time.Second
		err := start(t, cfg).ends()
		require.ErrorIs(t, err, tumble.ErrDefinition)
		var differs *tumble.DefinitionError
		require.ErrorAs(t, err, &differs)
		require.Equal(t, time.Second, differs.Wanted.Grace)
		require.Zero(t, differs.Stored.Grace)
		require.ErrorContains(t, err, "under a new name everything is counted from the log")
	})
}

// A batch names its writer: another one after each settling, so that a store
// that fell back is known by who counts in it.
func TestWriters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		var writers []uint64
		sink.setFault(func(_ int, b *tumble.Batch) fault {
			if b != nil {
				writers = append(writers, b.Writer)
			}
			return fine
		})
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, Idle: -1})
		add := func() {
			log.add("a", at(0, "x"))
			time.Sleep(time.Second)
		}
		add()
		early := sink.snapshot(0)
		add()
		sink.restore(0, early)
		add() // a conflict, and then what was lost
		add()
		require.NoError(t, p.stop())
		require.Len(t, writers, 5)
		require.Equal(t, writers[0], writers[1])
		require.Equal(t, writers[1], writers[2], "the conflict")
		require.NotEqual(t, writers[2], writers[3])
		require.Equal(t, writers[3], writers[4])
		require.NotContains(t, writers, uint64(0))
	})
}

// A source that is stopped before anything began may hold events all the same: it
// is run, and tells.
func TestASourceTellsWhatIsLostThoughNothingBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := newStore(1)
		sink.setFault(func(int, *tumble.Batch) fault { return refused })
		p := start(t, tumble.Config{Source: forgetful{&logSource{topic: newTopic("a")}}, Sink: sink})
		time.Sleep(time.Second)
		require.ErrorIs(t, p.stop(), errFault)
	})
}

// forgetful loses events whenever it is stopped.
type forgetful struct{ *logSource }

func (f forgetful) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	if err := f.logSource.Run(ctx, consume); err != nil {
		return err
	}
	return errFault
}

// A source whose partitions are shared out by a group is told where the sink
// counts.
func TestASharerIsToldTheIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := &sharer{logSource: &logSource{topic: newTopic("a"), untilEnd: true}}
		require.NoError(t, start(t, tumble.Config{Source: source, Sink: named{newStore(1)}}).ends())
		require.Equal(t, "clicks", source.told.Name)
		source.told = tumble.Identity{}
		require.NoError(t, start(t, tumble.Config{Source: source, Sink: newStore(1)}).ends())
		require.Equal(t, tumble.Identity{}, source.told, "this sink has none")
	})
}

type sharer struct {
	*logSource
	ask  func(context.Context) (tumble.Identity, error)
	told tumble.Identity
}

func (s *sharer) Share(identity func(context.Context) (tumble.Identity, error)) { s.ask = identity }

func (s *sharer) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (all map[string]tumble.Checkpoint, err error) {
	if s.ask != nil {
		s.told, err = s.ask(ctx)
		s.ask = nil
	}
	if err != nil {
		return nil, err
	}
	return s.logSource.Partitions(ctx, stored)
}

type named struct{ *store }

func (n named) Identity(context.Context) (tumble.Identity, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return tumble.Identity{Name: "clicks", Definition: n.def}, nil
}

func TestEventTimesOutOfRangeAreRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := func(year int) tumble.Event {
			return tumble.Event{Key: "x", Time: time.Date(year, 12, 31, 23, 59, 59, 0, time.UTC)}
		}
		s, sink, _ := verdicts(t, tumble.Config{}, old(1699), tumble.Event{Key: "x"}, old(2200), tumble.Event{Key: "x", Time: time.Unix(1<<60, 0)}, old(1700), at(0, "x"))
		require.EqualValues(t, 4, s.Rejected)
		require.EqualValues(t, 2, s.Counted)
		require.Len(t, sink.counts(), 2)
		require.True(t, sink.stored(0, "a").Watermark.Equal(t0))
	})
}

// Reading goes back for one lane; what the other lanes have seen must neither
// make the events late that were on time, nor let events in that were late.
func TestReplayJudgesAsBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 3))
		log, sink := newTopic("a"), newStore(4)
		events := several(rng, 3000, 0)
		log.add("a", events...)
		log.rng = rng
		cfg := tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink, DropLate: true, Grace: 5 * time.Second}
		p := start(t, cfg)
		require.NoError(t, <-p.done)
		want := sink.counts()
		require.NotZero(t, p.Stats().DroppedLate)

		faults := rand.New(rand.NewPCG(4, 4)) // rng is the topic's
		again := newStore(4)
		again.setFault(func(shard int, b *tumble.Batch) fault {
			if b != nil && faults.IntN(4) == 0 {
				old := again.shards[shard].clone()
				time.AfterFunc(time.Duration(faults.IntN(300))*time.Millisecond, func() { again.restore(shard, old) })
			}
			return fine
		})
		cfg.Sink, cfg.Source = again, &logSource{topic: log}
		cfg.FlushInterval = 10 * time.Millisecond
		cfg.Idle = -1 // promises are not in the log
		p = start(t, cfg)
		time.Sleep(20 * time.Second)
		again.setFault(nil)
		time.Sleep(time.Minute)
		require.NoError(t, p.stop())
		balanced(t, p.Stats())
		require.Positive(t, p.Stats().Replayed)
		require.Equal(t, want, again.counts())
	})
}

// What was ahead of the clock when it was read first is not any more when it is
// read again, for one shard that lost its data. It must not make that shard's
// events late that were on time.
func TestReplayOfWhatWasAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		var events []tumble.Event
		for i := range 100 {
			events = append(events, at(float64(i)/10, fmt.Sprint("key-", i)))
		}
		log.add("a", at(3*3600, "ahead"))
		log.add("a", events...)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, DropLate: true, Idle: -1})
		time.Sleep(4 * time.Hour)
		want := sink.counts()
		require.Len(t, want, 101)
		sink.restore(0, newShard())
		time.Sleep(20 * time.Second)
		require.Equal(t, want, sink.counts())
		require.NoError(t, p.stop())
	})
}

// The poll's answer may be older than what was sent meanwhile.
func TestASlowPollIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
		time.Sleep(time.Second)
		sink.setFault(func(_ int, b *tumble.Batch) fault {
			if b == nil {
				return slow
			}
			return fine
		})
		for i := range 300 {
			log.add("a", at(float64(i)/5, fmt.Sprint("key-", i)))
			time.Sleep(200 * time.Millisecond)
		}
		require.NoError(t, p.stop())
		require.Zero(t, p.Stats().Replayed)
		require.EqualValues(t, 300, p.Stats().Counted)
	})
}

func TestIdle(t *testing.T) {
	final := func(sink *store, end time.Time) bool { return !end.After(sink.def.ClosedAt(sink.frontier(0))) }
	t.Run("a silent partition's watermark follows the clock", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log, sink := newTopic("a"), newStore(2)
			log.add("a", at(0, "x"))
			p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
			time.Sleep(60 * time.Second)
			require.False(t, final(sink, t0.Add(time.Minute)))
			time.Sleep(16 * time.Second)
			require.True(t, final(sink, t0.Add(time.Minute)))
			require.NoError(t, p.stop())
		})
	})
	t.Run("never by default of less than Idle, nor when off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log, sink := newTopic("a"), newStore(2)
			log.add("a", at(0, "x"))
			p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, Idle: -1})
			time.Sleep(10 * time.Minute)
			require.True(t, sink.stored(0, "a").Watermark.Equal(t0))
			require.NoError(t, p.stop())
		})
	})
	t.Run("a partition without events follows the others", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log, sink := newTopic("a", "b"), newStore(2)
			p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
			time.Sleep(time.Minute)
			require.True(t, sink.stored(0, "b").Watermark.IsZero(), "nothing is known of event time yet")
			for i := range 60 {
				log.add("a", at(60+float64(i), "x"))
				time.Sleep(time.Second)
			}
			time.Sleep(9 * time.Second) // for both to write where they are
			w := sink.stored(0, "b").Watermark
			require.True(t, w.After(t0.Add(99*time.Second)), "%v", w)
			require.False(t, w.After(t0.Add((119-10)*time.Second)), "Idle behind the last event: %v", w)
			require.NoError(t, p.stop())
		})
	})
	t.Run("not before Idle is over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log, sink := newTopic("a", "b"), newStore(2)
			p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
			time.Sleep(90 * time.Second)
			log.add("b", at(30, "x"))
			synctest.Wait() // else it might follow the others for a moment
			log.add("a", at(89, "x"))
			time.Sleep(8 * time.Second)
			require.True(t, sink.stored(0, "b").Watermark.Equal(t0.Add(30*time.Second)), "%v", sink.stored(0, "b"))
			time.Sleep(8 * time.Second)
			require.True(t, sink.stored(0, "b").Watermark.After(t0.Add(70*time.Second)))
			require.NoError(t, p.stop())
		})
	})
	t.Run("not while the partition is behind", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log, sink := newTopic("a"), newStore(1)
			log.add("a", at(0, "x"), at(1, "x"))
			p := start(t, tumble.Config{Source: behind{&logSource{topic: log}}, Sink: sink})
			time.Sleep(5 * time.Minute)
			require.True(t, sink.stored(0, "a").Watermark.Equal(t0.Add(time.Second)))
			require.NoError(t, p.stop())
		})
	})
}

// behind is a source whose log has more that does not come.
type behind struct{ *logSource }

func (b behind) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return b.logSource.Run(ctx, func(ctx context.Context, p tumble.Partition) error { return consume(ctx, behindPartition{p}) })
}

type behindPartition struct{ tumble.Partition }

func (b behindPartition) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	c, err := b.Partition.Fetch(ctx, from)
	c.End++
	return c, err
}

func TestGrowthJoinsAtTheFrontier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(3)
		log.add("a", at(0, "x"), at(130, "x"))
		source := &logSource{topic: log, more: make(chan string)}
		p := start(t, tumble.Config{Source: source, Sink: sink, Idle: -1})
		time.Sleep(time.Second)
		log.change("b", func(*logPart) {})
		log.add("b", at(30, "joined"))
		source.more <- "b"
		time.Sleep(10 * time.Second)
		for i := range 3 {
			require.True(t, sink.stored(i, "b").Watermark.Equal(t0.Add(130*time.Second)), "shard %d: %v", i, sink.stored(i, "b"))
		}
		require.NoError(t, p.stop())
		require.EqualValues(t, 1, p.Stats().Late)
		require.EqualValues(t, 3, p.Stats().Counted)
	})
}

func TestRetentionGap(t *testing.T) {
	gap := func(t *testing.T, skip bool) (*process, *store) {
		log, sink := newTopic("a"), newStore(2)
		log.add("a", several(rand.New(rand.NewPCG(1, 1)), 100, 0)...)
		p := start(t, tumble.Config{Source: &logSource{topic: log, skipGap: skip}, Sink: sink, FlushInterval: time.Hour})
		time.Sleep(time.Second)
		// Reading stands at 100 with increments that were never flushed.
		log.change("a", func(l *logPart) {
			for range 50 {
				l.append(at(0, "gone"))
			}
			l.first = 150
		})
		log.add("a", at(100, "x"))
		time.Sleep(10 * time.Second)
		return p, sink
	}
	t.Run("skipped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, sink := gap(t, true)
			require.NoError(t, p.stop())
			s := p.Stats()
			balanced(t, s)
			require.EqualValues(t, 50, s.Lost, "each offset once, not once a shard")
			require.EqualValues(t, 101, s.Counted, "what was read before is flushed, not dropped")
			require.EqualValues(t, 151, sink.stored(0, "a").Offset)
		})
	})
	t.Run("an error", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p, _ := gap(t, false)
			require.ErrorContains(t, <-p.done, "events from 100 to 150 are gone")
			require.EqualValues(t, 100, p.Stats().Counted)
		})
	})
}

func TestAnotherLogIsARebase(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(3)
		log.add("a", at(100, "x"), at(101, "y"))
		p := start(t, tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink})
		time.Sleep(time.Second)
		require.NoError(t, p.stop())
		log.change("a", func(l *logPart) { l.log, l.events, l.end = "log-2", nil, 0 })
		log.add("a", at(90, "x"), at(5, "late"))
		p = start(t, tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink})
		time.Sleep(10 * time.Second)
		require.NoError(t, p.stop())
		require.Equal(t, map[cell]int64{
			{t0.Add(time.Minute).UnixNano(), "x"}: 2,
			{t0.Add(time.Minute).UnixNano(), "y"}: 1,
			{t0.UnixNano(), "late"}:               1,
		}, sink.counts())
		require.EqualValues(t, 1, p.Stats().Late, "the watermark outlives the log")
		for i := range 3 {
			c := sink.stored(i, "a")
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
		log, sink := newTopic("a"), newStore(2)
		for i := range 20 {
			log.add("a", at(0, fmt.Sprint("old-", i)))
		}
		p := start(t, tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink})
		early := newShard()
		early.stored["a"] = tumble.Checkpoint{Log: "log-1"}
		time.Sleep(300 * time.Millisecond)
		log.add("a", at(0, "old-0")) // so that no Fetch returns when the poll comes
		time.Sleep(4550 * time.Millisecond)
		require.Len(t, sink.counts(), 20)
		log.mu.Lock() // without a word to who is reading
		l := log.parts["a"]
		l.log, l.events, l.end = "log-2", nil, 0
		for i := range 30 {
			l.append(at(0, fmt.Sprint("new-", i)))
		}
		log.mu.Unlock()
		sink.restore(0, early)
		time.Sleep(20 * time.Second)
		require.NoError(t, p.stop())
		for i := range 30 {
			require.EqualValues(t, 1, sink.counts()[cell{t0.UnixNano(), fmt.Sprint("new-", i)}], "new-%d", i)
		}
	})
}

// A crash came while a channel was being closed: it has ended in one shard only.
func TestHalfEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		log.add("a", at(10, "x"))
		cfg := tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink, Idle: -1}
		p := start(t, cfg)
		time.Sleep(time.Second)
		open := sink.snapshot(1)
		log.change("a", func(l *logPart) { l.ended = true })
		require.NoError(t, <-p.done)
		sink.restore(1, open)

		log.change("a", func(l *logPart) { l.log, l.events, l.end, l.ended = "log-2", nil, 0, false })
		p = start(t, cfg)
		time.Sleep(time.Second)
		require.Equal(t, "log-2", sink.stored(0, "a").Log)
		require.Equal(t, "log-2", sink.stored(1, "a").Log)
		require.True(t, sink.frontier(0).Equal(t0.Add(10*time.Second)), "%v", sink.frontier(0))
		log.add("a", at(20, "x"))
		time.Sleep(time.Second)
		require.NoError(t, p.stop())
		require.EqualValues(t, 2, sink.counts()[cell{t0.UnixNano(), "x"}])
	})
}

// A log that has ended holds nobody up. Only one that has ended for good closes
// its last window, too: else events of a next run may belong to it.
func TestEnded(t *testing.T) {
	for _, final := range []bool{false, true} {
		t.Run(fmt.Sprint("final ", final), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, sink := newTopic("a"), newStore(2)
				log.add("a", at(10, "x"))
				log.change("a", func(l *logPart) { l.ended, l.final = true, final })
				cfg := tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink}
				p := start(t, cfg)
				require.NoError(t, p.ends())
				end := t0.Add(10 * time.Second)
				if final {
					end = t0.Add(time.Minute)
				}
				// Another run on the same log has nothing to add, however often.
				for range 3 {
					for i := range 2 {
						require.True(t, sink.stored(i, "a").Ended)
						require.True(t, sink.stored(i, "a").Watermark.Equal(end), "%v", sink.stored(i, "a"))
						require.True(t, sink.frontier(i).Equal(end))
					}
					p = start(t, cfg)
					require.NoError(t, p.ends())
				}
				// A new log goes on at the frontier: what is closed stays so.
				log.change("a", func(l *logPart) { l.log, l.events, l.end, l.ended = "log-2", nil, 0, false })
				p = start(t, cfg)
				time.Sleep(time.Second)
				for i := range 2 {
					require.Equal(t, "log-2", sink.stored(i, "a").Log)
					require.True(t, sink.frontier(i).Equal(end))
				}
				log.add("a", at(20, "y"), at(70, "x"))
				time.Sleep(time.Second)
				require.NoError(t, p.stop())
				require.Equal(t, final, p.Stats().Late == 1)
				require.EqualValues(t, 2, p.Stats().Counted)
			})
		})
	}
}

func TestMaxPendingStopsReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a", "b"), newStore(2)
		log.rng = rand.New(rand.NewPCG(1, 1))
		var events []tumble.Event
		for i := range 20_000 {
			events = append(events, at(float64(i)/1000, fmt.Sprint("key-", i)))
		}
		log.add("a", events...)
		log.add("b", events...)
		sink.setFault(func(_ int, b *tumble.Batch) fault {
			if b != nil {
				return refused
			}
			return fine
		})
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, MaxPending: 5000})
		time.Sleep(time.Minute)
		s := p.Stats()
		require.GreaterOrEqual(t, s.Increments, int64(5000))
		require.Less(t, s.Increments, int64(5200), "at most a chunk of each partition beyond the limit")
		require.Error(t, s.Partitions[0].Err)
		sink.setFault(nil)
		time.Sleep(time.Minute)
		require.NoError(t, p.stop())
		require.EqualValues(t, 40_000, p.Stats().Counted)
		require.Len(t, sink.counts(), 20_000)
	})
}

// A partition that holds nothing waits for room that others fill, and goes on as
// soon as they are done.
func TestRoomIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a", "b"), newStore(1)
		held := make(chan struct{})
		source := holding{sink, held}
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: source, MaxPending: 10})
		time.Sleep(time.Second)
		for i := range 20 {
			log.add("a", at(0, fmt.Sprint("key-", i)))
		}
		time.Sleep(time.Second)
		log.add("b", at(0, "x"), at(0, "y"))
		time.Sleep(time.Second)
		log.add("b", at(0, "z"))
		time.Sleep(5500 * time.Millisecond) // between two polls
		require.LessOrEqual(t, sink.stored(0, "b").Offset, int64(2))
		close(held)
		time.Sleep(500 * time.Millisecond)
		require.EqualValues(t, 3, sink.stored(0, "b").Offset)
		require.NoError(t, p.stop())
	})
}

// holding is a sink that holds up partition a.
type holding struct {
	*store
	held chan struct{}
}

func (h holding) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := h.store.Open(ctx, def)
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

func TestADeadShardDoesNotStopTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(4)
		sink.setFault(func(shard int, b *tumble.Batch) fault {
			if shard == 1 && b != nil {
				return hung
			}
			return fine
		})
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
		var events []tumble.Event
		for i := range 400 {
			events = append(events, at(0, fmt.Sprint("key-", i)))
		}
		log.add("a", events...)
		time.Sleep(time.Second)
		for i := range 4 {
			require.Equal(t, i != 1, len(sink.snapshot(i).counts) > 50, "shard %d", i)
		}
		began := time.Now()
		require.NoError(t, p.stop())
		require.Equal(t, 10*time.Second, time.Since(began).Round(time.Second), "ShutdownTimeout")
		s := p.Stats()
		balanced(t, s)
		require.Positive(t, s.Pending)
		require.Zero(t, s.Increments)
	})
}

func TestStopsAtOnceWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(4)
		log.add("a", at(0, "x"))
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, FlushInterval: time.Hour})
		time.Sleep(time.Minute)
		began := time.Now()
		require.NoError(t, p.stop())
		require.Less(t, time.Since(began), time.Second)
		for i := range 4 {
			require.EqualValues(t, 1, sink.stored(i, "a").Offset, "every lane's checkpoint is written on the way out")
		}
	})
}

func TestQuietLanesWriteTheirCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		var key string // of shard 0
		for i := 0; tumble.Hash(key)%2 != 0 || key == ""; i++ {
			key = fmt.Sprint("key-", i)
		}
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, Idle: -1})
		time.Sleep(100 * time.Millisecond)
		log.add("a", at(0, key))
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 1, sink.stored(0, "a").Offset)
		require.EqualValues(t, 1, sink.stored(1, "a").Offset, "the first watermark is written at once")
		log.add("a", at(1, key))
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 1, sink.stored(1, "a").Offset, "nothing new to say")
		log.add("a", at(60, key))
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 3, sink.stored(1, "a").Offset, "a window has closed")
		log.add("a", at(61, key))
		time.Sleep(6 * time.Second)
		require.EqualValues(t, 4, sink.stored(1, "a").Offset, "5 seconds")
		log.add("a", slices.Repeat([]tumble.Event{at(62, key)}, 10_000)...)
		time.Sleep(200 * time.Millisecond)
		require.EqualValues(t, 10_004, sink.stored(1, "a").Offset, "10,000 offsets")
		require.NoError(t, p.stop())
	})
}

func TestRivalsShareExactly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(4)
		events := several(rand.New(rand.NewPCG(1, 1)), 50_000, 0)
		log.add("a", events...)
		log.rng = rand.New(rand.NewPCG(2, 2))
		a := start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink, FlushInterval: time.Millisecond})
		b := start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink, FlushInterval: time.Millisecond})
		require.NoError(t, <-a.done)
		require.NoError(t, <-b.done)
		require.Equal(t, count(tumble.Window{Size: time.Minute}, log.parts["a"].events), sink.counts())
		require.EqualValues(t, 50_000, a.Stats().Counted+b.Stats().Counted)
		// One gives way: without that every batch of either is contested.
		s, u := a.Stats(), b.Stats()
		require.Less(t, s.Conflicts+u.Conflicts, (s.Flushes+u.Flushes)/5, "%+v %+v", s, u)
	})
}

func TestFatalErrors(t *testing.T) {
	t.Run("another definition at the start", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log, sink := newTopic("a"), newStore(1)
			_, err := sink.Open(t.Context(), tumble.Definition{Window: tumble.Window{Size: time.Hour}})
			require.NoError(t, err)
			p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
			require.ErrorIs(t, <-p.done, tumble.ErrDefinition)
		})
	})
	t.Run("another definition while running", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log, sink := newTopic("a"), newStore(1)
			p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: redefined{sink}})
			time.Sleep(time.Second)
			log.add("a", at(0, "x"))
			require.ErrorIs(t, <-p.done, tumble.ErrDefinition)
		})
	})
	t.Run("a source that lists nothing it can", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, tumble.Config{Source: brokenSource{}, Sink: newStore(1)})
			require.ErrorIs(t, <-p.done, errFault)
		})
	})
	t.Run("offsets that go back", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			log, sink := newTopic("a"), newStore(1)
			log.add("a", at(0, "x"), at(1, "x"))
			log.parts["a"].events[0].Offset = 5
			p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
			require.ErrorContains(t, <-p.done, "the source returned offset 5 in a chunk from 0 to 2")
		})
	})
	t.Run("two runs at once", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			p := start(t, tumble.Config{Source: &logSource{topic: newTopic("a")}, Sink: newStore(1)})
			synctest.Wait()
			require.ErrorContains(t, p.Run(t.Context()), "running already")
			require.NoError(t, p.stop())
		})
	})
}

// redefined is a sink under which somebody stored another definition.
type redefined struct{ *store }

func (r redefined) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := r.store.Open(ctx, def)
	return []tumble.Shard{redefinedShard{shards[0]}}, err
}

type redefinedShard struct{ tumble.Shard }

func (redefinedShard) Apply(context.Context, tumble.Batch) error {
	return fmt.Errorf("shard 0: %w", tumble.ErrDefinition)
}

type brokenSource struct{ tumble.Source }

func (brokenSource) Partitions(context.Context, map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	return nil, errFault
}

func TestCommittedIsWhatEveryShardHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(3)
		var dead atomic.Bool
		sink.setFault(func(shard int, b *tumble.Batch) fault {
			if dead.Load() && shard == 2 && b != nil {
				return refused
			}
			return fine
		})
		log.add("a", several(rand.New(rand.NewPCG(1, 1)), 100, 0)...)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink})
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 100, p.Stats().Partitions[0].Committed)
		dead.Store(true)
		log.add("a", several(rand.New(rand.NewPCG(1, 1)), 100, 0)...)
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 100, p.Stats().Partitions[0].Committed)
		dead.Store(false)
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 200, p.Stats().Partitions[0].Committed)
		require.NoError(t, p.stop())
	})
}

func TestNewNamesTheField(t *testing.T) {
	good := tumble.Config{Source: &logSource{}, Sink: newStore(1), Window: tumble.Window{Size: time.Minute}}
	for want, spoil := range map[string]func(*tumble.Config){
		"Source is nil":         func(c *tumble.Config) { c.Source = nil },
		"Sink is nil":           func(c *tumble.Config) { c.Sink = nil },
		"Window.Size is 0s":     func(c *tumble.Config) { c.Window.Size = 0 },
		"Grace is -1s":          func(c *tumble.Config) { c.Grace = -time.Second },
		"Retention is -1s":      func(c *tumble.Config) { c.Retention = -time.Second },
		"MaxPending is -1":      func(c *tumble.Config) { c.MaxPending = -1 },
		"MaxAhead is -1s":       func(c *tumble.Config) { c.MaxAhead = -time.Second },
		"FlushInterval is -1s":  func(c *tumble.Config) { c.FlushInterval = -time.Second },
		"ShutdownTimeout is -1": func(c *tumble.Config) { c.ShutdownTimeout = -time.Second },
	} {
		cfg := good
		spoil(&cfg)
		_, err := tumble.New(cfg)
		require.ErrorContains(t, err, want)
	}
	_, err := tumble.New(good)
	require.NoError(t, err)
}
