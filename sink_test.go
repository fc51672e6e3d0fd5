package tumble

import (
	"fmt"
	"testing"

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
