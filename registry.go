package tumble

import (
	"context"
	"errors"
	"fmt"
	"maps"
)

// register stores every partition of the source in every shard, one shard after
// the other, before the first event of a new partition is counted. A shard that
// did not know a partition would close windows without waiting for it.
func (p *Pipeline) register(ctx context.Context) error {
	select {
	case p.registering <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.registering }()
	known := map[string]Checkpoint{}
	for i := range p.shards {
		state, err := p.load(ctx, i, false)
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
		// If two processes register at once, the faster one in the first shard
		// decides for all others.
		state, err := p.load(ctx, i, true)
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

// join registers a partition that appeared after Run began. It retries until the
// source lists it, and returns nil when ctx ends.
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
			p.cfg.Logger.Warn("registering a partition failed, retrying", "partition", id, "error", err)
		}
		p.books.change(func(s *Stats) { s.Retries++ })
		wait.sleep(ctx, 0, nil)
	}
	return nil
}

// merge adds the checkpoints of one shard to known, in the form in which they are
// stored in a shard that lacks them: at their origin. If two shards differ, the
// one in which the partition has not ended wins.
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

// learn updates the registry from the checkpoints in the sink. For partitions that
// the sink lacks, the source's first answer counts. p.mu is held.
func (p *Pipeline) learn(known map[string]Checkpoint) {
	registry := maps.Clone(p.first)
	maps.Copy(registry, p.registry)
	for id, c := range known {
		if first, ok := p.first[id]; ok && c.Ended {
			if c.Log != first.Log {
				continue // the source has another log now, so nobody will read the ended one
			}
			// A shard that lost the partition counts all of it again. It waits for
			// nobody meanwhile, as the partition has ended.
			c = Checkpoint{Log: c.Log, Origin: c.Origin, Offset: c.Origin, Epoch: -1, Ended: true}
		}
		registry[id] = c
	}
	p.registry = registry
}

// toStore returns the whole registry if has lacks a partition of it, else nil.
func (p *Pipeline) toStore(has map[string]Checkpoint) map[string]Checkpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id := range p.registry {
		if _, ok := has[id]; !ok {
			return maps.Clone(p.registry)
		}
	}
	return nil
}

// load loads a shard and retries until it works. It fails only when ctx ends or the
// error is fatal. To heal is to store those partitions of the registry that the
// shard lacks.
func (p *Pipeline) load(ctx context.Context, shard int, heal bool) (ShardState, error) {
	first := true
	return p.loaders[shard].load(ctx, heal, func(err error) {
		if err != nil && first {
			p.cfg.Logger.Warn("loading a shard failed, retrying", "shard", shard, "error", err)
			first = false
		}
	})
}
