package tumble

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An aggregator alone: chunks go in, parcels come out. No shard and no goroutine
// takes part.

var noon = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

// counting returns an aggregator of one lane a checkpoint, placed there and about
// to read.
func counting(stored ...Checkpoint) *aggregator {
	a := newAggregator("clicks/0", Definition{Window: Window{Size: time.Minute}}, len(stored))
	for i, c := range stored {
		a.place(a.lanes[i], c, c, Position{c.Offset, c.Epoch}, markOf(c.Watermark), time.Time{})
	}
	a.rewind()
	return a
}

// events returns one event of each key, a second and an offset apart.
func events(from int64, keys ...string) (all []Event) {
	for i, key := range keys {
		all = append(all, Event{Key: key, Time: noon.Add(time.Duration(from+int64(i)) * time.Second), Offset: from + int64(i)})
	}
	return all
}

func chunk(epoch int32, all ...Event) Chunk {
	return Chunk{Events: all, Next: all[len(all)-1].Offset + 1, Epoch: epoch, End: math.MaxInt64}
}

func (a *aggregator) take(t *testing.T, ch Chunk) {
	t.Helper()
	_, err := a.count(ch, math.MaxInt64)
	require.NoError(t, err)
}

func TestChunksInParcelsOut(t *testing.T) {
	a := counting(Checkpoint{Log: "log"})
	a.take(t, chunk(0, events(0, "x", "y", "x")...))
	require.Empty(t, a.lanes[0].queue, "nothing is sealed before a flush")
	a.flush(time.Now())
	require.Len(t, a.lanes[0].queue, 1)
	b := a.lanes[0].queue[0]
	require.Equal(t, "clicks/0", b.Partition)
	require.Equal(t, Checkpoint{Log: "log"}, b.From)
	require.Equal(t, Checkpoint{Log: "log", Offset: 3, Watermark: noon.Add(2 * time.Second)}, b.To)
	require.Equal(t, []Delta{{noon, "x", 2}, {noon, "y", 1}}, b.Deltas)
	require.EqualValues(t, 3, b.tally.counted)

	// The next parcel waits for the first one, and then starts where that ends.
	a.take(t, chunk(0, events(3, "z")...))
	a.flush(time.Now())
	require.Len(t, a.lanes[0].queue, 1)
	a.lanes[0].shift()
	a.sealDue(a.lanes[0])
	require.Len(t, a.lanes[0].queue, 1)
	require.Equal(t, b.To, a.lanes[0].queue[0].From)
}

func TestEachLaneCountsFromItsOwnPlace(t *testing.T) {
	a := counting(Checkpoint{Log: "log", Offset: 10}, Checkpoint{Log: "log", Offset: 12, Watermark: noon.Add(11 * time.Second)})
	require.EqualValues(t, 10, a.pos)
	all := events(10, "a", "b", "c", "d", "e", "f", "g", "h")
	a.take(t, chunk(0, all...))
	a.flush(time.Now())
	got := map[string]int64{}
	for _, ln := range a.lanes {
		for _, d := range ln.queue[0].Deltas {
			got[d.Key] += d.N
		}
	}
	want := map[string]int64{}
	for _, e := range all {
		if Hash(e.Key)%2 == 0 || e.Offset >= 12 {
			want[e.Key] = 1
		}
	}
	require.Equal(t, want, got)
}

// A promise says more of time and nothing of the log: the position stays, with
// the epoch that it was stored with, whatever other lanes know of that place.
func TestAPromiseLeavesThePosition(t *testing.T) {
	a := counting(Checkpoint{Log: "log", Offset: 60, Epoch: -1, Watermark: noon}, Checkpoint{Log: "log", Offset: 60, Epoch: 5, Watermark: noon})
	require.Empty(t, a.doubtful)
	asOf := noon.Add(time.Hour)
	for _, later := range []time.Duration{0, time.Minute} {
		a.promise(Chunk{Next: 60, End: 60, AsOf: asOf.Add(later)}, 10*time.Second, func() mark { return mark{} })
	}
	a.flush(time.Now().Add(quietEvery))
	for i, epoch := range []int32{-1, 5} {
		to := a.lanes[i].queue[0].To
		require.EqualValues(t, 60, to.Offset)
		require.Equal(t, epoch, to.Epoch)
		require.True(t, to.Watermark.Equal(noon.Add(50*time.Second)), "%v", to)
	}
}

// A chunk takes reading into its epoch, also one of a single record and one without
// events. One that passes no record changes nothing.
func TestAChunkMovesIntoItsEpoch(t *testing.T) {
	for name, c := range map[string]struct {
		ch   Chunk
		want Position
	}{
		"one record":             {chunk(1, events(40, "a")...), Position{41, 1}},
		"records without events": {Chunk{Next: 42, Epoch: 1, End: 42}, Position{42, 1}},
		"no record":              {Chunk{Next: 40, Epoch: 1, End: 40}, Position{40, 0}},
	} {
		t.Run(name, func(t *testing.T) {
			a := counting(Checkpoint{Log: "log", Offset: 40})
			a.take(t, c.ch)
			require.Equal(t, c.want, Position{a.pos, a.epoch})
			to := a.target(a.lanes[0])
			require.Equal(t, c.want, Position{to.Offset, to.Epoch})
		})
	}
}

// Reading passes the place of a lane that is ahead. If that was reached in another
// epoch, the lane counts nothing until the source has been asked.
func TestALaneInAnotherEpochIsDoubtful(t *testing.T) {
	for name, c := range map[string]struct {
		behind, ahead, read int32
		doubtful            bool
	}{
		"the same":              {1, 1, 1, false},
		"another":               {1, 1, 2, true},
		"it does not know its":  {1, -1, 2, false},
		"the source tells none": {-1, 1, -1, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, at := range []int64{41, 42} { // right where reading comes into the epoch, and beyond
				a := counting(Checkpoint{Log: "log", Offset: 40, Epoch: c.behind}, Checkpoint{Log: "log", Offset: at, Epoch: c.ahead})
				a.take(t, chunk(c.read, events(40, "a", "b", "c", "d", "e", "f")...))
				require.Equal(t, c.doubtful, len(a.doubtful) == 1, at)
				require.Equal(t, c.doubtful, a.lanes[1].ahead, at)
				counted := a.lanes[1].tally.counted > 0
				require.Equal(t, !c.doubtful, counted, at)
				require.Equal(t, c.read, a.epoch)
			}
		})
	}
}
