package tumble_test

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// keyed returns n events of one key.
func keyed(key string, n int) (events []tumble.Event) {
	for range n {
		events = append(events, at(0, key))
	}
	return events
}

// onBothSides returns a store of two shards, one of which stands at offset 40,
// one at 60, and the log that they were counted from.
func onBothSides(t *testing.T) (*topic, *store) {
	log, sink := newTopic("a"), newStore(2)
	log.add("a", several(rand.New(rand.NewPCG(1, 1)), 40, 0)...)
	p := start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink})
	require.NoError(t, p.ends())
	behind := sink.snapshot(0)
	log.add("a", several(rand.New(rand.NewPCG(2, 1)), 20, 0)...)
	p = start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink})
	require.NoError(t, p.ends())
	sink.restore(0, behind)
	require.EqualValues(t, 40, sink.stored(0, "a").Offset)
	require.EqualValues(t, 60, sink.stored(1, "a").Offset)
	return log, sink
}

// A log that is cut at 50 and grows again, with lanes on both sides of the cut:
// what is in the log is counted once, in every shard, and what no longer is stays
// as it was counted.
func TestTruncatedBetweenTheLanes(t *testing.T) {
	for _, grown := range []int{0, 5, 100} {
		synctest.Test(t, func(t *testing.T) {
			log, sink := onBothSides(t)
			gone := map[cell]int64{}
			for _, e := range log.parts["a"].events[50:] {
				if tumble.Hash(e.Key)%2 == 1 {
					gone[cell{t0.UnixNano(), e.Key}]++
				}
			}
			log.change("a", func(p *logPart) { p.truncate(50) })
			log.add("a", several(rand.New(rand.NewPCG(3, 1)), grown, 0)...)
			p := start(t, tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink})
			time.Sleep(10 * time.Second)
			log.add("a", keyed("more", 3)...)
			time.Sleep(time.Second)
			require.NoError(t, p.stop())
			want := count(tumble.Window{Size: time.Minute}, log.parts["a"].events)
			for c, n := range gone {
				want[c] += n
			}
			require.Equal(t, want, sink.counts())
			s := p.Stats()
			balanced(t, s)
			require.EqualValues(t, 10, s.Lost)
			for i := range 2 {
				c := sink.stored(i, "a")
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
		log, sink := newTopic("a"), newStore(2)
		source := &logSource{topic: log, skipGap: true}
		log.add("a", keyed("stored", 10)...)
		p := start(t, tumble.Config{Source: source, Sink: sink, FlushInterval: 3 * time.Second})
		time.Sleep(5 * time.Second)
		log.add("a", keyed("read", 10)...)
		time.Sleep(500 * time.Millisecond) // read, and not flushed yet
		log.change("a", func(l *logPart) { l.truncate(12) })
		log.add("a", keyed("new", 30)...)
		time.Sleep(10 * time.Second)
		committed := p.Stats().Partitions[0].Committed
		require.NoError(t, p.stop())
		require.EqualValues(t, 42, committed)
		require.Equal(t, count(tumble.Window{Size: time.Minute}, log.parts["a"].events), sink.counts())
		s := p.Stats()
		balanced(t, s)
		require.Zero(t, s.Lost, "nothing that was stored is gone")
		require.EqualValues(t, 10, s.Replayed)
	})
}

// Committed falls with the log, and rises again from there.
func TestTruncatedBelowWhatIsCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		log.add("a", keyed("old", 100)...)
		p := start(t, tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink})
		time.Sleep(time.Second)
		require.EqualValues(t, 100, p.Stats().Partitions[0].Committed)
		log.change("a", func(l *logPart) { l.truncate(70) })
		time.Sleep(time.Second)
		require.EqualValues(t, 70, p.Stats().Partitions[0].Committed)
		log.add("a", keyed("new", 10)...)
		time.Sleep(6 * time.Second) // a quiet lane takes its time
		require.EqualValues(t, 80, p.Stats().Partitions[0].Committed)
		require.NoError(t, p.stop())
		require.EqualValues(t, 100, sink.counts()[cell{t0.UnixNano(), "old"}])
		require.EqualValues(t, 10, sink.counts()[cell{t0.UnixNano(), "new"}])
		require.EqualValues(t, 30, p.Stats().Lost)
	})
}

// Twice at the same offsets is twice as much.
func TestTruncatedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		p := start(t, tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink})
		for range 2 {
			log.add("a", keyed("x", 20)...)
			time.Sleep(time.Second)
			log.change("a", func(l *logPart) { l.truncate(l.end - 20) })
			time.Sleep(time.Second)
		}
		require.NoError(t, p.stop())
		require.EqualValues(t, 40, sink.counts()[cell{t0.UnixNano(), "x"}])
		require.EqualValues(t, 40, p.Stats().Lost)
	})
}

// A lane that is ahead, when reading passes a cut that it has not heard of, must
// not go on as though it had read what is there now.
func TestTruncatedBelowALaneThatIsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := onBothSides(t)
		source := &logSource{topic: log, skipGap: true}
		reads := 0
		cut := &wrongSource{logSource: source, before: func(from tumble.Position) {
			// Both lanes have resumed, in the log as it was.
			if reads++; reads == 1 {
				log.change("a", func(p *logPart) { p.truncate(50) })
				log.add("a", several(rand.New(rand.NewPCG(3, 1)), 100, 0)...)
			}
		}}
		p := start(t, tumble.Config{Source: cut, Sink: sink})
		time.Sleep(10 * time.Second)
		require.NoError(t, p.stop())
		for c, n := range count(tumble.Window{Size: time.Minute}, log.parts["a"].events) {
			require.GreaterOrEqual(t, sink.counts()[c], n, "%v", c)
		}
		require.EqualValues(t, 10, p.Stats().Lost)
	})
}

// Told to fail, the source ends the run, and nothing of what is gone is stored on
// the way out.
func TestTruncatedFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		log.add("a", keyed("stored", 10)...)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, FlushInterval: 3 * time.Second})
		time.Sleep(5 * time.Second)
		log.add("a", keyed("read", 10)...)
		time.Sleep(500 * time.Millisecond)
		log.change("a", func(l *logPart) { l.truncate(5) })
		require.ErrorContains(t, p.ends(), "are gone")
		require.NotContains(t, sink.counts(), cell{t0.UnixNano(), "read"})
		balanced(t, p.Stats())
	})
}
