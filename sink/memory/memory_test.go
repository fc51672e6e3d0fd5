package memory_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/sink/sinktest"
)

func TestRules(t *testing.T) {
	for _, shards := range []int{1, 4} {
		t.Run(fmt.Sprint(shards, " shards"), func(t *testing.T) {
			var mu sync.Mutex
			sinks := make(map[string]*memory.Sink)
			get := func(name string) *memory.Sink {
				mu.Lock()
				defer mu.Unlock()
				if sinks[name] == nil {
					sinks[name] = memory.New(memory.Config{Shards: shards})
				}
				return sinks[name]
			}
			sinktest.Test(t, sinktest.Config{
				Open: func(_ context.Context, name string) (sinktest.Sink, error) { return get(name), nil },
				Lose: func(_ context.Context, name string) error { get(name).Clear(); return nil },
				Snapshot: func(_ context.Context, name string) (func(context.Context) error, error) {
					restore := get(name).Snapshot()
					return func(context.Context) error { restore(); return nil }, nil
				},
			})
		})
	}
}

// begin registers the partition that the tests count.
var begin = tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"clicks/0": {}}}

var minutes = tumble.Definition{Window: tumble.Window{Size: time.Minute}}

// t0 is the start of a minute.
var t0 = time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)

// counted returns a sink that holds deltas, as one batch for each shard, with
// its partition's watermark.
func counted(t testing.TB, s *memory.Sink, def tumble.Definition, mark time.Time, deltas ...tumble.Delta) *memory.Sink {
	shards, err := s.Open(t.Context(), def)
	require.NoError(t, err)
	for i, shard := range shards {
		b := tumble.Batch{Partition: "clicks/0", Writer: 1, To: tumble.Checkpoint{Offset: 1, Watermark: mark}}
		for _, d := range deltas {
			if tumble.Hash(d.Key)%uint64(len(shards)) == uint64(i) {
				b.Deltas = append(b.Deltas, d)
			}
		}
		_, err := shard.Load(t.Context(), begin)
		require.NoError(t, err)
		require.NoError(t, shard.Apply(t.Context(), b))
	}
	return s
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	for _, shards := range []int{-1, 257} {
		_, err := memory.New(memory.Config{Shards: shards}).Open(t.Context(), minutes)
		require.ErrorContains(t, err, fmt.Sprint("Config.Shards is ", shards))
	}
	_, err := memory.New(memory.Config{}).Open(t.Context(), tumble.Definition{})
	require.ErrorContains(t, err, "Window.Size")

	for shards, want := range map[int]int{0: 1, 1: 1, 7: 7, 256: 256} {
		got, err := memory.New(memory.Config{Shards: shards}).Open(t.Context(), minutes)
		require.NoError(t, err)
		require.Len(t, got, want)
	}
}

func TestReadOfNothing(t *testing.T) {
	s := memory.New(memory.Config{})
	read := map[string]func() error{
		"Count": func() error { _, err := s.Count(t.Context(), "a", t0); return err },
		"Range": func() error { _, err := s.Range(t.Context(), "a", t0, t0); return err },
		"Top":   func() error { _, err := s.Top(t.Context(), t0, 1); return err },
		"Scan":  func() error { _, err := s.Scan(t.Context(), t0, "", 1); return err },
	}
	for name, f := range read {
		require.ErrorIs(t, f(), tumble.ErrNoDefinition, name)
	}
	counted(t, s, minutes, t0)
	for name, f := range read {
		require.NoError(t, f(), name)
	}
	s.Clear()
	for name, f := range read {
		require.ErrorIs(t, f(), tumble.ErrNoDefinition, name)
	}
}

// An announcement is good for one end.
func TestTokenIsUsedUp(t *testing.T) {
	shards, err := memory.New(memory.Config{}).Open(t.Context(), minutes)
	require.NoError(t, err)
	_, err = shards[0].Load(t.Context(), begin)
	require.NoError(t, err)
	_, err = shards[0].Load(t.Context(), tumble.LoadRequest{Announce: map[string]uint64{"clicks/0": 7}})
	require.NoError(t, err)
	end := tumble.Batch{Partition: "clicks/0", Writer: 1, Token: 7, To: tumble.Checkpoint{Ended: true}}
	require.NoError(t, shards[0].Apply(t.Context(), end))
	state, err := shards[0].Load(t.Context(), tumble.LoadRequest{})
	require.NoError(t, err)
	require.Empty(t, state.Announced)
	require.NoError(t, shards[0].Apply(t.Context(), tumble.Batch{Partition: "clicks/0", Writer: 2, From: end.To})) // it goes on
	require.ErrorIs(t, shards[0].Apply(t.Context(), end), tumble.ErrObjected)
}

