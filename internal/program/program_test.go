package program

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tumblestream/tumble"
)

// declareAll declares a flag of every kind on an empty command line.
func declareAll() {
	flag.CommandLine = flag.NewFlagSet("", flag.ContinueOnError)
	flag.Bool("bool", false, "b")
	flag.Int64("seed", 0, "n")
	Flag("text", "x", "t", Text)
	Flag("addr", "localhost:8000", "a", Address)
	Flag("addrs", "localhost:1,localhost:2", "as", Addresses)
	Flag("small", "3", "s", Int(1, 10))
	Flag("int", "0", "i", Int(0, math.MaxInt64))
	Flag("rate", "1", "r", Rate)
	Flag("duration", "0", "d", Duration("not negative", func(d time.Duration) bool { return d >= 0 }))
	Flag("time", "", "t (default now)", Time)
	Flag("window", "1m", "w", tumble.ParseWindow)
	Flag("none", "", "o", Text)
}

func nothing(context.Context) error { return nil }

func TestBadFlagIsOneLineAndNamesIt(t *testing.T) {
	for _, args := range [][]string{
		{"-bool=maybe"}, {"-text", ""}, {"-addr", "localhost"}, {"-addr", ""}, {"-addr", "a:b:c"},
		{"-addr", "localhost:65536"}, {"-seed", "x"}, {"-addrs", "localhost:1,"}, {"-addrs", ""}, {"-small", "0"}, {"-small", "11"}, {"-small", "x"},
		{"-int", "-1"}, {"-int", "9223372036854775808"}, {"-int", "1.5"}, {"-rate", "-1"}, {"-rate", "NaN"}, {"-rate", "Inf"}, {"-rate", "x"},
		{"-duration", "-1s"}, {"-duration", "5"}, {"-time", "noon"}, {"-time", "2023-10-01T1:02:03Z"}, {"-window", "0s"}, {"-window", "-1m"},
		{"-window", "day Nowhere"}, {"-window", ""}, {"-unknown"}, {"-text"},
	} {
		declareAll()
		var out, errs bytes.Buffer
		require.Equal(t, 2, run(t.Context(), "name", "", args, &out, &errs, nothing), args)
		require.Empty(t, out.String())
		require.Equal(t, 1, strings.Count(errs.String(), "\n"), errs.String())
		require.Contains(t, errs.String(), strings.Split(args[0], "=")[0])
	}
	declareAll()
	var errs bytes.Buffer
	require.Equal(t, 2, run(t.Context(), "name", "", []string{"-bool", "stray"}, io.Discard, &errs, nothing))
	require.Contains(t, errs.String(), `"stray"`)
}

func TestGoodFlags(t *testing.T) {
	for _, args := range [][]string{
		nil, {"-addr", ":0"}, {"-addr", "[::1]:80"}, {"-addrs", "a:1, b:2"}, {"-int", "9223372036854775807"},
		{"-rate", "0"}, {"-rate", "0.5"}, {"-duration", "0"}, {"-time", "2023-10-01T12:34:56.7+02:00"}, {"-window", "day Europe/Berlin"}, {"--text=y"}, {"-bool"},
	} {
		declareAll()
		var errs bytes.Buffer
		require.Equal(t, 0, run(t.Context(), "name", "", args, io.Discard, &errs, nothing), "%v %s", args, errs.String())
		require.Empty(t, errs.String())
	}
}

func TestHelpExplainsEachFlagWithItsDefault(t *testing.T) {
	declareAll()
	var out, errs bytes.Buffer
	require.Equal(t, 0, run(t.Context(), "name", "does a thing.", []string{"-h"}, &out, &errs, nothing))
	require.Empty(t, errs.String())
	for _, want := range []string{"does a thing.", "(default false)", "(default x)", `(default "")`, "(default localhost:1,localhost:2)",
		"(default 3)", "(default 0)", "(default 1m)", "t (default now)\n"} {
		require.Contains(t, out.String(), want)
	}
}

func TestExitCodes(t *testing.T) {
	stopped, stop := context.WithCancel(t.Context())
	stop()
	for _, c := range []struct {
		ctx  context.Context
		err  error
		code int
		line string
	}{
		{t.Context(), errors.New("cannot\nbe\x1b[2J"), 1, "name: cannot be[2J\n"},
		{t.Context(), FlagError("text", errors.New("is odd")), 2, "name: flag -text: is odd\n"},
		{t.Context(), context.Canceled, 1, "name: context canceled\n"},
		{stopped, context.Canceled, 0, ""},
		{stopped, errors.New("cannot"), 1, "name: cannot\n"},
	} {
		declareAll()
		var errs bytes.Buffer
		code := run(c.ctx, "name", "", nil, io.Discard, &errs, func(context.Context) error { return c.err })
		require.Equal(t, c.code, code)
		require.Equal(t, c.line, errs.String())
	}
}

