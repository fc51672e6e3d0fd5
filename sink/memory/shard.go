package memory

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/tumblestream/tumble"
)

// shard is a store as one Open sees it.
type shard struct {
	sink *Sink
	*store
	def tumble.Definition
}

// Load stores missing checkpoints. See [tumble.Shard].
func (s *shard) Load(_ context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	unlock, err := s.lock()
	if err != nil {
		return tumble.ShardState{}, err
	}
	defer unlock()
	now := time.Now()
	s.ask(s.def, now)
	joined := false
	frontier := s.frontier // as it is before the call: partitions that join together do not raise each other
	for id, c := range r.Init {
		if _, ok := s.checkpoints[id]; ok {
			continue
		}
		// The zero time is before any frontier, so "none" is raised too.
		if c.Watermark.Before(frontier) {
			c.Watermark = frontier
		}
		s.checkpoints[id] = c
		joined = true
	}
	if joined {
		s.advance(s.sink.def)
	}
	s.forget(s.sink.def, now)
	for id, token := range r.Announce {
		s.announced[id] = announcement{token: token}
	}
	for id, token := range r.Object {
		if s.announced[id].token == token {
			s.announced[id] = announcement{token: token, objected: true}
		}
	}
	state := tumble.ShardState{
		Checkpoints: maps.Clone(s.checkpoints),
		Announced:   s.unopposed(),
		Frontier:    s.frontier,
	}
	for i := range s.levels {
		state.Floors = append(state.Floors, s.levels[i].floor)
		state.Retentions = append(state.Retentions, s.longest(i, now, asking/2))
	}
	return state, nil
}

// lock locks the shard for a Load, once its definition is stored.
func (s *shard) lock() (unlock func(), err error) {
	s.sink.mu.RLock()
	for !s.sink.defined { // all was lost, and perhaps is again
		s.sink.mu.RUnlock()
		s.sink.mu.Lock()
		err := s.sink.define(s.def)
		s.sink.mu.Unlock()
		if err != nil {
			return nil, err
		}
		s.sink.mu.RLock()
	}
	if err := s.sink.differs(s.def); err != nil {
		s.sink.mu.RUnlock()
		return nil, err
	}
	s.mu.Lock()
	return func() { s.mu.Unlock(); s.sink.mu.RUnlock() }, nil
}

// Apply adds counts and moves a checkpoint. See [tumble.Shard]. It keeps no
// reference to b: keys are copied.
func (s *shard) Apply(_ context.Context, b tumble.Batch) error {
	s.sink.mu.RLock()
	defer s.sink.mu.RUnlock()
	if err := s.sink.differs(s.def); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refuse(&b); err != nil {
		return fmt.Errorf("memory: %s: %w", b.Partition, err)
	}
	if s.writers[b.Partition] != b.Writer {
		s.handed = true
	}
	s.checkpoints[b.Partition], s.writers[b.Partition] = b.To, b.Writer
	if b.Token != 0 {
		delete(s.announced, b.Partition)
	}
	if s.leads(b.From, b.To) && s.advance(s.sink.def) && s.handed {
		s.newTerm()
	}
	s.forget(s.sink.def, time.Now())
	for i := range s.levels {
		s.levels[i].add(s.sink.levels[i], of(&b, i))
	}
	return nil
}

// refuse returns why b must not be applied.
func (s *shard) refuse(b *tumble.Batch) error {
	have, ok := s.checkpoints[b.Partition]
	switch {
	case !ok:
		return fmt.Errorf("%w: none is stored", tumble.ErrConflict)
	case !have.Same(b.From):
		return fmt.Errorf("%w: stored is %v, from is %v", tumble.ErrConflict, have, b.From)
	case have.Ended && !b.To.Ended && b.To.Watermark.Before(s.frontier):
		return fmt.Errorf("%w: the frontier is %v, to is %v", tumble.ErrPassed, s.frontier, b.To)
	case b.Token != 0 && s.announced[b.Partition] != announcement{token: b.Token}:
		return tumble.ErrObjected
	}
	for i := range s.levels {
		if err := s.levels[i].overflow(s.sink.levels[i], of(b, i)); err != nil {
			return err
		}
	}
	return nil
}

// of returns the increments of a level.
func of(b *tumble.Batch, level int) []tumble.Delta {
	switch {
	case level == 0:
		return b.Deltas
	case level <= len(b.Rollups):
		return b.Rollups[level-1]
	}
	return nil
}
