package tumble

import (
	"context"
	"time"
)

// pollEvery is how often each process looks at every shard.
const pollEvery = 5 * time.Second

// A pollResult is what the poll of a shard found for one partition.
type pollResult struct {
	shard  int
	turns  uint64     // of the delivery, when the poll began
	stored Checkpoint // zero if it is missing
	kept   kept
}

// poll loads a shard every few seconds. It looks for partitions that other
// processes registered, for the largest watermark, and for data loss that a quiet
// topic would hide.
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
		turns := map[*consumer]uint64{}
		p.mu.Lock()
		for c := range p.consumers {
			turns[c] = c.deliveries[shard].turns.Load()
		}
		p.mu.Unlock()
		state, err := p.loaders[shard].load(ctx, false, func(err error) {
			if err != nil {
				p.cfg.Logger.Debug("polling a shard failed", "shard", shard, "error", err)
			}
		})
		if err != nil {
			continue
		}
		p.mu.Lock()
		known := map[string]Checkpoint{}
		merge(known, state.Checkpoints)
		p.learn(known)
		p.noteOthers(shard, state.Checkpoints)
		for c, n := range turns {
			if _, ok := p.consumers[c]; !ok {
				continue
			}
			select {
			case c.polled <- pollResult{shard, n, state.Checkpoints[c.id], kept{state.Floors, state.Retentions}}:
			default: // the consumer is busy. The next poll will do
			}
		}
		p.mu.Unlock()
	}
}

// look polls every shard at once, at most once a second.
func (p *Pipeline) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); now.Sub(p.looked) > time.Second {
		p.looked = now
		close(p.looking)
		p.looking = make(chan struct{})
	}
}

// compare looks for data loss: the poll must find the checkpoint that an idle
// delivery left in its shard.
func (c *consumer) compare(s pollResult) {
	d := c.deliveries[s.shard]
	c.agg.learn(d.lane, s.kept)
	if d.phase != idle || d.unsettled || c.stop != nil || d.turns.Load() != s.turns || s.stored.Same(d.stored) {
		return
	}
	if silence, ok := c.p.changes.Now(); ok { // a store that lost all is one line, not one of each partition and shard
		c.p.cfg.Logger.Warn("the stored checkpoint has changed, reading goes back", "partition", c.id, "shard", s.shard, "expected", d.stored, "stored", s.stored, "unreported", silence)
	}
	d.unsettled = true
	c.suspect(d, s.stored)
}
