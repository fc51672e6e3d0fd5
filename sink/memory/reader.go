package memory

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

// step is how many counts are read under one hold of a shard's lock.
const step = 4096

// Definition returns what the counts mean; see [tumble.Reader].
func (s *Sink) Definition(context.Context) (tumble.Definition, error) {
	_, def, err := s.read()
	return def, err
}

// read returns the shards and what their counts mean.
func (s *Sink) read() ([]*store, tumble.Definition, error) {
	s.mu.RLock()
	stores := s.stores
	s.mu.RUnlock()
	for _, st := range stores {
		st.mu.RLock()
		def, text := st.def, st.text
		st.mu.RUnlock()
		if text != "" {
			return stores, def, nil
		}
	}
	return nil, tumble.Definition{}, fmt.Errorf("memory: %w", tumble.ErrNoDefinition)
}

// bounds returns the window that holds at.
func bounds(def tumble.Definition, at time.Time) (start, end time.Time, err error) {
	if y := at.UTC().Year(); y < 1700 || y >= 2200 {
		return start, end, fmt.Errorf("memory: no window holds %v: counted are the years 1700 to 2199", at)
	}
	start, end = def.Window.Bounds(at)
	return start, end, nil
}

// Count returns the count of key in the window that holds at, which must be in
// [1700, 2200).
func (s *Sink) Count(_ context.Context, key string, at time.Time) (tumble.Count, error) {
	stores, def, err := s.read()
	if err != nil {
		return tumble.Count{}, err
	}
	start, end, err := bounds(def, at)
	if err != nil {
		return tumble.Count{}, err
	}
	st := stores[tumble.Hash(key)%uint64(len(stores))]
	st.mu.RLock()
	defer st.mu.RUnlock()
	c := tumble.Count{Key: key, Window: start}
	c.Final, c.Expired = def.Finality(st.frontier, end)
	if i, ok := st.find(start.UnixNano()); ok {
		c.N = st.windows[i].counts.get(key)
	}
	return c, nil
}

// Range returns the counts of key, those above 0, in the windows whose start is
// in [from, to), ascending. It reads them as they are at one moment.
func (s *Sink) Range(_ context.Context, key string, from, to time.Time) ([]tumble.Count, error) {
	stores, def, err := s.read()
	if err != nil {
		return nil, err
	}
	st := stores[tumble.Hash(key)%uint64(len(stores))]
	st.mu.RLock()
	defer st.mu.RUnlock()
	var counts []tumble.Count
	first, _ := st.find(nanos(from))
	for _, w := range st.windows[first:] {
		if w.start >= nanos(to) {
			break
		}
		n := w.counts.get(key)
		if n == 0 {
			continue
		}
		c := tumble.Count{Key: key, Window: time.Unix(0, w.start).UTC(), N: n}
		c.Final, c.Expired = def.Finality(st.frontier, time.Unix(0, w.end))
		counts = append(counts, c)
	}
	return counts, nil
}

// nanos returns t in nanoseconds since the epoch, or the nearest number that
// int64 holds.
func nanos(t time.Time) int64 {
	switch y := t.UTC().Year(); {
	case y < 1678:
		return math.MinInt64
	case y >= 2262:
		return math.MaxInt64
	}
	return t.UnixNano()
}

// Top returns the n highest counts in the window that holds at, which must be
// in [1700, 2200). It reads the whole window, with pauses in which counting
// goes on.
func (s *Sink) Top(_ context.Context, at time.Time, n int) (tumble.Page, error) {
	stores, def, err := s.read()
	if err != nil {
		return tumble.Page{}, err
	}
	start, end, err := bounds(def, at)
	if err != nil {
		return tumble.Page{}, err
	}
	page := tumble.Page{Final: final(stores, def, end)}
	best := highest{n: n}
	for _, st := range stores {
		for from := 0; from >= 0; {
			from = st.each(start.UnixNano(), from, step, func(t *table, i int) {
				if best.wants(t.entries[i].n) {
					best.add(tumble.Count{Key: t.key(i), Window: start, N: t.entries[i].n})
				}
			})
		}
	}
	page.Counts = best.take()
	return finish(page, stores, def, end), nil
}

