package redis

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// BenchmarkEncode packs batches of 1,000 increments of keys that
// the processor has not seen for a while. An op is an increment.
func BenchmarkEncode(b *testing.B) {
	noon := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	for _, windows := range []int{1, 7} {
		b.Run(fmt.Sprintf("windows=%d", windows), func(b *testing.B) {
			s := newShard(&Sink{core: &core{}}, minutesForever, 1, 0)
			batches := make([][]tumble.Delta, 500)
			for i := range 1000 * len(batches) {
				window := noon.Add(time.Duration(i/len(batches)*windows/1000) * time.Minute)
				s.sizes[place{0, window.UnixMilli()}] = size{buckets: 1000, keys: 48_000}
				at := i % len(batches)
				batches[at] = append(batches[at], tumble.Delta{Start: window, Key: "user_" + strconv.Itoa(i), N: int64(i%9 + 1)})
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += 1000 {
				_, err := s.encode(tumble.Batch{Deltas: batches[i/1000%len(batches)]})
				require.NoError(b, err)
			}
		})
	}
}
