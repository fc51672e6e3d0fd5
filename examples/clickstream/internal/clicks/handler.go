// Package clicks is the HTTP API over the counts of clicks: who clicked how often in
// which minute, and whether that can still change. It reads through a
// [tumble.Reader] and knows no store.
package clicks

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/examples/clickstream/internal/program"
)

const (
	maxTop   = 10_000 // users in one answer of top
	maxLimit = 10_000 // users asked for in one page
	// maxWindows bounds a range, in which each window is a look-up in the store. It
	// is more than the minutes of a month.
	maxWindows = 50_000
	// storeTimeout bounds a request. A store that takes longer hangs.
	storeTimeout = 3 * time.Second
)

//go:embed openapi.json
var openAPI []byte

// Config of the API.
type Config struct {
	// Counts are read. Required.
	Counts tumble.Reader
	// Metrics, if set, adds metrics to /metrics.
	Metrics func(*program.Metrics)
	// Logger is told why the store cannot be read. Clients are not, because such an
	// error may name addresses. Defaults to slog.Default().
	Logger *slog.Logger
}

type api struct {
	cfg   Config
	mux   http.ServeMux
	seen  traffic
	store outage
}

// New returns the API. It is safe for concurrent use.
func New(cfg Config) http.Handler {
	a := &api{cfg: cfg, store: outage{log: cmp.Or(cfg.Logger, slog.Default())}}
	a.read("/clicks/{user_id}/{minute}", a.count)
	a.read("/clicks/{user_id}", a.history)
	a.read("/minutes/{minute}/top", a.top)
	a.read("/minutes/{minute}/users", a.users)
	a.read("/healthz", a.health)
	a.read("/readyz", a.health)
	a.get("/metrics", a.metrics)
	a.get("/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(openAPI) // an error is the client's
	})
	a.mux.HandleFunc("/", a.seen.count("", func(w http.ResponseWriter, r *http.Request) {
		program.WriteError(w, http.StatusNotFound, fmt.Errorf("no such resource: %s", strings.ReplaceAll(r.URL.Path, "/"+mark, "/")))
	}, http.StatusNotFound))
	return a
}

// mark stands before every part of a path that the mux sees. A ServeMux redirects
// from empty parts and dots, and takes a user called "/" for a trailing slash.
// Behind a mark they are names.
const mark = "="

func marked(path string) string {
	return "/" + mark + strings.ReplaceAll(strings.TrimPrefix(path, "/"), "/", "/"+mark)
}

// variable returns a variable part of the path.
func variable(r *http.Request, name string) string {
	return strings.TrimPrefix(r.PathValue(name), mark)
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// An answer is of its Content-Type, whatever it looks like to a browser.
	w.Header().Set("X-Content-Type-Options", "nosniff")
	inner := *r
	inner.RequestURI = ""
	inner.URL = &url.URL{RawPath: marked(r.URL.EscapedPath()), RawQuery: r.URL.RawQuery}
	inner.URL.Path, _ = url.PathUnescape(inner.URL.RawPath) // EscapedPath is always valid
	a.mux.ServeHTTP(w, &inner)
}

// get answers GET and HEAD requests for a path. Its metrics count answers of codes
// from 0.
func (a *api) get(path string, answer http.HandlerFunc, codes ...int) {
	pattern := strings.ReplaceAll(marked(path), mark+"{", "{")
	a.mux.HandleFunc("GET "+pattern, a.seen.count(path, answer, append(codes, http.StatusOK)...))
	a.mux.HandleFunc(pattern, a.seen.count(path, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Allow", "GET, HEAD")
		program.WriteError(w, http.StatusMethodNotAllowed, fmt.Errorf("method %s is not allowed here", r.Method))
	}))
}

// read answers GET and HEAD requests for a path from the store.
func (a *api) read(path string, answer func(*http.Request) (any, error)) {
	a.get(path, func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
		defer cancel()
		x, err := answer(r.WithContext(ctx))
		if err == nil {
			err = program.WriteJSON(w, http.StatusOK, x)
		}
		switch {
		case err == nil:
			a.store.over()
		case errors.As(err, new(badRequest)):
			program.WriteError(w, http.StatusBadRequest, err)
		case errors.Is(err, tumble.ErrCursor):
			program.WriteError(w, http.StatusBadRequest, errCursor)
		default:
			if r.Context().Err() == nil { // otherwise the client has gone
				a.store.failed(err)
			}
			program.WriteError(w, http.StatusServiceUnavailable, errUnavailable)
		}
	}, http.StatusServiceUnavailable)
}

// Errors for clients, in place of a reader's own.
var (
	errUnavailable = errors.New("the counts cannot be read now, try again")
	errCursor      = errors.New("cursor must be empty, or one that came with the page before")
)

