// Package clicks is the HTTP API over the counts of clicks: who clicked how
// often in which minute, and whether that can still change. It reads through a
// [tumble.Reader] and does not know the store.
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
	// Windows in one range, each of which is a look-up in the store: minutes of
	// a month, and more.
	maxWindows = 50_000
	// An answer that takes longer has found a store that hangs.
	storeTimeout = 3 * time.Second
)

//go:embed openapi.json
var openAPI []byte

// Config says what the API serves.
type Config struct {
	// Counts are what it reads. Required.
	Counts tumble.Reader
	// Metrics, if set, are served at /metrics after those of the API itself.
	Metrics func() []program.Metric
	// Logger is told why the store cannot be read: clients are not, because
	// such an error may name addresses. Defaults to slog.Default().
	Logger *slog.Logger
}

// New returns the API. It is safe for concurrent use.
func New(cfg Config) http.Handler {
	return &api{cfg: cfg, store: outage{log: cmp.Or(cfg.Logger, slog.Default())}}
}

type api struct {
	cfg   Config
	seen  traffic
	store outage
}

// endpoint is one route of the API. vars are the variable parts of its path.
type endpoint struct {
	pattern string
	parts   []string // of pattern
	reads   bool     // from the store
	answer  func(a *api, w http.ResponseWriter, r *http.Request, vars []string) error
}

// endpoints are matched part by part; a part in braces matches anything, also
// nothing.
var endpoints = []endpoint{
	route("/clicks/{user_id}/{minute}", true, (*api).count),
	route("/clicks/{user_id}", true, (*api).history),
	route("/minutes/{minute}/top", true, (*api).top),
	route("/minutes/{minute}/users", true, (*api).users),
	route("/healthz", true, (*api).health),
	route("/metrics", false, (*api).metrics),
	route("/openapi.json", false, (*api).description),
}

func route(pattern string, reads bool, answer func(*api, http.ResponseWriter, *http.Request, []string) error) endpoint {
	return endpoint{pattern, strings.Split(pattern, "/"), reads, answer}
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	// What is answered is what it says it is, whatever it looks like to a browser.
	w.Header().Set("X-Content-Type-Options", "nosniff")
	answer := &recorder{ResponseWriter: w, code: http.StatusOK}
	pattern := a.serve(answer, r)
	a.seen.add(pattern, answer.code, time.Since(began))
}

// serve answers r and returns the pattern of its endpoint, "" if it has none.
func (a *api) serve(w http.ResponseWriter, r *http.Request) string {
	found, vars := match(r.URL)
	if found == nil {
		program.WriteError(w, http.StatusNotFound, fmt.Errorf("no such resource: %s", r.URL.Path))
		return ""
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		program.WriteError(w, http.StatusMethodNotAllowed, fmt.Errorf("method %s is not allowed here", r.Method))
		return found.pattern
	}
	ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
	defer cancel()
	err := found.answer(a, w, r.WithContext(ctx), vars)
	switch {
	case err == nil:
		if found.reads {
			a.store.over()
		}
	case errors.As(err, new(badRequest)):
		program.WriteError(w, http.StatusBadRequest, err)
	case errors.Is(err, tumble.ErrCursor):
		program.WriteError(w, http.StatusBadRequest, errCursor)
	default:
		if r.Context().Err() == nil { // else the client has gone, which is no trouble of the store's
			a.store.failed(err)
		}
		program.WriteError(w, http.StatusServiceUnavailable, errUnavailable)
	}
	return found.pattern
}

// What clients are told in place of a reader's own errors.
var (
	errUnavailable = errors.New("the counts cannot be read now, try again")
	errCursor      = errors.New("cursor must be empty, or one that came with the page before")
)

// match finds u's endpoint. It is not http.ServeMux, which redirects paths it
// does not find clean, such as that of the empty user, and answers in text.
func match(u *url.URL) (*endpoint, []string) {
	path := strings.Split(u.EscapedPath(), "/")
next:
	for i := range endpoints {
		want := endpoints[i].parts
		if len(want) != len(path) {
			continue
		}
		var vars []string
		for j, part := range path {
			if !strings.HasPrefix(want[j], "{") {
				if part != want[j] {
					continue next
				}
				continue
			}
			text, err := url.PathUnescape(part)
			if err != nil {
				continue next // cannot be: the server has parsed the URL
			}
			vars = append(vars, text)
		}
		return &endpoints[i], vars
	}
	return nil, nil
}

