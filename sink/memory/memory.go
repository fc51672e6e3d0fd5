package memory

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

const maxShards = 256

// Config says how a Sink is made. The zero value is ready to use.
type Config struct {
	// Shards is the number of shards, each with a lock of its own. More than
	// one pays when many partitions are counted at once. Defaults to 1, at
	// most 256.
	Shards int
}

// A Sink holds counts in memory. It is a [tumble.Sink] and the [tumble.Reader]
// of its counts. It is safe for concurrent use, by several pipelines too.
type Sink struct {
	*data
	level *tumble.Window // nil: the finest. See Rollup
}

// data is what the Sink and the Readers of its roll-ups share.
type data struct {
	cfg Config

	// mu is held for reading by every call, for all its work, and for writing
	// by those that concern all shards together: so nothing is lost, and no
	// definition replaced, in the middle of a call.
	mu      sync.RWMutex
	defined bool
	def     tumble.Definition   // once defined; each store has its own Retention in force
	levels  []tumble.Definition // of def
	stores  []*store            // nil until the first Open
}

var (
	_ tumble.Sink   = (*Sink)(nil)
	_ tumble.Reader = (*Sink)(nil)
)

// New returns an empty Sink. A Config that cannot be used is told by Open.
func New(cfg Config) *Sink { return &Sink{data: &data{cfg: cfg}} }

// Open returns the shards. They share their data with those of every other
// Open of s.
func (s *Sink) Open(_ context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	if err := def.Validate(); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	if n := s.cfg.Shards; n < 0 || n > maxShards {
		return nil, fmt.Errorf("memory: Config.Shards is %d, must be 1 to %d, or 0 for 1", n, maxShards)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stores == nil {
		s.stores = make([]*store, max(s.cfg.Shards, 1))
		for i := range s.stores {
			s.stores[i] = &store{state: newState()}
		}
	}
	if err := s.define(def); err != nil {
		return nil, err
	}
	shards := make([]tumble.Shard, len(s.stores))
	for i, st := range s.stores {
		shards[i] = &shard{s, st, def}
	}
	return shards, nil
}

// define stores the definition if none is, and returns an error if another one
// is. s.mu is held for writing.
func (s *Sink) define(def tumble.Definition) error {
	if !s.defined {
		s.set(def)
		for _, st := range s.stores {
			st.levels = make([]level, len(s.levels))
			st.ask(def, time.Now())
		}
	}
	return s.differs(def)
}

// set takes a definition for the stored one. s.mu is held for writing.
func (s *Sink) set(def tumble.Definition) {
	def.Rollups = slices.Clone(def.Rollups)
	s.def, s.defined, s.levels = def, true, nil
	for i := range def.Levels() {
		s.levels = append(s.levels, def.Level(i))
	}
}

// differs returns an error if another definition is stored. s.mu is held.
func (s *Sink) differs(def tumble.Definition) error {
	if s.defined && !s.def.Same(def) {
		return fmt.Errorf("memory: %w", &tumble.DefinitionError{Stored: s.def, Wanted: def})
	}
	return nil
}

// Clear forgets all counts, checkpoints and the definition, as a store does
// that loses its data. A pipeline that runs notices it, and reads again what
// its source still has.
func (s *Sink) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.def, s.defined = tumble.Definition{}, false
	for _, st := range s.stores {
		st.state = newState()
	}
}

// Snapshot returns a function that takes s back to all that it holds now, as
// often as it is called: as a store does that starts from an older backup, or
// fails over to a replica that lags. A pipeline that runs notices it, and counts
// again what came after. Like Clear it is for tests, of code that keeps what it
// read, say: see [tumble.Count.Term].
func (s *Sink) Snapshot() (restore func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	def, defined, levels, states := s.def, s.defined, s.levels, make([]state, len(s.stores))
	for i, st := range s.stores {
		states[i] = st.clone()
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.def, s.defined, s.levels = def, defined, levels
		for i, st := range s.stores {
			if i < len(states) {
				st.state = states[i].clone()
			} else { // taken before the first Open
				st.state = newState()
			}
		}
	}
}