type countAnswer struct {
	UserID string       `json:"user_id"`
	Minute string       `json:"minute"`
	Clicks int64        `json:"clicks"`
	State  tumble.State `json:"state"`
}

// count answers how often a user clicked in a window.
func (a *api) count(r *http.Request) (any, error) {
	p := parse(r)
	user, at := variable(r, "user_id"), p.minute("minute", variable(r, "minute"))
	if p.err != nil {
		return nil, p.err
	}
	c, err := a.countAt(r.Context(), user, at)
	return countAnswer{user, FormatMinute(c.Start), c.N, c.State}, err
}

// countAt reads one count: an open zero where nothing is stored.
func (a *api) countAt(ctx context.Context, user string, at time.Time) (tumble.Count, error) {
	c, err := a.cfg.Counts.Count(ctx, user, at)
	if errors.Is(err, tumble.ErrNoDefinition) {
		start, end := unknownWindow.Bounds(at)
		return tumble.Count{Key: user, Start: start, End: end}, nil
	}
	return c, err
}

type historyAnswer struct {
	UserID string        `json:"user_id"`
	Total  int64         `json:"total"`
	State  tumble.State  `json:"state"`
	Clicks []minuteCount `json:"clicks"`
}

type minuteCount struct {
	Minute string       `json:"minute"`
	Clicks int64        `json:"clicks"`
	State  tumble.State `json:"state"`
}

// history answers in which windows of a range a user clicked, and how often.
func (a *api) history(r *http.Request) (any, error) {
	p := parse(r)
	from, to := p.minute("from", p.query.Get("from")), p.minute("to", p.query.Get("to"))
	if p.err != nil {
		return nil, p.err
	}
	window, err := a.window(r.Context())
	if err != nil {
		return nil, err
	}
	first, last, ok := span(window, from, to)
	if !ok {
		return nil, badRequest{fmt.Errorf("no window (%v) starts between from and to", window)}
	}
	if n := windowsBetween(window, from, to); n > maxWindows {
		return nil, badRequest{fmt.Errorf("from and to are %d windows apart, at most %d can be asked for at once", n, maxWindows)}
	}
	answer := historyAnswer{UserID: variable(r, "user_id"), Clicks: []minuteCount{}}
	var counts []tumble.Count
	counts, answer.State, err = a.readRange(r.Context(), answer.UserID, from, to, first, last)
	for _, c := range counts {
		answer.Total += c.N
		answer.Clicks = append(answer.Clicks, minuteCount{FormatMinute(c.Start), c.N, c.State})
	}
	return answer, err
}

// readRange reads the counts of the windows that start in [from, to), and the state of
// their sum. The first window begins at first and the last one at last.
func (a *api) readRange(ctx context.Context, user string, from, to, first, last time.Time) ([]tumble.Count, tumble.State, error) {
	for tries := 1; ; tries++ {
		// The counts are as final as the last window was before they were read,
		// if the store had lost nothing by the end.
		before, err := a.countAt(ctx, user, last)
		if err != nil {
			return nil, 0, err
		}
		counts, err := a.cfg.Counts.Range(ctx, user, from, to)
		if err != nil && !errors.Is(err, tumble.ErrNoDefinition) {
			return nil, 0, err
		}
		after, err := a.countAt(ctx, user, last)
		if err != nil {
			return nil, 0, err
		}
		// Expiry deletes the earliest window first, and shows there afterwards.
		oldest, err := a.countAt(ctx, user, first)
		switch {
		case err != nil:
			return nil, 0, err
		case oldest.State == tumble.Expired:
			return counts, tumble.Expired, nil
		case after.State == tumble.Open:
			return counts, tumble.Open, nil
		case before.Term == after.Term:
			return counts, before.State, nil
		case tries == 3: // a term changes once a window, without a loss
			return counts, tumble.Open, nil
		}
	}
}

type topAnswer struct {
	Minute string       `json:"minute"`
	State  tumble.State `json:"state"`
	Top    []userCount  `json:"top"`
}

type userCount struct {
	UserID string `json:"user_id"`
	Clicks int64  `json:"clicks"`
}

// top answers who clicked most in a window.
func (a *api) top(r *http.Request) (any, error) {
	p := parse(r)
	at, n := p.minute("minute", variable(r, "minute")), p.number("n", 10, maxTop)
	if p.err != nil {
		return nil, p.err
	}
	page, err := a.cfg.Counts.Top(r.Context(), at, n)
	page, err = orEmpty(at, page, err)
	return topAnswer{FormatMinute(page.Start), page.State, userCounts(page)}, err
}

type usersAnswer struct {
	Minute string      `json:"minute"`
	Users  []userCount `json:"users"`
	Cursor string      `json:"cursor"`
}

