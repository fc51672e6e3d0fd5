package memory

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// store holds the data of one shard. Its lock is held for one call at most, and by
// readers for a few thousand counts at a time. Sink.mu is always held around it.
type store struct {
	mu sync.RWMutex // guards state
	state
}

// state is all that a store can lose.
type state struct {
	checkpoints map[string]tumble.Checkpoint
	writers     map[string]uint64 // of the batches that moved the checkpoints there; missing: a Load stored it
	announced   map[string]announcement
	asked       map[asked]time.Time // when a Load asked for each retention last
	lastAsked   time.Time           // for any

	frontier time.Time // of checkpoints
	closed   time.Time // the closed mark
	term     uint64    // 0: no batch has closed a window yet; the first that does draws one, as nobody wrote before it
	handed   bool      // since the term was drawn a checkpoint has passed to another writer

	levels []level // as the definition has them; none before it is stored
}

// A level holds the windows of one length.
type level struct {
	windows []*window // by ascending start; none that ends at or before floor
	floor   time.Time // never falls
	largest int64     // no window's total is, or was, larger
}

// asked is a retention of a level.
type asked struct {
	level     int
	retention time.Duration
}

// An announcement says that somebody is about to end a partition.
type announcement struct {
	token    uint64
	objected bool
}

// window holds the counts of one window.
type window struct {
	start, end int64 // nanoseconds since the epoch
	counts     table
	total      int64 // of counts
}

func newState() state {
	return state{
		checkpoints: make(map[string]tumble.Checkpoint),
		writers:     make(map[string]uint64),
		announced:   make(map[string]announcement),
		asked:       make(map[asked]time.Time),
	}
}

// clone returns a copy that shares nothing which changes.
func (st *state) clone() state {
	c := *st
	c.checkpoints, c.writers = maps.Clone(st.checkpoints), maps.Clone(st.writers)
	c.announced, c.asked = maps.Clone(st.announced), maps.Clone(st.asked)
	c.levels = slices.Clone(st.levels)
	for i := range c.levels {
		l := &c.levels[i]
		l.windows = slices.Clone(l.windows)
		for i, w := range l.windows {
			l.windows[i] = &window{w.start, w.end, w.counts.clone(), w.total}
		}
	}
	return c
}

// unopposed returns the tokens that nobody has objected to.
func (st *state) unopposed() map[string]uint64 {
	tokens := make(map[string]uint64)
	for id, a := range st.announced {
		if !a.objected {
			tokens[id] = a.token
		}
	}
	return tokens
}

// advance takes the frontier and the closed mark from the checkpoints and
// reports whether the closed mark has moved on.
func (st *state) advance(def tumble.Definition) bool {
	was := st.closed
	st.frontier = tumble.Frontier(st.checkpoints)
	st.closed = def.ClosedAt(st.frontier)
	return st.closed.After(was)
}

// leads reports whether the move of a checkpoint can move the frontier. Most
// cannot: to find the frontier costs a look at every partition
// (BenchmarkApplyPartitions), and one that goes on ahead of it leaves it where it
// is, as one with a watermark does where there is none.
func (st *state) leads(from, to tumble.Checkpoint) bool {
	return from.Ended || to.Ended || to.Watermark.Before(from.Watermark) ||
		from.Watermark.Equal(st.frontier) && !to.Watermark.Equal(from.Watermark)
}

// newTerm draws a new term.
func (st *state) newTerm() {
	for was := st.term; st.term == was || st.term == 0; {
		st.term = rand.Uint64()
	}
	st.handed = false
}

// asking is how long a retention stays in force that a Load asked for: so long
// a process may pause that keeps counts for longer than others.
const asking = time.Minute

// ask notes that a Load asked for the retentions of a definition.
func (st *state) ask(def tumble.Definition, now time.Time) {
	for i, l := range def.Levels() {
		st.asked[asked{i, l.Retention}] = now
	}
	st.lastAsked = now
}

