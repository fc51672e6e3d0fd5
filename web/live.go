package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
)

// Server-sent events tell the page what to draw
// (https://html.spec.whatwg.org/multipage/server-sent-events.html).

const (
	liveEvery   = time.Second
	liveWindows = 60
	// liveTop bounds the keys of a window whose highest counts are read each time.
	liveTop = 50_000
	// maxStreams bounds the pages that are told at a time.
	maxStreams = 1000
	// aliveEvery is how long a stream is silent at most, so that neither a proxy nor
	// a phone takes it for dead.
	aliveEvery = 15 * time.Second
)

var errStreams = errors.New("too many pages are open, try again later")

// A snapshot is what the page draws. Its names are not those of Config: it is between
// the page and its server.
type snapshot struct {
	Item     string        `json:"item"`
	Key      string        `json:"key"`
	Keys     string        `json:"keys"`
	Window   string        `json:"window"`
	Windows  []string      `json:"windows"` // all that are counted
	Bars     []bar         `json:"bars"`
	Top      []topKey      `json:"top"` // of the newest window
	Band     []bandDrawn   `json:"band"`
	Frontier *time.Time    `json:"frontier"`
	Books    *booksSummary `json:"books"` // null: the pipeline is elsewhere
}

type bar struct {
	Start string       `json:"start"`
	End   string       `json:"end"`
	Keys  int64        `json:"keys"`
	N     int64        `json:"n"`
	State tumble.State `json:"state"`
}

type topKey struct {
	Key string `json:"key"`
	N   int64  `json:"n"`
}

type bandDrawn struct {
	Start  string  `json:"start"`
	End    string  `json:"end"`
	Low    float64 `json:"low"`
	Middle float64 `json:"middle"`
	High   float64 `json:"high"`
}

type booksSummary struct {
	Late     int64 `json:"late"` // dropped ones too
	Rejected int64 `json:"rejected"`
	Lost     int64 `json:"lost"`
}

// live keeps the last snapshot of each window for a moment, so that many pages cost no
// more than one.
type live struct {
	streams atomic.Int64

	mu   sync.Mutex
	last map[string]*kept
}

type kept struct {
	mu   sync.Mutex
	at   time.Time
	text []byte
	err  error

	band     []bandDrawn
	bandFrom time.Time
}

// events tells the page what to draw, whenever that has changed, until it leaves or the
// Handler is closed.
func (h *Handler) events(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), storeTimeout)
	in, err := h.level(ctx, parse(r))
	cancel()
	if errors.As(err, new(badRequest)) {
		program.WriteError(w, http.StatusBadRequest, err)
		return
	}
	select {
	case <-h.closed:
		program.WriteError(w, http.StatusServiceUnavailable, errUnavailable)
		return
	default:
	}
	if h.live.streams.Add(1) > maxStreams {
		h.live.streams.Add(-1)
		w.Header().Set("Retry-After", "10")
		program.WriteError(w, http.StatusServiceUnavailable, errStreams)
		return
	}
	defer h.live.streams.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // a proxy would hold them back
	if r.Method == http.MethodHead {
		return
	}
	h.stream(r, w, in, err)
}

// stream writes events until it ends. err is why in could not be had.
func (h *Handler) stream(r *http.Request, w http.ResponseWriter, in level, err error) {
	control := http.NewResponseController(w)
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	var last []byte
	var wrote time.Time
	for {
		event, text := "counts", []byte(nil)
		if err == nil {
			text, err = h.snapshot(r.Context(), in)
		}
		if err != nil {
			h.store.failed(err)
			event, text = "trouble", []byte(`{"error":"the counts cannot be read now"}`)
			in, err = h.level(r.Context(), parse(r)) // for the next time
		}
		message := []byte(nil)
		if !bytes.Equal(text, last) {
			message = fmt.Appendf(nil, "retry: 1000\nevent: %s\ndata: %s\n\n", event, text)
		} else if time.Since(wrote) >= aliveEvery {
			message = []byte(":\n\n") // a comment
		}
		if message != nil {
			last, wrote = text, time.Now()
			// A server's limit for an answer is none for a stream, but for one event.
			_ = control.SetWriteDeadline(time.Now().Add(10 * time.Second))
			if _, err := w.Write(message); err != nil || control.Flush() != nil {
				return
			}
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-h.closed:
			return
		}
	}
}

