package tumble

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble/internal/rarely"
)

func TestTroubleIsOverWhenNoneIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all troubles
		others, tell := all.begins("a")
		require.True(t, tell)
		require.Zero(t, others)
		_, tell = all.begins("b")
		require.False(t, tell, "too soon")
		time.Sleep(rarely.Interval)
		_, tell = all.begins("a")
		require.False(t, tell, "it was told")
		others, tell = all.begins("b")
		require.True(t, tell)
		require.Equal(t, 1, others)
		require.False(t, all.ends("a"), "b is left")
		require.True(t, all.ends("b"))
		require.False(t, all.ends("b"))
		_, tell = all.begins("c")
		require.False(t, tell, "too soon")
		require.False(t, all.ends("c"), "what was not told is not over")
	})
}
