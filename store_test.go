package tumble_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// A cell is one window and key.
type cell struct {
	window int64 // start, Unix nanoseconds
	key    string
}

// A store is a sink that breaks on demand; it is what all processes share.
type store struct {
	mu     sync.Mutex
	def    tumble.Definition
	shards []*storeShard
	// fault, if set, decides what becomes of a call. It is called under mu.
	fault func(shard int, b *tumble.Batch) fault
	// applied, if set, is told of each batch that was applied, and of the
	// shard's frontier before. It is called under mu.
	applied func(shard int, b tumble.Batch, frontier time.Time)
}

type storeShard struct {
	counts  map[cell]int64
	stored  map[string]tumble.Checkpoint
	writers map[string]uint64 // of what is stored
	tainted bool              // another writer wrote since the term was drawn
	term    uint64
	closed  time.Time
	floor   time.Time
	asked   map[time.Duration]time.Time // retentions, and when they were asked for last

	announced map[string]announcement
	late      []tumble.Batch // copies that arrive again later
}

// An announcement is that somebody will end a partition.
type announcement struct {
	token    uint64
	objected bool
}

func newShard() *storeShard {
	return &storeShard{
		counts: map[cell]int64{}, stored: map[string]tumble.Checkpoint{}, writers: map[string]uint64{},
		asked: map[time.Duration]time.Time{}, announced: map[string]announcement{},
	}
}

// clone copies all but what arrives later.
func (sh *storeShard) clone() *storeShard {
	c := *sh
	c.counts, c.stored, c.writers = maps.Clone(sh.counts), maps.Clone(sh.stored), maps.Clone(sh.writers)
	c.asked, c.announced = maps.Clone(sh.asked), maps.Clone(sh.announced)
	c.late = nil
	return &c
}

// A fault is what becomes of an Apply (or of a Load, if there is no batch).
type fault int

const (
	fine    fault = iota
	refused       // not applied, error
	lost          // applied, error
	doubled       // applied, and a copy arrives again later
	delayed       // error; it arrives later
	hung          // no answer until the context ends
	slow          // done at once, answered a second later
)

func newStore(shards int) *store {
	s := &store{}
	for range shards {
		s.shards = append(s.shards, newShard())
	}
	return s
}

func (s *store) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.def != (tumble.Definition{}) && !s.def.Same(def) {
		return nil, &tumble.DefinitionError{Stored: s.def, Wanted: def}
	}
	s.def = def
	var shards []tumble.Shard
	for i := range s.shards {
		shards = append(shards, shardOf{s, i, def.Retention})
	}
	return shards, nil
}

type shardOf struct {
	*store
	index     int
	retention time.Duration
}

func (s shardOf) ask(ctx context.Context, b *tumble.Batch) (fault, error) {
	f := fine
	s.mu.Lock()
	if s.store.fault != nil {
		f = s.store.fault(s.index, b)
	}
	s.mu.Unlock()
	switch f {
	case refused:
		return f, errFault
	case delayed:
		if b == nil {
			return f, errFault
		}
		late := *b
		late.Deltas = slices.Clone(b.Deltas)
		s.mu.Lock()
		sh := s.shards[s.index]
		sh.late = append(sh.late, late)
		s.mu.Unlock()
		return f, errFault
	case hung:
		<-ctx.Done()
		return f, ctx.Err()
	}
	return f, ctx.Err()
}

