package tumble_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// verdicts counts one partition's events one by one, so that each is judged by
// those before it.
func verdicts(t *testing.T, cfg tumble.Config, events ...tumble.Event) (tumble.Stats, *faketest.Store, []tumble.Late) {
	t.Helper()
	topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
	topic.Add("a", events...)
	var late []tumble.Late
	cfg.OnLate = func(l tumble.Late) {
		l.Event.Key = string([]byte(l.Event.Key))
		late = append(late, l)
	}
	cfg.Source, cfg.Sink = &faketest.Source{Topic: topic, UntilEnd: true}, sink
	p := faketest.Start(t, cfg)
	require.NoError(t, <-p.Done)
	faketest.Balanced(t, p.Stats())
	return p.Stats(), sink, late
}

func TestLate(t *testing.T) {
	events := []tumble.Event{at(0, "x"), at(70, "y"), at(59, "late"), at(80, "y")}
	t.Run("counted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, sink, late := verdicts(t, tumble.Config{}, events...)
			require.EqualValues(t, 4, s.Counted)
			require.EqualValues(t, 1, s.Late)
			require.EqualValues(t, 1, sink.Counts()[faketest.CellAt(t0, "late")])
			require.Equal(t, []tumble.Late{{Partition: "a", Event: tumble.Event{Key: "late", Time: t0.Add(59 * time.Second), Offset: 2}, Start: t0, End: t0.Add(time.Minute), Watermark: t0.Add(70 * time.Second), Counted: true}}, late)
		})
	})
	t.Run("dropped", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, sink, late := verdicts(t, tumble.Config{DropLate: true}, events...)
			require.EqualValues(t, 3, s.Counted)
			require.EqualValues(t, 1, s.DroppedLate)
			require.Zero(t, sink.Counts()[faketest.CellAt(t0, "late")])
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
			cell := func(sec int, key string) faketest.Cell {
				return faketest.CellAt(t0.Add(time.Duration(sec)*time.Second), key)
			}
			s, sink, late := verdicts(t, tumble.Config{Window: tumble.Window{Size: 10 * time.Second}, Retention: 10 * time.Second}, events...)
			require.EqualValues(t, 3, s.Counted)
			require.EqualValues(t, 1, s.Expired)
			require.Equal(t, map[faketest.Cell]int64{cell(70, "y"): 1, cell(80, "y"): 1}, sink.Counts(), "the first window is past retention")
			require.True(t, late[0].Expired)
			require.False(t, late[0].Counted)
		})
	})
}

func TestEventTimesOutOfRangeAreRejected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := func(year int) tumble.Event {
			return tumble.Event{Key: "x", Time: time.Date(year, 12, 31, 23, 59, 59, 0, time.UTC)}
		}
		s, sink, _ := verdicts(t, tumble.Config{}, old(1699), tumble.Event{Key: "x"}, old(2200), tumble.Event{Key: "x", Time: time.Unix(1<<60, 0)}, old(1700), at(0, "x"))
		require.EqualValues(t, 4, s.Rejected)
		require.EqualValues(t, 2, s.Counted)
		require.Len(t, sink.Counts(), 2)
		require.True(t, sink.Stored(0, "a").Watermark.Equal(t0))
	})
}

func TestOneBrokenClockDoesNotMakeTheRestLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, sink, _ := verdicts(t, tumble.Config{DropLate: true}, at(0, "x"), at(3*3600, "ahead"), at(1, "x"))
		require.EqualValues(t, 3, s.Counted)
		require.EqualValues(t, 1, s.Ahead)
		require.EqualValues(t, 2, sink.Counts()[faketest.CellAt(t0, "x")])
		require.EqualValues(t, 1, sink.Counts()[faketest.CellAt(t0.Add(3*time.Hour), "ahead")])
		require.True(t, sink.Stored(0, "a").Watermark.Equal(t0.Add(time.Second)))
	})
}

// Of a partition whose every event was beyond MaxAhead no window would ever
// close: once the clock has passed them they say how far event time is, if nothing
// comes that says more.
func TestTheClockPassesWhatWasAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", at(3*3600, "ahead"), at(3*3600-30, "ahead"))
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, DropLate: true})
		time.Sleep(3*time.Hour - time.Minute)
		require.True(t, sink.Stored(0, "a").Watermark.IsZero(), "%v", sink.Stored(0, "a"))
		time.Sleep(time.Minute + 5*time.Second)
		w := sink.Stored(0, "a").Watermark
		require.True(t, w.Equal(t0.Add(3*time.Hour)), "%v", w)
		time.Sleep(2 * time.Minute)
		require.False(t, sink.Closed(0).Before(t0.Add(3*time.Hour+time.Minute)), "%v", sink.Closed(0))
		require.NoError(t, p.Stop())
		require.EqualValues(t, 2, p.Stats().Ahead)
	})
}

// A busy partition goes by what it reads: the clock says nothing there.
func TestWhatWasAheadSaysNothingToABusyPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", at(2*3600, "ahead"))
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, DropLate: true})
		for range 3 * 3600 * 4 {
			topic.Add("a", at(1, "x"))
			time.Sleep(250 * time.Millisecond)
		}
		require.True(t, sink.Stored(0, "a").Watermark.Equal(t0.Add(time.Second)))
		require.NoError(t, p.Stop())
		require.Zero(t, p.Stats().DroppedLate)
	})
}

