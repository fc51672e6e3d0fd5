package channel

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble"
)

// Config configures a Source.
type Config struct {
	// ID names the source's one partition in the sink. It must be unique among
	// the processes that share the sink, and stable over restarts: a pod's
	// name, say. Required.
	ID string

	// Events is where the events come from. The source receives from it while
	// a pipeline runs, and sets each Event's Offset itself. The sender closes
	// it when this run is over: Run then counts the rest and returns. Required.
	Events <-chan tumble.Event

	// Final says that no other run will go on with this ID: a batch, a test.
	// The windows of the last events then close with the channel. Without it
	// they stay open and hold nobody up, so that a service that is restarted
	// goes on counting in the minute, or the day, in which it stopped.
	Final bool

	// MaxKept bounds the events that are kept until they are counted: once it
	// is reached, by up to 1,023 more, the source receives nothing until the
	// sink has caught up, and senders wait. An event costs 48 bytes and those
	// of its key. Defaults to 1,000,000.
	MaxKept int
}

const (
	defaultMaxKept = 1_000_000
	maxWait        = 500 * time.Millisecond // an empty Chunk comes at least this often
)

// A Source reads one channel. Its methods are for a pipeline. After a
// pipeline's Run has returned another one may run with it, which goes on where
// the first stopped. Two at the same time are an error.
type Source struct {
	cfg     Config
	log     string // set by New, and perhaps again by the first call of Partitions
	asked   atomic.Bool
	running atomic.Bool
	part    partition
}

// New returns a source whose run begins now.
func New(cfg Config) (*Source, error) {
	switch {
	case cfg.ID == "":
		return nil, errors.New("channel: ID is empty, must name the partition")
	case cfg.Events == nil:
		return nil, errors.New("channel: Events is nil, must be the channel to read")
	case cfg.MaxKept < 0:
		return nil, fmt.Errorf("channel: MaxKept is %d, must be positive, or 0 for %d", cfg.MaxKept, defaultMaxKept)
	case cfg.MaxKept == 0:
		cfg.MaxKept = defaultMaxKept
	}
	s := &Source{cfg: cfg, log: runName(time.Now())}
	s.part = partition{source: s, wake: make(chan struct{}, 1)}
	s.part.kept.max = int64(cfg.MaxKept)
	return s, nil
}

// Runs of one ID are in the order of their names.
const (
	nameLayout = "20060102T150405.000000000Z"
	nameLen    = len(nameLayout) + 1 + 8 // the time, a dash, four random bytes
)

func runName(start time.Time) string {
	var random [4]byte
	rand.Read(random[:]) // never fails
	return start.UTC().Format(nameLayout) + "-" + hex.EncodeToString(random[:])
}

// Partitions returns this run, which counts from its first event.
//
// Its first call moves the run behind the stored one: that a run starts later
// is known by what it finds, and must not hang on a clock that was set back.
func (s *Source) Partitions(_ context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	if !s.asked.Swap(true) {
		if have := stored[s.cfg.ID].Log; have >= s.log && len(have) == nameLen {
			if start, err := time.Parse(nameLayout, have[:len(nameLayout)]); err == nil {
				s.log = runName(start.Add(1))
			}
		}
	}
	return map[string]tumble.Checkpoint{s.cfg.ID: {Log: s.log}}, nil
}

// A LostError is returned by Run when it ends before all events are counted:
// its context ended, or an error ended it. A pipeline that runs with the same
// Source afterwards still counts them; nothing else can.
type LostError struct {
	ID string // of the source

	// Events is how many were received, or lay in the channel when Run
	// returned, from the first on that some shard of the sink has not counted.
	// It is an upper bound: other shards may have counted some of them. Senders
	// that wait at a full channel cannot be seen.
	Events int64
}

func (e *LostError) Error() string {
	return fmt.Sprintf("channel: %s: stopped with up to %d events that are not counted: they are lost unless a pipeline runs with this Source again (to lose none, close the channel and wait for Run to return, instead of ending its context)",
		e.ID, e.Events)
}

// Run calls consume for the one partition and returns when it has returned. If
// events are left then that are not counted, the error wraps a [LostError].
func (s *Source) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	if s.running.Swap(true) {
		return fmt.Errorf("channel: %s is being run already", s.cfg.ID)
	}
	defer s.running.Store(false)
	var err error
	var wg sync.WaitGroup
	wg.Go(func() { err = consume(ctx, &s.part) })
	wg.Wait()
	stopped := ctx.Err() != nil
	if stopped && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Cause(ctx))) {
		// Not joined with a LostError, which must not pass for a mere stop.
		err = nil
	}
	n := s.part.uncounted()
	switch {
	case n == 0 || err == nil && !stopped:
		return err
	case err == nil:
		return &LostError{s.cfg.ID, n}
	}
	return errors.Join(err, &LostError{s.cfg.ID, n})
}