type countAnswer struct {
	UserID string       `json:"user_id"`
	Minute string       `json:"minute"`
	Clicks int64        `json:"clicks"`
	State  tumble.State `json:"state"`
}

// count answers how often a user clicked in a window.
func (a *api) count(w http.ResponseWriter, r *http.Request, vars []string) error {
	at, err := parseMinute("minute", vars[1], time.Now())
	if err != nil {
		return err
	}
	c, err := a.read(r.Context(), vars[0], at)
	if err != nil {
		return err
	}
	return program.WriteJSON(w, http.StatusOK, countAnswer{vars[0], FormatMinute(c.Start), c.N, c.State})
}

// read reads one count: an open zero where nothing is stored.
func (a *api) read(ctx context.Context, user string, at time.Time) (tumble.Count, error) {
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

// history answers in which windows of a span a user clicked, and how often.
func (a *api) history(w http.ResponseWriter, r *http.Request, vars []string) error {
	query, err := parseQuery(r)
	if err != nil {
		return err
	}
	now := time.Now()
	from, err := parseMinute("from", query.Get("from"), now)
	if err != nil {
		return err
	}
	to, err := parseMinute("to", query.Get("to"), now)
	if err != nil {
		return err
	}
	window, err := a.window(r.Context())
	if err != nil {
		return err
	}
	first, last, ok := span(window, from, to)
	if !ok {
		return badRequest{fmt.Errorf("no window (%v) starts between from and to", window)}
	}
	if n := windowsBetween(window, from, to); n > maxWindows {
		return badRequest{fmt.Errorf("from and to are %d windows apart, at most %d can be asked for at once", n, maxWindows)}
	}
	counts, state, err := a.readRange(r.Context(), vars[0], from, to, first, last)
	if err != nil {
		return err
	}
	answer := historyAnswer{UserID: vars[0], State: state, Clicks: []minuteCount{}}
	for _, c := range counts {
		answer.Total += c.N
		answer.Clicks = append(answer.Clicks, minuteCount{FormatMinute(c.Start), c.N, c.State})
	}
	return program.WriteJSON(w, http.StatusOK, answer)
}

// readRange reads the counts of the windows that start in [from, to), of which
// the first and the last begin at first and last, and the state of their sum.
func (a *api) readRange(ctx context.Context, user string, from, to, first, last time.Time) ([]tumble.Count, tumble.State, error) {
	for tries := 1; ; tries++ {
		// The counts are as final as the last window was before they were read,
		// if the store has lost nothing until afterwards.
		before, err := a.read(ctx, user, last)
		if err != nil {
			return nil, 0, err
		}
		counts, err := a.cfg.Counts.Range(ctx, user, from, to)
		if err != nil && !errors.Is(err, tumble.ErrNoDefinition) {
			return nil, 0, err
		}
		after, err := a.read(ctx, user, last)
		if err != nil {
			return nil, 0, err
		}
		// What had been deleted shows afterwards, in the earliest window first.
		oldest, err := a.read(ctx, user, first)
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
func (a *api) top(w http.ResponseWriter, r *http.Request, vars []string) error {
	at, n, _, err := parsePage(r, vars[0], "n", 10, maxTop)
	if err != nil {
		return err
	}
	page, err := orEmpty(at)(a.cfg.Counts.Top(r.Context(), at, n))
	if err != nil {
		return err
	}
	return program.WriteJSON(w, http.StatusOK, topAnswer{FormatMinute(page.Start), page.State, userCounts(page)})
}

type usersAnswer struct {
	Minute string      `json:"minute"`
	Users  []userCount `json:"users"`
	Cursor string      `json:"cursor"`
}

// users answers, page by page, everyone who clicked in a window.
func (a *api) users(w http.ResponseWriter, r *http.Request, vars []string) error {
	at, limit, cursor, err := parsePage(r, vars[0], "limit", 1000, maxLimit)
	if err != nil {
		return err
	}
	page, err := orEmpty(at)(a.cfg.Counts.Scan(r.Context(), at, cursor, limit))
	if err != nil {
		return err
	}
	return program.WriteJSON(w, http.StatusOK, usersAnswer{FormatMinute(page.Start), userCounts(page), page.Cursor})
}

// orEmpty makes an open page without counts of one that was read where nothing
// is stored.
func orEmpty(at time.Time) func(tumble.Page, error) (tumble.Page, error) {
	return func(page tumble.Page, err error) (tumble.Page, error) {
		if errors.Is(err, tumble.ErrNoDefinition) {
			start, end := unknownWindow.Bounds(at)
			return tumble.Page{Start: start, End: end}, nil
		}
		return page, err
	}
}

func userCounts(p tumble.Page) []userCount {
	users := make([]userCount, len(p.Counts))
	for i, c := range p.Counts {
		users[i] = userCount{c.Key, c.N}
	}
	return users
}

// health answers whether the store can be read.
func (a *api) health(w http.ResponseWriter, r *http.Request, _ []string) error {
	if _, err := a.window(r.Context()); err != nil {
		return err
	}
	return program.WriteJSON(w, http.StatusOK, program.Healthy)
}

func (a *api) metrics(w http.ResponseWriter, _ *http.Request, _ []string) error {
	metrics := a.seen.metrics()
	if a.cfg.Metrics != nil {
		metrics = append(metrics, a.cfg.Metrics()...)
	}
	program.ServeMetrics(w, metrics)
	return nil
}

func (a *api) description(w http.ResponseWriter, _ *http.Request, _ []string) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPI) // the client has gone, or it has its answer
	return nil
}

// unknownWindow is that of counts of which nothing is stored: they are zeros,
// by the minute.
var unknownWindow = tumble.Window{Size: time.Minute}

// window returns the window of what is counted.
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
		size = 23 * time.Hour // of a calendar the shortest day
	}
	// Sub stops at 292 years, where windows are either few or far too many.
	return int64(to.Sub(from)/size) + 1
}