// Another process, with a shorter Retention, has had windows deleted. That they
// would be kept longer now brings none of them back.
func TestAWindowBelowTheFloorIsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		topic.Add("a", at(0, "x"), at(600, "x"))
		cfg := tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink, Idle: -1, Retention: time.Minute}
		require.NoError(t, faketest.Start(t, cfg).Ends())
		require.NotContains(t, sink.Counts(), faketest.CellAt(t0, "x"))
		time.Sleep(2 * time.Minute) // no process asks for the shorter one any more
		cfg.Retention = time.Hour
		topic.Add("a", at(10, "x"), at(599, "x"))
		p := faketest.Start(t, cfg)
		require.NoError(t, p.Ends())
		s := p.Stats()
		faketest.Balanced(t, s)
		require.EqualValues(t, 1, s.Expired)
		require.EqualValues(t, 1, s.Counted)
		require.NotContains(t, sink.Counts(), faketest.CellAt(t0, "x"))
	})
}

// Two processes share the partitions, as in a rolling update that makes Retention
// longer: what the new one keeps the old one does not leave out. It does again before
// the store might forget it.
func TestAnotherProcessKeepsLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(2)
		start := func(own string, retention time.Duration) *faketest.Process {
			return faketest.Start(t, tumble.Config{
				Source: &faketest.Source{Topic: topic, Own: []string{own}}, Sink: sink, Idle: -1, Retention: retention,
			})
		}
		topic.Add("b", at(599, "x"))
		short := start("a", time.Minute)
		late := func(expired, counted int64) {
			t.Helper()
			topic.Add("a", at(599, "z"), at(1, "x"), at(1, "y"))
			time.Sleep(time.Second)
			require.Equal(t, expired, short.Stats().Expired)
			require.Equal(t, counted, sink.Counts()[faketest.CellAt(t0, "x")])
		}
		late(2, 0)
		long := start("b", time.Hour)
		time.Sleep(6 * time.Second) // each shard is polled
		late(2, 1)
		require.NoError(t, long.Stop())
		time.Sleep(20 * time.Second)
		late(2, 2)
		time.Sleep(20 * time.Second)
		late(4, 2)
		require.NoError(t, short.Stop())
		faketest.Balanced(t, short.Stats())
	})
}

func TestIdle(t *testing.T) {
	final := func(sink *faketest.Store, end time.Time) bool { return !end.After(sink.Closed(0)) }
	t.Run("a silent partition's watermark follows the clock", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
			topic.Add("a", at(0, "x"))
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
			time.Sleep(60 * time.Second)
			require.False(t, final(sink, t0.Add(time.Minute)))
			time.Sleep(16 * time.Second)
			require.True(t, final(sink, t0.Add(time.Minute)))
			require.NoError(t, p.Stop())
		})
	})
	t.Run("never by default of less than Idle, nor when off", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
			topic.Add("a", at(0, "x"))
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, Idle: -1})
			time.Sleep(10 * time.Minute)
			require.True(t, sink.Stored(0, "a").Watermark.Equal(t0))
			require.NoError(t, p.Stop())
		})
	})
	t.Run("a partition without events follows the others", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(2)
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
			time.Sleep(time.Minute)
			require.True(t, sink.Stored(0, "b").Watermark.IsZero(), "nothing is known of event time yet")
			for i := range 60 {
				topic.Add("a", at(60+float64(i), "x"))
				time.Sleep(time.Second)
			}
			time.Sleep(9 * time.Second) // for both to write where they are
			w := sink.Stored(0, "b").Watermark
			require.True(t, w.After(t0.Add(99*time.Second)), "%v", w)
			require.False(t, w.After(t0.Add((119-10)*time.Second)), "Idle behind the last event: %v", w)
			require.NoError(t, p.Stop())
		})
	})
	t.Run("not before Idle is over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(2)
			p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
			time.Sleep(90 * time.Second)
			topic.Add("b", at(30, "x"))
			synctest.Wait() // else it might follow the others for a moment
			topic.Add("a", at(89, "x"))
			time.Sleep(8 * time.Second)
			require.True(t, sink.Stored(0, "b").Watermark.Equal(t0.Add(30*time.Second)), "%v", sink.Stored(0, "b"))
			time.Sleep(8 * time.Second)
			require.True(t, sink.Stored(0, "b").Watermark.After(t0.Add(70*time.Second)))
			require.NoError(t, p.Stop())
		})
	})
	t.Run("not while the partition is behind", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
			topic.Add("a", at(0, "x"), at(1, "x"))
			p := faketest.Start(t, tumble.Config{Source: behind{&faketest.Source{Topic: topic}}, Sink: sink})
			time.Sleep(5 * time.Minute)
			require.True(t, sink.Stored(0, "a").Watermark.Equal(t0.Add(time.Second)))
			require.NoError(t, p.Stop())
		})
	})
}

// behind is a source whose log has more that does not come.
type behind struct{ *faketest.Source }

func (b behind) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return b.Source.Run(ctx, func(ctx context.Context, p tumble.Partition) error { return consume(ctx, behindPartition{p}) })
}

type behindPartition struct{ tumble.Partition }

func (b behindPartition) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	c, err := b.Partition.Fetch(ctx, from)
	c.End++
	return c, err
}

// A partition goes back for a shard that was lost, and does not forget that the clock was
// to pass an event.
func TestWhatIsAheadSurvivesALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		key := "k0"
		for n := 1; tumble.Hash(key)%2 != 0; n++ {
			key = fmt.Sprint("k", n)
		}
		topic.Add("a", at(3*3600, key))
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		time.Sleep(time.Hour)
		sink.Restore(1, faketest.NewShard()) // the other one
		time.Sleep(130 * time.Minute)
		for shard := range 2 {
			require.WithinRange(t, sink.Frontier(shard), time.Now().Add(-2*time.Minute), time.Now(), "shard %d: silent partitions follow the clock", shard)
		}
		require.NoError(t, p.Stop())
	})
}
