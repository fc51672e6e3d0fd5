package tumble

import (
	"context"
	"maps"
	"slices"
	"time"
)

// pollEvery is how often each process looks at every shard.
const pollEvery = 5 * time.Second

type polled struct {
	shard  int
	calls  uint64
	stored Checkpoint // zero: missing
	floor  time.Time
}

// ask loads a shard once. Should somebody be about to end a partition that is
// this pipeline's to read, it objects before it returns.
func (p *Pipeline) ask(ctx context.Context, shard int, init map[string]Checkpoint) (ShardState, error) {
	state, err := p.shards[shard].Load(ctx, LoadRequest{Init: init})
	if err != nil {
		return state, err
	}
	object := map[string]uint64{}
	p.mu.Lock()
	for id, token := range state.Announced {
		if _, mine := p.first[id]; mine {
			object[id] = token
		}
	}
	p.tops[shard] = mark{}
	for _, c := range state.Checkpoints {
		p.tops[shard] = later(p.tops[shard], markOf(c.Watermark))
	}
	p.mu.Unlock()
	if len(object) > 0 {
		p.cfg.Logger.Warn("somebody is about to end partitions that this pipeline reads: it objects", "partitions", slices.Sorted(maps.Keys(object)), "shard", shard)
		return p.shards[shard].Load(ctx, LoadRequest{Object: object})
	}
	return state, nil
}

// top returns the largest watermark in the sink, as last seen.
func (p *Pipeline) top() (top mark) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, m := range p.tops {
		top = later(top, m)
	}
	return top
}

// poll looks at a shard now and then: for partitions that others registered,
// for the largest watermark, and for a loss that a quiet topic would hide.
func (p *Pipeline) poll(ctx context.Context, shard int) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		p.mu.Lock()
		looking := p.looking
		p.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-looking:
		}
		calls := map[*consumer]uint64{}
		p.mu.Lock()
		for c := range p.consumers {
			calls[c] = c.lanes[shard].calls.Load()
		}
		p.mu.Unlock()
		state, err := p.ask(ctx, shard, nil)
		if err != nil {
			if ctx.Err() == nil {
				p.cfg.Logger.Debug("cannot poll a shard", "shard", shard, "error", err)
			}
			continue
		}
		p.mu.Lock()
		known := map[string]Checkpoint{}
		merge(known, state.Checkpoints)
		p.learn(known)
		for c, n := range calls {
			if _, ok := p.consumers[c]; !ok {
				continue
			}
			select {
			case c.polled <- polled{shard, n, state.Checkpoints[c.id], state.Floor}:
			default: // busy with the last one; the next will do
			}
		}
		p.mu.Unlock()
	}
}

// look has every shard polled at once.
func (p *Pipeline) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.looked) > time.Second {
		p.looked = now
		close(p.looking)
		p.looking = make(chan struct{})
	}
}

// compare looks for a loss in what the poll found: a lane that had nothing
// under way must find its own checkpoint.
func (c *consumer) compare(s polled) {
	ln := c.lanes[s.shard]
	if !s.floor.IsZero() {
		ln.floor = max(ln.floor, s.floor.UnixNano())
	}
	if ln.busy || ln.reload || ln.found != nil || ln.calls.Load() != s.calls || s.stored.Same(ln.stored) || c.stop != nil {
		return
	}
	c.p.cfg.Logger.Warn("the sink holds another checkpoint than was left there: reading goes back", "partition", c.id, "shard", s.shard, "left", ln.stored, "found", s.stored)
	ln.reload = true
	c.suspect(ln, s.stored)
}

// suspect tells a store that lost something from another process that was
// faster. A loss is seldom of one shard alone, and to read again for each is
// slow: all shards are looked at before reading goes back.
func (c *consumer) suspect(ln *lane, stored Checkpoint) {
	if stored.Log == ln.stored.Log && stored.Offset >= ln.stored.Offset {
		ln.rival = true
		return
	}
	c.readAt = time.Now().Add(lossWait)
	c.p.look()
}
