package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/sink/memory"
)

// The page loads nothing from elsewhere, runs no script but its own, and names no place
// that is not served.
func TestPage(t *testing.T) {
	server := serve(t, handler(t, Config{Counts: &fakeReader{def: minutes}}))
	for path, kind := range map[string]string{"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css"} {
		answer, err := http.Get(server.URL + path)
		require.NoError(t, err)
		answer.Body.Close()
		require.Equal(t, 200, answer.StatusCode)
		require.Contains(t, answer.Header.Get("Content-Type"), kind)
		require.Contains(t, answer.Header.Get("Content-Security-Policy"), "default-src 'none'")
		require.NotContains(t, answer.Header.Get("Content-Security-Policy"), "unsafe")
	}
	_, page := get(t, &fakeReader{def: minutes}, "/")
	for _, want := range []string{`id="total"`, `id="chart"`, `lang="en"`, `href="page.css"`, `src="page.js"`} {
		require.Contains(t, page, want)
	}
	require.NotRegexp(t, `(?i)<script>|style=|onclick=|https?://`, page)
	_, script := get(t, &fakeReader{def: minutes}, "/page.js")
	require.NotRegexp(t, `innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(`, script)
}

// serve starts a server. It is closed after the streams that are open: it waits for them.
func serve(t *testing.T, h http.Handler) *httptest.Server {
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server
}

// stream reads server-sent events.
type stream struct {
	t    *testing.T
	body *bufio.Reader
}

func open(t *testing.T, url string) *stream {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
	require.NoError(t, err)
	answer, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	t.Cleanup(func() { answer.Body.Close() })
	require.Equal(t, 200, answer.StatusCode)
	require.Equal(t, "text/event-stream", answer.Header.Get("Content-Type"))
	return &stream{t, bufio.NewReader(answer.Body)}
}

// next returns the name and the data of an event.
func (s *stream) next() (event, data string) {
	s.t.Helper()
	for {
		line, err := s.body.ReadString('\n')
		require.NoError(s.t, err)
		switch name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": "); name {
		case "event":
			event = value
		case "data":
			data = value
		case "":
			return event, data
		}
	}
}

func TestEvents(t *testing.T) {
	at := time.Now().UTC().Truncate(time.Minute)
	reader := &fakeReader{def: minutes, page: tumble.Page{Counts: []tumble.Count{{Key: "</script>\n", N: 7}}},
		totals:   []tumble.Total{{Start: at.Add(-time.Minute), End: at, Keys: 2, N: 9, State: tumble.Closed}, {Start: at, End: at.Add(time.Minute), Keys: 1, N: 7}},
		progress: tumble.Progress{Frontier: at, Partitions: []tumble.PartitionProgress{{ID: "p", Watermark: at.Add(-24 * time.Hour)}, {ID: "q", Watermark: at}}},
	}
	reader.def.Rollups = []tumble.Rollup{{Window: tumble.Window{Size: time.Hour}}}
	server := serve(t, handler(t, Config{Counts: reader, Logger: slog.New(slog.DiscardHandler)}))
	s := open(t, server.URL+"/events")
	event, data := s.next()
	require.Equal(t, "counts", event)
	var got snapshot
	require.NoError(t, json.Unmarshal([]byte(data), &got))
	require.Equal(t, snapshot{
		Item: "clicks", Key: "user_id", Keys: "users",
		Window: "1m0s", Windows: []string{"1m0s", "1h0m0s"}, Frontier: &at, Top: []topKey{{"</script>\n", 7}}, Band: []bandDrawn{},
		Bars: []bar{
			{program.ShortMinute(at.Add(-time.Minute)), program.ShortMinute(at), 2, 9, tumble.Closed},
			{program.ShortMinute(at), program.ShortMinute(at.Add(time.Minute)), 1, 7, tumble.Open},
		},
	}, got)
	require.Equal(t, "windows "+at.Add(-60*time.Minute).Format(time.RFC3339)+" "+at.Add(60*time.Minute).Format(time.RFC3339), reader.ranged, "where the events are")

	event, data = open(t, server.URL+"/events?window=1h").next()
	require.Equal(t, "counts", event)
	require.Contains(t, data, `"window":"1h0m0s"`)
	code, body := get(t, reader, "/events?window=2h")
	require.Equal(t, 400, code)
	requireError(t, body)
}

// fails is a reader that can be read at times.
type fails struct {
	*fakeReader
	down chan bool
}

func (f fails) Windows(ctx context.Context, from, to time.Time) ([]tumble.Total, error) {
	down := <-f.down
	if f.down <- false; down {
		return nil, errors.New("dial tcp 10.1.2.3: refused")
	}
	return f.fakeReader.Windows(ctx, from, to)
}

// A page is told of trouble, without addresses, and goes on when it is over.
func TestEventsInTrouble(t *testing.T) {
	reader := fails{&fakeReader{def: minutes}, make(chan bool, 1)}
	reader.down <- true
	server := serve(t, handler(t, Config{Counts: reader, Logger: slog.New(slog.DiscardHandler)}))
	s := open(t, server.URL+"/events")
	event, data := s.next()
	require.Equal(t, "trouble", event)
	require.Equal(t, `{"error":"the counts cannot be read now"}`, data)
	event, data = s.next()
	require.Equal(t, "counts", event)
	require.Contains(t, data, `"bars":[]`)
	event, data = open(t, server.URL+"/events").next()
	require.Equal(t, "counts", event, data)
}

func TestEventsOfNothing(t *testing.T) {
	reader := &fakeReader{err: tumble.ErrNoDefinition}
	server := serve(t, handler(t, Config{Counts: reader}))
	event, data := open(t, server.URL+"/events").next()
	require.Equal(t, "counts", event)
	require.Equal(t, `{"item":"clicks","key":"user_id","keys":"users","window":"1m0s","windows":["1m0s"],"bars":[],"top":[],"band":[],"frontier":null,"books":null}`, data)
}

