package memory_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

const perBatch = 1000

// users returns the batches that count each of n users once in the minute w.
func users(n, w int) [][]tumble.Delta {
	var batches [][]tumble.Delta
	for i := range n {
		if i%perBatch == 0 {
			batches = append(batches, nil)
		}
		last := &batches[len(batches)-1]
		// In no order: neighbours in a batch are not neighbours in the table.
		*last = append(*last, tumble.Delta{Start: t0.Add(time.Duration(w) * time.Minute), Key: fmt.Sprint("user_", i*7919%n), N: 1})
	}
	return batches
}

// BenchmarkApply adds to counts that are there. An op is one increment.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		batches := users(n, 0)
		b.Run(fmt.Sprint("memory/", n), func(b *testing.B) {
			s := memory.New(memory.Config{})
			shards, err := s.Open(b.Context(), minutes)
			require.NoError(b, err)
			_, err = shards[0].Load(b.Context(), begin)
			require.NoError(b, err)
			batch := tumble.Batch{Partition: "clicks/0", Writer: 1}
			apply := func(deltas []tumble.Delta) {
				batch.Deltas, batch.From = deltas, batch.To
				batch.To.Offset++
				if err := shards[0].Apply(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			}
			for _, deltas := range batches {
				apply(deltas)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += perBatch {
				apply(batches[i/perBatch%len(batches)])
			}
		})
		b.Run(fmt.Sprint("map/", n), func(b *testing.B) {
			counts := make(map[string]int64)
			for _, deltas := range batches {
				for _, d := range deltas {
					counts[d.Key] += d.N
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += perBatch {
				for _, d := range batches[i/perBatch%len(batches)] {
					counts[d.Key] += d.N
				}
			}
		})
	}
}

// BenchmarkApplyPartitions moves the watermarks of many partitions, in no order.
// An op is one batch without increments.
func BenchmarkApplyPartitions(b *testing.B) {
	for _, n := range []int{1, 100, 2000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			shards, err := memory.New(memory.Config{}).Open(b.Context(), minutes)
			require.NoError(b, err)
			batches := make([]tumble.Batch, n)
			init := make(map[string]tumble.Checkpoint)
			for i := range batches {
				batches[i] = tumble.Batch{Partition: fmt.Sprint("clicks/", i), Writer: 1}
				init[batches[i].Partition] = tumble.Checkpoint{}
			}
			_, err = shards[0].Load(b.Context(), tumble.LoadRequest{Init: init})
			require.NoError(b, err)
			for i := range b.N {
				batch := &batches[rand.IntN(n)]
				batch.From = batch.To
				batch.To.Offset++
				batch.To.Watermark = t0.Add(time.Duration(i) * time.Millisecond)
				if err := shards[0].Apply(b.Context(), *batch); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkMemory fills a window with 1,000,000 new keys of 6 to 11 bytes:
// ns/count is for one of them, B/count what it takes from then on, its key
// included, and gc-ms how long a collection takes beside them all.
func BenchmarkMemory(b *testing.B) {
	const n = 1_000_000
	batches := users(n, 0)
	measure := func(b *testing.B, fill func(deltas []tumble.Delta)) {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		var filling time.Duration
		own := make([]tumble.Delta, perBatch)
		for _, deltas := range batches {
			// As a pipeline does: each key is a string of its own.
			for i, d := range deltas {
				own[i] = tumble.Delta{Start: d.Start, Key: strings.Clone(d.Key), N: d.N}
			}
			begun := time.Now()
			fill(own)
			filling += time.Since(begun)
		}
		clear(own)
		begun := time.Now()
		runtime.GC()
		gc := time.Since(begun)
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(filling.Nanoseconds())/n, "ns/count")
		b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/n, "B/count")
		b.ReportMetric(float64(gc.Microseconds())/1000, "gc-ms")
		b.ReportMetric(0, "ns/op") // says nothing
	}
	b.Run("memory", func(b *testing.B) {
		for b.Loop() {
			s := memory.New(memory.Config{})
			shards, err := s.Open(b.Context(), minutes)
			require.NoError(b, err)
			_, err = shards[0].Load(b.Context(), begin)
			require.NoError(b, err)
			batch := tumble.Batch{Partition: "clicks/0", Writer: 1}
			measure(b, func(deltas []tumble.Delta) {
				batch.Deltas, batch.From = deltas, batch.To
				batch.To.Offset++
				if err := shards[0].Apply(b.Context(), batch); err != nil {
					b.Fatal(err)
				}
			})
			runtime.KeepAlive(s)
		}
	})
	b.Run("map", func(b *testing.B) {
		for b.Loop() {
			counts := make(map[string]int64)
			measure(b, func(deltas []tumble.Delta) {
				for _, d := range deltas {
					counts[d.Key] += d.N
				}
			})
			runtime.KeepAlive(counts)
		}
	})
}