// snapshot returns what the page draws, as it is now or was a moment ago.
func (h *Handler) snapshot(ctx context.Context, in level) ([]byte, error) {
	name := in.window.String()
	h.live.mu.Lock()
	if h.live.last == nil {
		h.live.last = map[string]*kept{}
	}
	k := h.live.last[name]
	if k == nil {
		k = &kept{}
		h.live.last[name] = k
	}
	h.live.mu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.at) > liveEvery*9/10 {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTimeout) // others wait for it, too
		defer cancel()
		s, err := h.take(ctx, in, k)
		k.at, k.err = time.Now(), err
		if err == nil {
			h.store.over()
			k.text, k.err = json.Marshal(s)
		}
	}
	return k.text, k.err
}

// take reads a snapshot.
func (h *Handler) take(ctx context.Context, in level, k *kept) (s snapshot, err error) {
	def, err := h.definition(ctx)
	if err != nil {
		return s, err
	}
	s = snapshot{
		Item: h.words.item, Key: h.words.key, Keys: h.words.keys, Window: in.window.String(),
		Bars: []bar{}, Top: []topKey{}, Band: []bandDrawn{},
	}
	for _, l := range def.Levels() {
		s.Windows = append(s.Windows, l.Window.String())
	}
	if h.cfg.Stats != nil {
		b := h.cfg.Stats()
		s.Books = &booksSummary{Late: b.Late + b.DroppedLate, Rejected: b.Rejected, Lost: b.Lost}
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
		s.Bars = append(s.Bars, bar{program.ShortMinute(t.Start), program.ShortMinute(t.End), t.Keys, t.N, t.State})
	}
	if last := totals[len(totals)-1]; last.Keys <= liveTop {
		page, err := in.Top(ctx, last.Start, 10)
		if err != nil {
			return s, err
		}
		for _, c := range page.Counts {
			s.Top = append(s.Top, topKey{c.Key, c.N})
		}
	}
	s.Band = h.band(ctx, in, k, totals)
	return s, nil
}

// band returns the forecast from the first window on that is open, which it asks for
// again when that one has closed. A forecast that cannot be had leaves the page as it is.
func (h *Handler) band(ctx context.Context, in level, k *kept, totals []tumble.Total) []bandDrawn {
	closed := slices.IndexFunc(totals, func(t tumble.Total) bool { return t.State == tumble.Open })
	if closed < 0 {
		closed = len(totals)
	}
	if h.cfg.Forecast == nil || closed == 0 {
		return []bandDrawn{}
	}
	from := totals[closed-1].End
	if k.band != nil && from.Equal(k.bandFrom) {
		return k.band
	}
	k.band, k.bandFrom = []bandDrawn{}, from
	bands, err := h.cfg.Forecast(ctx, in.Reader, from)
	if err != nil {
		h.cfg.Logger.Warn("no forecast", "window", in.window, "from", from, "error", err)
	}
	for _, b := range bands {
		if math.IsInf(b.High-b.Low, 0) || math.IsNaN(b.High-b.Low+b.Middle) {
			continue // it has no form in JSON
		}
		k.band = append(k.band, bandDrawn{program.ShortMinute(b.Start), program.ShortMinute(b.End), b.Low, b.Middle, b.High})
	}
	return k.band
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
	// Of a name that has been silent for longer the last windows are shown that hold a
	// count, however old.
	for span := to.Sub(from); err == nil && len(totals) == 0 && from.After(earliest); span = min(2*span, century) {
		to = from
		if from = to.Add(-span); from.Before(earliest) {
			from = earliest
		}
		totals, err = in.Windows(ctx, from, to)
	}
	return totals[max(0, len(totals)-liveWindows):], err
}

const century = 100 * 365 * 24 * time.Hour

// earliest is before the start of every window: one that holds the first event time, in
// 1700, lasts ten years at most.
var earliest = time.Date(1690, 1, 1, 0, 0, 0, 0, time.UTC)
