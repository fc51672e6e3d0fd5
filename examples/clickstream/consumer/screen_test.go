package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka"
)

func TestProgress(t *testing.T) {
	at := time.Unix(0, 0)
	var p progress
	next := func(read int64, parts ...tumble.PartitionStats) (string, bool) {
		at = at.Add(time.Second)
		return p.next(at, tumble.Stats{Read: read, Partitions: parts})
	}
	line, done := next(0)
	require.Equal(t, "waiting for partitions", line)
	require.False(t, done, "none is not all")
	_, done = next(0, tumble.PartitionStats{ID: "a/0", Offset: 100, End: 1100}, tumble.PartitionStats{ID: "a/1", Offset: 0, End: -1})
	require.False(t, done)
	line, done = next(250, tumble.PartitionStats{ID: "a/0", Offset: 350, End: 1100}, tumble.PartitionStats{ID: "a/1", Offset: 0, End: 0, CaughtUp: true})
	require.False(t, done)
	require.Equal(t, "25.0% of the log, 250 events/s, 3s left", line)
	_, done = next(1000, tumble.PartitionStats{ID: "a/0", Offset: 1100, End: 1100, CaughtUp: true}, tumble.PartitionStats{ID: "a/1", CaughtUp: true})
	require.True(t, done)
}

func TestScreenKeepsLinesWhole(t *testing.T) {
	var out bytes.Buffer
	s := &screen{out: &out}
	s.show("")
	require.Empty(t, out.String(), "nothing to erase")
	fmt.Fprint(s, "a\n")
	s.show("10%")
	fmt.Fprint(s, "b\n")
	s.show("")
	fmt.Fprint(s, "c\n")
	require.Equal(t, "a\n"+eraseLine+"10%"+eraseLine+"b\n10%"+eraseLine+"c\n", out.String())
}

func TestPipeIsNoTerminal(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	require.False(t, newScreen(w).terminal)
}

func TestRejectsAreFewLinesAndASum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		r := &rejects{out: &out}
		said := func() string { // since it was asked last
			synctest.Wait()
			r.mu.Lock() // guards what is written
			defer r.mu.Unlock()
			defer out.Reset()
			return out.String()
		}
		for i := range 100 {
			require.NoError(t, r.add(t.Context(), kafka.Rejected{Topic: "clicks", Partition: 3, Offset: int64(i), Cause: errors.New("is\nbad")}))
		}
		lines := strings.Split(said(), "\n")
		require.Len(t, lines, rejectLines+1)
		require.Equal(t, "consumer: rejected clicks/3@4: is bad", lines[4])
		time.Sleep(1100 * time.Millisecond)
		require.Equal(t, "consumer: rejected 95 more\n", said())
		time.Sleep(3 * time.Second)
		require.Empty(t, said())
		for range 7 {
			r.show(kafka.Rejected{Cause: errors.New("bad")})
		}
		r.next()
		require.Contains(t, said(), "consumer: rejected 2 more\n", "also at the end")
	})
}

// A record is shown once its letter is written, and once only.
func TestRejectsAreShownWithTheirLetter(t *testing.T) {
	var out bytes.Buffer
	down := errors.New("down")
	r := &rejects{out: &out, letters: func(context.Context, kafka.Rejected) error { return down }}
	record := kafka.Rejected{Topic: "clicks", Partition: 3, Offset: 4, Cause: errors.New("bad")}
	require.ErrorIs(t, r.add(t.Context(), record), down)
	require.Empty(t, out.String())
	down = nil
	require.NoError(t, r.add(t.Context(), record))
	require.Equal(t, "consumer: rejected clicks/3@4: bad\n", out.String())
}

func TestHealthAndReadiness(t *testing.T) {
	var stats tumble.Stats
	ask := func(path string) (int, string) {
		w := httptest.NewRecorder()
		handler(func() tumble.Stats { return stats }).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w.Code, w.Body.String()
	}
	code, _ := ask("/healthz")
	require.Equal(t, 200, code)
	code, _ = ask("/readyz")
	require.Equal(t, 503, code, "it reads nothing")
	stats.Partitions = []tumble.PartitionStats{{ID: "clicks/0", Offset: -1}, {ID: "clicks/1", Offset: -1, Err: errors.New("away: 10.0.0.1:9092")}}
	code, body := ask("/healthz")
	require.Equal(t, 503, code)
	require.Equal(t, `{"error":"partition clicks/1 is in trouble: the log says why"}`+"\n", body)
	code, body = ask("/readyz")
	require.Equal(t, 503, code)
	require.Equal(t, `{"error":"no partition is being read yet"}`+"\n", body)
	stats.Partitions[1].Offset = 0
	code, body = ask("/readyz")
	require.Equal(t, 200, code, "also while it is not healthy: others cannot do better")
	require.Equal(t, `{"status":"ok"}`+"\n", body)
}
