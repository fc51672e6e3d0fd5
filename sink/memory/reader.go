package memory

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/tumblestream/tumble"
)

// Definition returns the meaning of the counts, with the longest Retention that is in
// force in a shard. See [tumble.Reader].
func (s *Sink) Definition(context.Context) (tumble.Definition, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.defined {
		return tumble.Definition{}, errNoDefinition
	}
	n, err := s.number()
	if err != nil {
		return tumble.Definition{}, err
	}
	if s.level != nil {
		def := s.levels[n]
		def.Retention = s.inForce(n)
		return def, nil
	}
	def := s.def
	def.Rollups = nil
	for i, l := range s.def.Levels() {
		if l.Retention = s.inForce(i); i == 0 {
			def.Retention = l.Retention
		} else {
			def.Rollups = append(def.Rollups, l)
		}
	}
	return def, nil
}

// inForce returns the longest retention of a level that is in force in a shard. s.mu
// is held.
func (s *Sink) inForce(level int) (longest time.Duration) {
	now := time.Now()
	for i, st := range s.stores {
		st.mu.RLock()
		if r := st.retention(level, now); i == 0 || keepsLonger(r, longest) {
			longest = r
		}
		st.mu.RUnlock()
	}
	return longest
}

// Rollup returns the Reader of a window's counts. See [tumble.Reader].
func (s *Sink) Rollup(w tumble.Window) (tumble.Reader, error) {
	if err := w.Validate(); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	return &Sink{data: s.data, level: &w}, nil
}

// number returns that of the level which s reads. s.mu is held.
func (s *Sink) number() (int, error) {
	switch {
	case !s.defined:
		return 0, errNoDefinition
	case s.level == nil:
		return 0, nil
	}
	n, err := s.def.LevelOf(*s.level)
	if err != nil {
		return 0, fmt.Errorf("memory: %w", err)
	}
	return n, nil
}

var errNoDefinition = fmt.Errorf("memory: %w", tumble.ErrNoDefinition)

// bounds returns the window that holds at, and the level it is of. s.mu is held.
func (s *Sink) bounds(at time.Time) (level int, start, end time.Time, err error) {
	if level, err = s.number(); err != nil {
		return level, start, end, err
	}
	if start, end, err = s.levels[level].Window.Find(at); err != nil {
		err = fmt.Errorf("memory: %w", err)
	}
	return level, start, end, err
}

// of returns the shard that key belongs to. s.mu is held.
func (s *Sink) of(key string) *store { return s.stores[tumble.Hash(key)%uint64(len(s.stores))] }

// Count returns the count of key in the window that holds at.
func (s *Sink) Count(_ context.Context, key string, at time.Time) (tumble.Count, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	level, start, end, err := s.bounds(at)
	if err != nil {
		return tumble.Count{}, err
	}
	st := s.of(key)
	st.mu.RLock()
	defer st.mu.RUnlock()
	l := &st.levels[level]
	c := tumble.Count{Key: key, Start: start, End: end, State: s.def.State(st.closed, l.floor, end), Term: st.term}
	if i, ok := l.find(start.UnixNano()); ok {
		c.N = l.windows[i].counts.get(key)
	}
	return c, nil
}

// Range returns the counts of key, those above 0, in the windows whose start is
// in [from, to), ascending. It reads them as they are at one moment.
func (s *Sink) Range(_ context.Context, key string, from, to time.Time) ([]tumble.Count, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	level, err := s.number()
	if err != nil {
		return nil, err
	}
	st := s.of(key)
	st.mu.RLock()
	defer st.mu.RUnlock()
	l := &st.levels[level]
	var counts []tumble.Count
	first, _ := l.find(nanos(from))
	for _, w := range l.windows[first:] {
		if w.start >= nanos(to) {
			break
		}
		n := w.counts.get(key)
		if n == 0 {
			continue
		}
		start, end := time.Unix(0, w.start).UTC(), time.Unix(0, w.end).UTC()
		counts = append(counts, tumble.Count{Key: key, Start: start, End: end, N: n, State: s.def.State(st.closed, l.floor, end), Term: st.term})
	}
	return counts, nil
}

// nanos returns t in nanoseconds since the epoch, or the nearest number that
// int64 holds.
func nanos(t time.Time) int64 {
	const most = math.MaxInt64/int64(time.Second) - 1
	switch s := t.Unix(); { // not the year, which is an int of 32 bits on some machines
	case s < -most:
		return math.MinInt64
	case s > most:
		return math.MaxInt64
	}
	return t.UnixNano()
}
