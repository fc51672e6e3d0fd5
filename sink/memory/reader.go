package memory

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/tumblestream/tumble"
)

// Definition returns what the counts mean, with the longest Retention that is in
// force in a shard; see [tumble.Reader].
func (s *Sink) Definition(context.Context) (tumble.Definition, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.defined {
		return tumble.Definition{}, errNoDefinition
	}
	def, now := s.def, time.Now()
	for i, st := range s.stores {
		st.mu.RLock()
		if r := st.retention(now); i == 0 || keepsLonger(r, def.Retention) {
			def.Retention = r
		}
		st.mu.RUnlock()
	}
	return def, nil
}

var errNoDefinition = fmt.Errorf("memory: %w", tumble.ErrNoDefinition)

// bounds returns the window that holds at. s.mu is held.
func (s *Sink) bounds(at time.Time) (start, end time.Time, err error) {
	if !s.defined {
		return start, end, errNoDefinition
	}
	if y := at.UTC().Year(); y < 1700 || y >= 2200 {
		return start, end, fmt.Errorf("memory: no window holds %v: counted are the years 1700 to 2199", at)
	}
	start, end = s.def.Window.Bounds(at)
	return start, end, nil
}

// of returns the shard that key belongs to. s.mu is held.
func (s *Sink) of(key string) *store { return s.stores[tumble.Hash(key)%uint64(len(s.stores))] }

// Count returns the count of key in the window that holds at, which must be in
// [1700, 2200).
func (s *Sink) Count(_ context.Context, key string, at time.Time) (tumble.Count, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	start, end, err := s.bounds(at)
	if err != nil {
		return tumble.Count{}, err
	}
	st := s.of(key)
	st.mu.RLock()
	defer st.mu.RUnlock()
	c := tumble.Count{Key: key, Start: start, End: end, State: s.def.State(st.closed, st.floor, end), Term: st.term}
	if i, ok := st.find(start.UnixNano()); ok {
		c.N = st.windows[i].counts.get(key)
	}
	return c, nil
}

// Range returns the counts of key, those above 0, in the windows whose start is
// in [from, to), ascending. It reads them as they are at one moment.
func (s *Sink) Range(_ context.Context, key string, from, to time.Time) ([]tumble.Count, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.defined {
		return nil, errNoDefinition
	}
	st := s.of(key)
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
		start, end := time.Unix(0, w.start).UTC(), time.Unix(0, w.end).UTC()
		counts = append(counts, tumble.Count{Key: key, Start: start, End: end, N: n, State: s.def.State(st.closed, st.floor, end), Term: st.term})
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
