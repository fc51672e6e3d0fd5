package tumble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	firstWait = 50 * time.Millisecond
	maxWait   = 5 * time.Second
	lossWait  = 250 * time.Millisecond // for the news of a loss to be complete
	rivalWait = 100 * time.Millisecond
)

// A Pipeline reads a Source, counts per key and window, and keeps the counts in
// a Sink.
type Pipeline struct {
	cfg     Config
	def     Definition
	shards  []Shard
	books   books
	running atomic.Bool

	registering chan struct{}         // full while one registers
	first       map[string]Checkpoint // the source's first word on each partition; under mu

	mu        sync.Mutex
	consumers map[*consumer]struct{}
	registry  map[string]Checkpoint // where every known partition begins, for a shard that lost it
	tops      []mark                // largest watermark of each shard, as last seen
	looking   chan struct{}         // closed to poll at once
	looked    time.Time             // when that was done last
}

// New returns a pipeline for Run, or an error that names the field of cfg that
// is wrong.
func New(cfg Config) (*Pipeline, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return &Pipeline{
		cfg: cfg, def: cfg.definition(),
		books:       books{limit: int64(cfg.MaxPending), parts: map[string]*PartitionStats{}},
		consumers:   map[*consumer]struct{}{},
		registry:    map[string]Checkpoint{},
		looking:     make(chan struct{}),
		registering: make(chan struct{}, 1),
	}, nil
}

// Run counts until ctx ends or every partition is exhausted; then it flushes
// and returns nil. It returns an error if the source or the sink cannot be
// opened, or if one of them has an error that retrying cannot mend. It may be
// called again after it has returned, not before, and then opens new books.
func (p *Pipeline) Run(ctx context.Context) error {
	if !p.running.CompareAndSwap(false, true) {
		return errors.New("tumble: Run is running already")
	}
	defer p.running.Store(false)
	err := p.run(ctx)
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return nil
	}
	return err
}

func (p *Pipeline) run(ctx context.Context) error {
	shards, err := p.cfg.Sink.Open(ctx, p.def)
	if err != nil {
		return fmt.Errorf("tumble: open the sink: %w", err)
	}
	if n := len(shards); n == 0 || n > maxShards {
		return fmt.Errorf("tumble: open the sink: it has %d shards, must be 1 to %d", n, maxShards)
	}
	p.shards = shards
	p.books.begin()
	p.mu.Lock()
	p.first = map[string]Checkpoint{}
	p.tops = make([]mark, len(shards))
	p.mu.Unlock()
	if err := p.register(ctx); err != nil {
		return err
	}
	var wg sync.WaitGroup
	polling, stop := context.WithCancel(ctx)
	for i := range shards {
		wg.Go(func() { p.poll(polling, i) })
	}
	err = p.cfg.Source.Run(ctx, p.consume)
	stop()
	wg.Wait()
	return err
}

// A backoff spaces retries: 50 ms doubling to 5 s, less up to half at random.
type backoff struct {
	wait    time.Duration
	hurried bool
}

func (b *backoff) first() bool { return b.wait == 0 }

func (b *backoff) next() time.Duration {
	b.wait = min(max(2*b.wait, firstWait), maxWait)
	return b.wait - rand.N(b.wait/2)
}

// sleep waits for the next try, and returns false when ctx ends. hurry, once it
// is closed, cuts one wait short: the long one that it finds.
func (b *backoff) sleep(ctx context.Context, hurry <-chan struct{}) bool {
	if b.hurried {
		hurry = nil
	}
	t := time.NewTimer(b.next())
	defer t.Stop()
	select {
	case <-t.C:
	case <-hurry:
		*b = backoff{hurried: true}
	case <-ctx.Done():
		return false
	}
	return true
}

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

// An outcome is what became of the delivery of a parcel, or what a Load found.
type outcome struct {
	ln     *lane
	parcel *parcel // nil: it was a Load
	repeat bool    // the parcel was sent before, with unknown outcome
	found  *found  // of a Load or a conflict
	err    error   // fatal, or the context ended
}

