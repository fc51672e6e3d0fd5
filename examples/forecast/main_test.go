package main

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/examples/forecast/smoothing"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

var begin = time.Date(2024, 5, 1, 0, 0, 0, 0, time.UTC)

// wave is what the i-th minute counts. Every tenth counts nothing.
func wave(i int) int {
	if i%10 == 9 {
		return 0
	}
	return 20 + int(10*math.Sin(float64(i)*math.Pi/5))
}

// counted returns the counts of n minutes of waves, and of few events of the next one,
// which stays open.
func counted(t *testing.T, n int) *memory.Sink {
	events := make(chan tumble.Event, 1000)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	require.NoError(t, err)
	sink := memory.New(memory.Config{})
	p, err := tumble.New(tumble.Config{Source: source, Sink: sink, Window: tumble.Window{Size: time.Minute}})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Run(context.Background()) }()
	for i := range n {
		for j := range wave(i) {
			events <- tumble.Event{Key: []string{"a", "b"}[j%2], Time: begin.Add(time.Duration(i)*time.Minute + time.Duration(j)*time.Millisecond)}
		}
	}
	events <- tumble.Event{Key: "a", Time: begin.Add(time.Duration(n)*time.Minute + time.Second)}
	close(events)
	require.NoError(t, <-done)
	return sink
}

// An open window is no part of what is known, and a window without a count is 0.
func TestRead(t *testing.T) {
	sink := counted(t, 95)
	h, err := read(t.Context(), sink, "", 1000, time.Time{})
	require.NoError(t, err)
	require.Len(t, h.counts, 95)
	for i, x := range h.counts {
		require.EqualValues(t, wave(i), x)
		require.True(t, h.starts[i].Equal(begin.Add(time.Duration(i)*time.Minute)))
	}
	require.True(t, h.next.Equal(begin.Add(95*time.Minute)), h.next)

	h, err = read(t.Context(), sink, "b", 25, time.Time{})
	require.NoError(t, err)
	require.Len(t, h.counts, 25)
	for i, x := range h.counts {
		require.EqualValues(t, wave(70+i)/2, x)
	}

	h, err = read(t.Context(), sink, "", 10, begin.Add(50*time.Minute+time.Second))
	require.NoError(t, err)
	require.Len(t, h.counts, 10)
	require.EqualValues(t, wave(40), h.counts[0])

	_, err = read(t.Context(), sink, "nobody", 10, time.Time{})
	require.ErrorIs(t, err, errNothing)
	_, err = read(t.Context(), memory.New(memory.Config{}), "", 10, time.Time{})
	require.ErrorIs(t, err, errNothing)
}

// states is a Reader that says of windows what it is told.
type states struct {
	*memory.Sink
	of map[time.Time]tumble.State
}

func (s states) Windows(ctx context.Context, from, to time.Time) ([]tumble.Total, error) {
	totals, err := s.Sink.Windows(ctx, from, to)
	for i, t := range totals {
		if state, ok := s.of[t.Start.UTC()]; ok {
			totals[i].State = state
		}
	}
	return totals, err
}

// What is past retention may be gone, and what is open again is not complete.
func TestReadLeavesOut(t *testing.T) {
	r := states{counted(t, 95), map[time.Time]tumble.State{
		begin: tumble.Expired, begin.Add(20 * time.Minute): tumble.Expired, begin.Add(90 * time.Minute): tumble.Open,
	}}
	h, err := read(t.Context(), r, "", 1000, time.Time{})
	require.NoError(t, err)
	require.True(t, h.starts[0].Equal(begin.Add(21*time.Minute)), h.starts[0])
	require.True(t, h.next.Equal(begin.Add(90*time.Minute)), h.next)
	require.Len(t, h.counts, 69)
}

// set gives flags other values for a test.
func set[T any](t *testing.T, flag *T, x T) {
	was := *flag
	*flag = x
	t.Cleanup(func() { *flag = was })
}

func TestBands(t *testing.T) {
	set(t, season, 10)
	set(t, ahead, 5)
	all, err := bands(t.Context(), counted(t, 95), begin.Add(95*time.Minute))
	require.NoError(t, err)
	require.Len(t, all, 5)
	for i, b := range all {
		require.True(t, b.Start.Equal(begin.Add(time.Duration(95+i)*time.Minute)))
		require.Equal(t, time.Minute, b.End.Sub(b.Start))
		require.InDelta(t, wave(95+i), b.Middle, 0.5)
		require.LessOrEqual(t, b.Low, b.Middle)
		require.LessOrEqual(t, b.Middle, b.High)
	}
}

func TestReport(t *testing.T) {
	set(t, season, 10)
	set(t, ahead, 3)
	h, err := read(t.Context(), counted(t, 95), "", wanted(), time.Time{})
	require.NoError(t, err)
	h.counts[50] = 90
	var out bytes.Buffer
	require.NoError(t, report(&out, h))
	require.Regexp(t, `(?s)Tried out on the last 12 counts, 3 at a time:.*seasonal naive.*Holt-Winters.*Forecast by .*2024-05-01T01:35:00Z.*2024-05-01T01:37:00Z.*Not explained.*2024-05-01T00:5\d:00Z +90 `, out.String())
	set(t, asJSON, true)
	out.Reset()
	require.NoError(t, report(&out, h))
	var answer said
	require.NoError(t, json.Unmarshal(out.Bytes(), &answer))
	require.Len(t, answer.Forecast, 3)
	require.Len(t, answer.Scores, len(smoothing.Fits))
	require.NotEmpty(t, answer.Anomalies)

	h.counts, h.starts = h.counts[:15], h.starts[:15]
	require.ErrorIs(t, report(&out, h), smoothing.ErrShort)
	require.ErrorContains(t, report(&out, h), "-season")
}

func TestFromFile(t *testing.T) {
	h, err := fromFile("smoothing/testdata/flights.csv")
	require.NoError(t, err)
	require.Len(t, h.counts, 1680)
	bad := filepath.Join(t.TempDir(), "bad.csv")
	require.NoError(t, os.WriteFile(bad, []byte("at,n\n1,2\n2,many\n"), 0o644))
	_, err = fromFile(bad)
	require.ErrorContains(t, err, `line 3: "many" is no number`)
}
