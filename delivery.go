package tumble

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// A phase is the state of a delivery:
//
//	              send or load          a Load's answer, or another checkpoint
//	          ┌──────────────────▶ calling ─────────────────────────┐
//	          │                     │   │                           ▼
//	begin ▶ idle ◀──────────────────┘   │ fatal error,            found
//	          ▲       applied           ▼ or out of time            │ │
//	          │                        gone ◀───────────────────────┘ │
//	          │                                 stopped               │
//	          └───────────────────────────────────────────────────────┘
//	                            settled: adopt
//
// It begins unsettled, so that it loads first. Only an idle delivery starts a call, so at
// most one is outstanding. Only a found one is settled. An idle one is gone, too, if
// reading ends before it was settled, or if it was abandoned. One that is gone starts
// nothing more: the next run reads the events of its lane again.
type phase int

const (
	idle phase = iota
	calling
	found
	gone
)

// A delivery empties one lane into its shard. Its fields belong to the
// partition's consumer, but for calls.
type delivery struct {
	lane  *lane
	shard Shard
	phase phase

	stored  Checkpoint // in the shard, as far as is known
	finding *finding   // in phase found, nil in all others
	writer  uint64     // of the batches, see Batch

	unsettled bool // must Load and settle, before the next parcel or after a flush: see flushesFirst
	rival     bool // another process was faster, see rest
	revive    bool // the partition had ended in the shard and goes on
	abandoned bool // the lane must not be sent. The delivery is gone once its call is over

	turns atomic.Uint64 // counts begins and ends of calls, so that a poll notices one that came in between
}

// A finding is the answer of a Load.
type finding struct {
	stored   Checkpoint // of the partition
	frontier time.Time
	kept     kept
}

// newNumber returns a random number that is not 0: a Writer, or a Token.
func newNumber() uint64 { return max(rand.Uint64(), 1) }

// An outcome is the result of a call on the shard.
type outcome struct {
	d       *delivery
	parcel  *parcel  // nil if the call was a Load
	repeat  bool     // the parcel was sent before, with unknown outcome
	passed  bool     // the frontier has passed the parcel, a revival
	finding *finding // of a Load, a conflict or a revival that was passed
	err     error    // fatal, or the context ended
}

// drained reports whether a delivery has nothing left to do after the end of
// reading: its lane is empty and the shard holds the last checkpoint, or it is gone.
// launch came before: one that is unsettled and idle here has something to flush.
func (c *consumer) drained(d *delivery) bool {
	switch d.phase {
	case gone:
		return true
	case idle:
		return d.lane.empty() && c.agg.target(d.lane).Same(d.lane.sealed)
	}
	return false
}

// flushesFirst reports whether a delivery may send the parcels of its lane. One that
// is to be settled drops them instead, unless their events can't be read again.
func (c *consumer) flushesFirst(d *delivery) bool { return !d.unsettled || c.settling == settleFlushed }

// sealsRest reports whether the lane's open batch is sealed at once instead of at
// the next flush: on the way out, or before it is settled.
func (c *consumer) sealsRest(d *delivery) bool {
	if c.settling == settleFlushed && len(d.lane.open.counters) > 0 {
		return true
	}
	return c.closing() && len(d.lane.queue) == 0 && !d.unsettled
}

// launch starts the delivery's next call, if there is one.
func (c *consumer) launch(ctx, sending context.Context, d *delivery, resting bool) {
	c.release(d)
	if d.phase != idle {
		return
	}
	if c.sealsRest(d) {
		if to := c.agg.target(d.lane); !to.Same(d.lane.sealed) {
			c.agg.seal(d.lane, to)
		}
	}
	switch {
	case len(d.lane.queue) > 0 && c.flushesFirst(d):
		if b := d.lane.queue[0]; !resting {
			b.Writer = d.writer
			c.start(d, func() outcome { return c.deliver(sending, d, b) })
		}
	case d.unsettled:
		c.load(ctx, d)
	}
}

// release lets go of a delivery that will never be settled, because reading is
// over for good, or that must not go on.
func (c *consumer) release(d *delivery) {
	flushing := c.settling == settleFlushed && !d.lane.empty()
	switch {
	case d.phase == calling || d.phase == gone:
	case d.abandoned, c.stop != nil && d.phase == found, c.stop != nil && d.unsettled && !flushing:
		d.phase = gone
	}
}

func (c *consumer) start(d *delivery, call func() outcome) {
	d.phase = calling
	d.turns.Add(1)
	c.calls.Go(func() { c.outcomes <- call() })
}

