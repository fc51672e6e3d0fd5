package tumble

import (
	"fmt"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// The table must not keep a borrowed key, keeps windows of a key apart, and
// forgets what is in no batch.
func TestTable(t *testing.T) {
	const windows = perEntry + 3
	tb := newTable(1)
	lanes := []*lane{{}}
	want := map[string]int64{}
	var buf [20]byte
	for i := range 300_000 {
		key := fmt.Appendf(buf[:0], "key-%08d", i)
		for w := range int64(windows) {
			key := unsafe.String(&key[0], len(key))
			c, id, _ := tb.find(tb.hash(key), w, key)
			require.Zero(t, c.n)
			require.Same(t, tb.counter(id), c)
			if i%1000 == 0 && w > 0 {
				lanes[0].open = append(lanes[0].open, id)
				c.n = int64(i)*windows + w
				want[fmt.Sprint(w, key)] = c.n
			}
		}
		tb.shrink(lanes)
		require.Less(t, len(tb.entries), maxIdle+4*len(lanes[0].open)+1)
	}
	// Found again, where they are, in any order.
	for i := 299_000; i >= 0; i -= 1000 {
		for w := range int64(windows) {
			key := fmt.Sprintf("key-%08d", i)
			c, id, _ := tb.find(tb.hash(key), w, key)
			require.Equal(t, want[fmt.Sprint(w, key)], c.n)
			require.Equal(t, w > 0, slices.Contains(lanes[0].open, id) && c.n > 0)
		}
	}
	var b lane
	b.open = lanes[0].open
	b.seal("p", &tb, Checkpoint{}, nil)
	require.Len(t, b.queue[0].Deltas, len(want))
	for _, d := range b.queue[0].Deltas {
		require.Equal(t, want[fmt.Sprint(d.Window.UnixNano(), d.Key)], d.N)
	}
	for i := range tb.entries {
		for _, c := range tb.entries[i].counters {
			require.Zero(t, c.n)
		}
	}
}
