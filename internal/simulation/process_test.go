package simulation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// A process is a pipeline whose calls can be held up, and end for good in the
// middle of any of them, as if it had crashed: nothing that it does after that
// reaches anybody.
type process struct {
	*tumble.Pipeline
	w      *world
	slot   int
	name   string
	source *groupSource // nil: a channel
	cancel context.CancelFunc
	done   chan error
	over   bool

	mu      sync.Mutex
	rng     *rand.Rand
	calls   int
	dieAt   int  // in this call; 0: in none
	after   bool // what it was to do is done
	dead    bool
	stalled time.Time
}

// crash lets the process die in the nth call from now.
func (p *process) crash(n int, after bool) {
	p.mu.Lock()
	p.dieAt, p.after = p.calls+max(n, 1), after
	p.mu.Unlock()
	time.Sleep(time.Second)
	p.mu.Lock()
	p.die()
	p.mu.Unlock()
}

// die ends everything. p.mu is held.
func (p *process) die() {
	p.dead = true
	p.cancel()
}

func (p *process) stall(until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = until
}

// call does something in the world outside of the process.
func (p *process) call(ctx context.Context, do func() error) error {
	if err := p.wait(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	p.calls++
	dies := p.calls == p.dieAt
	if p.dead || dies && !p.after {
		p.die()
		p.mu.Unlock()
		<-ctx.Done()
		return ctx.Err()
	}
	p.mu.Unlock()
	err := do()
	p.mu.Lock()
	if dies {
		p.die()
	}
	dead := p.dead
	p.mu.Unlock()
	if dead {
		<-ctx.Done()
		return ctx.Err()
	}
	if waited := p.wait(ctx); waited != nil {
		return waited
	}
	return err
}

// wait is the way to the other side, or back.
func (p *process) wait(ctx context.Context) error {
	p.mu.Lock()
	d := time.Duration(1+p.rng.IntN(3000)) * time.Microsecond
	d = max(d, time.Until(p.stalled))
	p.mu.Unlock()
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A groupSource is a logSource whose partitions come and go.
type groupSource struct {
	*faketest.Source
	p    *process
	wake chan struct{}

	mu      sync.Mutex
	wanted  []string
	reading map[string]bool
}

func (s *groupSource) assign(ids []string) {
	s.mu.Lock()
	s.wanted = ids
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// reads reports whether the process has not given up a partition.
func (s *groupSource) reads(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reading[id]
}

func (s *groupSource) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (all map[string]tumble.Checkpoint, err error) {
	err = s.p.call(ctx, func() (err error) {
		all, err = s.Source.Partitions(ctx, stored)
		return err
	})
	return all, err
}

func (s *groupSource) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	stops := map[string]context.CancelFunc{}
	exhausted := map[string]bool{}
	type end struct {
		id        string
		exhausted bool
	}
	ends := make(chan end, 16)
	for {
		s.mu.Lock()
		wanted := s.wanted
		left := 0
		for _, id := range wanted {
			if !exhausted[id] {
				left++
			}
			if stops[id] != nil || exhausted[id] {
				continue
			}
			s.reading[id] = true
			part, stop := context.WithCancel(ctx)
			stops[id] = stop
			wg.Go(func() {
				one := &groupPartition{processPartition: processPartition{s.Partition(id), s.p}}
				err := consume(part, one)
				if err != nil {
					cancel(err)
				}
				s.mu.Lock()
				delete(s.reading, id)
				s.mu.Unlock()
				yielded := one.yielded.Load()
				if yielded { // and may be this one's all the same
					select {
					case <-time.After(500 * time.Millisecond):
					case <-part.Done():
					}
				}
				ends <- end{id, err == nil && part.Err() == nil && !yielded}
			})
		}
		s.mu.Unlock()
		for id, stop := range stops {
			if !slices.Contains(wanted, id) {
				stop()
			}
		}
		if s.UntilEnd && left == 0 && len(stops) == 0 {
			return nil
		}
		select {
		case <-s.wake:
		case e := <-ends:
			stops[e.id]()
			delete(stops, e.id)
			exhausted[e.id] = e.exhausted
		case <-ctx.Done():
			wg.Wait()
			if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
				return err
			}
			return nil
		}
	}
}

// A wrappedSource is another source in a process.
type wrappedSource struct {
	tumble.Source
	p *process
}

func (s wrappedSource) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return s.Source.Run(ctx, func(ctx context.Context, part tumble.Partition) error {
		return consume(ctx, processPartition{part, s.p})
	})
}

