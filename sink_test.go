package tumble

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHashIsStable(t *testing.T) {
	// Computed by hand from the definitions that Hash names.
	require.Equal(t, uint64(0xefd01f60ba992926), Hash(""))
	counts := make([]int, 16)
	for i := range 16_000 {
		counts[Hash(fmt.Sprint("user_", i))%16]++
	}
	for _, n := range counts {
		require.InDelta(t, 1000, n, 150)
	}
}

// Two checkpoints are the same if they are in every field, at the same instant in
// whatever zone.
func TestSame(t *testing.T) {
	c := Checkpoint{Log: "log", Origin: 5, Offset: 60, Epoch: 3, Watermark: noon}
	same := c
	same.Watermark = noon.In(time.FixedZone("somewhere", 3600))
	require.True(t, c.Same(same))
	for field, change := range map[string]func(*Checkpoint){
		"Log":       func(c *Checkpoint) { c.Log = "another" },
		"Origin":    func(c *Checkpoint) { c.Origin++ },
		"Offset":    func(c *Checkpoint) { c.Offset++ },
		"Epoch":     func(c *Checkpoint) { c.Epoch++ },
		"Watermark": func(c *Checkpoint) { c.Watermark = noon.Add(1) },
		"Ended":     func(c *Checkpoint) { c.Ended = true },
	} {
		d := c
		change(&d)
		require.False(t, c.Same(d), field)
		require.False(t, d.Same(c), field)
	}
}
