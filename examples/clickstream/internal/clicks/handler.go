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
	"github.com/tumblestream/tumble/internal/program"
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
	live  live
}

// New returns the API. It is safe for concurrent use.
func New(cfg Config) http.Handler {
	a := &api{cfg: cfg, store: outage{log: cmp.Or(cfg.Logger, slog.Default())}}
	a.read("/clicks/{user_id}/{minute}", a.count)
	a.read("/clicks/{user_id}", a.history)
	a.read("/minutes", a.minutes)
	a.read("/minutes/{minute}/top", a.top)
	a.read("/minutes/{minute}/users", a.users)
	a.read("/progress", a.progress)
	a.read("/healthz", a.health)
	a.read("/readyz", a.health)
	a.get("/metrics", a.metrics)
	a.page()
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
	in, err := a.level(r.Context(), p)
	if err != nil {
		return nil, err
	}
	c, err := in.countAt(r.Context(), user, at)
	return countAnswer{user, program.ShortMinute(c.Start), c.N, c.State}, err
}

// countAt reads one count: an open zero where nothing is stored.
func (in level) countAt(ctx context.Context, user string, at time.Time) (tumble.Count, error) {
	c, err := in.Count(ctx, user, at)
	if errors.Is(err, tumble.ErrNoDefinition) {
		start, end := in.window.Bounds(at)
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
	in, from, to, err := a.span(r)
	if err != nil {
		return nil, err
	}
	answer := historyAnswer{UserID: variable(r, "user_id"), Clicks: []minuteCount{}}
	counts, sum, err := tumble.History(r.Context(), in, answer.UserID, from, to)
	if errors.Is(err, tumble.ErrNoDefinition) {
		return answer, nil
	}
	answer.Total, answer.State = sum.N, sum.State
	for _, c := range counts {
		answer.Clicks = append(answer.Clicks, minuteCount{program.ShortMinute(c.Start), c.N, c.State})
	}
	return answer, err
}

type minutesAnswer struct {
	Minutes []minuteTotal `json:"minutes"`
}

type minuteTotal struct {
	Minute string       `json:"minute"`
	Users  int64        `json:"users"`
	Clicks int64        `json:"clicks"`
	State  tumble.State `json:"state"`
}

// minutes answers how many users clicked in the windows of a range, and how often.
func (a *api) minutes(r *http.Request) (any, error) {
	in, from, to, err := a.span(r)
	if err != nil {
		return nil, err
	}
	totals, err := in.Windows(r.Context(), from, to)
	if errors.Is(err, tumble.ErrNoDefinition) {
		err = nil
	}
	answer := minutesAnswer{Minutes: []minuteTotal{}}
	for _, t := range totals {
		answer.Minutes = append(answer.Minutes, minuteTotal{program.ShortMinute(t.Start), t.Keys, t.N, t.State})
	}
	return answer, err
}

type topAnswer struct {
	Minute string       `json:"minute"`
	State  tumble.State `json:"state"`
	Users  int64        `json:"users"`
	Clicks int64        `json:"clicks"`
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
	in, err := a.level(r.Context(), p)
	if err != nil {
		return nil, err
	}
	page, total, err := in.readTop(r.Context(), at, n)
	return topAnswer{program.ShortMinute(page.Start), page.State, total.Keys, total.N, userCounts(page)}, err
}

// readTop reads the highest counts of a window and its total, with a state that holds
// of both.
func (in level) readTop(ctx context.Context, at time.Time, n int) (page tumble.Page, total tumble.Total, err error) {
	for tries := 1; ; tries++ {
		page, err = in.Top(ctx, at, n)
		if page, err = in.orEmpty(at, page, err); err != nil {
			return page, total, err
		}
		totals, err := in.Windows(ctx, page.Start, page.End)
		if err != nil && !errors.Is(err, tumble.ErrNoDefinition) {
			return page, total, err
		}
		if total = (tumble.Total{}); len(totals) > 0 {
			total = totals[0]
		}
		switch {
		case page.State == tumble.Open || page.State == tumble.Expired:
			return page, total, nil
		case total.State == tumble.Expired:
			page.State = tumble.Expired
			return page, total, nil
		case page.Term == total.Term, len(totals) == 0 && len(page.Counts) == 0:
			return page, total, nil // the total came later: it is at least as final
		case tries == 3: // a term changes once a window, without a loss
			page.State = tumble.Open
			return page, total, nil
		}
	}
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
	in, err := a.level(r.Context(), p)
	if err != nil {
		return nil, err
	}
	page, err := in.Scan(r.Context(), at, p.query.Get("cursor"), limit)
	page, err = in.orEmpty(at, page, err)
	return usersAnswer{program.ShortMinute(page.Start), userCounts(page), page.Cursor}, err
}

// orEmpty returns an open page without counts where nothing is stored.
func (in level) orEmpty(at time.Time, page tumble.Page, err error) (tumble.Page, error) {
	if errors.Is(err, tumble.ErrNoDefinition) {
		page, err = tumble.Page{}, nil
		page.Start, page.End = in.window.Bounds(at)
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

type progressAnswer struct {
	Partitions []partitionProgress `json:"partitions"`
	Frontier   *time.Time          `json:"frontier"`
}

type partitionProgress struct {
	Partition string     `json:"partition"`
	Offset    int64      `json:"offset"`
	Watermark *time.Time `json:"watermark"`
}

// progress answers how far counting has come.
func (a *api) progress(r *http.Request) (any, error) {
	p, err := a.cfg.Counts.Progress(r.Context())
	if errors.Is(err, tumble.ErrNoDefinition) {
		err = nil
	}
	answer := progressAnswer{[]partitionProgress{}, program.OrNull(p.Frontier)}
	for _, part := range p.Partitions {
		answer.Partitions = append(answer.Partitions, partitionProgress{part.ID, part.Offset, program.OrNull(part.Watermark)})
	}
	return answer, err
}

// health answers whether the store can be read.
func (a *api) health(r *http.Request) (any, error) {
	_, err := a.definition(r.Context())
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

// unknown is the definition of an empty store.
var unknown = tumble.Definition{Window: tumble.Window{Size: time.Minute}}

// definition returns that of the counts.
func (a *api) definition(ctx context.Context) (tumble.Definition, error) {
	def, err := a.cfg.Counts.Definition(ctx)
	if errors.Is(err, tumble.ErrNoDefinition) {
		return unknown, nil
	}
	return def, err
}

// A level is what a request reads: the counts of the finest window, or of a roll-up.
type level struct {
	tumble.Reader
	window tumble.Window
}

// level returns the one that a request asks for, or its first error.
func (a *api) level(ctx context.Context, p *params) (level, error) {
	window := p.window()
	if p.err != nil {
		return level{}, p.err
	}
	def, err := a.definition(ctx)
	if err != nil {
		return level{}, err
	}
	if window == nil {
		return level{a.cfg.Counts, def.Window}, nil
	}
	i, err := def.LevelOf(*window)
	if err != nil {
		return level{}, badRequest{fmt.Errorf("window: %w", err)}
	}
	if i == 0 {
		return level{a.cfg.Counts, def.Window}, nil
	}
	r, err := a.cfg.Counts.Rollup(*window)
	return level{r, *window}, err
}

// span returns the level and the range that a request asks for, in which some windows
// start, and not too many.
func (a *api) span(r *http.Request) (in level, from, to time.Time, err error) {
	p := parse(r)
	from, to = p.minute("from", p.query.Get("from")), p.minute("to", p.query.Get("to"))
	if in, err = a.level(r.Context(), p); err != nil {
		return in, from, to, err
	}
	if _, _, ok := in.window.Starts(from, to); !ok {
		err = badRequest{fmt.Errorf("no window (%v) starts between from and to", in.window)}
	} else if n := windowsBetween(in.window, from, to); n > maxWindows {
		err = badRequest{fmt.Errorf("from and to are %d windows apart, at most %d can be asked for at once", n, maxWindows)}
	}
	return in, from, to, err
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

// window parses the window that is asked for, nil for the finest. A plus sign that was
// not escaped arrives as a space, which only calendars have.
func (p *params) window() *tumble.Window {
	if !p.query.Has("window") {
		return nil
	}
	s := p.query.Get("window")
	if s != "" && s[0] >= '0' && s[0] <= '9' {
		s = strings.ReplaceAll(s, " ", "+")
	}
	w, err := tumble.ParseWindow(s)
	if err != nil {
		p.fail("%w", err)
	}
	return &w
}

// minute parses an instant. A plus sign that was not escaped arrives from a query as a
// space. None of the forms of an instant has a space, so it becomes a plus sign again.
func (p *params) minute(name, s string) time.Time {
	t, err := program.Instant(strings.ReplaceAll(s, " ", "+"), p.now)
	if err != nil {
		p.fail("%s is %q, %v", name, s, err)
	}
	return t
}
