package simulate

import (
	"context"
	"encoding/json"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func take(t *testing.T, c *Clicker, n int) []Click {
	t.Helper()
	var all []Click
	for range n {
		click, err := c.Next(t.Context())
		require.NoError(t, err)
		all = append(all, click)
	}
	return all
}

func TestSameSeedSameClicks(t *testing.T) {
	step := 50 * time.Millisecond
	start := time.Date(2023, 10, 1, 14, 34, 0, 0, time.FixedZone("", 7200))
	cfg := Config{Users: 100_000, Seed: 7, Start: start, Step: &step}
	a := take(t, New(cfg), 1000)
	require.Equal(t, a, take(t, New(cfg), 1000))
	require.True(t, a[0].Time.Equal(start))
	require.Equal(t, 999*step, a[999].Time.Sub(a[0].Time))

	cfg.Seed = 8
	require.NotEqual(t, a, take(t, New(cfg), 1000))
	cfg.Seed = 0
	require.NotEqual(t, take(t, New(cfg), 1000), take(t, New(cfg), 1000))

	cfg.Users = 3
	seen := map[string]bool{}
	for _, c := range take(t, New(cfg), 1000) {
		seen[c.User] = true
	}
	require.Equal(t, map[string]bool{"user_1": true, "user_2": true, "user_3": true}, seen)
}

func TestRateAndRealTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		all := take(t, New(Config{Users: 3, Rate: 4}), 9)
		require.Equal(t, 2*time.Second, time.Since(began), "the first comes at once")
		require.Equal(t, 2*time.Second, all[8].Time.Sub(all[0].Time))
		require.True(t, all[0].Time.Equal(began))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c := New(Config{Users: 3, Rate: 0.1})
		_, err := c.Next(ctx)
		require.NoError(t, err)
		_, err = c.Next(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestTimeTooFar(t *testing.T) {
	step := time.Duration(math.MaxInt64 / 2)
	c := New(Config{Users: 1, Step: &step})
	take(t, c, 3)
	_, err := c.Next(t.Context())
	require.ErrorContains(t, err, "click 4")
}

func TestJSON(t *testing.T) {
	at := time.Date(2023, 10, 1, 12, 34, 56, 789e6, time.UTC)
	b := Click{"user_1", "/home", at}.AppendJSON(nil)
	require.Equal(t, `{"user_id":"user_1","timestamp":"2023-10-01T12:34:56.789Z","page":"/home"}`, string(b))
	require.True(t, json.Valid(b))
}