func TestBooks(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, WriteBooks(&out, tumble.Stats{Read: 28, Counted: 1, DroppedLate: 2, Expired: 3, Rejected: 4, Skipped: 5, Replayed: 6, Pending: 7, Late: 8, Ahead: 9, Lost: 10}))
	require.Equal(t, `{"read":28,"counted":1,"dropped_late":2,"expired":3,"rejected":4,"skipped":5,"replayed":6,"pending":7,"late":8,"ahead":9,"lost":10}`+"\n", out.String())
}

func TestPipelineMetrics(t *testing.T) {
	page := func(s tumble.Stats) string {
		var m Metrics
		m.Pipeline(s)
		w := httptest.NewRecorder()
		m.ServeHTTP(w, nil)
		return w.Body.String()
	}
	text := page(tumble.Stats{Read: 5, Partitions: []tumble.PartitionStats{
		{ID: "a\"\\\n\xff/0", Offset: 10, End: 25, Committed: 8, Watermark: time.UnixMilli(1696163640500), Err: errors.New("away")},
		{ID: "b/1", Offset: 3, End: -1, Committed: -1},
	}})
	for _, want := range []string{
		"# TYPE tumble_read_total counter\ntumble_read_total 5\n",
		"# TYPE tumble_partition_lag gauge\ntumble_partition_lag{partition=\"a\\\"\\\\\\n\ufffd/0\"} 15\n# HELP",
		"tumble_partition_uncommitted{partition=\"a\\\"\\\\\\n\ufffd/0\"} 2\n# HELP",
		"/0\"} 1696163640.5\n",
		"tumble_partition_failing{partition=\"b/1\"} 0\n",
		"tumble_partition_offset{partition=\"b/1\"} 3\n",
	} {
		require.Contains(t, text, want)
	}
	fresh := page(tumble.Stats{Partitions: []tumble.PartitionStats{{ID: "b/1", Offset: -1, End: -1, Committed: -1}}})
	require.Contains(t, fresh, "tumble_partition_failing{partition=\"b/1\"} 0\n")
	require.NotContains(t, fresh, "tumble_partition_lag", "nor its family, while it is unknown")
	empty := page(tumble.Stats{})
	require.NotContains(t, empty, "tumble_partition")
	for _, m := range []string{"lost", "rejected", "retries", "conflicts", "dropped_late", "expired", "late", "ahead"} {
		require.Contains(t, empty, "\ntumble_"+m+"_total 0\n", "there before its trouble")
	}
}

func TestServe(t *testing.T) {
	l, err := Listen("localhost:0")
	require.NoError(t, err)
	_, err = Listen(l.Addr().String())
	require.ErrorContains(t, err, "cannot listen on "+l.Addr().String())

	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	started, release := make(chan bool), make(chan bool)
	go func() {
		served <- Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				close(started)
				<-release
			}
			_ = WriteJSON(w, http.StatusOK, Healthy)
		}))
	}()
	url := URL(l, "localhost:0")
	answer, err := http.Get(url)
	require.NoError(t, err)
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, "{\"status\":\"ok\"}\n", string(body))

	// A connection that never asks, and a request that is under way.
	silent, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer silent.Close()
	slow := make(chan error, 1)
	go func() {
		answer, err := http.Get(url + "/slow")
		if err == nil {
			err = answer.Body.Close()
		}
		slow <- err
	}()
	<-started
	began := time.Now()
	stop()
	close(release)
	require.NoError(t, <-slow)
	require.NoError(t, <-served)
	require.Less(t, time.Since(began), time.Second)
	_, err = http.Get(url)
	require.Error(t, err)
}

func TestServeBoundsRequests(t *testing.T) {
	l, err := Listen("localhost:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, http.NotFoundHandler()) }()
	answer, err := http.Get(URL(l, "localhost:0") + "/" + strings.Repeat("x", 100<<10))
	require.NoError(t, err)
	require.NoError(t, answer.Body.Close())
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, answer.StatusCode)
	stop()
	require.NoError(t, <-served)
}