func TestTimesThatNoWindowHolds(t *testing.T) {
	s := counted(t, memory.New(memory.Config{}), minutes, t0, tumble.Delta{Start: t0, Key: "a", N: 1})
	for _, at := range []time.Time{{}, time.Date(1699, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(1<<60, 0)} {
		_, err := s.Count(t.Context(), "a", at)
		require.ErrorContains(t, err, "1700 to 2199", at)
		_, err = s.Top(t.Context(), at, 1)
		require.ErrorContains(t, err, "1700 to 2199", at)
		_, err = s.Scan(t.Context(), at, "", 1)
		require.ErrorContains(t, err, "1700 to 2199", at)
	}
	// A range may be as wide as it wants.
	got, err := s.Range(t.Context(), "a", time.Time{}, time.Unix(1<<60, 0))
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.Equal(t, []tumble.Count{{Key: "a", Start: t0, End: t0.Add(time.Minute), N: 1, Term: got[0].Term}}, got)
}

// TestModel compares random batches with maps: keys of all lengths, windows in
// any order.
func TestModel(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			s := memory.New(memory.Config{Shards: 3})
			shards, err := s.Open(t.Context(), minutes)
			require.NoError(t, err)
			want := make(map[int]map[string]int64)
			for i, shard := range shards {
				_, err := shard.Load(t.Context(), begin)
				require.NoError(t, err)
				var from tumble.Checkpoint
				for range 200 {
					b := tumble.Batch{Partition: "clicks/0", Writer: 1, From: from, To: from}
					b.To.Offset++
					from = b.To
					for range r.IntN(100) {
						w, key := r.IntN(40), strings.Repeat(fmt.Sprint(r.IntN(300)), 1<<(r.IntN(12)*r.IntN(2)))
						if tumble.Hash(key)%3 != uint64(i) {
							continue
						}
						n := 1 + r.Int64N(9)
						b.Deltas = append(b.Deltas, tumble.Delta{Start: t0.Add(time.Duration(w) * time.Minute), Key: key, N: n})
						if want[w] == nil {
							want[w] = make(map[string]int64)
						}
						want[w][key] += n
					}
					require.NoError(t, shard.Apply(t.Context(), b))
				}
			}
			for w, counts := range want {
				at := t0.Add(time.Duration(w) * time.Minute)
				got := make(map[string]int64)
				for cursor, more := "", true; more; more = cursor != "" {
					page, err := s.Scan(t.Context(), at, cursor, 1+r.IntN(100))
					require.NoError(t, err)
					for _, c := range page.Counts {
						require.NotContains(t, got, c.Key)
						got[c.Key] = c.N
					}
					cursor = page.Cursor
				}
				require.Equal(t, counts, got)
				for key, n := range counts {
					c, err := s.Count(t.Context(), key, at)
					require.NoError(t, err)
					require.Equal(t, n, c.N)
				}
				top, err := s.Top(t.Context(), at, 10)
				require.NoError(t, err)
				keys := slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b)) })
				for i, c := range top.Counts {
					require.Equal(t, tumble.Count{Key: keys[i], Start: at, End: at.Add(time.Minute), N: counts[keys[i]]}, c)
				}
				require.Len(t, top.Counts, min(10, len(keys)))
			}
		})
	}
}

// TestFrontierModel compares the frontier with one that is found anew, after
// random moves of some partitions.
func TestFrontierModel(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			shards, err := memory.New(memory.Config{}).Open(t.Context(), minutes)
			require.NoError(t, err)
			mark := func() time.Time {
				if r.IntN(6) == 0 {
					return time.Time{}
				}
				return t0.Add(time.Duration(r.IntN(10)) * time.Second)
			}
			for range 500 {
				id := fmt.Sprint("clicks/", r.IntN(4))
				state, err := shards[0].Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{id: {Watermark: mark()}}})
				require.NoError(t, err)
				require.True(t, state.Frontier.Equal(tumble.Frontier(state.Checkpoints)), "%v, want %v", state.Frontier, tumble.Frontier(state.Checkpoints))
				b := tumble.Batch{Partition: id, Writer: 1, From: state.Checkpoints[id]}
				b.To = tumble.Checkpoint{Offset: b.From.Offset + 1, Watermark: mark(), Ended: r.IntN(4) == 0}
				if r.IntN(2) == 0 && b.To.Watermark.Before(b.From.Watermark) {
					b.To.Watermark = b.From.Watermark.Add(time.Second)
				}
				if err := shards[0].Apply(t.Context(), b); err != nil {
					require.ErrorIs(t, err, tumble.ErrPassed)
				}
			}
		})
	}
}