// A server that stops waits for no page.
func TestEventsStop(t *testing.T) {
	l, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- program.Serve(ctx, l, handler(t, Config{Counts: &fakeReader{def: minutes}})) }()
	open(t, "http://"+l.Addr().String()+"/events").next()
	began := time.Now()
	stop()
	require.NoError(t, <-done)
	require.Less(t, time.Since(began), 450*time.Millisecond)
}

// Streams end when the handler is closed, and none begins after that.
func TestClose(t *testing.T) {
	h := handler(t, Config{Counts: &fakeReader{def: minutes}})
	server := serve(t, h)
	s := open(t, server.URL+"/events")
	s.next()
	h.Close()
	h.Close()
	_, err := s.body.ReadString('\n')
	require.ErrorIs(t, err, io.EOF)
	for target, code := range map[string]int{"/events": 503, "/healthz": 200} {
		answer, err := http.Get(server.URL + target)
		require.NoError(t, err)
		answer.Body.Close()
		require.Equal(t, code, answer.StatusCode)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	h := handler(t, Config{Counts: &fakeReader{def: minutes}})
	h.live.streams.Store(maxStreams - 1)
	server := serve(t, h)
	s := open(t, server.URL+"/events")
	s.next()
	answer, err := http.Get(server.URL + "/events")
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, 503, answer.StatusCode)
	require.Equal(t, "10", answer.Header.Get("Retry-After"))
	require.EqualValues(t, maxStreams, h.live.streams.Load())
}

// What has not changed is not sent again, but now and then a comment.
func TestEventsThatStayTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := handler(t, Config{Counts: &fakeReader{def: minutes}})
		ctx, leave := context.WithCancel(t.Context())
		w := httptest.NewRecorder()
		began := time.Now()
		go func() { time.Sleep(2*aliveEvery + 3*time.Second); leave() }()
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, "GET", "/events", nil))
		require.Equal(t, 2*aliveEvery+3*time.Second, time.Since(began))
		require.Equal(t, 1, strings.Count(w.Body.String(), "event: counts"))
		require.Equal(t, 2, strings.Count(w.Body.String(), "\n:\n"), w.Body)
	})
}

// A forecast is asked for when a window has closed, from the one that is open.
func TestBand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
		reader := &fakeReader{def: minutes, totals: []tumble.Total{
			{Start: start, End: start.Add(time.Minute), N: 5, State: tumble.Final},
			{Start: start.Add(time.Minute), End: start.Add(2 * time.Minute), N: 2},
		}}
		var asked []time.Time
		h := handler(t, Config{
			Counts: reader, Logger: slog.New(slog.DiscardHandler),
			Stats: func() tumble.Stats { return tumble.Stats{Late: 1, DroppedLate: 2, Rejected: 4, Lost: 8} },
			Forecast: func(_ context.Context, r tumble.Reader, from time.Time) ([]Band, error) {
				require.Equal(t, tumble.Reader(reader), r)
				asked = append(asked, from)
				if len(asked) == 2 {
					return nil, errors.New("too little is known")
				}
				return []Band{{from, from.Add(time.Minute), 1, 2, 3}, {from, from, 0, 0, math.Inf(1)}, {from, from, 0, math.NaN(), 0}}, nil
			},
		})
		snap := func() (s snapshot) {
			time.Sleep(liveEvery)
			text, err := h.snapshot(t.Context(), level{reader, minutes.Window})
			require.NoError(t, err)
			require.NoError(t, json.Unmarshal(text, &s))
			return s
		}
		for range 3 {
			s := snap()
			require.Equal(t, []bandDrawn{{"2000-01-01T00:01", "2000-01-01T00:02", 1, 2, 3}}, s.Band)
			require.Equal(t, &booksSummary{Late: 3, Rejected: 4, Lost: 8}, s.Books)
		}
		require.Equal(t, []time.Time{start.Add(time.Minute)}, asked)
		reader.totals[1].State = tumble.Closed
		require.Empty(t, snap().Band)
		require.Len(t, snap().Bars, 2)
		require.Equal(t, []time.Time{start.Add(time.Minute), start.Add(2 * time.Minute)}, asked)
		reader.totals = reader.totals[1:]
		reader.totals[0].State = tumble.Open
		require.Empty(t, snap().Band, "nothing is closed")
		require.Len(t, asked, 2)
	})
}

// After a long silence the page shows the last windows that hold a count.
func TestEventsAfterALongSilence(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, silence := range []time.Duration{0, time.Hour, 3 * time.Hour, 1000 * time.Hour, 60 * 365 * 24 * time.Hour} {
		sink := memory.New(memory.Config{})
		shards, err := sink.Open(t.Context(), minutes)
		require.NoError(t, err)
		from := tumble.Checkpoint{Log: "log", Watermark: at}
		_, err = shards[0].Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"p": from}})
		require.NoError(t, err)
		to := from
		to.Offset, to.Watermark = 1, at.Add(silence)
		require.NoError(t, shards[0].Apply(t.Context(), tumble.Batch{Partition: "p", Writer: 1, From: from, To: to, Deltas: []tumble.Delta{{Start: at, Key: "ada", N: 7}}}))
		h := handler(t, Config{Counts: sink})
		text, err := h.snapshot(t.Context(), level{sink, minutes.Window})
		require.NoError(t, err)
		var got snapshot
		require.NoError(t, json.Unmarshal(text, &got))
		require.Len(t, got.Bars, 1, "%v", silence)
		require.EqualValues(t, 7, got.Bars[0].N)
		require.Equal(t, []topKey{{"ada", 7}}, got.Top)
	}
}
