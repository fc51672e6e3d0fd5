package tumble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// A consumer counts one partition. Its fields belong to the goroutine of run;
// calls on the source and the sink have goroutines of their own, which answer
// through channels.
type consumer struct {
	aggregator
	p    *Pipeline
	part Partition
	log  string // the current incarnation

	over error // io.EOF or ErrEnded: nothing to read, unless a lane is settled
	stop error // reading is over for good; errStopped: ctx ended

	reading   bool // a call on the partition is under way
	retry     backoff
	readAt    time.Time // earliest time of the next call, after errors
	all       bool      // every lane must be settled before reading goes on
	discard   bool      // ... and drops what it holds before: it was read from what the log no longer holds
	conflicts int       // settled in a row without a batch applied
	restAt    time.Time // rivals: neither read nor send before
	committed int64     // last told to the Committer
	flushAt   time.Time // zero: nothing to flush
	flushed   time.Time

	answers  chan answer  // from the partition
	outcomes chan outcome // from the lanes
	polled   chan polled
	calls    sync.WaitGroup
	halted   chan struct{} // closed with stop: hurries retries
	cease    context.CancelFunc
	troubles map[int]error // last error by lane, -1: of the partition; within books.of
}

// An answer is a Chunk, or, if there are lanes, where each is to go on.
type answer struct {
	chunk Chunk
	lanes []*lane
	to    []Checkpoint
	err   error
}

var errStopped = errors.New("stopped")

// consume counts one partition until ctx ends, the partition does, or an error
// is fatal. It flushes before it returns.
func (p *Pipeline) consume(ctx context.Context, part Partition) error {
	if ctx.Err() != nil {
		return nil // and perhaps there is no sink: see run
	}
	c := &consumer{
		aggregator: newAggregator(part.ID(), p.def, p.shards),
		p:          p, part: part, all: true, committed: -1,
		answers: make(chan answer, 1), outcomes: make(chan outcome, len(p.shards)),
		polled: make(chan polled, len(p.shards)), halted: make(chan struct{}),
		troubles: map[int]error{},
	}
	c.onLate = p.cfg.OnLate
	c.onReject = func(ev *Event) {
		p.cfg.Logger.Warn("event time is not within the years 1700 to 2199: not counted", "partition", c.id, "offset", ev.Offset, "key", ev.Key, "time", ev.Time)
	}
	if err := p.join(ctx, c.id); err != nil || ctx.Err() != nil {
		return err
	}
	if !p.books.open(c.id) {
		return fmt.Errorf("tumble: partition %s is being read already", c.id)
	}
	defer p.books.close(c.id)
	p.mu.Lock()
	p.consumers[c] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.consumers, c)
		p.mu.Unlock()
	}()
	return c.run(ctx)
}

// run starts what can be started, waits for what comes first, and so on.
func (c *consumer) run(ctx context.Context) error {
	// The last flush outlives ctx, but not for ever.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	reading, cease := context.WithCancel(ctx) // ends with halt, if that comes first
	c.cease = cease
	defer c.calls.Wait()
	defer cease()
	defer cancel()
	var deadline *time.Timer
	wake, done := time.NewTimer(0), ctx.Done()
	defer wake.Stop()
	for {
		room := c.advance(reading, sending)
		if c.finished() {
			break
		}
		if c.stop != nil && deadline == nil {
			deadline = time.AfterFunc(c.p.cfg.ShutdownTimeout, cancel)
			defer deadline.Stop()
		}
		wake.Stop()
		if at := c.next(); !at.IsZero() {
			wake.Reset(time.Until(at))
		}
		select {
		case a := <-c.answers:
			c.reading = false
			c.take(reading, a)
		case o := <-c.outcomes:
			c.settleCall(reading, o)
		case s := <-c.polled:
			c.compare(s)
		case <-wake.C:
		case <-room:
		case <-done:
			done = nil
			c.halt(errStopped)
		}
	}
	return c.leave()
}

// halt ends reading for good; what is pending is still flushed.
func (c *consumer) halt(why error) {
	if c.stop == nil {
		c.stop = why
		close(c.halted)
		c.cease()
	}
}

// fail halts with err, unless err only says that ctx ended.
func (c *consumer) fail(ctx context.Context, err error) {
	if ctx.Err() != nil {
		err = errStopped
	}
	c.halt(err)
}

func (c *consumer) closing() bool { return c.stop != nil || c.over != nil }

// finished reports whether nothing is left to do.
func (c *consumer) finished() bool {
	if !c.closing() || c.reading || c.stop == nil && c.all {
		return false
	}
	for _, ln := range c.lanes {
		if ln.busy || !ln.lost && (ln.found != nil || !ln.empty() || !c.target(ln).Same(ln.sealed)) {
			return false
		}
	}
	return true
}

// leave says what the partition ended with.
func (c *consumer) leave() error {
	c.commit()
	var events int64
	for _, ln := range c.lanes {
		n, increments := ln.drop(&c.table)
		events += n
		c.p.books.change(func(s *Stats) { s.Increments -= int64(increments) })
	}
	if c.stop != nil && c.stop != errStopped {
		return c.stop
	}
	if events > 0 {
		c.p.cfg.Logger.Warn("stopped before everything was flushed: it is read again by whoever goes on", "partition", c.id, "events", events)
	}
	return nil
}

