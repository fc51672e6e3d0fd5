package tumble

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
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

// unless returns the checkpoints that every shard must hold, or nil if has has all
// of their partitions.
func (p *Pipeline) unless(has map[string]Checkpoint) map[string]Checkpoint {
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

// endWait is how long EndPartition lets pipelines object: three polls of each.
const endWait = 3 * pollEvery

// EndPartition marks a partition as one that nobody will ever read again, in
// every shard of s, so that windows need not wait for it: a channel whose
// process will not come back, a topic that is no longer counted. s must also be
// a Reader.
//
// It takes 15 seconds, in which every pipeline whose source has the partition
// objects. Then the error wraps ErrObjected, or ErrConflict if the partition moved
// on. An unknown partition is an error, too. If the partition has ended in some
// shards already, the error names them. If the partition goes on after all, it
// does so at the frontier, and closed windows stay closed.
func EndPartition(ctx context.Context, s Sink, partition string) error {
	if err := endPartition(ctx, s, partition); err != nil {
		return fmt.Errorf("tumble: end %s: %w", partition, err)
	}
	return nil
}

func endPartition(ctx context.Context, s Sink, partition string) error {
	r, ok := s.(Reader)
	if !ok {
		return fmt.Errorf("the sink %T is no tumble.Reader, so its definition is unknown", s)
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
	token := newNumber()
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
			err = shard.Apply(ctx, Batch{Partition: partition, Writer: newNumber(), Token: token, From: from, To: to})
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
