package tumble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble/internal/rarely"
)

// A consumer counts one partition. Its fields belong to the goroutine of run.
// Calls on the source and the sink have goroutines of their own and answer through
// channels.
type consumer struct {
	id         string
	p          *Pipeline
	part       Partition
	agg        *aggregator
	deliveries []*delivery // of agg's lanes, by shard
	log        string      // the current incarnation

	over error // io.EOF or ErrEnded once there is nothing to read, until a delivery is settled
	stop error // why reading is over for good. errStopped: because ctx ended

	reading   bool // a call on the partition is under way
	retry     backoff
	readAt    time.Time // earliest time of the next call on the partition, after errors
	settling  settling
	conflicts int       // in a row, without a batch applied
	restAt    time.Time // give way to a rival: neither read nor send before
	committed int64     // last offset that the Committer was given
	flushAt   time.Time // zero if there is nothing to flush
	flushed   time.Time

	rejects  rarely.Line  // of rejected events
	answers  chan answer  // from the partition
	outcomes chan outcome // from the lanes
	polled   chan pollResult
	calls    sync.WaitGroup
	halted   chan struct{} // closed when stop is set, to cut retries short
	cease    context.CancelFunc
	troubles map[int]error // last error by shard, under -1 the partition's. Used within books.of, like those below
}

// An answer is the result of a call on the partition: a Chunk of Fetch, or the
// checkpoints of Resume.
type answer struct {
	chunk   Chunk
	settled []*delivery
	to      []Checkpoint // by settled
	err     error
}

var errStopped = errors.New("stopped")

// consume counts one partition until ctx ends, the partition does, or an error
// is fatal. It flushes before it returns.
func (p *Pipeline) consume(ctx context.Context, part Partition) error {
	if ctx.Err() != nil {
		return nil // and perhaps there is no sink: see run
	}
	c := &consumer{
		id: part.ID(), p: p, part: part,
		agg:      newAggregator(part.ID(), p.def, len(p.shards)),
		settling: settleFlushed, committed: -1,
		answers: make(chan answer, 1), outcomes: make(chan outcome, len(p.shards)),
		polled: make(chan pollResult, len(p.shards)), halted: make(chan struct{}),
		troubles: map[int]error{},
	}
	for i, shard := range p.shards {
		c.deliveries = append(c.deliveries, &delivery{lane: c.agg.lanes[i], shard: shard, unsettled: true})
	}
	c.agg.onLate = p.cfg.OnLate
	c.agg.onReject = c.rejected
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
		p.troubles.ends(c.id) // it is somebody else's now
	}()
	return c.run(ctx)
}

// rejected logs an event that cannot be counted, now and then.
func (c *consumer) rejected(ev *Event) {
	silence, ok := c.rejects.Now()
	switch {
	case !ok:
	case len(ev.Key) > c.agg.longest:
		c.p.cfg.Logger.Warn("event rejected, its key is too long", "partition", c.id, "offset", ev.Offset, "key", ev.Key[:min(64, len(ev.Key))], "bytes", len(ev.Key), "MaxKey", c.agg.longest, "unreported", silence)
	case c.agg.def.Sum && (ev.N < 0 || ev.N > MaxCount):
		c.p.cfg.Logger.Warn("event rejected, its N is not from 0 to 2^53 - 1", "partition", c.id, "offset", ev.Offset, "key", ev.Key, "N", ev.N, "unreported", silence)
	default:
		c.p.cfg.Logger.Warn("event rejected, its time is not in the years 1700 to 2199", "partition", c.id, "offset", ev.Offset, "key", ev.Key, "time", ev.Time, "unreported", silence)
	}
}

// run is the consumer's loop. It starts every call that can be started and waits
// for the first answer.
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
			c.heard(reading, o)
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

// halt ends reading for good. Pending batches are still flushed. What goes wrong with
// these is worth more than that somebody wanted to stop.
func (c *consumer) halt(why error) {
	if c.stop == nil {
		c.stop = why
		close(c.halted)
		c.cease()
	} else if c.stop == errStopped {
		c.stop = why
	}
}

// fail halts with err. If ctx has ended, an err that is not fatal only says so, and
// nothing has failed.
func (c *consumer) fail(ctx context.Context, err error) {
	if ctx.Err() != nil && !fatal(err) {
		err = errStopped
	}
	c.halt(err)
}

// How a consumer ends:
//
//	io.EOF, ErrEnded ──────────────▶ over ─┐  (adopt takes it back, and reading goes on)
//	ctx ended, fatal error, Yield ─▶ stop ─┴▶ closing ─▶ all deliveries drained ─▶ finished ─▶ leave

func (c *consumer) closing() bool { return c.stop != nil || c.over != nil }

// finished reports whether nothing is left to do.
func (c *consumer) finished() bool {
	if !c.closing() || c.reading || c.stop == nil && c.settling != settleSome {
		return false
	}
	return !slices.ContainsFunc(c.deliveries, func(d *delivery) bool { return !c.drained(d) })
}

// leave closes the books of the partition and returns the error that ended it.
func (c *consumer) leave() error {
	c.commit()
	var events int64
	for _, ln := range c.agg.lanes {
		n, held := ln.drop(&c.agg.table)
		events += n
		c.p.books.change(held.take)
	}
	if c.stop != nil && c.stop != errStopped {
		return c.stop
	}
	if events > 0 {
		c.p.cfg.Logger.Warn("stopped before the last flush was done, the next run counts these events if its source still has them", "partition", c.id, "events", events)
	}
	return nil
}

// next returns when the loop must go on if nothing happens, zero for never.
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

