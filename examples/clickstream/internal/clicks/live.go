package clicks

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
)

// The live page: three files, and server-sent events that tell it what to draw
// (https://html.spec.whatwg.org/multipage/server-sent-events.html).

//go:embed page
var pageFiles embed.FS

const (
	liveEvery   = time.Second
	liveWindows = 60
	// liveTop bounds the users of a window whose highest counts are read each time.
	liveTop = 50_000
	// policy lets the page load what this server has, and nothing else.
	policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

// page serves the page's files.
func (a *api) page() {
	for path, file := range map[string]struct{ name, kind string }{
		"/":         {"index.html", "text/html; charset=utf-8"},
		"/page.css": {"page.css", "text/css; charset=utf-8"},
		"/page.js":  {"page.js", "text/javascript; charset=utf-8"},
	} {
		text, err := pageFiles.ReadFile("page/" + file.name)
		if err != nil {
			panic(err) // it is embedded
		}
		a.get(path, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", file.kind)
			w.Header().Set("Content-Security-Policy", policy)
			w.Header().Set("Cache-Control", "no-cache")
			_, _ = w.Write(text) // an error is the client's
		})
	}
	a.get("/events", a.events)
}

// A snapshot is what the page draws.
type snapshot struct {
	Window   string        `json:"window"`
	Windows  []string      `json:"windows"` // all that are counted
	Minutes  []minuteDrawn `json:"minutes"`
	Top      []userCount   `json:"top"` // of the newest window
	Frontier *time.Time    `json:"frontier"`
}

type minuteDrawn struct {
	minuteTotal
	End string `json:"end"`
}

// live keeps the last snapshot of each window for a moment, so that many pages cost no
// more than one.
type live struct {
	mu   sync.Mutex
	last map[string]*kept
}

type kept struct {
	mu   sync.Mutex
	at   time.Time
	text []byte
	err  error
}

// events tells the page every second what to draw, until it leaves or the server stops.
func (a *api) events(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
	in, err := a.level(ctx, parse(r))
	cancel()
	if errors.As(err, new(badRequest)) {
		program.WriteError(w, http.StatusBadRequest, err)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy would hold them back
	if r.Method == http.MethodHead {
		return
	}
	control := http.NewResponseController(w)
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	for {
		event, text := "counts", []byte(nil)
		if err == nil {
			text, err = a.snapshot(r.Context(), in)
		}
		if err != nil {
			a.store.failed(err)
			event, text = "trouble", []byte(`{"error":"the counts cannot be read now"}`)
			in, err = a.level(r.Context(), parse(r)) // for the next time
		}
		_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second)) // of this event
		if _, err := fmt.Fprintf(w, "retry: 1000\nevent: %s\ndata: %s\n\n", event, text); err != nil {
			return
		}
		if control.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-program.Stopping(r.Context()):
			return
		}
	}
}

// snapshot returns what the page draws, as it is now or was a moment ago.
func (a *api) snapshot(ctx context.Context, in level) ([]byte, error) {
	name := in.window.String()
	a.live.mu.Lock()
	if a.live.last == nil {
		a.live.last = map[string]*kept{}
	}
	k := a.live.last[name]
	if k == nil {
		k = &kept{}
		a.live.last[name] = k
	}
	a.live.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.at) > liveEvery*9/10 {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout) // others wait for it, too
		defer cancel()
		s, err := a.take(ctx, in)
		k.at, k.err = time.Now(), err
		if err == nil {
			a.store.over()
			k.text, k.err = json.Marshal(s)
		}
	}
	return k.text, k.err
}

// take reads a snapshot.
func (a *api) take(ctx context.Context, in level) (s snapshot, err error) {
	def, err := a.definition(ctx)
	if err != nil {
		return s, err
	}
	s = snapshot{Window: in.window.String(), Minutes: []minuteDrawn{}, Top: []userCount{}}
	for _, l := range def.Levels() {
		s.Windows = append(s.Windows, l.Window.String())
	}
	p, err := in.Progress(ctx)
	if errors.Is(err, tumble.ErrNoDefinition) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	s.Frontier = program.OrNull(p.Frontier)
	totals, err := in.newest(ctx, p)
	if err != nil || len(totals) == 0 {
		return s, err
	}
	for _, t := range totals {
		s.Minutes = append(s.Minutes, minuteDrawn{minuteTotal{program.ShortMinute(t.Start), t.Keys, t.N, t.State}, program.ShortMinute(t.End)})
	}
	if last := totals[len(totals)-1]; last.Keys <= liveTop {
		page, err := in.Top(ctx, last.Start, 10)
		if err != nil {
			return s, err
		}
		s.Top = userCounts(page)
	}
	return s, nil
}

// newest returns the totals of the last windows with a count. They are about where the
// events of the partitions are: event time need not be now.
func (in level) newest(ctx context.Context, p tumble.Progress) ([]tumble.Total, error) {
	at := time.Now()
	for i, part := range p.Partitions {
		if i == 0 || part.Watermark.After(at) {
			at = part.Watermark
		}
	}
	if at.IsZero() {
		at = time.Now()
	}
	from, to := at, at
	for range liveWindows {
		start, _ := in.window.Bounds(from.Add(-1))
		_, end := in.window.Bounds(to)
		from, to = start, end
	}
	totals, err := in.Windows(ctx, from, to)
	return totals[max(0, len(totals)-liveWindows):], err
}
