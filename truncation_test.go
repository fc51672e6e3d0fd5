package tumble_test

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

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
