package web

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// fakeReader answers with what it is told and remembers what it was asked.
type fakeReader struct {
	def  tumble.Definition
	err  error // of every method
	n    int64
	page tumble.Page

	totals   []tumble.Total
	progress tumble.Progress

	states map[time.Time]tumble.State // by the start of a window; others are open
	terms  []uint64                   // of the next Counts; then 0
	change func()                     // what happens while Range reads

	asked, ranged string
}

func (f *fakeReader) Definition(context.Context) (tumble.Definition, error) { return f.def, f.err }

func (f *fakeReader) Count(_ context.Context, key string, at time.Time) (tumble.Count, error) {
	f.asked = fmt.Sprintf("count %q %s", key, at.UTC().Format(time.RFC3339Nano))
	if f.err != nil {
		return tumble.Count{}, f.err
	}
	start, end := f.def.Window.Bounds(at)
	c := tumble.Count{Key: key, Start: start, End: end, N: f.n, State: f.states[start]}
	if len(f.terms) > 0 {
		c.Term, f.terms = f.terms[0], f.terms[1:]
	}
	return c, nil
}

// of returns the page as that of the window that holds at.
func (f *fakeReader) of(at time.Time) tumble.Page {
	page := f.page
	page.Start, page.End = f.def.Window.Bounds(at)
	page.State = f.states[page.Start]
	return page
}

func (f *fakeReader) Range(_ context.Context, key string, from, to time.Time) ([]tumble.Count, error) {
	f.ranged = fmt.Sprintf("range %q %s %s", key, from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339))
	if f.change != nil {
		f.change()
	}
	return f.page.Counts, f.err
}

func (f *fakeReader) Counts(context.Context, time.Time, ...string) ([]tumble.Count, error) {
	panic("nobody asks")
}

// Rollup returns another reader with the window, and one more in each count.
func (f *fakeReader) Rollup(w tumble.Window) (tumble.Reader, error) {
	level := *f
	level.def.Window, level.n = w, f.n+1
	return &level, nil
}

func (f *fakeReader) Windows(_ context.Context, from, to time.Time) ([]tumble.Total, error) {
	f.ranged = fmt.Sprintf("windows %s %s", from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339))
	return f.totals, f.err
}

func (f *fakeReader) Progress(context.Context) (tumble.Progress, error) { return f.progress, f.err }

func (f *fakeReader) Top(_ context.Context, at time.Time, n int) (tumble.Page, error) {
	f.asked = fmt.Sprintf("top %s %d", at.UTC().Format(time.RFC3339), n)
	if f.err != nil {
		return tumble.Page{}, f.err
	}
	return f.of(at), nil
}

func (f *fakeReader) Scan(_ context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	f.asked = fmt.Sprintf("scan %s %q %d", at.UTC().Format(time.RFC3339), cursor, limit)
	if f.err != nil {
		return tumble.Page{}, f.err
	}
	return f.of(at), nil
}

var (
	minutes = tumble.Definition{Window: tumble.Window{Size: time.Minute}}
	at1234  = time.Date(2023, 10, 1, 12, 34, 0, 0, time.UTC)
)

func handler(t testing.TB, cfg Config) *Handler {
	t.Helper()
	h, err := New(cfg)
	require.NoError(t, err)
	return h
}

// get asks a real server, so that paths arrive as the wire has them.
func get(t *testing.T, reader tumble.Reader, target string) (int, string) {
	t.Helper()
	return request(t, reader, "GET", target)
}

func request(t *testing.T, reader tumble.Reader, method, target string) (int, string) {
	t.Helper()
	server := httptest.NewServer(handler(t, Config{Counts: reader, Logger: slog.New(slog.DiscardHandler)}))
	defer server.Close()
	r, err := http.NewRequest(method, server.URL+target, nil)
	require.NoError(t, err)
	answer, err := server.Client().Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(body)
}
