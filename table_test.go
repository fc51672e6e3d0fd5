package tumble

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// The table must not keep a borrowed key, keeps windows of a key apart, also
// those that are too many for its list, forgets what is in no batch, and uses
// again what a batch has left.
func TestTable(t *testing.T) {
	const windows = 3*maxList - 1 // a prime
	tb := newTable(1, 1)
	ln := &lane{open: &tb.open[0]}
	want := map[string]int64{}
	var buf [20]byte
	add := func(i int, window int64, fresh bool) {
		bytes := fmt.Appendf(buf[:0], "key-%08d", i)
		key := unsafe.String(&bytes[0], len(bytes))
		got, _ := ln.open.add(tb.find(tb.hash(key), key), window, 1)
		require.Equal(t, fresh, got, "%s in %d", key, window)
		want[fmt.Sprint(window, key)]++
	}
	for round := range 2 {
		for i := range 300_000 {
			key := fmt.Appendf(buf[:0], "key-%08d", i)
			tb.find(tb.hash(string(key)), unsafe.String(&key[0], len(key)))
			for w := range int64(windows) {
				if i%1000 == 0 { // by turns forth, back, and to and fro
					add(i, []int64{w, windows - 1 - w, w * 7 % windows}[i/1000%3], true)
				}
			}
			tb.shrink()
			require.Less(t, len(tb.entries), maxIdle+4*len(ln.open.counters)+1)
		}
		// Found again, in any order.
		for i := 299_000; i >= 0; i -= 1000 {
			for w := range int64(windows) {
				add(i, w*5%windows, false)
			}
		}
		up := newRollups(Definition{Window: Window{Size: 1}, Rollups: []Rollup{{Window: Window{Size: 3}}, {Window: Window{Size: 1 << 40}}}})
		ln.seal("p", &tb, Checkpoint{}, &up, func() []Delta { return nil })
		requireRollups(t, []int64{3, 1 << 40}, ln.queue[round].Batch)
		got := map[string]int64{}
		for _, d := range ln.queue[round].Deltas {
			got[fmt.Sprint(d.Start.UnixNano(), d.Key)] += d.N
		}
		require.Equal(t, want, got)
		require.Len(t, ln.queue[round].Deltas, len(want))
		require.Empty(t, ln.open.counters)
		clear(want)
	}
}

// requireRollups wants the roll-ups of a batch to be what its increments come to in
// windows of these sizes.
func requireRollups(t *testing.T, sizes []int64, b Batch) {
	t.Helper()
	require.Len(t, b.Rollups, len(sizes))
	for i, size := range sizes {
		want, got := map[place]int64{}, map[place]int64{}
		for _, d := range b.Deltas {
			want[place{d.Key, d.Start.UnixNano() / size * size}] += d.N
		}
		for _, d := range b.Rollups[i] {
			p := place{d.Key, d.Start.UnixNano()}
			require.Zero(t, got[p], "one increment of %v", p)
			got[p] = d.N
		}
		require.Equal(t, want, got)
	}
}

// The batches of a lane have numbers that come again after some 4 billion: an entry
// of a key that has been quiet for so long must not seem to be of the batch that
// has its number.
func TestBatchesOfTheSameNumber(t *testing.T) {
	tb := newTable(2, 1)
	var keys [2][]string
	for i := range 20 {
		key := fmt.Sprint("key", i)
		lane := tb.find(tb.hash(key), key).lane
		keys[lane] = append(keys[lane], key)
	}
	for i := range tb.open {
		b := &tb.open[i]
		add := func(keys ...string) {
			for _, key := range keys {
				fresh, _ := b.add(tb.find(tb.hash(key), key), 0, 1)
				require.True(t, fresh)
			}
			require.Len(t, b.counters, len(keys))
			tb.reset(b)
		}
		add(keys[i][:2]...)
		b.number = math.MaxUint32
		add(keys[i][1:3]...)
		add(keys[i]...)
	}
}

// An entry has room for so many lanes: another would count into a wrong shard.
func TestShardsThatNoEntryCanName(t *testing.T) {
	for _, n := range []int{0, maxShards + 1} {
		p, err := New(Config{Source: struct{ Source }{}, Sink: sharded(n), Window: Window{Size: time.Minute}})
		require.NoError(t, err)
		require.ErrorContains(t, p.Run(t.Context()), fmt.Sprintf("it has %d shards", n))
	}
}

// sharded is a sink of so many shards.
type sharded int

func (n sharded) Open(context.Context, Definition) ([]Shard, error) { return make([]Shard, n), nil }