// next returns when to go on even if nothing happens; zero: never.
func (c *consumer) next() time.Time {
	var at time.Time
	now := time.Now()
	for _, t := range []time.Time{c.flushAt, c.readAt, c.restAt} {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at
}

// advance starts every call that can be started. It returns a channel to wait
// for if reading waits for room.
func (c *consumer) advance(ctx, sending context.Context) (room <-chan struct{}) {
	now := time.Now()
	if !c.flushAt.IsZero() && !now.Before(c.flushAt) {
		c.flushed, c.flushAt = now, time.Time{}
		c.flush(now)
		c.arm()
	}
	resting := now.Before(c.restAt) && c.stop == nil
	settle := c.lanes[:0:0]
	for _, ln := range c.lanes {
		c.launch(ctx, sending, ln, resting)
		if ln.found != nil {
			settle = append(settle, ln)
		}
	}
	switch {
	case c.reading || c.stop != nil || resting || now.Before(c.readAt):
	case c.all && len(settle) < len(c.lanes):
	case len(settle) > 0:
		c.reading = true
		c.calls.Go(func() { c.answers <- c.resume(ctx, settle) })
	case c.over != nil || c.reviving():
	default:
		if room = c.p.books.full(); room != nil {
			return room
		}
		c.reading = true
		from := Position{c.pos, c.epoch}
		c.calls.Go(func() {
			chunk, err := c.part.Fetch(ctx, from)
			c.answers <- answer{chunk: chunk, err: err}
		})
	}
	return nil
}

// take handles what a call on the partition returned.
func (c *consumer) take(ctx context.Context, a answer) {
	switch {
	case a.lanes != nil && a.err == nil:
		c.adopt(ctx, a)
	case a.lanes != nil:
		c.fail(ctx, a.err)
	case a.err == nil:
		c.retry = backoff{}
		c.trouble(-1, nil)
		c.read(a.chunk)
	case errors.Is(a.err, ErrEnded):
		c.over, c.ended = ErrEnded, true
		if errors.Is(a.err, ErrFinal) {
			c.wm = later(c.wm, markOf(c.def.EndMark(c.wm.time())))
		}
	case errors.Is(a.err, io.EOF):
		c.over = io.EOF
	case ctx.Err() != nil: // halted, perhaps
	case errors.Is(a.err, ErrOffsetOutOfRange):
		// What is pending cannot be read again: it is flushed first.
		c.settleAll(false)
		c.failed(a.err)
	case errors.Is(a.err, ErrTruncated):
		c.settleAll(true)
		c.failed(a.err)
	default:
		c.failed(a.err)
	}
}

// failed takes note of a Fetch that failed, and has it repeated after a while.
func (c *consumer) failed(err error) {
	c.calm = calm{}
	c.readAt = time.Now().Add(c.retry.next())
	c.trouble(-1, fmt.Errorf("tumble: fetch %s@%d: %w", c.id, c.pos, err))
	c.p.books.change(func(s *Stats) { s.Retries++ })
}

// read counts a chunk and books it. One that comes after the end of a partition
// is left for when its lanes have been revived, and its events are read again.
func (c *consumer) read(ch Chunk) {
	p := c.p
	if c.revive(ch.Next) {
		p.books.change(func(s *Stats) {
			s.Read += ch.Rejected + ch.Skipped
			s.Rejected += ch.Rejected
			s.Skipped += ch.Skipped
		})
		return
	}
	r, err := c.count(ch, time.Now().Add(p.cfg.MaxAhead).UnixNano())
	if err != nil {
		for _, ln := range c.lanes {
			ln.lost = true // part of the chunk is in it
		}
		c.halt(err)
	} else if p.cfg.Idle >= 0 {
		c.promise(ch, p.cfg.Idle, p.top)
	}
	c.arm()
	p.books.change(func(s *Stats) {
		n := int64(len(ch.Events))
		s.Read += n + ch.Rejected + ch.Skipped
		s.Rejected += ch.Rejected
		s.Skipped += ch.Skipped
		s.Replayed += r.replayed
		s.Pending += n - r.replayed
		s.Increments += r.increments
	})
	p.books.of(c.id, func(s *PartitionStats) {
		s.Offset, s.End, s.Watermark, s.CaughtUp = c.pos, ch.End, c.wm.time(), ch.End >= 0 && c.pos >= ch.End
	})
}

// arm sets the time of the next flush, if there is something to flush.
func (c *consumer) arm() {
	if !c.stale || !c.flushAt.IsZero() {
		return
	}
	c.flushAt = c.flushed.Add(c.p.cfg.FlushInterval)
	if now := time.Now(); c.flushAt.Before(now) {
		c.flushAt = now
	}
}

// commit tells the source how far every shard holds its counts.
func (c *consumer) commit() {
	low := c.held(c.log)
	if low <= c.committed {
		return
	}
	c.committed = low
	c.p.books.of(c.id, func(s *PartitionStats) { s.Committed = low })
	if committer, ok := c.part.(Committer); ok {
		committer.Committed(low)
	}
}
