package web

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tumblestream/tumble"
)

// hangingReader is a store that never answers.
type hangingReader struct{}

func (hangingReader) Rollup(tumble.Window) (tumble.Reader, error) { return hangingReader{}, nil }

func (hangingReader) Counts(ctx context.Context, _ time.Time, _ ...string) ([]tumble.Count, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hangingReader) Windows(ctx context.Context, _, _ time.Time) ([]tumble.Total, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hangingReader) Progress(ctx context.Context) (tumble.Progress, error) {
	<-ctx.Done()
	return tumble.Progress{}, ctx.Err()
}

func (hangingReader) Definition(ctx context.Context) (tumble.Definition, error) {
	<-ctx.Done()
	return tumble.Definition{}, ctx.Err()
}

func (hangingReader) Count(ctx context.Context, _ string, _ time.Time) (tumble.Count, error) {
	<-ctx.Done()
	return tumble.Count{}, ctx.Err()
}

func (hangingReader) Range(ctx context.Context, _ string, _, _ time.Time) ([]tumble.Count, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hangingReader) Top(ctx context.Context, _ time.Time, _ int) (tumble.Page, error) {
	<-ctx.Done()
	return tumble.Page{}, ctx.Err()
}

func (hangingReader) Scan(ctx context.Context, _ time.Time, _ string, _ int) (tumble.Page, error) {
	<-ctx.Done()
	return tumble.Page{}, ctx.Err()
}

func TestStoreHangs(t *testing.T) {
	for _, target := range []string{
		"/clicks/u/2023-10-01T12:34", "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:40",
		"/minutes/2023-10-01T12:34/top", "/minutes/2023-10-01T12:34/users", "/healthz",
		"/minutes?from=2023-10-01T12:34&to=2023-10-01T12:40", "/progress",
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			w := httptest.NewRecorder()
			handler(t, Config{Counts: hangingReader{}, Logger: slog.New(slog.DiscardHandler)}).ServeHTTP(w, httptest.NewRequest("GET", target, nil))
			require.Equal(t, 503, w.Code, target)
			requireError(t, w.Body.String())
			require.Equal(t, storeTimeout, time.Since(began), target)
		})
	}
}

// TestOutsideTextStaysText sends what would be something else in HTML, JSON, a
// header, a terminal or the metrics, wherever a request has room for it: the
// answers are JSON of the same text, and nobody can add a line.
func TestOutsideTextStaysText(t *testing.T) {
	const nasty = "<script>alert(1)</script>\"}],\r\nSet-Cookie: a=b\n# TYPE x counter\nx 1\n\x1b[2J\u2028%s${x}{{.}}\\"
	escaped := url.PathEscape(nasty)
	reader := &fakeReader{def: minutes, n: 1, page: tumble.Page{Cursor: nasty, Counts: []tumble.Count{{Key: nasty, N: 1}}}}
	h := handler(t, Config{Counts: reader})
	ask := func(method, target string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, target, nil))
		return w
	}
	for target, code := range map[string]int{
		"/clicks/" + escaped + "/2023-10-01T12:34":                          200,
		"/clicks/" + escaped + "?from=2023-10-01T12:34&to=2023-10-01T12:35": 200,
		"/minutes/2023-10-01T12:34/top":                                     200,
		"/minutes/2023-10-01T12:34/users?cursor=" + url.QueryEscape(nasty):  200,
		"/clicks/u/" + escaped:                                              400,
		"/clicks/u?to=2023-10-01T12:35&from=" + url.QueryEscape(nasty):      400,
		"/minutes/" + escaped + "/top":                                      400,
		"/minutes/2023-10-01T12:34/top?n=" + url.QueryEscape(nasty):         400,
		"/minutes/2023-10-01T12:34/users?limit=" + url.QueryEscape(nasty):   400,
		"/" + escaped: 404,
		"/clicks/u/2023-10-01T12:34/" + escaped + "?" + url.QueryEscape(nasty) + "=" + nasty[:8]: 404,
	} {
		w := ask("GET", target)
		require.Equal(t, code, w.Code, target)
		require.Equal(t, "application/json", w.Header().Get("Content-Type"), target)
		require.Equal(t, "no-store", w.Header().Get("Cache-Control"), target)
		require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"), target)
		require.Empty(t, w.Header().Get("Set-Cookie"), target)
		body := w.Body.String()
		require.True(t, json.Valid([]byte(body)), body)
		require.Equal(t, 1, strings.Count(body, "\n"), body)
		require.NotContains(t, body, "\x1b", body)
		if code != 200 {
			requireError(t, body)
		}
	}
	for _, key := range []string{"user_id", "cursor"} { // whole, where it is data
		var answer map[string]any
		target := "/clicks/" + escaped + "/2023-10-01T12:34"
		if key == "cursor" {
			target = "/minutes/2023-10-01T12:34/users"
		}
		require.NoError(t, json.Unmarshal(ask("GET", target).Body.Bytes(), &answer))
		require.Equal(t, nasty, answer[key])
	}
	for _, target := range []string{"/metrics", "/openapi.json", "/healthz"} {
		require.Equal(t, "nosniff", ask("GET", target).Header().Get("X-Content-Type-Options"), target)
	}
	require.Equal(t, "nosniff", ask("POST", "/healthz").Header().Get("X-Content-Type-Options"))
	metrics := ask("GET", "/metrics").Body.String()
	require.NotContains(t, metrics, "script")
	require.NotContains(t, metrics, "\nx 1")
}
