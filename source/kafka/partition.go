package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	// chunkEvents is about how many events a Chunk holds: enough to pay for the
	// call, few enough to stay in the processor's cache.
	chunkEvents = 1024
	// quiet is how long Fetch waits at most. The contract allows 500 ms.
	quiet = 400 * time.Millisecond
	// pulse is the least time between two empty Chunks.
	pulse = 200 * time.Millisecond
)

// Event times that the pipeline's arithmetic on nanoseconds can hold.
var (
	minTime = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	maxTime = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
)

// A partition hands out the events of one partition while it is assigned to this
// process. Except for feed, its fields belong to the consuming goroutine.
type partition struct {
	src   *Source
	fetch *fetcher
	n     int32
	id    string
	end   int64   // with UntilEnd: where to stop, else -1
	about *report // shared by all that read this partition in this process

	pos    int64 // next offset to read, -1 before the first Fetch
	epoch  int32 // of the record before pos, -1 if unknown
	filter filter
	reader batchReader
	spent  []*buffer // nothing but the last Chunk needs them
	events []tumble.Event
	failed error     // to be returned after the last Chunk
	shown  time.Time // AsOf of the last Chunk
	spoke  time.Time // when the last Chunk was returned
	timer  *time.Timer

	rejected, skipped int64 // in the Chunk at hand

	served   context.Context // for OnReject: ends when the partition must be given up
	telling  *telling        // the record after pos, which waits for OnReject, nil for none
	lastTold *telling        // the last that began, perhaps dropped, nil for none

	yielded atomic.Bool // to another process

	feed feed // the fetcher's
}

// ID implements [tumble.Partition].
func (p *partition) ID() string { return p.id }

// Yield implements [tumble.Yielder].
func (p *partition) Yield() bool {
	if !p.fetch.unsure() {
		return false
	}
	p.yielded.Store(true)
	return true
}

// Committed implements [tumble.Committer].
func (p *partition) Committed(offset int64) { p.fetch.noteCommitted(p.n, offset) }

func (p *partition) errorf(from tumble.Position, err error) error {
	return fmt.Errorf("kafka: fetch %s@%d: %w", p.id, from.Offset, err)
}

// Fetch implements [tumble.Partition].
func (p *partition) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	for _, b := range p.spent {
		b.free()
	}
	p.spent = p.spent[:0]
	if err := ctx.Err(); err != nil {
		return tumble.Chunk{}, err
	}
	if p.end >= 0 && from.Offset >= p.end {
		return tumble.Chunk{}, io.EOF
	}
	if from.Offset != p.pos || from.Epoch != p.epoch && from.Epoch >= 0 {
		p.seek(from)
	}
	var until time.Time
	for {
		if p.feed.cut.Load() {
			p.seek(from) // the log does not hold the prefetched records any more
		}
		if p.failed == nil {
			p.failed = p.read(from.Offset)
			if p.pos > from.Offset {
				now := p.fetch.end(p)
				now.end = max(now.end, p.pos)
				return p.chunk(now), nil
			}
		}
		if err := p.failed; err != nil {
			p.halt()
			return tumble.Chunk{}, p.trouble(from, err)
		}
		if p.telling != nil {
			if until.IsZero() {
				until = time.Now().Add(quiet)
			}
			told, err := p.awaitTold(ctx, time.Until(until))
			switch {
			case told:
				continue
			case ctx.Err() != nil:
				return tumble.Chunk{}, ctx.Err()
			case err != nil:
				return tumble.Chunk{}, p.errorf(from, err)
			}
			now := p.fetch.end(p)
			now.end = max(now.end, p.telling.offset+1)
			return p.chunk(now), nil
		}
		s, state := p.fetch.take(p)
		if s != nil {
			p.begin(s)
			continue
		}
		if state.err != nil {
			p.halt()
			return tumble.Chunk{}, p.trouble(from, state.err)
		}
		now := time.Now()
		if until.IsZero() {
			until = now.Add(quiet)
		}
		wake := until
		if due := p.spoke.Add(pulse); state.asOf.After(p.shown) && due.Before(wake) {
			wake = due
		}
		if !now.Before(wake) {
			if state.stuck != nil {
				return tumble.Chunk{}, p.errorf(from, state.stuck)
			}
			if state.end >= 0 && p.end > state.end && p.pos >= state.end {
				p.shrunk(ctx)
				if p.pos >= p.end {
					return tumble.Chunk{}, io.EOF
				}
			}
			return p.chunk(state), nil
		}
		if err := p.wait(ctx, wake.Sub(now)); err != nil {
			return tumble.Chunk{}, err
		}
	}
}

// wait returns when there is news from the fetcher, after d, or when ctx ends.
func (p *partition) wait(ctx context.Context, d time.Duration) error {
	if p.timer == nil {
		p.timer = time.NewTimer(d)
	} else {
		p.timer.Reset(d)
	}
	defer p.timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-p.feed.news:
	case <-p.timer.C:
	}
	return nil
}

func (p *partition) chunk(at state) tumble.Chunk {
	c := tumble.Chunk{Events: p.events, Next: p.pos, Epoch: p.epoch, End: at.end, AsOf: at.asOf, Waits: at.waits, Rejected: p.rejected, Skipped: p.skipped}
	p.events, p.rejected, p.skipped = p.events[:0], 0, 0
	p.shown, p.spoke = at.asOf, time.Now()
	return c
}

