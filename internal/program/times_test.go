package program

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRetention(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"0": 0, "0d": 0, "90m": 90 * time.Minute, "36h": 36 * time.Hour, "7d": 7 * 24 * time.Hour, "1d12h": 36 * time.Hour, "31d": 31 * 24 * time.Hour,
	} {
		got, err := Retention(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
	for _, s := range []string{"", "d", "1w", "-1d", "1.5d", "1d-1h", "-1h", "1h1d", "1d1d", "99999999d", "1"} {
		_, err := Retention(s)
		require.Error(t, err, s)
	}
}

func TestInstant(t *testing.T) {
	now := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	for s, want := range map[string]time.Time{
		"now": now, "2023-10-01T12:34": time.Date(2023, 10, 1, 12, 34, 0, 0, time.UTC),
		"2023-10-01T12:34:56+02:00": time.Date(2023, 10, 1, 10, 34, 56, 0, time.UTC),
	} {
		got, err := Instant(s, now)
		require.NoError(t, err, s)
		require.True(t, want.Equal(got), s)
	}
	for _, s := range []string{"", "yesterday", "2023-10-01T1:34", "1699-12-31T23:59", "2200-01-01T00:00", "2023-13-01T00:00"} {
		_, err := Instant(s, now)
		require.Error(t, err, s)
	}
}

func TestShortMinute(t *testing.T) {
	at := time.Date(2023, 10, 1, 12, 34, 0, 0, time.UTC)
	require.Equal(t, "2023-10-01T12:34", ShortMinute(at))
	require.Equal(t, "2023-10-01T12:34:05Z", ShortMinute(at.Add(5*time.Second)))
}

func TestLevel(t *testing.T) {
	w, err := Level("")
	require.NoError(t, err)
	require.Nil(t, w)
	w, err = Level("1h")
	require.NoError(t, err)
	require.Equal(t, time.Hour, w.Size)
	_, err = Level("soon")
	require.ErrorContains(t, err, `"soon"`)
}