type polled struct {
	shard  int
	epoch  uint64
	stored Checkpoint // zero: missing
}

var errStopped = errors.New("stopped")

// consume counts one partition until ctx ends, the partition does, or an error
// is fatal. It flushes before it returns.
func (p *Pipeline) consume(ctx context.Context, part Partition) error {
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
	case c.over != nil:
	default:
		if room = c.p.books.full(); room != nil {
			return room
		}
		c.reading = true
		from := c.pos
		c.calls.Go(func() {
			chunk, err := c.part.Fetch(ctx, from)
			c.answers <- answer{chunk: chunk, err: err}
		})
	}
	return nil
}

// launch starts the lane's next call, if there is one.
func (c *consumer) launch(ctx, sending context.Context, ln *lane, resting bool) {
	if flushing := c.all && len(ln.queue)+len(ln.open.counters) > 0; c.stop != nil && !ln.busy && (ln.found != nil || ln.reload && !flushing) {
		ln.lost = true // it is not settled, and now never will be
	}
	if ln.busy || ln.found != nil || ln.lost {
		return
	}
	if len(ln.queue) == 0 && !ln.reload && c.closing() || c.all && len(ln.open.counters) > 0 {
		if to := c.target(ln); !to.Same(ln.sealed) {
			c.seal(ln, to)
		}
	}
	switch {
	case len(ln.queue) > 0 && (!ln.reload || c.all):
		if b := ln.queue[0]; !resting {
			c.start(ln, func() outcome { return c.deliver(sending, ln, b) })
		}
	case ln.reload:
		c.start(ln, func() outcome { return c.load(ctx, ln, nil) })
	}
}

func (c *consumer) start(ln *lane, call func() outcome) {
	ln.busy = true
	ln.epoch.Add(1)
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
		} else if errors.Is(err, ErrConflict) {
			c.p.books.change(func(s *Stats) { s.Conflicts++ })
			found := c.load(ctx, ln, nil)
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
	}
}

// load finds what is stored in the lane's shard, storing what it lacks; restart,
// if set, is where the partition begins anew.
func (c *consumer) load(ctx context.Context, ln *lane, restart *Checkpoint) outcome {
	init := func() map[string]Checkpoint {
		all := c.p.init()
		if restart != nil {
			all[c.id] = *restart
		}
		return all
	}
	stored, err := c.p.load(ctx, ln.index, init, func(err error) { c.trouble(ln.index, err) })
	if err != nil {
		return outcome{ln: ln, err: err}
	}
	mine, ok := stored[c.id]
	if !ok {
		return outcome{ln: ln, err: fmt.Errorf("tumble: load shard %d: the sink did not store partition %s", ln.index, c.id)}
	}
	return outcome{ln: ln, found: &found{mine, c.p.def.Frontier(stored)}}
}

// resume asks the source where lanes are to go on.
func (c *consumer) resume(ctx context.Context, lanes []*lane) answer {
	a := answer{lanes: lanes}
	known := map[Checkpoint]Checkpoint{} // lanes mostly stand at one place, and to ask may cost a request
	for _, ln := range lanes {
		stored := ln.found.stored
		stored.Watermark = stored.Watermark.UTC()
		to, ok := known[stored]
		for wait := (backoff{}); !ok; {
			var err error
			if to, err = c.part.Resume(ctx, stored); err == nil {
				break
			}
			a.err = fmt.Errorf("tumble: resume %s@%d: %w", c.id, stored.Offset, err)
			if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
				return a
			}
			c.trouble(-1, a.err)
			c.p.books.change(func(s *Stats) { s.Retries++ })
			if !wait.sleep(ctx, nil) {
				return a
			}
		}
		known[stored] = to
		a.to = append(a.to, to)
	}
	a.err = nil
	c.trouble(-1, nil)
	return a
}

