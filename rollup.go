package tumble

import "time"

// rollups make the increments of the coarser windows from those of the finest when a
// batch is sealed, so that they cost something for each increment and not for each
// event.
type rollups struct {
	levels []level
	below  []bool // of each counter: it is not the first of its entry's list
}

// A level finds the window of one roll-up that holds a finest one. It remembers the last.
type level struct {
	window     Window
	start, end int64
	at         time.Time // start
}

func newRollups(def Definition) (r rollups) {
	for _, l := range def.Levels()[1:] {
		r.levels = append(r.levels, level{window: l.Window})
	}
	return r
}

func (l *level) of(finest int64) int64 {
	if finest < l.start || finest >= l.end {
		start, end := l.window.Bounds(time.Unix(0, finest).UTC())
		l.start, l.end, l.at = start.UnixNano(), end.UnixNano(), start
	}
	return l.start
}

// of returns the increments of all roll-ups, nil if there are none.
func (r *rollups) of(b *openBatch, spare func() []Delta) [][]Delta {
	if len(r.levels) == 0 || len(b.counters) == 0 {
		return nil
	}
	all := make([][]Delta, len(r.levels))
	for i := range r.levels {
		if b.far == nil {
			all[i] = r.byLists(&r.levels[i], b, spare())
		} else {
			all[i] = byPlace(&r.levels[i], b, spare())
		}
	}
	return all
}

// byLists goes along the lists of the entries, in which the windows of a key come from
// the newest to the oldest: those of one coarser window stand side by side.
func (r *rollups) byLists(l *level, b *openBatch, deltas []Delta) []Delta {
	if cap(r.below) < len(b.counters) {
		r.below = make([]bool, len(b.counters), 2*len(b.counters))
	}
	r.below = r.below[:len(b.counters)]
	clear(r.below)
	for i := range b.counters {
		if next := b.counters[i].next; next > 0 {
			r.below[next-1] = true
		}
	}
	for i := range b.counters {
		if r.below[i] {
			continue
		}
		var start int64
		for first, at := true, int32(i); at >= 0; at = b.counters[at].next - 1 {
			c := &b.counters[at]
			if s := l.of(c.window); first || s != start {
				deltas = append(deltas, Delta{Start: l.at, Key: c.key})
				first, start = false, s
			}
			d := &deltas[len(deltas)-1]
			d.N = sumOf(d.N, c.n)
		}
	}
	return deltas
}

// byPlace is for a batch in which some key has so many windows that they are in no list.
func byPlace(l *level, b *openBatch, deltas []Delta) []Delta {
	known := make(map[place]int, len(b.counters))
	for i := range b.counters {
		c := &b.counters[i]
		p := place{c.key, l.of(c.window)}
		at, ok := known[p]
		if !ok {
			at = len(deltas)
			known[p] = at
			deltas = append(deltas, Delta{Start: l.at, Key: c.key})
		}
		deltas[at].N = sumOf(deltas[at].N, c.n)
	}
	return deltas
}