// advance starts every call that can be started. If reading waits for MaxPending,
// it returns a channel that is closed when there is room.
func (c *consumer) advance(ctx, sending context.Context) (room <-chan struct{}) {
	now := time.Now()
	if !c.flushAt.IsZero() && !now.Before(c.flushAt) {
		c.flushed, c.flushAt = now, time.Time{}
		c.agg.flush(now)
		c.arm()
	}
	resting := now.Before(c.restAt) && c.stop == nil
	var waiting []*delivery // to be settled
	for _, d := range c.deliveries {
		c.launch(ctx, sending, d, resting)
		if d.phase == found {
			waiting = append(waiting, d)
		}
	}
	switch {
	case c.reading || c.stop != nil || resting || now.Before(c.readAt):
		// Nothing may be asked of the source now.
	case c.settling != settleSome && len(waiting) < len(c.deliveries):
		// All settle together: it waits for the rest.
	case len(waiting) > 0: // settle before reading on
		c.reading = true
		c.calls.Go(func() { c.answers <- c.resume(ctx, waiting) })
	case c.over != nil || c.reviving():
		// Nothing is left to read, or not before the revival is stored.
	default:
		if room = c.p.books.full(); room != nil {
			return room
		}
		c.reading = true
		from := Position{c.agg.pos, c.agg.epoch}
		c.calls.Go(func() {
			chunk, err := c.part.Fetch(ctx, from)
			c.answers <- answer{chunk: chunk, err: err}
		})
	}
	return nil
}

// take handles the answer of a call on the partition.
func (c *consumer) take(ctx context.Context, a answer) {
	switch {
	case a.settled != nil && a.err == nil:
		c.adopt(a)
	case a.settled != nil:
		c.fail(ctx, a.err)
	case a.err == nil:
		if ch := a.chunk; ch.Next > c.agg.pos || ch.Next >= ch.End {
			// Trouble passes with progress. In front of a record that cannot be read,
			// an empty Chunk comes between any two errors.
			c.retry = backoff{}
			c.trouble(-1, nil)
		}
		c.read(a.chunk)
	case errors.Is(a.err, ErrEnded):
		c.trouble(-1, nil)
		c.over = ErrEnded
		c.agg.end(errors.Is(a.err, ErrFinal))
	case errors.Is(a.err, io.EOF):
		c.trouble(-1, nil)
		c.over = io.EOF
	case ctx.Err() != nil: // halted, perhaps
	case errors.Is(a.err, ErrOffsetOutOfRange):
		// Pending events cannot be read again, so they are flushed first.
		c.settleAll(settleFlushed)
		c.failed(a.err)
	case errors.Is(a.err, ErrTruncated):
		c.settleAll(settleDropping)
		c.failed(a.err)
	default:
		c.failed(a.err)
	}
}

// failed books a failed Fetch and schedules the next one.
func (c *consumer) failed(err error) {
	c.agg.calm = calm{}
	c.readAt = time.Now().Add(c.retry.next())
	c.trouble(-1, fmt.Errorf("tumble: fetch %s@%d: %w", c.id, c.agg.pos, err))
	c.p.books.change(func(s *Stats) { s.Retries++ })
}

// read counts a chunk and books it. If the partition had ended, the chunk has to
// wait: its events are fetched again once the partition has been revived.
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
	r, err := c.agg.count(ch, time.Now().Add(p.cfg.MaxAhead).UnixNano())
	if err != nil {
		for _, d := range c.deliveries {
			d.abandoned = true // part of the chunk is in its lane
		}
		c.halt(err)
	} else if p.cfg.Idle >= 0 {
		c.agg.promise(ch, p.cfg.Idle, p.top)
	}
	for _, ln := range c.agg.doubtful {
		c.deliveries[ln.index].unsettled = true
	}
	c.agg.doubtful = nil
	c.arm()
	p.books.change(func(s *Stats) {
		n := int64(len(ch.Events))
		s.Read += n + ch.Rejected + ch.Skipped
		s.Rejected += ch.Rejected
		s.Skipped += ch.Skipped
		s.Replayed += r.replayed
		s.Pending += n - r.replayed
		r.held.add(s)
	})
	var waited string
	p.books.of(c.id, func(s *PartitionStats) {
		waited = s.Waits
		s.Offset, s.End, s.Watermark, s.CaughtUp = c.agg.pos, ch.End, c.agg.wm.time(), ch.End >= 0 && c.agg.pos >= ch.End
		s.Waits = ch.Waits
	})
	if ch.Waits != "" && ch.Waits != waited {
		if silence, ok := p.waits.Now(); ok { // a quota holds up all partitions at once
			p.cfg.Logger.Warn("a partition waits", "partition", c.id, "for", ch.Waits, "unreported", silence)
		}
	}
}

// arm schedules the next flush if there is something to flush.
func (c *consumer) arm() {
	if !c.agg.stale || !c.flushAt.IsZero() {
		return
	}
	c.flushAt = c.flushed.Add(c.p.cfg.FlushInterval)
	if now := time.Now(); c.flushAt.Before(now) {
		c.flushAt = now
	}
}

// commit tells the source up to which offset every shard holds the counts.
func (c *consumer) commit() {
	low := c.deliveries[0].stored.Offset
	for _, d := range c.deliveries {
		if d.stored.Log != c.log {
			return // some shard holds the counts of another log
		}
		low = min(low, d.stored.Offset)
	}
	if low <= c.committed {
		return
	}
	c.committed = low
	c.p.books.of(c.id, func(s *PartitionStats) { s.Committed = low })
	if committer, ok := c.part.(Committer); ok {
		committer.Committed(low)
	}
}
