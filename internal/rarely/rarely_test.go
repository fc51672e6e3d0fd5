package rarely

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Line
		now := func() (int64, bool) { return l.Now() }
		silence, ok := now()
		require.True(t, ok)
		require.Zero(t, silence)
		for range 5 {
			_, ok = now()
			require.False(t, ok)
		}
		time.Sleep(Interval)
		silence, ok = now()
		require.True(t, ok)
		require.EqualValues(t, 5, silence)
		time.Sleep(Interval)
		silence, ok = now()
		require.True(t, ok)
		require.Zero(t, silence)
	})
}
