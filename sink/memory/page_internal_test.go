package memory

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// A page is judged by each piece at the moment at which it is read.
func TestPageOfPieces(t *testing.T) {
	start := time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)
	minute := func(i int) time.Time { return start.Add(time.Duration(i) * time.Minute) }
	for _, c := range []struct {
		before, between time.Time // the watermarks when the first and the second piece are read
		want            tumble.State
	}{
		{minute(0), minute(0), tumble.Open},
		{minute(0), minute(1), tumble.Open}, // counts may have come after the first piece
		{minute(1), minute(2), tumble.Final},
		{minute(1), minute(9), tumble.Expired}, // the second piece is gone
		{minute(0), minute(9), tumble.Expired},
	} {
		t.Run(fmt.Sprint(c.before.Minute(), " ", c.between.Minute()), func(t *testing.T) {
			s := New(Config{Shards: 2})
			shards, err := s.Open(t.Context(), tumble.Definition{Window: tumble.Window{Size: time.Minute}, Retention: 3 * time.Minute, DropLate: true})
			require.NoError(t, err)
			at := make([]tumble.Checkpoint, 2)
			move := func(mark time.Time, deltas ...tumble.Delta) {
				for i, shard := range shards {
					b := tumble.Batch{Partition: "clicks/0", Writer: 1, From: at[i], To: at[i]}
					b.To.Offset++
					b.To.Watermark = mark
					if i == 0 {
						b.Deltas = deltas
					}
					require.NoError(t, shard.Apply(t.Context(), b))
					at[i] = b.To
				}
			}
			for i, shard := range shards {
				_, err := shard.Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"clicks/0": at[i]}})
				require.NoError(t, err)
			}
			move(minute(0), tumble.Delta{Start: start, Key: "a", N: 1}, tumble.Delta{Start: start, Key: "b", N: 2})
			move(c.before)

			p, err := s.newPage(start)
			require.NoError(t, err)
			var counts []tumble.Count
			keep := func(t *table, i int, term uint64) { counts = append(counts, p.count(t, i, term)) }
			p.read(1, 0, step, keep)
			next := p.read(0, 0, 1, keep)
			require.Equal(t, 1, next)
			require.Len(t, counts, 1)
			move(c.between)
			require.Equal(t, -1, p.read(0, next, step, keep))
			page := p.finish(counts, "")
			require.Equal(t, c.want, page.State)
			if c.want == tumble.Final {
				require.Len(t, page.Counts, 2)
			}
			for _, n := range page.Counts {
				require.Equal(t, c.want, n.State)
			}
		})
	}
}
