package simulation

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

func TestModel(t *testing.T) {
	eachSeed(t, modelSeeds, func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) { model(t, seed) })
	})
}

// model lets processes count random logs while everything breaks, and compares
// what is in the store with a plain loop in the end.
func model(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	topic := faketest.NewTopic("a", "b", "c")
	topic.Rand = rand.New(rand.NewPCG(seed, 8))
	sink := faketest.NewStore(1 + rng.IntN(5))
	window := tumble.Window{Size: time.Minute}
	faults := rand.New(rand.NewPCG(seed, 9))
	var down sync.Map
	breaking := func(shard int, b *tumble.Batch) faketest.Fault {
		if until, ok := down.Load(shard); ok && time.Now().Before(until.(time.Time)) {
			return faketest.Refused
		}
		switch faults.IntN(30) {
		case 0:
			return faketest.Refused
		case 1:
			return faketest.Lost
		case 2:
			return faketest.Doubled
		}
		return faketest.Fine
	}
	sink.SetFault(breaking)
	cfg := func() tumble.Config {
		return tumble.Config{
			Source: &faketest.Source{Topic: topic}, Sink: sink, Window: window,
			FlushInterval: time.Duration(1+rng.IntN(200)) * time.Millisecond,
			MaxPending:    1 + rng.IntN(500), ShutdownTimeout: time.Second,
		}
	}
	snapshots := map[int]*faketest.Shard{}
	var running []*faketest.Process
	var from float64
	for range 40 {
		switch action := rng.IntN(10); {
		case action < 4:
			for _, id := range []string{"a", "b", "c"} {
				events := faketest.Several(rng, rng.IntN(300), from)
				topic.Change(id, func(l *faketest.Log) {
					for len(events) > 0 { // records of one event, of some, of many
						n := min(len(events), []int{1, 1, 1, 5, 100}[rng.IntN(5)])
						l.Append(events[:n]...)
						events = events[n:]
					}
				})
			}
			from += 20
		case action == 4 && len(running) < 3: // a first process, or a rival
			running = append(running, faketest.Start(t, cfg()))
		case action == 5 && len(running) > 0: // stopped in the middle
			i := rng.IntN(len(running))
			require.NoError(t, running[i].Stop())
			faketest.Balanced(t, running[i].Stats())
			running = slices.Delete(running, i, i+1)
		case action == 6:
			down.Store(rng.IntN(len(sink.Shards)), time.Now().Add(time.Duration(rng.IntN(20))*time.Second))
		case action == 7:
			i := rng.IntN(len(sink.Shards))
			if old := snapshots[i]; old != nil {
				sink.Restore(i, old)
			}
			snapshots[i] = sink.Snapshot(i)
		case action == 8:
			sink.Repeat()
		case action == 9 && rng.IntN(5) == 0: // all data lost
			for i := range sink.Shards {
				sink.Restore(i, faketest.NewShard())
			}
		}
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
	}
	sink.SetFault(nil)
	last := faketest.Start(t, cfg())
	time.Sleep(3 * time.Minute)
	sink.Repeat()
	require.NoError(t, last.Stop())
	faketest.Balanced(t, last.Stats())
	for _, p := range running {
		require.NoError(t, p.Stop())
		faketest.Balanced(t, p.Stats())
	}
	want := faketest.Count(window, topic.Log("a").Events, topic.Log("b").Events, topic.Log("c").Events)
	require.Equal(t, len(want), len(sink.Counts()))
	require.Equal(t, want, sink.Counts())
}
