package memory_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// countsOf returns the counts of a window, by key.
func countsOf(t *testing.T, s *memory.Sink, at time.Time) map[string]int64 {
	page, err := s.Scan(t.Context(), at, "", 1_000_000)
	require.NoError(t, err)
	require.Empty(t, page.Cursor)
	all := make(map[string]int64)
	for _, c := range page.Counts {
		require.NotContains(t, all, c.Key)
		all[c.Key] = c.N
	}
	return all
}

// A snapshot, and what was restored from it, shares nothing with what is counted
// afterwards: keys of a window lie in blocks that grow.
func TestSnapshotIsApart(t *testing.T) {
	s := memory.New(memory.Config{})
	shard := process(t, s, 0)
	add := func(prefix string, n int) {
		var deltas []tumble.Delta
		for i := range n {
			deltas = append(deltas, tumble.Delta{Start: t0, Key: fmt.Sprint(prefix, i), N: 1})
		}
		move(t, shard, t0, deltas...)
	}
	add("user_", 20)
	want := countsOf(t, s, t0)
	restore := s.Snapshot()
	for round := range 3 {
		add("user_", 10) // those are there
		add(fmt.Sprint("other_", round, "_"), 50)
		require.Len(t, countsOf(t, s, t0), 70)
		second := s.Snapshot()
		then := countsOf(t, s, t0)
		restore()
		require.Equal(t, want, countsOf(t, s, t0))
		add("third_", 30)
		second()
		require.Equal(t, then, countsOf(t, s, t0))
		restore()
		require.Equal(t, want, countsOf(t, s, t0))
	}
}

// Nor do the things that no reader sees.
func TestSnapshotIsOfAll(t *testing.T) {
	s := memory.New(memory.Config{})
	shard := process(t, s, time.Hour)
	move(t, shard, t0)
	_, err := shard.Load(t.Context(), tumble.LoadRequest{Announce: map[string]uint64{"clicks/0": 7}})
	require.NoError(t, err)
	was, err := s.Count(t.Context(), "a", t0.Add(-time.Minute))
	require.NoError(t, err)
	before := load(t, shard)
	restore := s.Snapshot()

	b := tumble.Batch{Partition: "clicks/0", Writer: 2, From: before.Checkpoints["clicks/0"], To: before.Checkpoints["clicks/0"]}
	require.NoError(t, shard.Apply(t.Context(), b))
	load(t, process(t, s, 0))
	_, err = shard.Load(t.Context(), tumble.LoadRequest{
		Init:     map[string]tumble.Checkpoint{"clicks/1": {}},
		Announce: map[string]uint64{"clicks/1": 8}, Object: map[string]uint64{"clicks/0": 7},
	})
	require.NoError(t, err)

	restore()
	require.Equal(t, before, load(t, shard))
	def, err := s.Definition(t.Context())
	require.NoError(t, err)
	require.Equal(t, time.Hour, def.Retention)
	move(t, shard, t0.Add(time.Minute)) // by the first writer, as if there had been no other
	is, err := s.Count(t.Context(), "a", t0.Add(-time.Minute))
	require.NoError(t, err)
	require.Equal(t, was, is)
}

func TestSnapshotOfNothing(t *testing.T) {
	s := memory.New(memory.Config{})
	unopened := s.Snapshot()
	shard := process(t, s, 0)
	empty := s.Snapshot()
	move(t, shard, t0, tumble.Delta{Start: t0, Key: "a", N: 1})
	full := s.Snapshot()

	s.Clear()
	_, err := s.Definition(t.Context())
	require.ErrorIs(t, err, tumble.ErrNoDefinition)
	full()
	require.Equal(t, map[string]int64{"a": 1}, countsOf(t, s, t0))
	require.Len(t, load(t, shard).Checkpoints, 1)

	empty()
	require.Empty(t, countsOf(t, s, t0))
	require.Empty(t, load(t, shard).Checkpoints)

	full()
	unopened()
	_, err = s.Definition(t.Context())
	require.ErrorIs(t, err, tumble.ErrNoDefinition)
	require.Empty(t, load(t, shard).Checkpoints)
	def, err := s.Definition(t.Context())
	require.NoError(t, err)
	require.Equal(t, keeping(0), def)
}

// A page with more keys than are read at once is of one history, also if the
// store falls back and counts them in another order while it is read.
func TestPagesAreOfOneHistory(t *testing.T) {
	const n = 10_000
	s := memory.New(memory.Config{})
	def := keeping(0)
	def.DropLate = true
	shards, err := s.Open(t.Context(), def)
	require.NoError(t, err)
	move(t, shards[0], t0)
	restore := s.Snapshot()
	deltas := make([]tumble.Delta, n)
	for i := range deltas {
		deltas[i] = tumble.Delta{Start: t0, Key: fmt.Sprint("user_", i), N: 1}
	}
	var done sync.WaitGroup
	stop := make(chan struct{})
	done.Go(func() {
		defer close(stop)
		for range 100 {
			rand.Shuffle(n, func(i, j int) { deltas[i], deltas[j] = deltas[j], deltas[i] })
			move(t, shards[0], t0.Add(time.Minute), deltas...)
			restore()
		}
	})
	finals := 0
	for open := true; open; {
		select {
		case <-stop:
			open = false
		default:
		}
		top, err := s.Top(t.Context(), t0, n)
		require.NoError(t, err)
		scan, err := s.Scan(t.Context(), t0, "", n)
		require.NoError(t, err)
		for _, page := range []tumble.Page{top, scan} {
			if page.State != tumble.Final {
				continue
			}
			finals++
			keys := make(map[string]bool)
			for _, c := range page.Counts {
				keys[c.Key] = true
			}
			require.Len(t, keys, n)
			require.Len(t, page.Counts, n)
		}
	}
	done.Wait()
	require.Positive(t, finals)
}
