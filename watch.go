package tumble

import (
	"context"
	"time"
)

// pollEvery is how often each process looks at every shard.
const pollEvery = 5 * time.Second

type polled struct {
	shard  int
	epoch  uint64
	stored Checkpoint // zero: missing
}

// saw remembers a shard's largest watermark.
func (p *Pipeline) saw(shard int, stored map[string]Checkpoint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tops[shard] = mark{}
	for _, c := range stored {
		p.tops[shard] = later(p.tops[shard], markOf(c.Watermark))
	}
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
		epochs := map[*consumer]uint64{}
		p.mu.Lock()
		for c := range p.consumers {
			epochs[c] = c.lanes[shard].epoch.Load()
		}
		p.mu.Unlock()
		stored, err := p.shards[shard].Load(ctx, nil)
		if err != nil {
			if ctx.Err() == nil {
				p.cfg.Logger.Debug("cannot poll a shard", "shard", shard, "error", err)
			}
			continue
		}
		p.saw(shard, stored)
		p.mu.Lock()
		known := map[string]Checkpoint{}
		merge(known, stored)
		p.learn(known)
		for c, epoch := range epochs {
			if _, ok := p.consumers[c]; !ok {
				continue
			}
			select {
			case c.polled <- polled{shard, epoch, stored[c.id]}:
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
	if ln.busy || ln.reload || ln.found != nil || ln.epoch.Load() != s.epoch || s.stored.Same(ln.stored) || c.stop != nil {
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
