package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
)

// unknown is the definition of an empty store.
var unknown = tumble.Definition{Window: tumble.Window{Size: time.Minute}}

// definition returns that of the counts.
func (h *Handler) definition(ctx context.Context) (tumble.Definition, error) {
	def, err := h.cfg.Counts.Definition(ctx)
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
func (h *Handler) level(ctx context.Context, p *params) (level, error) {
	window := p.window()
	if p.err != nil {
		return level{}, p.err
	}
	def, err := h.definition(ctx)
	if err != nil {
		return level{}, err
	}
	if window == nil {
		return level{h.cfg.Counts, def.Window}, nil
	}
	i, err := def.LevelOf(*window)
	if err != nil {
		return level{}, badRequest{fmt.Errorf("window: %w", err)}
	}
	if i == 0 {
		return level{h.cfg.Counts, def.Window}, nil
	}
	r, err := h.cfg.Counts.Rollup(*window)
	return level{r, *window}, err
}

// span returns the level and the range that a request asks for, in which some windows
// start, and not too many.
func (h *Handler) span(r *http.Request) (in level, from, to time.Time, err error) {
	p := parse(r)
	from, to = p.minute("from", p.query.Get("from")), p.minute("to", p.query.Get("to"))
	if in, err = h.level(r.Context(), p); err != nil {
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
	switch w.Calendar { // the shortest, with an hour less where summer begins
	case tumble.Day:
		size = 23 * time.Hour
	case tumble.Week:
		size = 7*24*time.Hour - time.Hour
	case tumble.Month:
		size = 28*24*time.Hour - time.Hour
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