// Scan returns up to limit of the counts in the window that holds at, which
// must be in [1700, 2200), in the order in which their keys came; a limit below
// 1 is taken as 1. Keys that come while a scan goes on may be on its later
// pages; no key comes twice.
func (s *Sink) Scan(_ context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	stores, def, err := s.read()
	if err != nil {
		return tumble.Page{}, err
	}
	start, end, err := bounds(def, at)
	if err != nil {
		return tumble.Page{}, err
	}
	shard, from, err := parseCursor(cursor, start.UnixNano(), stores)
	if err != nil {
		return tumble.Page{}, err
	}
	page := tumble.Page{Final: final(stores, def, end)}
	for limit = max(limit, 1); shard < len(stores); {
		if len(page.Counts) == limit {
			page.Cursor = formatCursor(start.UnixNano(), shard, from)
			break
		}
		from = stores[shard].each(start.UnixNano(), from, min(step, limit-len(page.Counts)), func(t *table, i int) {
			page.Counts = append(page.Counts, tumble.Count{Key: t.key(i), Window: start, N: t.entries[i].n})
		})
		if from < 0 {
			shard, from = shard+1, 0
		}
	}
	return finish(page, stores, def, end), nil
}

// each calls f for at most limit entries of the window that starts at start,
// beginning with entry from, and returns the entry to go on with, -1 at the
// end. Entries are only ever appended, until the whole window is forgotten.
func (st *store) each(start int64, from, limit int, f func(*table, int)) int {
	st.mu.RLock()
	defer st.mu.RUnlock()
	i, ok := st.find(start)
	if !ok {
		return -1
	}
	t := &st.windows[i].counts
	to := min(from+limit, len(t.entries))
	for ; from < to; from++ {
		f(t, from)
	}
	if to == len(t.entries) {
		return -1
	}
	return to
}

// final reports whether the window that ends at end is final in every shard.
func final(stores []*store, def tumble.Definition, end time.Time) bool {
	for _, st := range stores {
		st.mu.RLock()
		final, _ := def.Finality(st.frontier, end)
		st.mu.RUnlock()
		if !final {
			return false
		}
	}
	return true
}

// finish completes a page whose counts have been read.
func finish(page tumble.Page, stores []*store, def tumble.Definition, end time.Time) tumble.Page {
	page.Expired = expired(stores, def, end)
	page.Final = page.Final && !page.Expired
	for i := range page.Counts {
		page.Counts[i].Final, page.Counts[i].Expired = page.Final, page.Expired
	}
	return page
}

// expired reports whether the window that ends at end is past retention in some
// shard.
func expired(stores []*store, def tumble.Definition, end time.Time) bool {
	for _, st := range stores {
		st.mu.RLock()
		_, expired := def.Finality(st.frontier, end)
		st.mu.RUnlock()
		if expired {
			return true
		}
	}
	return false
}

// A cursor names the window too, so that one of another window is refused.
func formatCursor(start int64, shard, from int) string {
	return fmt.Sprintf("%d.%d.%d", start, shard, from)
}

func parseCursor(cursor string, start int64, stores []*store) (shard, from int, err error) {
	if cursor == "" {
		return 0, 0, nil
	}
	bad := fmt.Errorf("memory: cursor %q: %w", cursor, tumble.ErrCursor)
	var window int64
	if _, err := fmt.Sscanf(cursor, "%d.%d.%d", &window, &shard, &from); err != nil ||
		formatCursor(window, shard, from) != cursor || window != start || shard < 0 || shard >= len(stores) || from < 0 {
		return 0, 0, bad
	}
	st := stores[shard]
	st.mu.RLock()
	defer st.mu.RUnlock()
	// A window that was forgotten in the meantime has an end, not an error.
	if i, ok := st.find(start); ok && from >= len(st.windows[i].counts.entries) {
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
