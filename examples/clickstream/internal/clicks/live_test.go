package clicks

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
)

// The page loads nothing from elsewhere, runs no script but its own, and names no place
// that is not served.
func TestPage(t *testing.T) {
	server := serve(t, New(Config{Counts: &fakeReader{def: minutes}}))
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
	for _, want := range []string{`id="total"`, `id="chart"`, `lang="en"`, `href="/page.css"`, `src="/page.js"`} {
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
	server := serve(t, New(Config{Counts: reader, Logger: slog.New(slog.DiscardHandler)}))
	s := open(t, server.URL+"/events")
	for range 2 {
		event, data := s.next()
		require.Equal(t, "counts", event)
		var got snapshot
		require.NoError(t, json.Unmarshal([]byte(data), &got))
		require.Equal(t, snapshot{
			Window: "1m0s", Windows: []string{"1m0s", "1h0m0s"}, Frontier: &at, Top: []userCount{{"</script>\n", 7}},
			Minutes: []minuteDrawn{
				{minuteTotal{program.ShortMinute(at.Add(-time.Minute)), 2, 9, tumble.Closed}, program.ShortMinute(at)},
				{minuteTotal{program.ShortMinute(at), 1, 7, tumble.Open}, program.ShortMinute(at.Add(time.Minute))},
			},
		}, got)
	}
	require.Equal(t, "windows "+at.Add(-60*time.Minute).Format(time.RFC3339)+" "+at.Add(60*time.Minute).Format(time.RFC3339), reader.ranged, "where the events are")

	event, data := open(t, server.URL+"/events?window=1h").next()
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
	server := serve(t, New(Config{Counts: reader, Logger: slog.New(slog.DiscardHandler)}))
	s := open(t, server.URL+"/events")
	event, data := s.next()
	require.Equal(t, "trouble", event)
	require.Equal(t, `{"error":"the counts cannot be read now"}`, data)
	event, data = s.next()
	require.Equal(t, "counts", event)
	require.Contains(t, data, `"minutes":[]`)
	event, data = open(t, server.URL+"/events").next()
	require.Equal(t, "counts", event, data)
}

func TestEventsOfNothing(t *testing.T) {
	reader := &fakeReader{err: tumble.ErrNoDefinition}
	server := serve(t, New(Config{Counts: reader}))
	event, data := open(t, server.URL+"/events").next()
	require.Equal(t, "counts", event)
	require.Equal(t, `{"window":"1m0s","windows":["1m0s"],"minutes":[],"top":[],"frontier":null}`, data)
}

// A server that stops waits for no page.
func TestEventsStop(t *testing.T) {
	l, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- program.Serve(ctx, l, New(Config{Counts: &fakeReader{def: minutes}})) }()
	open(t, "http://"+l.Addr().String()+"/events").next()
	began := time.Now()
	stop()
	require.NoError(t, <-done)
	require.Less(t, time.Since(began), 450*time.Millisecond)
}