// A badRequest is an error of the client's.
type badRequest struct{ error }

func parseQuery(r *http.Request) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, badRequest{fmt.Errorf("query: %w", err)}
	}
	return query, nil
}

// parsePage reads what top and users have in common: the window, a number from
// 1 to most by the name of count, and a cursor.
func parsePage(r *http.Request, minute, count string, standard, most int) (at time.Time, n int, cursor string, err error) {
	if at, err = parseMinute("minute", minute, time.Now()); err != nil {
		return at, 0, "", err
	}
	query, err := parseQuery(r)
	if err != nil {
		return at, 0, "", err
	}
	n = standard
	if s := query.Get(count); query.Has(count) {
		if n, err = strconv.Atoi(s); err != nil || n < 1 || n > most || strconv.Itoa(n) != s {
			return at, 0, "", badRequest{fmt.Errorf("%s is %q, must be a number from 1 to %d", count, s, most)}
		}
	}
	return at, n, query.Get("cursor"), nil
}

const shortMinute = "2006-01-02T15:04"

var (
	firstTime = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// parseMinute reads an instant in the short form, which is in UTC, or as RFC
// 3339, or the word for that of now. In a query a plus sign that was not escaped arrives as a space; none of
// the forms has one, so it is taken back.
func parseMinute(name, s string, now time.Time) (time.Time, error) {
	if s == "now" {
		return now, nil
	}
	t, err := program.ParseTime(strings.ReplaceAll(s, " ", "+"))
	if err != nil {
		t, err = time.Parse(shortMinute, s)
		// Parse takes more than it writes, such as an hour of one digit.
		if err != nil || t.Format(shortMinute) != s {
			return t, badRequest{fmt.Errorf("%s is %q, must be like %s (UTC), RFC 3339 or now", name, s, shortMinute)}
		}
	}
	if t.Before(firstTime) || !t.Before(lastTime) {
		return t, badRequest{fmt.Errorf("%s is %q, must be from the year 1700 to 2199", name, s)}
	}
	return t, nil
}

// FormatMinute writes the start of a window in the short form. Windows shorter
// than a minute begin where the short form cannot say; these are in RFC 3339.
func FormatMinute(t time.Time) string {
	t = t.UTC()
	if t.Truncate(time.Minute).Equal(t) {
		return t.Format(shortMinute)
	}
	return t.Format(time.RFC3339Nano)
}