// partition is the channel as a log: the events that were received and are not yet counted.
// All but committed and wake belongs to the goroutine that fetches.
type partition struct {
	source *Source
	kept   kept
	closed bool        // the channel is closed and empty
	timer  *time.Timer // of Fetch

	committed atomic.Int64  // as Committed said; kept follows at the next call
	wake      chan struct{} // holds an element when committed has moved
}

var (
	_ tumble.Source    = (*Source)(nil)
	_ tumble.Partition = (*partition)(nil)
	_ tumble.Committer = (*partition)(nil)
)

func (p *partition) ID() string { return p.source.cfg.ID }

// Committed lets go of the events before offset. It is safe beside Fetch: what
// is let go is reused by the next Fetch, when the Chunk before it has had its
// time.
func (p *partition) Committed(offset int64) {
	for {
		have := p.committed.Load()
		if offset <= have {
			return
		}
		if p.committed.CompareAndSwap(have, offset) {
			break
		}
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Resume goes on at stored if it is of this run and the events after it are still kept,
// else at the first event that is.
func (p *partition) Resume(_ context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	first := min(p.committed.Load(), p.kept.next)
	log := p.source.log
	switch {
	case stored.Log > log && len(stored.Log) == nameLen:
		return tumble.Checkpoint{}, fmt.Errorf("channel: %s was taken over by another process, whose run %s began after this one, %s: its ID must be this process's alone",
			p.ID(), stored.Log, log)
	case stored.Log != log:
		return tumble.Checkpoint{Log: log, Offset: first, Watermark: stored.Watermark}, nil
	case stored.Offset > p.kept.next:
		return tumble.Checkpoint{}, fmt.Errorf("channel: %s: stored is offset %d, but run %s has only received %d events", p.ID(), stored.Offset, log, p.kept.next)
	}
	stored.Offset = max(stored.Offset, first)
	return stored, nil
}

// Fetch returns the kept events from from on. If there are none, it receives.
func (p *partition) Fetch(ctx context.Context, at tumble.Position) (tumble.Chunk, error) {
	from := at.Offset // a channel has no epochs
	if err := ctx.Err(); err != nil {
		return tumble.Chunk{}, err
	}
	k := &p.kept
	k.drop(min(p.committed.Load(), k.next))
	if from < k.first || from > k.next {
		return tumble.Chunk{}, fmt.Errorf("channel: fetch %s@%d: %w: kept are the events from %d to %d", p.ID(), from, tumble.ErrOffsetOutOfRange, k.first, k.next)
	}
	asOf := time.Now()
	if from == k.next && !p.closed {
		if p.receive(); k.next == from && !p.closed {
			// Nothing was there, so there is time to look at the clock again.
			if err := p.await(ctx); err != nil {
				return tumble.Chunk{}, err
			}
			asOf = time.Now()
		}
	}
	if from == k.next && p.closed {
		if p.source.cfg.Final {
			return tumble.Chunk{}, tumble.ErrFinal
		}
		return tumble.Chunk{}, tumble.ErrEnded
	}
	events := k.from(from)
	next := from + int64(len(events))
	return tumble.Chunk{Events: events, Next: next, End: p.end(), AsOf: asOf}, nil
}

// end returns the end of the log: the events received, and those that lie in the
// channel. Senders that wait behind it cannot be seen. At the limit there might
// be some.
func (p *partition) end() int64 {
	waiting := int64(len(p.source.cfg.Events))
	if p.kept.full() && !p.closed {
		waiting = max(waiting, 1)
	}
	return p.kept.next + waiting
}

// uncounted returns how many events were received, or lie in the channel, that
// some shard does not hold.
func (p *partition) uncounted() int64 {
	return p.kept.next - min(p.committed.Load(), p.kept.next) + int64(len(p.source.cfg.Events))
}

// receive takes the events that lie in the channel, a segment at most, and does not wait.
func (p *partition) receive() {
	if p.kept.full() {
		return
	}
	seg := p.kept.open()
	n := len(seg.events)
	free := seg.events[n:cap(seg.events)]
	offset := p.kept.next
	for i := range free {
		select {
		case e, ok := <-p.source.cfg.Events:
			if !ok {
				p.closed = true
				p.kept.took(i)
				return
			}
			e.Offset = offset + int64(i)
			free[i] = e
		default:
			p.kept.took(i)
			return
		}
	}
	p.kept.took(len(free))
}

// await waits for an event and receives all that came, or for room, and not longer
// than maxWait.
func (p *partition) await(ctx context.Context) error {
	if p.timer == nil {
		p.timer = time.NewTimer(maxWait)
	} else {
		p.timer.Reset(maxWait)
	}
	defer p.timer.Stop()
	for {
		events, wake := p.source.cfg.Events, p.wake
		if p.kept.full() {
			events = nil
		} else {
			wake = nil
		}
		select {
		case e, ok := <-events:
			if !ok {
				p.closed = true
				return nil
			}
			p.kept.add(e)
			p.receive()
			return nil
		case <-wake:
			p.kept.drop(min(p.committed.Load(), p.kept.next))
		case <-p.timer.C:
			p.kept.rest()
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
