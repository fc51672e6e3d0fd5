package memory

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

// step is how many counts are read under one hold of a shard's lock.
const step = 4096

// Top returns the n highest counts in the window that holds at. It reads the whole
// window, with pauses in which counting goes on.
func (s *Sink) Top(_ context.Context, at time.Time, n int) (tumble.Page, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, err := s.newPage(at)
	if err != nil {
		return tumble.Page{}, err
	}
	best := highest{n: n}
	for shard := range s.stores {
		for from := 0; from >= 0; {
			from = p.read(shard, from, step, func(t *table, i int, term uint64) {
				if n := t.entries[i].n; best.wants(n) {
					best.add(p.count(t, i, term))
				}
			})
		}
	}
	return p.finish(best.take(), ""), nil
}

// Scan returns up to limit of the counts in the window that holds at, in the order in
// which their keys came. A limit below 1 is taken as 1. Keys that come while a scan
// goes on may be on its later pages. No key comes twice.
func (s *Sink) Scan(_ context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, err := s.newPage(at)
	if err != nil {
		return tumble.Page{}, err
	}
	first, from, err := p.parseCursor(cursor)
	if err != nil {
		return tumble.Page{}, err
	}
	limit = max(limit, 1)
	var counts []tumble.Count
	next := ""
	for i := range s.stores {
		shard := (first + i) % len(s.stores)
		if shard < first || next != "" {
			// It is on another page, but has a say in the state of the window.
			p.read(shard, 0, 0, nil)
			continue
		}
		for from >= 0 && next == "" {
			if len(counts) == limit {
				next = p.formatCursor(shard, from)
			}
			from = p.read(shard, from, min(step, limit-len(counts)), func(t *table, i int, term uint64) {
				counts = append(counts, p.count(t, i, term))
			})
		}
		from = 0
	}
	return p.finish(counts, next), nil
}

// page is a [tumble.Page] that is being read. It calls a window closed if each
// piece of it was when it was read, and expired if one was.
type page struct {
	sink       *Sink
	level      int
	start, end time.Time
	state      tumble.State
	terms      []uint64 // by shard
}

// newPage returns a page of the window that holds at, of which nothing is read
// yet. s.mu is held until the page is finished, so that all of its pieces are
// of one history.
func (s *Sink) newPage(at time.Time) (*page, error) {
	level, start, end, err := s.bounds(at)
	if err != nil {
		return nil, err
	}
	// As if closed long ago: reading can only take that back.
	return &page{s, level, start, end, s.def.State(end, time.Time{}, end), make([]uint64, len(s.stores))}, nil
}

// read reads a piece, together with what the shard makes of the window at this
// moment: it calls f for at most limit entries of a shard, beginning with entry
// from, and returns the entry to go on with, -1 at the end. Entries are only
// ever appended, until the whole window is forgotten.
func (p *page) read(shard, from, limit int, f func(t *table, i int, term uint64)) int {
	st := p.sink.stores[shard]
	st.mu.RLock()
	defer st.mu.RUnlock()
	l := &st.levels[p.level]
	p.state = worst(p.state, p.sink.def.State(st.closed, l.floor, p.end))
	p.terms[shard] = st.term
	i, ok := l.find(p.start.UnixNano())
	if !ok {
		return -1
	}
	t := &l.windows[i].counts
	to := min(from+limit, len(t.entries))
	for ; from < to; from++ {
		f(t, from, st.term)
	}
	if to == len(t.entries) {
		return -1
	}
	return to
}

func (p *page) count(t *table, i int, term uint64) tumble.Count {
	return tumble.Count{Key: t.key(i), Start: p.start, End: p.end, N: t.entries[i].n, Term: term}
}

// finish returns the page with counts.
func (p *page) finish(counts []tumble.Count, cursor string) tumble.Page {
	for i := range counts {
		counts[i].State = p.state
	}
	var term uint64
	for _, t := range p.terms {
		term = mixed(term, t)
	}
	return tumble.Page{Start: p.start, End: p.end, Counts: counts, State: p.state, Term: term, Cursor: cursor}
}

// A cursor names the window and its level too, so that one of another is refused.
func (p *page) formatCursor(shard, from int) string {
	return fmt.Sprintf("%d.%d.%d.%d", p.level, p.start.UnixNano(), shard, from)
}

func (p *page) parseCursor(cursor string) (shard, from int, err error) {
	if cursor == "" {
		return 0, 0, nil
	}
	bad := fmt.Errorf("memory: cursor %q: %w", cursor, tumble.ErrCursor)
	var level int
	var window int64
	if _, err := fmt.Sscanf(cursor, "%d.%d.%d.%d", &level, &window, &shard, &from); err != nil ||
		p.formatCursor(shard, from) != cursor || shard < 0 || shard >= len(p.sink.stores) || from < 0 {
		return 0, 0, bad
	}
	st := p.sink.stores[shard]
	st.mu.RLock()
	defer st.mu.RUnlock()
	// A window that was forgotten in the meantime has an end, not an error.
	l := &st.levels[p.level]
	if i, ok := l.find(p.start.UnixNano()); ok && from >= len(l.windows[i].counts.entries) {
		return 0, 0, bad
	}
	return shard, from, nil
}

// highest collects the n highest counts of many.
type highest struct {
	n      int
	counts []tumble.Count
	floor  int64 // nothing below it is wanted
}

func (h *highest) wants(n int64) bool { return h.n > 0 && n >= h.floor }

func (h *highest) add(c tumble.Count) {
	h.counts = append(h.counts, c)
	// Sorting at twice the size costs a few comparisons an entry.
	if len(h.counts)/2 > h.n {
		h.cut()
		h.floor = h.counts[len(h.counts)-1].N
	}
}

func (h *highest) cut() {
	slices.SortFunc(h.counts, func(a, b tumble.Count) int {
		return cmp.Or(cmp.Compare(b.N, a.N), strings.Compare(a.Key, b.Key))
	})
	h.counts = h.counts[:min(max(h.n, 0), len(h.counts))]
}

func (h *highest) take() []tumble.Count {
	h.cut()
	return h.counts
}
