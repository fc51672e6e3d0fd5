package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tumblestream/tumble"
)

// A history is what was counted in windows that follow each other, all of them closed.
type history struct {
	window tumble.Window
	counts []float64
	starts []time.Time
	next   time.Time // start of the first window that is not known
}

// errNothing says that no window is closed yet.
var errNothing = errors.New("no window is closed yet: there is nothing to forecast from")

// read returns the counts of key, or of all keys if it is empty, in the last n windows
// that are closed before a time. A zero time is that which every partition has passed.
func read(ctx context.Context, r tumble.Reader, key string, n int, before time.Time) (history, error) {
	def, err := r.Definition(ctx)
	if errors.Is(err, tumble.ErrNoDefinition) {
		return history{}, errNothing
	}
	if err != nil {
		return history{}, err
	}
	if before.IsZero() {
		p, err := r.Progress(ctx)
		if err != nil {
			return history{}, err
		}
		if p.Frontier.IsZero() {
			return history{}, errNothing
		}
		before = p.Frontier
	}
	h := history{window: def.Window}
	h.next, _ = def.Window.Bounds(before)
	from := h.next
	for range n {
		from, _ = def.Window.Bounds(from.Add(-1))
	}
	known := map[time.Time]float64{}
	var first time.Time // with a count
	note := func(start time.Time, count int64, state tumble.State) {
		switch state {
		case tumble.Expired: // its counts may be gone
			if !start.Before(from) {
				_, from = def.Window.Bounds(start)
			}
		case tumble.Open: // after a loss, or by lateness of a partition that has come since
			if start.Before(h.next) {
				h.next = start
			}
		default:
			known[start.UTC()] = float64(count)
			if first.IsZero() || start.Before(first) {
				first = start
			}
		}
	}
	if key == "" {
		totals, err := r.Windows(ctx, from, h.next)
		if err != nil {
			return h, err
		}
		for _, t := range totals {
			note(t.Start, t.N, t.State)
		}
	} else {
		counts, err := r.Range(ctx, key, from, h.next)
		if err != nil {
			return h, err
		}
		for _, c := range counts {
			note(c.Start, c.N, c.State)
		}
	}
	if first.IsZero() {
		return h, errNothing
	}
	if first.After(from) { // what was before nobody counted
		from = first
	}
	for at := from; at.Before(h.next); _, at = def.Window.Bounds(at) {
		h.starts = append(h.starts, at)
		h.counts = append(h.counts, known[at.UTC()])
	}
	if len(h.counts) == 0 {
		return h, errNothing
	}
	return h, nil
}

// String says what is known.
func (h history) String() string {
	return fmt.Sprintf("%d windows of %v, to %s", len(h.counts), h.window, h.next.UTC().Format(time.RFC3339))
}