// deliver sends a parcel until its outcome is definite or ctx ends.
func (c *consumer) deliver(ctx context.Context, d *delivery, b *parcel) outcome {
	o := outcome{d: d, parcel: b}
	for wait := (backoff{}); ; {
		began, err := c.apply(ctx, d, b)
		if err == nil {
			c.trouble(d.lane.index, nil)
			c.p.loaders[d.lane.index].applied()
			return o
		} else if errors.Is(err, ErrConflict) || errors.Is(err, ErrPassed) {
			if o.passed = errors.Is(err, ErrPassed); !o.passed {
				c.p.books.change(func(s *Stats) { s.Conflicts++ })
			}
			state, err := c.p.loaders[d.lane.index].load(ctx, true, func(err error) { c.trouble(d.lane.index, err) })
			o.finding, o.err = c.find(d, state, err)
			return o
		}
		o.err = fmt.Errorf("tumble: apply %s@%d to shard %d: %w", c.id, b.From.Offset, d.lane.index, err)
		if fatal(err) || ctx.Err() != nil {
			return o
		}
		c.trouble(d.lane.index, o.err)
		c.p.books.change(func(s *Stats) { s.Retries++ })
		if !wait.sleep(ctx, time.Since(began), c.halted) {
			return o
		}
		o.repeat, o.err = true, nil
		b.Writer = newNumber() // the store may have applied the first one and lost it
	}
}

// fatal reports whether sending a batch again cannot mend err.
func fatal(err error) bool { return errors.Is(err, ErrDefinition) || errors.Is(err, ErrOverflow) }

// apply calls the shard as soon as it has a place free, and returns when that was.
func (c *consumer) apply(ctx context.Context, d *delivery, b *parcel) (began time.Time, err error) {
	places := c.p.places[d.lane.index]
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	case <-ctx.Done():
		return time.Now(), ctx.Err()
	}
	began = time.Now()
	return began, d.shard.Apply(ctx, b.Batch)
}

// load asks for the state of the delivery's shard.
func (c *consumer) load(ctx context.Context, d *delivery) {
	d.phase = calling
	d.turns.Add(1)
	c.calls.Add(1)
	c.p.loaders[d.lane.index].request(&loadRequest{
		ctx: ctx, heal: true,
		tell: func(err error) { c.trouble(d.lane.index, err) },
		done: func(state ShardState, err error) {
			o := outcome{d: d}
			o.finding, o.err = c.find(d, state, err)
			c.outcomes <- o // has room for all deliveries
			c.calls.Done()
		},
	})
}

// find returns what the state of the delivery's shard says of the partition.
func (c *consumer) find(d *delivery, state ShardState, err error) (*finding, error) {
	if err != nil {
		return nil, err
	}
	mine, ok := state.Checkpoints[c.id]
	if !ok {
		return nil, fmt.Errorf("tumble: load shard %d: the sink did not store partition %s", d.lane.index, c.id)
	}
	return &finding{mine, state.Frontier, kept{state.Floors, state.Retentions}}, nil
}

// heard takes the outcome of a call.
func (c *consumer) heard(ctx context.Context, o outcome) {
	d := o.d
	d.phase = idle
	d.turns.Add(1)
	if o.parcel != nil {
		d.writer = o.parcel.Writer
	}
	switch applied := o.parcel != nil && (o.finding == nil || o.finding.stored.Same(o.parcel.To)); {
	case o.err != nil:
		d.phase = gone
		c.fail(ctx, o.err)
	case applied:
		c.applied(o)
	default:
		d.phase, d.finding = found, o.finding
		if o.parcel != nil && !o.passed {
			c.suspect(d, o.finding.stored)
		}
	}
}

// applied books a parcel whose counts are in the shard. If this process never
// heard an error for it, and finds it stored all the same, another one sent it.
func (c *consumer) applied(o outcome) {
	d, b := o.d, o.parcel
	mine := o.finding == nil
	d.lane.shift()
	d.stored = b.To
	if b.To.Log == b.From.Log && b.To.Offset < b.From.Offset {
		c.committed = -1 // it falls with a log that was truncated
	}
	c.p.books.change(func(s *Stats) {
		s.Flushes++
		s.Pending -= b.tally.events()
		b.holds().take(s)
		if !mine && !o.repeat {
			s.Replayed += b.tally.events()
			return
		}
		b.tally.book(s)
		s.Sum = sumOf(s.Sum, b.sum)
	})
	if mine {
		c.conflicts = 0
	}
	c.agg.reuse(&b.Batch)
	c.agg.sealDue(d.lane)
	c.commit()
}