type processPartition struct {
	tumble.Partition
	p *process
}

// Fetch is not to be called while what is held in memory is at its limit. What other
// partitions of the process hold may have been added since it was looked at.
func (s processPartition) Fetch(ctx context.Context, from tumble.Position) (ch tumble.Chunk, err error) {
	limit := int64(s.p.w.maxPending)
	if held := s.p.Stats(); len(held.Partitions) == 1 && (held.Increments >= limit || held.KeyBytes >= limit*bytesEach) {
		s.p.w.fail("%s: %s is read while memory is full: %+v", s.p.name, s.ID(), held)
	}
	err = s.p.call(ctx, func() (err error) {
		ch, err = s.Partition.Fetch(ctx, from)
		return err
	})
	return ch, err
}

func (s processPartition) Resume(ctx context.Context, stored tumble.Checkpoint) (to tumble.Checkpoint, err error) {
	err = s.p.call(ctx, func() (err error) {
		w := s.p.w
		w.mu.Lock()
		away := w.rng.IntN(1000) < w.noise
		w.mu.Unlock()
		if away {
			return fmt.Errorf("%w: %w", tumble.ErrUnavailable, faketest.ErrFault)
		}
		to, err = s.Partition.Resume(ctx, stored)
		return err
	})
	return to, err
}

// Committed must not be told more than every shard holds.
func (s processPartition) Committed(offset int64) {
	w := s.p.w
	w.mu.Lock()
	lost := w.lost
	w.mu.Unlock()
	for i := range w.shards {
		if c := w.sink.Stored(i, s.ID()); !lost && w.kind != gaps && w.kind != cuts && c.Offset < offset {
			w.fail("%s: %s is committed up to %d, shard %d holds %v", s.p.name, s.ID(), offset, i, c)
		}
	}
	s.Partition.(tumble.Committer).Committed(offset)
}

// A groupPartition yields, perhaps, to a process that has it too and is ahead.
type groupPartition struct {
	processPartition
	yielded atomic.Bool
}

func (s *groupPartition) Yield() bool {
	w := s.p.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.yields || w.newest[s.ID()] == s.p.slot || w.rng.IntN(4) == 0 {
		return false
	}
	w.yielded++
	s.yielded.Store(true)
	return true
}

type processSink struct{ p *process }

func (s processSink) Open(ctx context.Context, def tumble.Definition) (shards []tumble.Shard, err error) {
	err = s.p.call(ctx, func() (err error) {
		shards, err = s.p.w.sink.Open(ctx, def)
		return err
	})
	for i := range shards {
		shards[i] = processShard{shards[i], s.p, i}
	}
	return shards, err
}

type processShard struct {
	tumble.Shard
	p     *process
	index int
}

func (s processShard) Load(ctx context.Context, r tumble.LoadRequest) (state tumble.ShardState, err error) {
	err = s.p.call(ctx, func() (err error) {
		if err := s.hang(ctx); err != nil {
			return err
		}
		state, err = s.Shard.Load(ctx, r)
		return err
	})
	return state, err
}

// Backlog implements tumble.Cleaner.
func (s processShard) Backlog() bool { return s.Shard.(tumble.Cleaner).Backlog() }

func (s processShard) Apply(ctx context.Context, b tumble.Batch) error {
	s.p.w.check(s.p)
	return s.p.call(ctx, func() error {
		if err := s.hang(ctx); err != nil {
			return err
		}
		return s.Shard.Apply(ctx, b)
	})
}

// hang waits for a shard that does not answer.
func (s processShard) hang(ctx context.Context) error {
	w := s.p.w
	w.mu.Lock()
	d := time.Until(w.hangs[s.index])
	w.mu.Unlock()
	if d <= 0 {
		return nil
	}
	select {
	case <-time.After(d):
		return faketest.ErrFault
	case <-ctx.Done():
		return ctx.Err()
	}
}
