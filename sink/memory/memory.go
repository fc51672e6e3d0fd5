package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

const maxShards = 256

// A Sink holds counts in memory. It is a [tumble.Sink] and the [tumble.Reader]
// of what it holds. The zero value is ready to use. It is safe for concurrent
// use, by several pipelines too.
type Sink struct {
	// Shards is the number of shards, each with a lock of its own. More than
	// one pays when many partitions are counted at once. It is read by the
	// first Open. Defaults to 1; at most 256.
	Shards int

	mu     sync.RWMutex // guards stores; Open and Clear hold it for all their work
	stores []*store     // nil until the first Open
}

var (
	_ tumble.Sink   = (*Sink)(nil)
	_ tumble.Reader = (*Sink)(nil)
)

// New returns an empty Sink with one shard.
func New() *Sink { return new(Sink) }

// Open returns the shards. They share what they hold with those of every other
// Open of s.
func (s *Sink) Open(_ context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	if err := def.Validate(); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stores == nil {
		if s.Shards < 0 || s.Shards > maxShards {
			return nil, fmt.Errorf("memory: Shards is %d, must be 1 to %d, or 0 for 1", s.Shards, maxShards)
		}
		s.stores = make([]*store, max(s.Shards, 1))
		for i := range s.stores {
			s.stores[i] = &store{checkpoints: make(map[string]tumble.Checkpoint)}
		}
	}
	text := def.String()
	// All are checked before any is written: a refused Open changes nothing.
	for _, st := range s.stores {
		st.mu.RLock()
		err := st.differs(text)
		st.mu.RUnlock()
		if err != nil {
			return nil, err
		}
	}
	shards := make([]tumble.Shard, len(s.stores))
	for i, st := range s.stores {
		st.mu.Lock()
		err := st.define(def, text)
		st.mu.Unlock()
		if err != nil { // a Load of another Open came in between, after a Clear
			return nil, err
		}
		shards[i] = &shard{st, def, text}
	}
	return shards, nil
}

// Clear forgets all counts, checkpoints and the definition, as a store does
// that loses its data. A pipeline that runs notices it, and reads again what
// its source still has.
func (s *Sink) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stores {
		st.mu.Lock()
		st.text, st.def, st.frontier, st.windows = "", tumble.Definition{}, time.Time{}, nil
		clear(st.checkpoints)
		st.mu.Unlock()
	}
}

// store is what one shard holds. Its lock is held for one call at most, and by
// readers for a few thousand counts at a time.
type store struct {
	mu          sync.RWMutex
	def         tumble.Definition
	text        string // def.String(); "" while no definition is stored
	checkpoints map[string]tumble.Checkpoint
	frontier    time.Time // of checkpoints
	windows     []*window // by ascending start
}

// window holds the counts of one window.
type window struct {
	start, end int64 // nanoseconds since the epoch
	counts     table
}

// differs returns an error if another definition is stored. st.mu is held.
func (st *store) differs(text string) error {
	if st.text != "" && st.text != text {
		return fmt.Errorf("memory: %w: stored is %s; asked for is %s", tumble.ErrDefinition, st.text, text)
	}
	return nil
}

// define stores the definition if none is. st.mu is held.
func (st *store) define(def tumble.Definition, text string) error {
	if st.text == "" {
		st.def, st.text = def, text
	}
	return st.differs(text)
}

// shard is a store as one Open sees it.
type shard struct {
	*store
	def  tumble.Definition
	text string // def.String()
}

// Load stores what is missing; see [tumble.Shard].
func (s *shard) Load(_ context.Context, init map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.define(s.def, s.text); err != nil {
		return nil, err
	}
	changed := false
	frontier := s.frontier // as it is before the call: partitions that join together do not raise each other
	for id, c := range init {
		if have, ok := s.checkpoints[id]; ok && (!have.Ended || have.Log == c.Log) {
			continue
		}
		// The zero time is before any frontier, so "none" is raised too.
		if c.Watermark.Before(frontier) {
			c.Watermark = frontier
		}
		s.checkpoints[id] = c
		changed = true
	}
	if changed {
		s.advance()
	}
	return maps.Clone(s.checkpoints), nil
}

// Apply adds counts and moves a checkpoint; see [tumble.Shard]. It keeps no
// reference to b: keys are copied.
func (s *shard) Apply(_ context.Context, b tumble.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.differs(s.text); err != nil {
		return err
	}
	have, ok := s.checkpoints[b.Partition]
	if !ok {
		return fmt.Errorf("memory: %s: %w: none is stored", b.Partition, tumble.ErrConflict)
	}
	if !have.Same(b.From) {
		return fmt.Errorf("memory: %s: %w: stored is %v, from is %v", b.Partition, tumble.ErrConflict, have, b.From)
	}
	var w *window
	for i := range b.Deltas {
		d := &b.Deltas[i]
		if start := d.Window.UnixNano(); w == nil || w.start != start {
			w = s.window(start)
		}
		w.counts.add(d.Key, d.N)
	}
	s.checkpoints[b.Partition] = b.To
	if !have.Watermark.Equal(b.To.Watermark) || have.Ended != b.To.Ended {
		s.advance()
	}
	return nil
}

// window returns the window that starts at start, a new one if need be. st.mu
// is held.
func (st *store) window(start int64) *window {
	i, ok := st.find(start)
	if !ok {
		_, end := st.def.Window.Bounds(time.Unix(0, start))
		st.windows = slices.Insert(st.windows, i, &window{start: start, end: end.UnixNano()})
	}
	return st.windows[i]
}

// find returns the index of the window that starts at start, or where it would
// be. st.mu is held.
func (st *store) find(start int64) (int, bool) {
	// Nearly every call is for the newest window or the one before it.
	n := len(st.windows)
	for i := n - 1; i >= 0 && i >= n-2; i-- {
		if have := st.windows[i].start; have == start {
			return i, true
		} else if have < start {
			return i + 1, false
		}
	}
	return slices.BinarySearchFunc(st.windows, start, func(w *window, start int64) int {
		switch {
		case w.start < start:
			return -1
		case w.start > start:
			return 1
		}
		return 0
	})
}

// advance takes the frontier from the checkpoints and forgets the windows that
// it has passed by Grace + Retention. st.mu is held.
func (st *store) advance() {
	st.frontier = st.def.Frontier(st.checkpoints)
	n := 0
	for n < len(st.windows) {
		if _, expired := st.def.Finality(st.frontier, time.Unix(0, st.windows[n].end)); !expired {
			break
		}
		n++
	}
	st.windows = slices.Delete(st.windows, 0, n)
}
