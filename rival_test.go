package tumble

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

type owned struct{ Partition }

func (owned) Yield() bool { return false }

// Who has the partition by right is back soon, however often a rival was faster.
func TestTheOwnerRestsBriefly(t *testing.T) {
	rests := func(part Partition) time.Duration {
		c := &consumer{part: part, p: &Pipeline{cfg: Config{Logger: slog.New(slog.DiscardHandler)}}}
		for range 20 {
			c.rest(true)
		}
		return time.Until(c.restAt)
	}
	require.LessOrEqual(t, rests(owned{}), 500*time.Millisecond)
	require.Greater(t, rests(nil), 2*time.Second)
}

type lost struct{ Partition }

func (lost) Yield() bool { return true }

// What the one before had stored last, and is found late, is no reason to yield.
func TestYieldsOnlyToWhoIsAhead(t *testing.T) {
	for _, overtaken := range []bool{false, true} {
		c := &consumer{part: lost{}, p: &Pipeline{cfg: Config{Logger: slog.New(slog.DiscardHandler)}}, halted: make(chan struct{}), cease: func() {}}
		c.rest(overtaken)
		require.Equal(t, overtaken, c.stop != nil)
	}
}
