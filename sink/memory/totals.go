package memory

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

// Windows returns the totals of the windows whose start is in [from, to) and that
// hold a count, ascending. It reads each shard as it is at one moment.
func (s *Sink) Windows(_ context.Context, from, to time.Time) ([]tumble.Total, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	level, err := s.number()
	if err != nil {
		return nil, err
	}
	marks := make([]struct{ closed, floor time.Time }, len(s.stores)) // as they were with the totals
	totals := make(map[int64]*tumble.Total)
	var term uint64
	for shard, st := range s.stores {
		st.mu.RLock()
		l := &st.levels[level]
		marks[shard].closed, marks[shard].floor = st.closed, l.floor
		term = mixed(term, st.term)
		first, _ := l.find(nanos(from))
		for _, w := range l.windows[first:] {
			if w.start >= nanos(to) {
				break
			}
			t := totals[w.start]
			if t == nil {
				t = &tumble.Total{Start: time.Unix(0, w.start).UTC(), End: time.Unix(0, w.end).UTC()}
				totals[w.start] = t
			}
			t.Keys += int64(len(w.counts.entries))
			t.N += w.total
		}
		st.mu.RUnlock()
	}
	var all []tumble.Total
	for _, start := range slices.Sorted(maps.Keys(totals)) {
		t := totals[start]
		t.Term, t.State = term, s.def.State(t.End, time.Time{}, t.End)
		for i := range marks {
			t.State = worst(t.State, s.def.State(marks[i].closed, marks[i].floor, t.End))
		}
		all = append(all, *t)
	}
	return all, nil
}

// worst returns what two shards say of a window together: it is expired if it is in
// one, and open if it is open in one.
func worst(a, b tumble.State) tumble.State {
	if a == tumble.Expired || b == tumble.Expired {
		return tumble.Expired
	}
	return min(a, b)
}

// mixed adds the term of a shard to those of the shards before it.
func mixed(terms, term uint64) uint64 { return terms*0x9e3779b97f4a7c15 + term } // odd: another sum if one of them is another

// Counts returns the counts of keys in the window that holds at, in the order of keys.
func (s *Sink) Counts(ctx context.Context, at time.Time, keys ...string) ([]tumble.Count, error) {
	s.mu.RLock()
	_, _, _, err := s.bounds(at) // without keys nothing else would look
	s.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	counts := make([]tumble.Count, len(keys))
	for i, key := range keys {
		if counts[i], err = s.Count(ctx, key, at); err != nil {
			return nil, err
		}
	}
	return counts, nil
}

// Progress returns how far the partitions are counted.
func (s *Sink) Progress(context.Context) (tumble.Progress, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, err := s.number(); err != nil {
		return tumble.Progress{}, err
	}
	var shards []map[string]tumble.Checkpoint
	for _, st := range s.stores {
		st.mu.RLock()
		shards = append(shards, maps.Clone(st.checkpoints))
		st.mu.RUnlock()
	}
	return tumble.ProgressOf(shards), nil
}