// settleCall takes the outcome of a lane's call.
func (c *consumer) settleCall(ctx context.Context, o outcome) {
	ln := o.ln
	ln.busy = false
	ln.epoch.Add(1)
	if o.err != nil {
		ln.lost = true
		c.fail(ctx, o.err)
		return
	}
	mine := o.found == nil
	if o.parcel == nil || !mine && !o.found.stored.Same(o.parcel.To) {
		ln.found = o.found
		if o.parcel != nil {
			c.suspect(ln, o.found.stored)
		}
		return
	}
	// The parcel's counts are in the shard. If this process never heard an
	// error for it, another one sent the same.
	b := o.parcel
	ln.queue = ln.queue[1:]
	ln.stored = b.To
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
	case errors.Is(a.err, io.EOF):
		c.over = io.EOF
	case ctx.Err() != nil: // halted, perhaps
	case errors.Is(a.err, ErrOffsetOutOfRange):
		// What is pending cannot be read again: it is flushed first.
		c.settleAll()
		fallthrough
	default:
		c.calm = calm{}
		c.readAt = time.Now().Add(c.retry.next())
		c.trouble(-1, fmt.Errorf("tumble: fetch %s@%d: %w", c.id, c.pos, a.err))
		c.p.books.change(func(s *Stats) { s.Retries++ })
	}
}

func (c *consumer) settleAll() {
	c.all = true
	for _, ln := range c.lanes {
		ln.reload = true
	}
}

// adopt settles lanes: they drop what they hold and go on from what is stored,
// or where the source says instead, and reading goes back to the lane that is
// furthest behind. The other lanes keep theirs.
func (c *consumer) adopt(ctx context.Context, a answer) {
	for _, ln := range c.lanes {
		if !ln.ahead {
			ln.ahead, ln.next, ln.mark = true, c.pos, c.wm
		}
	}
	var rival, again bool
	for i, ln := range a.lanes {
		found, to := ln.found, a.to[i]
		rival = rival || ln.rival
		ln.found, ln.rival, ln.reload = nil, false, false
		events, increments := ln.drop(&c.table)
		c.p.books.change(func(s *Stats) {
			s.Pending -= events
			s.Replayed += events
			s.Increments -= int64(increments)
		})
		if to.Log != found.stored.Log && found.stored.Ended {
			// Counts as missing: the new log begins at the frontier, which
			// only the shard can know for sure.
			c.start(ln, func() outcome { return c.load(ctx, ln, &to) })
			again = true
			continue
		}
		from, err := c.place(ln, found, to)
		if err != nil {
			ln.lost = true // it stands nowhere
			c.halt(err)
			return
		}
		if n := c.p.books.lose(c.id, to.Log, from, to.Offset); n > 0 {
			c.p.cfg.Logger.Error("events can no longer be read and were not counted", "partition", c.id, "from", from, "to", to.Offset, "at most", n)
		}
	}
	for _, ln := range c.lanes {
		again = again || ln.sealed.Log != c.lanes[0].sealed.Log
	}
	c.all = false
	c.over, c.ended = nil, false
	if again {
		// Offsets of two logs do not compare.
		c.settleAll()
		return
	}
	if log := c.lanes[0].sealed.Log; log != c.log {
		c.log, c.committed = log, -1
	}
	c.rewind()
	c.arm()
	c.commit()
	if rival {
		c.rest()
	}
}

// read counts a chunk and books it.
func (c *consumer) read(ch Chunk) {
	p := c.p
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

// rest gives way to another process that counts this partition.
func (c *consumer) rest() {
	c.conflicts++
	if c.conflicts < 2 {
		return
	}
	if c.conflicts == 2 {
		c.p.cfg.Logger.Warn("another process counts this partition too: counts stay exact, but both are slowed down", "partition", c.id)
	}
	wait := min(rivalWait<<min(c.conflicts-2, 10), maxWait)
	c.restAt = time.Now().Add(wait/2 + rand.N(wait/2))
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