// users answers, page by page, everyone who clicked in a window.
func (a *api) users(r *http.Request) (any, error) {
	p := parse(r)
	at, limit := p.minute("minute", variable(r, "minute")), p.number("limit", 1000, maxLimit)
	if p.err != nil {
		return nil, p.err
	}
	page, err := a.cfg.Counts.Scan(r.Context(), at, p.query.Get("cursor"), limit)
	page, err = orEmpty(at, page, err)
	return usersAnswer{FormatMinute(page.Start), userCounts(page), page.Cursor}, err
}

// orEmpty returns an open page without counts where nothing is stored.
func orEmpty(at time.Time, page tumble.Page, err error) (tumble.Page, error) {
	if errors.Is(err, tumble.ErrNoDefinition) {
		page, err = tumble.Page{}, nil
		page.Start, page.End = unknownWindow.Bounds(at)
	}
	return page, err
}

func userCounts(p tumble.Page) []userCount {
	users := make([]userCount, len(p.Counts))
	for i, c := range p.Counts {
		users[i] = userCount{c.Key, c.N}
	}
	return users
}

// health answers whether the store can be read.
func (a *api) health(r *http.Request) (any, error) {
	_, err := a.window(r.Context())
	return program.Healthy, err
}

func (a *api) metrics(w http.ResponseWriter, r *http.Request) {
	var m program.Metrics
	a.seen.write(&m)
	if a.cfg.Metrics != nil {
		a.cfg.Metrics(&m)
	}
	m.ServeHTTP(w, r)
}

// unknownWindow is that of an empty store.
var unknownWindow = tumble.Window{Size: time.Minute}

// window returns the window of the counts.
func (a *api) window(ctx context.Context) (tumble.Window, error) {
	def, err := a.cfg.Counts.Definition(ctx)
	if errors.Is(err, tumble.ErrNoDefinition) {
		return unknownWindow, nil
	}
	return def.Window, err
}

// span returns the starts of the first and the last window that start in
// [from, to), or false if none does.
func span(w tumble.Window, from, to time.Time) (first, last time.Time, ok bool) {
	if !from.Before(to) {
		return first, last, false
	}
	first, next := w.Bounds(from)
	if first.Before(from) {
		first = next
	}
	last, _ = w.Bounds(to.Add(-1))
	return first, last, first.Before(to)
}

// windowsBetween returns how many windows start in [from, to), or a few more.
func windowsBetween(w tumble.Window, from, to time.Time) int64 {
	size := w.Size
	if size == 0 {
		size = 23 * time.Hour // the shortest day of a calendar
	}
	// Sub saturates at 292 years, where windows are few or far too many.
	return int64(to.Sub(from)/size) + 1
}

// A badRequest is the client's error.
type badRequest struct{ error }

// params parses the parameters of a request. Look at err before you use them.
type params struct {
	query url.Values
	now   time.Time
	err   error // the first
}

func parse(r *http.Request) *params {
	query, err := url.ParseQuery(r.URL.RawQuery)
	p := &params{query: query, now: time.Now()}
	if err != nil {
		p.fail("query: %w", err)
	}
	return p
}

func (p *params) fail(format string, args ...any) {
	if p.err == nil {
		p.err = badRequest{fmt.Errorf(format, args...)}
	}
}

// number returns a number of the query from 1 to most.
func (p *params) number(name string, standard, most int) int {
	if !p.query.Has(name) {
		return standard
	}
	s := p.query.Get(name)
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > most || strconv.Itoa(n) != s {
		p.fail("%s is %q, must be a number from 1 to %d", name, s, most)
	}
	return n
}

const shortMinute = "2006-01-02T15:04"

var (
	firstTime = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// minute parses an instant: the short form, in UTC, RFC 3339, or "now". A plus sign
// that was not escaped arrives from a query as a space. None of the forms has a space,
// so it becomes a plus sign again.
func (p *params) minute(name, s string) time.Time {
	if s == "now" {
		return p.now
	}
	t, err := program.Time(strings.ReplaceAll(s, " ", "+"))
	if err != nil {
		t, err = time.Parse(shortMinute, s)
		// Parse takes more than it formats, such as an hour of one digit.
		if err != nil || t.Format(shortMinute) != s {
			p.fail("%s is %q, must be like %s (UTC), RFC 3339 or now", name, s, shortMinute)
			return t
		}
	}
	if t.Before(firstTime) || !t.Before(lastTime) {
		p.fail("%s is %q, must be from the year 1700 to 2199", name, s)
	}
	return t
}

// FormatMinute formats the start of a window: the short form for a whole minute,
// otherwise RFC 3339.
func FormatMinute(t time.Time) string {
	t = t.UTC()
	if t.Truncate(time.Minute).Equal(t) {
		return t.Format(shortMinute)
	}
	return t.Format(time.RFC3339Nano)
}