// With so many keys the hashes of some are the same.
func TestManyKeys(t *testing.T) {
	const n = 400_000 // 19 pairs among 2^32
	deltas := make([]tumble.Delta, n)
	for i := range deltas {
		deltas[i] = tumble.Delta{Start: t0, Key: fmt.Sprint("user_", i), N: int64(i + 1)}
	}
	s := counted(t, memory.New(memory.Config{}), minutes, t0, deltas...)
	for _, d := range deltas {
		c, err := s.Count(t.Context(), d.Key, t0)
		if err != nil || c.N != d.N {
			t.Fatalf("%s has %d, want %d (error %v)", d.Key, c.N, d.N, err)
		}
	}
}

func TestTopOfNone(t *testing.T) {
	s := counted(t, memory.New(memory.Config{}), minutes, t0, tumble.Delta{Start: t0, Key: "a", N: 1})
	for _, n := range []int{0, -1} {
		page, err := s.Top(t.Context(), t0, n)
		require.NoError(t, err)
		require.Empty(t, page.Counts)
	}
	page, err := s.Top(t.Context(), t0, math.MaxInt)
	require.NoError(t, err)
	require.Len(t, page.Counts, 1)
}

// A cursor belongs to its window, and outlives what retention forgets.
func TestCursor(t *testing.T) {
	def := tumble.Definition{Window: tumble.Window{Size: time.Minute}, Retention: time.Minute}
	s := counted(t, memory.New(memory.Config{}), def, t0, tumble.Delta{Start: t0, Key: "a", N: 1}, tumble.Delta{Start: t0, Key: "b", N: 1},
		tumble.Delta{Start: t0.Add(time.Minute), Key: "a", N: 1}, tumble.Delta{Start: t0.Add(time.Minute), Key: "b", N: 1})
	page, err := s.Scan(t.Context(), t0, "", 1)
	require.NoError(t, err)
	require.NotEmpty(t, page.Cursor)
	for _, bad := range []string{"0.0.0", "1.1", page.Cursor + "0", "+" + page.Cursor, strings.TrimSuffix(page.Cursor, "1") + "2", strings.Replace(page.Cursor, ".0.", ".-1.", 1), strings.Replace(page.Cursor, ".0.", ".1.", 1)} {
		_, err = s.Scan(t.Context(), t0, bad, 1)
		require.ErrorIs(t, err, tumble.ErrCursor, bad)
	}
	_, err = s.Scan(t.Context(), t0.Add(time.Minute), page.Cursor, 1)
	require.ErrorIs(t, err, tumble.ErrCursor)

	shards, err := s.Open(t.Context(), def)
	require.NoError(t, err)
	require.NoError(t, shards[0].Apply(t.Context(), tumble.Batch{Partition: "clicks/0", Writer: 1, From: tumble.Checkpoint{Offset: 1, Watermark: t0},
		To: tumble.Checkpoint{Offset: 1, Watermark: t0.Add(2 * time.Minute)}}))
	page, err = s.Scan(t.Context(), t0, page.Cursor, 1)
	require.NoError(t, err)
	require.Equal(t, tumble.Page{Start: t0, End: t0.Add(time.Minute), State: tumble.Expired, Term: page.Term}, page)
}

// What retention forgets must leave the memory.
func TestRetentionFreesMemory(t *testing.T) {
	heap := func() int {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	def := tumble.Definition{Window: tumble.Window{Size: time.Minute}, Retention: time.Minute}
	s := memory.New(memory.Config{})
	shards, err := s.Open(t.Context(), def)
	require.NoError(t, err)
	at, err := shards[0].Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"clicks/0": {Watermark: t0}}})
	require.NoError(t, err)
	before := heap()
	const perWindow = 10_000
	b := tumble.Batch{Partition: "clicks/0", Writer: 1, To: at.Checkpoints["clicks/0"], Deltas: make([]tumble.Delta, perWindow)}
	for w := range 50 {
		start := t0.Add(time.Duration(w) * time.Minute)
		for i := range b.Deltas {
			b.Deltas[i] = tumble.Delta{Start: start, Key: fmt.Sprint("user_", i), N: 1}
		}
		b.From = b.To
		b.To.Offset++
		b.To.Watermark = start
		require.NoError(t, shards[0].Apply(t.Context(), b))
	}
	b.Deltas = nil
	require.Less(t, heap()-before, 4*perWindow*100, "more than the windows that are kept")
	page, err := s.Top(t.Context(), t0.Add(49*time.Minute), 1)
	require.NoError(t, err)
	require.Len(t, page.Counts, 1)
	require.Equal(t, "user_0", page.Counts[0].Key)
	require.EqualValues(t, 1, page.Counts[0].N)
}