// retention returns the one in force of a level: the longest that was asked for within
// the last minute. If nobody asked, it stays as it was at the last Load.
func (st *state) retention(level int, now time.Time) time.Duration {
	if now.Sub(st.lastAsked) > asking {
		now = st.lastAsked
	}
	return st.longest(level, now, asking)
}

// longest returns the longest retention of a level that was asked for within so long
// before now.
func (st *state) longest(level int, now time.Time, within time.Duration) (longest time.Duration) {
	first := true
	for a, at := range st.asked {
		if a.level == level && now.Sub(at) <= within && (first || keepsLonger(a.retention, longest)) {
			longest, first = a.retention, false
		}
	}
	return longest
}

// keepsLonger reports whether retention a keeps counts for longer than b. 0
// keeps them for ever.
func keepsLonger(a, b time.Duration) bool { return b != 0 && (a == 0 || a > b) }

// forget raises the floors by the retentions in force and deletes the windows up to
// them.
func (st *state) forget(def tumble.Definition, now time.Time) {
	for i := range st.levels {
		def.Retention = st.retention(i, now)
		floor := def.FloorAt(st.closed)
		l := &st.levels[i]
		if !floor.After(l.floor) {
			continue
		}
		l.floor = floor
		n := 0
		for n < len(l.windows) && !time.Unix(0, l.windows[n].end).After(floor) {
			n++
		}
		l.windows = slices.Delete(l.windows, 0, n)
	}
}

// add adds to the counts of windows above the floor.
func (l *level) add(def tumble.Definition, deltas []tumble.Delta) {
	var w *window
	for i := range deltas {
		d := &deltas[i]
		if start := d.Start.UnixNano(); w == nil || w.start != start {
			if w = l.window(def, start); w == nil {
				continue
			}
		}
		w.counts.add(d.Key, d.N)
		w.total += d.N
		l.largest = max(l.largest, w.total)
	}
}

// overflow returns an error if deltas would take the total of a window, which is never
// below a count of it, beyond what it may be.
func (l *level) overflow(def tumble.Definition, deltas []tumble.Delta) error {
	room := tumble.MaxCount - l.largest
	for i := range deltas {
		if room -= deltas[i].N; room < 0 {
			break
		}
	}
	if room >= 0 { // nearly always
		return nil
	}
	totals := make(map[int64]int64) // with deltas
	for i := range deltas {
		d := &deltas[i]
		start := d.Start.UnixNano()
		total, ok := totals[start]
		if !ok {
			if i, ok := l.find(start); ok {
				total = l.windows[i].total
			}
		}
		if d.N > tumble.MaxCount-total {
			_, end := def.Window.Bounds(d.Start)
			if !l.floor.IsZero() && !end.After(l.floor) {
				continue // not counted
			}
			return fmt.Errorf("%w: with %.80q in the window from %s to %s", tumble.ErrOverflow, d.Key, d.Start.Format(time.RFC3339Nano), end.Format(time.RFC3339Nano))
		}
		totals[start] = total + d.N
	}
	return nil
}

// window returns the window that starts at start, a new one if need be, nil if
// it is past retention.
func (l *level) window(def tumble.Definition, start int64) *window {
	i, ok := l.find(start)
	if !ok {
		_, end := def.Window.Bounds(time.Unix(0, start))
		if !l.floor.IsZero() && !end.After(l.floor) {
			return nil
		}
		l.windows = slices.Insert(l.windows, i, &window{start: start, end: end.UnixNano()})
	}
	return l.windows[i]
}

// find returns the index of the window that starts at start, or where it would
// be.
func (l *level) find(start int64) (int, bool) {
	// Nearly every call is for the newest window or the one before it.
	n := len(l.windows)
	for i := n - 1; i >= 0 && i >= n-2; i-- {
		if have := l.windows[i].start; have == start {
			return i, true
		} else if have < start {
			return i + 1, false
		}
	}
	return slices.BinarySearchFunc(l.windows, start, func(w *window, start int64) int {
		switch {
		case w.start < start:
			return -1
		case w.start > start:
			return 1
		}
		return 0
	})
}
