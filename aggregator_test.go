package tumble

import (
	"fmt"
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
		a.place(a.lanes[i], c, c, Position{c.Offset, c.Epoch}, markOf(c.Watermark), kept{})
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

// A batch is sealed when its keys are long together, not only when they are many.
func TestBatchesAreSealedByBytes(t *testing.T) {
	a := counting(Checkpoint{Log: "log"})
	key := func(i int) string { return fmt.Sprintf("%01024d", i) }
	var offset int64
	add := func(n int) {
		for range n {
			a.take(t, chunk(0, events(offset, key(int(offset)))...))
			offset++
		}
	}
	add(sealBytes/1024 + 1)
	require.Len(t, a.lanes[0].queue, 1)
	require.EqualValues(t, sealBytes, a.lanes[0].queue[0].bytes)
	add(sealBytes / 1024) // though the first one is still outstanding
	require.Len(t, a.lanes[0].queue, 2)
	events, all := a.lanes[0].drop(&a.table)
	require.EqualValues(t, offset, events)
	require.Equal(t, held{offset, 1024 * offset}, all)
}

// The keys of entries that are kept for their keys to come again are bounded.
func TestIdleKeysAreBounded(t *testing.T) {
	a := counting(Checkpoint{Log: "log"})
	for i := range int64(8 * maxKept / 1024) {
		a.take(t, chunk(0, events(i, fmt.Sprintf("%01024d", i))...))
		if i%100 == 99 {
			a.flush(time.Now())
			for len(a.lanes[0].queue) > 0 {
				a.lanes[0].shift()
			}
		}
	}
	require.Less(t, a.table.bytes, 2*maxKept)
	kept := 0
	for _, e := range a.table.entries {
		kept += len(e.key)
	}
	require.Equal(t, kept, a.table.bytes)
}

// summing returns an aggregator of sums with one lane.
func summing() *aggregator {
	def := Definition{Window: Window{Size: time.Minute}, Sum: true}
	a := newAggregator("clicks/0", def, 1)
	a.place(a.lanes[0], Checkpoint{Log: "log"}, Checkpoint{Log: "log"}, Position{}, mark{}, kept{})
	a.rewind()
	return a
}

func TestSumsAddUp(t *testing.T) {
	a := summing()
	var rejected []int64
	a.onReject = func(ev *Event) { rejected = append(rejected, ev.N) }
	var all []Event
	for i, n := range []int64{5, 0, MaxCount - 5, -1, MaxCount + 1, 7} {
		key := "x"
		if n == 7 {
			key = "y"
		}
		all = append(all, Event{Key: key, Time: noon, Offset: int64(i), N: n})
	}
	a.take(t, chunk(0, all...))
	a.flush(time.Now())
	b := a.lanes[0].queue[0]
	require.Equal(t, []Delta{{noon, "x", MaxCount}, {noon, "y", 7}}, b.Deltas)
	require.Equal(t, int64(MaxCount+7), b.sum)
	require.Equal(t, tally{counted: 3, skipped: 1, rejected: 2}, b.tally)
	require.EqualValues(t, 6, b.tally.events())
	require.Equal(t, []int64{-1, MaxCount + 1}, rejected)
}

// A sum that would pass the largest count is an error, and so is an N that nobody
// adds up.
func TestSumsOverflow(t *testing.T) {
	a := summing()
	for _, key := range []string{"x", "y"} {
		_, err := a.count(chunk(0, Event{Key: key, Time: noon, Offset: a.pos, N: MaxCount}), math.MaxInt64)
		require.NoError(t, err)
	}
	// Not the counter that was found last.
	_, err := a.count(chunk(0, Event{Key: "x", Time: noon.Add(time.Minute), Offset: a.pos, N: 1}), math.MaxInt64)
	require.NoError(t, err)
	for _, at := range []time.Time{noon, noon.Add(time.Second)} {
		_, err = a.count(chunk(0, Event{Key: "x", Time: at, Offset: a.pos, N: 1}), math.MaxInt64)
		require.ErrorIs(t, err, ErrOverflow)
		require.ErrorContains(t, err, `of "x" in the window from 2024-05-01T12:00:00Z to 2024-05-01T12:01:00Z`)
	}
	a = counting(Checkpoint{Log: "log"})
	_, err = a.count(chunk(0, Event{Key: "x", Time: noon, N: 1}), math.MaxInt64)
	require.ErrorContains(t, err, "N = 1, which goes with Config.Sum only")
}

func TestSumOf(t *testing.T) {
	require.EqualValues(t, 7, sumOf(3, 4))
	require.Equal(t, int64(math.MaxInt64), sumOf(math.MaxInt64-1, 1))
	require.Equal(t, int64(math.MaxInt64), sumOf(math.MaxInt64-1, 2))
}

// What one shard keeps for longer, on behalf of another process, says nothing of the
// others.
func TestRetentionOfAllShards(t *testing.T) {
	a := newAggregator("clicks/0", Definition{Window: Window{Size: time.Minute}, Retention: time.Minute}, 2)
	for _, ln := range a.lanes {
		a.place(ln, Checkpoint{Log: "log"}, Checkpoint{Log: "log"}, Position{}, mark{}, kept{retentions: []time.Duration{time.Minute}})
	}
	a.rewind()
	a.take(t, chunk(0, Event{Key: "x", Time: noon.Add(10 * time.Minute)}))
	late := func(offset, expired int64) {
		t.Helper()
		a.take(t, chunk(0, Event{Key: "x", Time: noon, Offset: offset}))
		require.Equal(t, expired, a.lanes[0].tally.expired+a.lanes[1].tally.expired)
	}
	late(1, 1)
	a.learn(a.lanes[0], kept{retentions: []time.Duration{time.Hour}})
	late(2, 2)
	a.learn(a.lanes[1], kept{retentions: []time.Duration{0}})
	late(3, 2)
	a.learn(a.lanes[0], kept{retentions: []time.Duration{time.Minute}})
	late(4, 3)
}
