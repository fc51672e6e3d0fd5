package faketest

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// A Store is a sink that breaks on demand. It is shared by all processes that
// count into it, and remembers the definition that the first one opened it with.
type Store struct {
	// Shards are the data. The store's lock guards them: a Fault function holds
	// it and may look at them, and a test may while nothing runs. All others use
	// the store's methods.
	Shards []*Shard
	// Applied, if set, is told of each batch that was applied, and of the
	// shard's frontier before. It is called under the store's lock.
	Applied func(shard int, b tumble.Batch, frontier time.Time)
	// Deletes is how many windows past retention a call deletes, 0 for all of them.
	Deletes int

	mu    sync.Mutex
	def   *tumble.Definition // nil before the first Open
	fault func(shard int, b *tumble.Batch) Fault
}

// A Fault is what becomes of an Apply (or of a Load, if there is no batch).
type Fault int

const (
	Fine    Fault = iota
	Refused       // not applied, error
	Lost          // applied, error
	Doubled       // applied, and a copy arrives again later
	Delayed       // error; it arrives later
	Hung          // no answer until the context ends
	Slow          // a Load is answered a second after it was done
	Overdue       // error after 10 s; it arrives later
)

// Timeout is when a call is given up that is Overdue.
const Timeout = 10 * time.Second

// NewStore returns an empty store.
func NewStore(shards int) *Store {
	s := &Store{}
	for range shards {
		s.Shards = append(s.Shards, NewShard())
	}
	return s
}

// SetFault sets what decides what becomes of each call: of an Apply, or of a Load
// if b is nil. It is called under the store's lock. Nil: all is fine.
func (s *Store) SetFault(f func(shard int, b *tumble.Batch) Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Def returns the definition that the store was opened with.
func (s *Store) Def() tumble.Definition {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.def == nil {
		return tumble.Definition{}
	}
	return *s.def
}

// Counts returns all counts.
func (s *Store) Counts() map[Cell]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[Cell]int64{}
	for _, sh := range s.Shards {
		maps.Copy(all, sh.Counts)
	}
	return all
}

// Stored returns the checkpoint of a partition in a shard.
func (s *Store) Stored(shard int, id string) tumble.Checkpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Shards[shard].Checkpoints[id]
}

// Frontier returns that of a shard's checkpoints.
func (s *Store) Frontier(shard int) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return tumble.Frontier(s.Shards[shard].Checkpoints)
}

// Closed returns a shard's closed mark.
func (s *Store) Closed(shard int) time.Time { return s.Def().ClosedAt(s.Frontier(shard)) }

// Marks are what a reader looks at beside a count.
type Marks struct {
	Closed time.Time
	Floors []time.Time // by level
	Term   uint64
}

// Final reports whether a window of a level that ends at end is closed, and not expired.
func (m Marks) Final(level int, end time.Time) bool {
	return !m.Closed.IsZero() && !end.After(m.Closed) && (m.Floors == nil || end.After(m.Floors[level]))
}

// Look returns a shard's marks and one of its counts.
func (s *Store) Look(shard int, c Cell) (Marks, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.Shards[shard]
	return Marks{sh.closed, slices.Clone(sh.Floors), sh.term}, sh.Counts[c]
}

// Snapshot copies a shard, for Restore to bring back later.
func (s *Store) Snapshot(shard int) *Shard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Shards[shard].Clone()
}

// Restore replaces a shard's data, as a store that fell back does. Batches that
// are on their way arrive all the same.
func (s *Store) Restore(shard int, old *Shard) {
	s.Change(shard, func(sh *Shard) {
		late := sh.late
		*sh = *old.Clone()
		sh.late = late
	})
}

// Change edits a shard.
func (s *Store) Change(shard int, f func(*Shard)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.Shards[shard])
}

// Repeat lets the batches arrive that were delayed, and the copies of those that
// were doubled.
func (s *Store) Repeat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, sh := range s.Shards {
		late := sh.late
		sh.late = nil
		for _, b := range late {
			_ = s.ApplyLocked(i, b)
		}
	}
}

// ApplyLocked applies a batch as though another process had been a moment
// faster. The caller holds the store's lock: it is a Fault function.
func (s *Store) ApplyLocked(shard int, b tumble.Batch) error {
	sh := s.Shards[shard]
	frontier := tumble.Frontier(sh.Checkpoints)
	if err := sh.apply(*s.def, b, s.Deletes); err != nil {
		return err
	}
	if s.Applied != nil {
		s.Applied(shard, b, frontier)
	}
	return nil
}

// Open implements tumble.Sink.
func (s *Store) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.def != nil && !s.def.Same(def) {
		return nil, &tumble.DefinitionError{Stored: *s.def, Wanted: def}
	}
	s.def = &def
	var shards []tumble.Shard
	for i := range s.Shards {
		shards = append(shards, connection{s, i, def})
	}
	return shards, nil
}

// A connection is one process's way to a shard.
type connection struct {
	s     *Store
	shard int
	def   tumble.Definition
}

// ask decides what becomes of a call. An error is what it ends with.
func (c connection) ask(ctx context.Context, b *tumble.Batch) (Fault, error) {
	f := Fine
	c.s.mu.Lock()
	if c.s.fault != nil {
		f = c.s.fault(c.shard, b)
	}
	if (f == Delayed || f == Overdue) && b != nil {
		c.keep(*b)
	}
	c.s.mu.Unlock()
	switch f {
	case Refused, Delayed:
		return f, ErrFault
	case Overdue:
		select {
		case <-ctx.Done():
			return f, ctx.Err()
		case <-time.After(Timeout):
			return f, ErrFault
		}
	case Hung:
		<-ctx.Done()
	}
	return f, ctx.Err()
}

// keep has a batch arrive later. The store's lock is held.
func (c connection) keep(b tumble.Batch) {
	b.Deltas, b.Rollups = slices.Clone(b.Deltas), slices.Clone(b.Rollups)
	for i := range b.Rollups {
		b.Rollups[i] = slices.Clone(b.Rollups[i])
	}
	sh := c.s.Shards[c.shard]
	sh.late = append(sh.late, b)
}

func (c connection) Load(ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	f, err := c.ask(ctx, nil)
	if err != nil {
		return tumble.ShardState{}, err
	}
	if f == Slow {
		defer time.Sleep(time.Second)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.Shards[c.shard].load(*c.s.def, r, c.def, c.s.Deletes), nil
}

// Backlog implements tumble.Cleaner.
func (c connection) Backlog() bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.Shards[c.shard].backlog
}

func (c connection) Apply(ctx context.Context, b tumble.Batch) error {
	f, err := c.ask(ctx, &b)
	if err != nil {
		return err
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if err := c.s.ApplyLocked(c.shard, b); err != nil {
		return err
	}
	switch f {
	case Lost:
		return ErrFault
	case Doubled:
		c.keep(b)
	}
	return nil
}

// Defined returns the store as a Sink that is also a Reader, of which Definition
// alone works: what tumble.EndPartition needs.
func (s *Store) Defined() tumble.Sink { return defined{Sink: s, s: s} }

type defined struct {
	tumble.Sink
	tumble.Reader
	s *Store
}

func (d defined) Definition(context.Context) (tumble.Definition, error) {
	d.s.mu.Lock()
	defer d.s.mu.Unlock()
	if d.s.def == nil {
		return tumble.Definition{}, tumble.ErrNoDefinition
	}
	return *d.s.def, nil
}