// trouble makes of err the error that Fetch returns.
func (p *partition) trouble(from tumble.Position, err error) error {
	if fatal := new(fatalError); errors.As(err, &fatal) {
		fatal = &fatalError{p.errorf(from, fatal.err)}
		p.fetch.stop(fatal)
		return fatal.err
	}
	if errors.Is(err, tumble.ErrOffsetOutOfRange) || errors.Is(err, tumble.ErrTruncated) {
		p.src.forget(p.n)
	}
	return p.errorf(from, err)
}

// seek drops prefetched records and goes on at from.
func (p *partition) seek(from tumble.Position) {
	p.drop()
	p.pos, p.epoch = from.Offset, from.Epoch
	p.fetch.seek(p, from)
}

// halt drops prefetched records, so that the next Fetch seeks.
func (p *partition) halt() {
	p.seek(tumble.Position{Offset: -1, Epoch: -1})
}

// drop lets go of the records at hand.
func (p *partition) drop() {
	p.dropTelling()
	p.reader.close(&p.spent)
	p.events, p.failed = p.events[:0], nil
	p.filter = filter{}
}

// begin starts to read s.
func (p *partition) begin(s *segment) {
	p.filter = filter{aborted: s.aborted, active: p.filter.active[:0]}
	p.reader.begin(s)
}

// read decodes records into p.events until there are enough of them, the
// segment at hand is read, or it cannot go on. It does not go from one leader
// epoch into the next, unless nothing has been passed since offset from. p.pos
// and p.epoch tell how far it came.
func (p *partition) read(from int64) error {
	if p.telling != nil {
		if passed, err := p.passTold(0); !passed {
			return err
		}
	}
	r := record{Message: Message{Topic: p.src.cfg.Topic, Partition: p.n}}
	for len(p.events) < chunkEvents {
		status, err := p.reader.next(&r, &p.filter, p.pos, &p.spent)
		switch {
		case err != nil:
			return err
		case status == atBatchEnd:
			if next := p.reader.batch.next(); next > p.pos {
				p.pos, p.epoch = next, p.reader.batch.epoch
			}
			if p.pos > from && p.reader.leaves(p.epoch) {
				return nil
			}
			continue
		case status == atSegmentEnd:
			return nil
		}
		switch err := p.decode(&r); {
		case err == errTelling:
			if passed, err := p.passTold(tellAtOnce); !passed {
				return err
			}
			continue
		case err != nil:
			return err
		}
		p.pos, p.epoch = r.Offset+1, p.reader.batch.epoch
	}
	return nil
}

// once reports whether the record at offset, which is being read, has not been
// told of.
func (p *partition) once(offset int64) bool {
	return p.about.once(offset, p.reader.batch.epoch)
}

// decode appends the events of r. It fails only where the record must not be
// passed.
func (p *partition) decode(r *record) error {
	if r.Value == nil {
		if p.once(r.Offset) {
			p.skipped++
		}
		return nil
	}
	if cap(p.events) == 0 {
		p.events = make([]tumble.Event, 0, 64) // see appends
	}
	n := len(p.events)
	events, err := p.src.cfg.Decode(p.events, r.Message)
	if err == nil {
		if !appends(p.events, events) {
			return &fatalError{fmt.Errorf("record at offset %d: Config.Decode returned a slice that is not the one it was given with events appended: it must return append(dst, ...), or dst", r.Offset)}
		}
		err = p.judge(events[n:], r)
	}
	if err != nil {
		return p.reject(r.Message, err)
	}
	p.events = events
	if len(events) == n && p.once(r.Offset) {
		p.skipped++
	}
	return nil
}

// maxKeys bounds the bytes of the keys of one record, which go into one batch.
const maxKeys = 8 << 20

// appends reports whether after is before, which has room, with events appended to
// it.
func appends(before, after []tumble.Event) bool {
	n := len(before)
	switch {
	case len(after) < n:
		return false
	case len(after) <= cap(before):
		return len(after) == 0 || &after[0] == &before[:1][0]
	}
	return n == 0 || after[n-1] == before[n-1] // in a larger array
}

// judge gives the events of r their offset and looks at their times and keys.
func (p *partition) judge(events []tumble.Event, r *record) error {
	skew := p.src.cfg.MaxSkew
	judged := skew >= 0 && !r.Time.IsZero()
	soon := maxTime // an event before that second is within skew
	if judged {
		soon = min(soon, r.ms/1000+int64(skew/time.Second))
	}
	keys := 0
	for i := range events {
		e := &events[i]
		e.Offset = r.Offset
		if keys += len(e.Key); len(e.Key) > p.src.cfg.MaxKey {
			return fmt.Errorf("the key has %d bytes, more than Config.MaxKey, %d", len(e.Key), p.src.cfg.MaxKey)
		} else if keys > maxKeys {
			return fmt.Errorf("the keys of its events have more than %d bytes", maxKeys)
		}
		s := e.Time.Unix()
		if s >= minTime && s < soon {
			continue
		}
		if s < minTime || s >= maxTime {
			return fmt.Errorf("event time %s is not in the years 1700 to 2199", e.Time.UTC().Format(time.RFC3339))
		}
		if judged && e.Time.After(r.Time.Add(skew)) {
			return fmt.Errorf("event time %s is more than %v beyond the record's own, %s", e.Time.UTC().Format(time.RFC3339Nano), skew, r.Time.Format(time.RFC3339Nano))
		}
	}
	return nil
}

var (
	_ tumble.Partition = (*partition)(nil)
	_ tumble.Committer = (*partition)(nil)
	_ tumble.Yielder   = (*partition)(nil)
)
