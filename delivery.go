package tumble

import (
	"context"
	"errors"
	"fmt"
)

// An outcome is what became of the delivery of a parcel, or what a Load found.
type outcome struct {
	ln     *lane
	parcel *parcel // nil: it was a Load
	repeat bool    // the parcel was sent before, with unknown outcome
	passed bool    // the frontier has passed the parcel, a revival
	found  *found  // of a Load or a conflict
	err    error   // fatal, or the context ended
}

// launch starts the lane's next call, if there is one.
func (c *consumer) launch(ctx, sending context.Context, ln *lane, resting bool) {
	flushing := c.all && !c.discard
	if left := flushing && len(ln.queue)+len(ln.open.counters) > 0; c.stop != nil && !ln.busy && (ln.found != nil || ln.reload && !left) {
		ln.lost = true // it is not settled, and now never will be
	}
	if ln.busy || ln.found != nil || ln.lost {
		return
	}
	if len(ln.queue) == 0 && !ln.reload && c.closing() || flushing && len(ln.open.counters) > 0 {
		if to := c.target(ln); !to.Same(ln.sealed) {
			c.seal(ln, to)
		}
	}
	switch {
	case len(ln.queue) > 0 && (!ln.reload || flushing):
		if b := ln.queue[0]; !resting {
			b.Writer = ln.writer
			c.start(ln, func() outcome { return c.deliver(sending, ln, b) })
		}
	case ln.reload:
		c.start(ln, func() outcome { return c.load(ctx, ln) })
	}
}

func (c *consumer) start(ln *lane, call func() outcome) {
	ln.busy = true
	ln.calls.Add(1)
	c.calls.Go(func() { c.outcomes <- call() })
}

// deliver sends a parcel until its outcome is definite or ctx ends.
func (c *consumer) deliver(ctx context.Context, ln *lane, b *parcel) outcome {
	o := outcome{ln: ln, parcel: b}
	for wait := (backoff{}); ; {
		err := ln.shard.Apply(ctx, b.Batch)
		if err == nil {
			c.trouble(ln.index, nil)
			return o
		} else if errors.Is(err, ErrConflict) || errors.Is(err, ErrPassed) {
			if o.passed = errors.Is(err, ErrPassed); !o.passed {
				c.p.books.change(func(s *Stats) { s.Conflicts++ })
			}
			found := c.load(ctx, ln)
			o.found, o.err = found.found, found.err
			return o
		}
		o.err = fmt.Errorf("tumble: apply %s@%d to shard %d: %w", c.id, b.From.Offset, ln.index, err)
		if errors.Is(err, ErrDefinition) || ctx.Err() != nil {
			return o
		}
		c.trouble(ln.index, o.err)
		c.p.books.change(func(s *Stats) { s.Retries++ })
		if !wait.sleep(ctx, c.halted) {
			return o
		}
		o.repeat, o.err = true, nil
		b.Writer = newWriter() // the store may have lost what it did the first time
	}
}

// load finds what is stored in the lane's shard, storing what it lacks.
func (c *consumer) load(ctx context.Context, ln *lane) outcome {
	state, err := c.p.load(ctx, ln.index, c.p.init, func(err error) { c.trouble(ln.index, err) })
	if err != nil {
		return outcome{ln: ln, err: err}
	}
	mine, ok := state.Checkpoints[c.id]
	if !ok {
		return outcome{ln: ln, err: fmt.Errorf("tumble: load shard %d: the sink did not store partition %s", ln.index, c.id)}
	}
	return outcome{ln: ln, found: &found{mine, state.Frontier, state.Floor}}
}

// settleCall takes the outcome of a lane's call.
func (c *consumer) settleCall(ctx context.Context, o outcome) {
	ln := o.ln
	ln.busy = false
	ln.calls.Add(1)
	if o.parcel != nil {
		ln.writer = o.parcel.Writer
	}
	if o.err != nil {
		ln.lost = true
		c.fail(ctx, o.err)
		return
	}
	mine := o.found == nil
	if o.parcel == nil || !mine && !o.found.stored.Same(o.parcel.To) {
		ln.found = o.found
		if o.parcel != nil && !o.passed {
			c.suspect(ln, o.found.stored)
		}
		return
	}
	// The parcel's counts are in the shard. If this process never heard an
	// error for it, another one sent the same.
	b := o.parcel
	ln.queue = ln.queue[1:]
	ln.stored = b.To
	if b.To.Log == b.From.Log && b.To.Offset < b.From.Offset {
		c.committed = -1 // it falls with a log that was truncated
	}
	c.p.books.change(func(s *Stats) {
		s.Flushes++
		s.Pending -= b.tally.events()
		s.Increments -= int64(len(b.Deltas))
		if !mine && !o.repeat {
			s.Replayed += b.tally.events()
			return
		}
		b.tally.book(s)
	})
	if mine {
		c.conflicts = 0
	}
	if cap(b.Deltas) > 0 && len(c.free) < len(c.lanes) {
		c.free = append(c.free, b.Deltas[:0])
	}
	if len(ln.queue) == 0 && len(ln.open.counters) > 0 && (ln.due || len(ln.open.counters) >= sealAt) {
		c.seal(ln, c.target(ln))
	}
	c.commit()
}

// trouble remembers the last error of a lane, or of the partition for -1, until
// nil says that it has passed. It is logged when the first comes and when the
// last has gone.
func (c *consumer) trouble(index int, err error) {
	var before, after int
	c.p.books.of(c.id, func(s *PartitionStats) {
		before = len(c.troubles)
		if delete(c.troubles, index); err != nil {
			c.troubles[index] = err
		}
		after = len(c.troubles)
		s.Err = nil
		for _, err := range c.troubles {
			s.Err = err
		}
	})
	switch {
	case before == 0 && after > 0:
		c.p.cfg.Logger.Warn("trying again until it works", "partition", c.id, "error", err)
	case before > 0 && after == 0:
		c.p.cfg.Logger.Info("works again", "partition", c.id)
	}
}
