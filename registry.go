package tumble

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// register writes every partition of the source into every shard, one shard
// after the other, before anything of a new one is counted. A shard that lacks
// a partition would not wait for it before it calls a window final.
func (p *Pipeline) register(ctx context.Context) error {
	select {
	case p.registering <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.registering }()
	known := map[string]Checkpoint{}
	for i := range p.shards {
		state, err := p.load(ctx, i, nil, nil)
		if err != nil {
			return err
		}
		merge(known, state.Checkpoints)
	}
	all, err := p.cfg.Source.Partitions(ctx, known)
	if err != nil {
		return fmt.Errorf("tumble: list the source's partitions: %w", err)
	}
	p.mu.Lock()
	for id, c := range all {
		if _, ok := p.first[id]; !ok {
			p.first[id] = c
		}
	}
	p.learn(known)
	p.mu.Unlock()
	known = map[string]Checkpoint{}
	for i := range p.shards {
		// Who was faster in the first shard has the word on all others.
		state, err := p.load(ctx, i, p.init, nil)
		if err != nil {
			return err
		}
		merge(known, state.Checkpoints)
		p.mu.Lock()
		p.learn(known)
		p.mu.Unlock()
	}
	return nil
}

// join registers a partition that is new since Run began, however long the
// source takes to list it. It returns nil when ctx ends.
func (p *Pipeline) join(ctx context.Context, id string) error {
	p.mu.Lock()
	_, known := p.first[id]
	p.mu.Unlock()
	for wait := (backoff{}); !known; {
		err := p.register(ctx)
		if err == nil || ctx.Err() != nil {
			return nil
		}
		if !errors.Is(err, ErrUnavailable) {
			return err
		}
		if wait.first() {
			p.cfg.Logger.Warn("cannot register a partition, trying again", "partition", id, "error", err)
		}
		p.books.change(func(s *Stats) { s.Retries++ })
		wait.sleep(ctx, nil)
	}
	return nil
}

// merge adds what one shard knows of partitions to what others do, as it is to
// be stored in a shard that lacks it. Of two words on one partition the one that
// has not ended counts.
func merge(known, stored map[string]Checkpoint) {
	for id, c := range stored {
		if old, ok := known[id]; ok && !old.Ended {
			continue
		}
		if !c.Ended {
			c = Checkpoint{Log: c.Log, Origin: c.Origin, Offset: c.Origin, Epoch: -1}
		}
		known[id] = c
	}
}

// learn takes what the sink knows, and the source's first word on the rest, as
// the registry. p.mu is held.
func (p *Pipeline) learn(known map[string]Checkpoint) {
	registry := maps.Clone(p.first)
	maps.Copy(registry, p.registry)
	for id, c := range known {
		// A log that ended is over where the source has another.
		if first, ok := p.first[id]; ok && c.Ended && c.Log != first.Log {
			continue
		}
		registry[id] = c
	}
	p.registry = registry
}

// init returns the checkpoints that a shard must hold at least.
func (p *Pipeline) init() map[string]Checkpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.registry)
}

// load loads a shard, however long it takes: it fails only when ctx ends or the
// error is fatal. tell, if set, is called with each error and with nil at last.
func (p *Pipeline) load(ctx context.Context, shard int, init func() map[string]Checkpoint, tell func(error)) (ShardState, error) {
	for wait := (backoff{}); ; {
		var missing map[string]Checkpoint
		if init != nil {
			missing = init()
		}
		state, err := p.ask(ctx, shard, missing)
		if err == nil {
			if tell != nil {
				tell(nil)
			}
			return state, nil
		}
		err = fmt.Errorf("tumble: load shard %d: %w", shard, err)
		if errors.Is(err, ErrDefinition) {
			return state, err
		}
		if ctx.Err() != nil {
			return state, ctx.Err()
		}
		if tell != nil {
			tell(err)
		} else if wait.first() {
			p.cfg.Logger.Warn("cannot load a shard, trying again", "shard", shard, "error", err)
		}
		p.books.change(func(s *Stats) { s.Retries++ })
		if !wait.sleep(ctx, nil) {
			return state, ctx.Err()
		}
	}
}

// endWait is how long EndPartition gives pipelines to object: time for three
// polls of each.
const endWait = 3 * pollEvery

// EndPartition marks a partition as one that nobody will ever read again, in
// every shard of s, so that windows need not wait for it: a channel whose
// process will not come back, a topic that is no longer counted. s must also be
// a Reader.
//
// It takes 15 seconds, in which each pipeline whose source has the partition may
// object: then the error wraps ErrObjected, or ErrConflict if the partition moved
// on. A partition that is not known is an error, too. An error names the shards in
// which the partition has ended already. Should the partition go on after all, it
// goes on at the frontier, and what is closed stays so.
func EndPartition(ctx context.Context, s Sink, partition string) error {
	if err := endPartition(ctx, s, partition); err != nil {
		return fmt.Errorf("tumble: end %s: %w", partition, err)
	}
	return nil
}

func endPartition(ctx context.Context, s Sink, partition string) error {
	r, ok := s.(Reader)
	if !ok {
		return fmt.Errorf("the sink %T is no Reader, which tells its definition", s)
	}
	def, err := r.Definition(ctx)
	if err != nil {
		return err
	}
	shards, err := s.Open(ctx, def)
	if err != nil {
		return err
	}
	// Nothing is announced unless every shard knows the partition.
	live := false
	for i, shard := range shards {
		state, err := shard.Load(ctx, LoadRequest{})
		if err != nil {
			return fmt.Errorf("shard %d: %w", i, err)
		}
		c, ok := state.Checkpoints[partition]
		if !ok {
			return fmt.Errorf("shard %d knows no such partition", i)
		}
		live = live || !c.Ended
	}
	if !live {
		return nil
	}
	token := newWriter()
	for i, shard := range shards {
		if _, err := shard.Load(ctx, LoadRequest{Announce: map[string]uint64{partition: token}}); err != nil {
			return fmt.Errorf("announce it to shard %d: %w", i, err)
		}
	}
	t := time.NewTimer(endWait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	var ended []int
	for i, shard := range shards {
		state, err := shard.Load(ctx, LoadRequest{})
		if from := state.Checkpoints[partition]; err == nil && !from.Ended {
			to := from
			to.Ended = true
			err = shard.Apply(ctx, Batch{Partition: partition, Writer: newWriter(), Token: token, From: from, To: to})
		}
		switch {
		case err != nil && ended != nil:
			return fmt.Errorf("shard %d: %w (it has ended in the shards %v)", i, err, ended)
		case err != nil:
			return fmt.Errorf("shard %d: %w", i, err)
		}
		ended = append(ended, i)
	}
	return nil
}
