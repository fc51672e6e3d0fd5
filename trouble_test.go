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
		_, tell = all.ends("a")
		require.False(t, tell, "b is left")
		others, tell = all.ends("b")
		require.True(t, tell)
		require.Equal(t, 1, others, "a works again, too")
		_, tell = all.ends("b")
		require.False(t, tell)
		_, tell = all.begins("c")
		require.False(t, tell, "too soon")
		others, tell = all.ends("c")
		require.False(t, tell, "what was not told is not over")
		require.Zero(t, others)
	})
}