func (s shardOf) Load(ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	f, err := s.ask(ctx, nil)
	if err != nil {
		return tumble.ShardState{}, err
	}
	if f == slow {
		defer time.Sleep(time.Second)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[s.index]
	frontier := tumble.Frontier(sh.stored)
	for id, c := range r.Init {
		if _, ok := sh.stored[id]; ok {
			continue
		}
		if frontier.After(c.Watermark) {
			c.Watermark = frontier
		}
		sh.stored[id] = c
	}
	for id, token := range r.Announce {
		sh.announced[id] = announcement{token: token}
	}
	for id, token := range r.Object {
		if sh.announced[id].token == token {
			sh.announced[id] = announcement{token, true}
		}
	}
	sh.asked[s.retention] = time.Now()
	sh.advance(s.def)
	state := tumble.ShardState{Checkpoints: maps.Clone(sh.stored), Announced: map[string]uint64{}, Frontier: tumble.Frontier(sh.stored), Floor: sh.floor}
	for id, a := range sh.announced {
		if !a.objected {
			state.Announced[id] = a.token
		}
	}
	return state, nil
}

func (s shardOf) Apply(ctx context.Context, b tumble.Batch) error {
	f, err := s.ask(ctx, &b)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[s.index]
	frontier := tumble.Frontier(sh.stored)
	if err := sh.apply(s.def, b); err != nil {
		return err
	}
	if s.applied != nil {
		s.applied(s.index, b, frontier)
	}
	switch f {
	case lost:
		return errFault
	case doubled:
		b.Deltas = slices.Clone(b.Deltas)
		sh.late = append(sh.late, b)
	}
	return nil
}

func (sh *storeShard) apply(def tumble.Definition, b tumble.Batch) error {
	if c, ok := sh.stored[b.Partition]; !ok || !c.Same(b.From) {
		return fmt.Errorf("%w: %v, not %v", tumble.ErrConflict, c, b.From)
	}
	if err := lawful(b); err != nil {
		panic(err)
	}
	if frontier := tumble.Frontier(sh.stored); b.From.Ended && !b.To.Ended && b.To.Watermark.Before(frontier) {
		return fmt.Errorf("%w: %v, to %v", tumble.ErrPassed, frontier, b.To)
	}
	if a := sh.announced[b.Partition]; b.Token != 0 && (a.token != b.Token || a.objected) {
		return tumble.ErrObjected
	} else if b.Token != 0 {
		delete(sh.announced, b.Partition)
	}
	for _, d := range b.Deltas {
		if _, end := def.Window.Bounds(d.Start); end.After(sh.floor) {
			sh.counts[cell{d.Start.UnixNano(), d.Key}] += d.N
		}
	}
	sh.stored[b.Partition] = b.To
	sh.tainted = sh.tainted || sh.writers[b.Partition] != b.Writer
	sh.writers[b.Partition] = b.Writer
	if closed := def.ClosedAt(tumble.Frontier(sh.stored)); closed.After(sh.closed) && (sh.tainted || sh.term == 0) {
		sh.term, sh.tainted = rand.Uint64(), false
	}
	sh.advance(def)
	return nil
}

// advance moves the marks to where the checkpoints are, and forgets what is past
// retention.
func (sh *storeShard) advance(def tumble.Definition) {
	sh.closed = def.ClosedAt(tumble.Frontier(sh.stored))
	longest := time.Duration(-1)
	for r, at := range sh.asked {
		if time.Since(at) <= time.Minute && (r == 0 || longest > 0 && r > longest || longest < 0) {
			longest = r
		}
		if longest == 0 {
			break
		}
	}
	def.Retention = max(longest, 0)
	if floor := def.FloorAt(sh.closed); floor.After(sh.floor) {
		sh.floor = floor
	}
	for c := range sh.counts {
		if _, end := def.Window.Bounds(time.Unix(0, c.window)); !end.After(sh.floor) {
			delete(sh.counts, c)
		}
	}
}

// lawful checks what Batch promises to a sink.
func lawful(b tumble.Batch) error {
	rebase := b.From.Log != b.To.Log
	truncation := !rebase && b.To.Offset < b.From.Offset
	revival := b.From.Ended && !b.To.Ended
	seen := map[cell]bool{}
	for _, d := range b.Deltas {
		c := cell{d.Start.UnixNano(), d.Key}
		if d.N <= 0 || seen[c] || rebase || truncation || revival {
			return fmt.Errorf("delta %v in %v", d, b)
		}
		seen[c] = true
	}
	switch {
	case b.From.Watermark.After(b.To.Watermark):
		return fmt.Errorf("watermark goes back: %v to %v", b.From, b.To)
	case b.Writer == 0:
		return fmt.Errorf("no writer: %v", b)
	case !rebase && b.To.Origin != b.From.Origin && !(truncation && b.To.Origin == b.To.Offset):
		return fmt.Errorf("the origin moves: %v to %v", b.From, b.To)
	case !rebase && b.To.Offset == b.From.Offset && b.To.Epoch != b.From.Epoch:
		return fmt.Errorf("a promise changes the epoch: %v to %v", b.From, b.To)
	case b.To.Same(b.From):
		return fmt.Errorf("nothing changes: %v", b.From)
	case b.To.Offset == b.From.Offset && len(b.Deltas) > 0:
		return fmt.Errorf("counts without offsets: %v", b)
	}
	return nil
}

// repeat lets old batches arrive, and copies of them.
func (s *store) repeat() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, sh := range s.shards {
		for _, b := range sh.late {
			frontier := tumble.Frontier(sh.stored)
			if sh.apply(s.def, b) == nil && s.applied != nil {
				s.applied(i, b, frontier)
			}
		}
		sh.late = nil
	}
}

// snapshot copies a shard, for restore to bring back later.
func (s *store) snapshot(i int) *storeShard {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards[i].clone()
}

func (s *store) restore(i int, old *storeShard) {
	s.mu.Lock()
	defer s.mu.Unlock()
	late := s.shards[i].late
	s.shards[i] = old.clone()
	s.shards[i].late = late
}

// counts returns all counts.
func (s *store) counts() map[cell]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[cell]int64{}
	for _, sh := range s.shards {
		maps.Copy(all, sh.counts)
	}
	return all
}

func (s *store) stored(shard int, id string) tumble.Checkpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards[shard].stored[id]
}

func (s *store) frontier(shard int) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return tumble.Frontier(s.shards[shard].stored)
}

func (s *store) setFault(f func(shard int, b *tumble.Batch) fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}
