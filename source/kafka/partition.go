package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	// chunkEvents is about how many events a Chunk holds: enough to pay for the
	// call, few enough to stay in the processor's cache.
	chunkEvents = 1024
	// quiet is how long Fetch waits at most; the contract allows 500 ms.
	quiet = 400 * time.Millisecond
	// pulse is the least time between two empty Chunks.
	pulse = 200 * time.Millisecond
)

// Event times that the pipeline's arithmetic on nanoseconds can hold.
var (
	minTime = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	maxTime = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
)

// fatalError ends the run; nothing that is tried again helps.
type fatalError struct{ err error }

func (f *fatalError) Error() string { return f.err.Error() }

// A partition hands out the events of one partition while it is assigned to
// this process. The consuming goroutine owns what is not said to be the
// fetcher's.
type partition struct {
	src   *Source
	fetch *fetcher
	n     int32
	id    string
	end   int64   // with UntilEnd: where to stop; else -1
	about *report // shared by all that read this partition in this process

	pos    int64 // where reading is; -1: nowhere yet
	filter filter
	reader batchReader
	spent  []*buffer // nothing but the last Chunk needs them
	events []tumble.Event
	failed error     // what follows the last Chunk
	shown  time.Time // AsOf of the last Chunk
	spoke  time.Time // when the last Chunk was returned
	timer  *time.Timer

	rejected, skipped int64 // in the Chunk at hand

	feed feed // the fetcher's
}

// ID implements [tumble.Partition].
func (p *partition) ID() string { return p.id }

// Committed implements [tumble.Committer].
func (p *partition) Committed(offset int64) { p.fetch.noteCommitted(p.n, offset) }

func (p *partition) errorf(from int64, err error) error {
	return fmt.Errorf("kafka: fetch %s@%d: %w", p.id, from, err)
}

// Resume implements [tumble.Partition].
func (p *partition) Resume(ctx context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	name, truncations := splitLog(stored.Log)
	verdict := func(b bounds) (tumble.Checkpoint, error) {
		switch now := b.log.String(); {
		case name != now && p.src.cfg.OnRecreated == GoOn:
			return tumble.Checkpoint{Log: now, Origin: b.first, Offset: b.first, Watermark: stored.Watermark}, nil
		case name != now:
			return stored, fmt.Errorf("kafka: %s@%d: the topic was recreated: its id was %s, now it is %s; what the old one held from offset %d on was not counted (Config.OnRecreated)", p.id, stored.Offset, name, now, stored.Offset)
		case stored.Offset > b.last && p.src.cfg.OnTruncated == GoOn:
			return tumble.Checkpoint{Log: joinLog(name, truncations+1), Origin: b.first, Offset: b.first, Watermark: stored.Watermark}, nil
		case stored.Offset > b.last:
			return stored, fmt.Errorf("kafka: %s@%d: the log was truncated: it ends at offset %d, counts reach to %d (Config.OnTruncated)", p.id, stored.Offset, b.last, stored.Offset)
		case stored.Offset < b.first && p.src.cfg.OnGap == GoOn:
			stored.Offset = b.first
			return stored, nil
		case stored.Offset < b.first:
			return stored, fmt.Errorf("kafka: %s@%d: retention deleted offsets %d to %d before they were counted (Config.OnGap)", p.id, stored.Offset, stored.Offset, b.first-1)
		}
		return stored, nil
	}
	fine := func(b bounds) bool {
		return name == b.log.String() && stored.Offset >= b.first && stored.Offset <= b.last
	}
	// Every shard asks, so what was learned a moment ago is good enough for a
	// yes. Nobody is told a no that was not just looked up, twice: brokers
	// learn of a new topic or a new leader one after the other.
	b, fresh := p.src.recall(p.n)
	if !fresh || !fine(b) {
		for try := range 2 {
			if try > 0 {
				select {
				case <-ctx.Done():
				case <-time.After(quiet):
				}
			}
			var err error
			if b, err = p.src.look(ctx, p.n); err != nil {
				if ctx.Err() != nil {
					return stored, ctx.Err()
				}
				return stored, fmt.Errorf("kafka: resume %s@%d: %w: %w", p.id, stored.Offset, tumble.ErrUnavailable, err)
			}
			if fine(b) {
				break
			}
		}
	}
	c, err := verdict(b)
	if err != nil {
		return stored, err
	}
	if log, _ := splitLog(c.Log); log != name && p.end >= 0 {
		p.end = b.last // the old log's end says nothing about the new one
	}
	p.about.begin(c.Log)
	p.fetch.setLog(p, b.log, b.asOf)
	return c, nil
}

// A log that was truncated and is counted once more gets a name of its own:
// the topic id and how often that happened.
func splitLog(log string) (id string, truncations int) {
	id, n, _ := strings.Cut(log, "+")
	truncations, _ = strconv.Atoi(n)
	return id, truncations
}

func joinLog(id string, truncations int) string { return id + "+" + strconv.Itoa(truncations) }

// begin notes which log is read from now on.
func (r *report) begin(log string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.log == log {
		return
	}
	// The lanes of a truncated log come one after the other; those that still
	// hold the older name read the same records.
	id, n := splitLog(log)
	if had, m := splitLog(r.log); had == id && m >= n {
		return
	}
	r.log, r.upTo = log, 0
}

// once reports whether the record at offset has not been told of.
func (r *report) once(offset int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset < r.upTo {
		return false
	}
	r.upTo = offset + 1
	return true
}

// recall returns the bounds of a partition as they were at most a second ago.
func (s *Source) recall(n int32) (bounds, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.bounds[n]
	return b, ok && time.Since(b.asOf) < time.Second
}

func (s *Source) forget(n int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.bounds, n)
}

// look asks the cluster for the bounds of a partition.
func (s *Source) look(ctx context.Context, n int32) (bounds, error) {
	asked := time.Now()
	lay, err := s.client.layout(ctx)
	if err != nil {
		return bounds{}, err
	}
	l, ok := lay.partitions[n]
	if !ok {
		return bounds{}, fmt.Errorf("topic %q has no partition %d", s.cfg.Topic, n)
	}
	if l.leader < 0 {
		return bounds{}, errNoLeader
	}
	one := map[int32]leadership{n: l}
	b := bounds{log: lay.id, asOf: asked}
	first, err := s.client.offsets(ctx, l.leader, one, earliest)
	if err != nil {
		return bounds{}, err
	}
	last, err := s.client.offsets(ctx, l.leader, one, latest)
	if err != nil {
		return bounds{}, err
	}
	b.first, b.last = first[n], last[n]
	s.mu.Lock()
	s.bounds[n] = b
	s.mu.Unlock()
	return b, nil
}

// Fetch implements [tumble.Partition].
func (p *partition) Fetch(ctx context.Context, from int64) (tumble.Chunk, error) {
	for _, b := range p.spent {
		b.free()
	}
	p.spent = p.spent[:0]
	if err := ctx.Err(); err != nil {
		return tumble.Chunk{}, err
	}
	if p.end >= 0 && from >= p.end {
		return tumble.Chunk{}, io.EOF
	}
	if from != p.pos {
		p.seek(from)
	}
	var until time.Time
	for {
		if p.failed == nil {
			p.failed = p.read()
			if p.pos > from {
				end, asOf := p.fetch.end(p)
				return p.chunk(max(end, p.pos), asOf), nil
			}
		}
		if err := p.failed; err != nil {
			p.halt()
			return tumble.Chunk{}, p.trouble(from, err)
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
			return p.chunk(state.end, state.asOf), nil
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

func (p *partition) chunk(end int64, asOf time.Time) tumble.Chunk {
	c := tumble.Chunk{Events: p.events, Next: p.pos, End: end, AsOf: asOf, Rejected: p.rejected, Skipped: p.skipped}
	p.events, p.rejected, p.skipped = p.events[:0], 0, 0
	p.shown, p.spoke = asOf, time.Now()
	return c
}

// trouble makes of err what Fetch returns.
func (p *partition) trouble(from int64, err error) error {
	if fatal := new(fatalError); errors.As(err, &fatal) {
		fatal = &fatalError{p.errorf(from, fatal.err)}
		p.fetch.stop(fatal)
		return fatal.err
	}
	if errors.Is(err, tumble.ErrOffsetOutOfRange) {
		p.src.forget(p.n)
	}
	return p.errorf(from, err)
}

// seek drops what was read ahead and goes on at offset from.
func (p *partition) seek(from int64) {
	p.drop()
	p.pos = from
	p.fetch.seek(p, from)
}

// halt drops what was read ahead; the next Fetch seeks.
func (p *partition) halt() {
	p.drop()
	p.pos = -1
	p.fetch.seek(p, -1)
}

// drop lets go of what is being read.
func (p *partition) drop() {
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
// segment at hand is read, or it cannot go on. p.pos tells how far it came.
func (p *partition) read() error {
	r := record{Message: Message{Topic: p.src.cfg.Topic, Partition: p.n}}
	for len(p.events) < chunkEvents {
		status, err := p.reader.next(&r, &p.filter, p.pos, &p.spent)
		switch {
		case err != nil:
			return err
		case status == atBatchEnd:
			p.pos = max(p.pos, p.reader.batch.next())
			continue
		case status == atSegmentEnd:
			return nil
		}
		if err := p.decode(&r); err != nil {
			return err
		}
		p.pos = r.Offset + 1
	}
	return nil
}

// decode appends the events of r. It fails only where the record must not be
// passed.
func (p *partition) decode(r *record) error {
	if r.Value == nil {
		if p.about.once(r.Offset) {
			p.skipped++
		}
		return nil
	}
	n := len(p.events)
	events, err := p.src.cfg.Decode(p.events, r.Message)
	if err == nil {
		err = p.judge(events[n:], r)
	}
	if err != nil {
		return p.reject(r.Message, err)
	}
	p.events = events
	if len(events) == n && p.about.once(r.Offset) {
		p.skipped++
	}
	return nil
}

// judge gives the events of r their offset and looks at their times.
func (p *partition) judge(events []tumble.Event, r *record) error {
	ahead := p.src.cfg.MaxAhead
	judged := ahead >= 0 && !r.Time.IsZero()
	soon := maxTime // an event before that second is not too far ahead
	if judged {
		soon = min(soon, r.ms/1000+int64(ahead/time.Second))
	}
	for i := range events {
		e := &events[i]
		e.Offset = r.Offset
		s := e.Time.Unix()
		if s >= minTime && s < soon {
			continue
		}
		if s < minTime || s >= maxTime {
			return fmt.Errorf("event time %s is not in the years 1700 to 2199", e.Time.UTC().Format(time.RFC3339))
		}
		if judged && e.Time.After(r.Time.Add(ahead)) {
			return fmt.Errorf("event time %s is more than %v beyond the record's own, %s", e.Time.UTC().Format(time.RFC3339Nano), ahead, r.Time.Format(time.RFC3339Nano))
		}
	}
	return nil
}

func (p *partition) reject(m Message, cause error) error {
	first := p.about.once(m.Offset)
	r := Rejected{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Cause: cause, Message: m}
	switch {
	case !first:
	case p.src.cfg.OnReject != nil:
		p.src.cfg.OnReject(r)
	case !p.src.cfg.FailOnReject:
		p.src.rejects.report(r)
	}
	if p.src.cfg.FailOnReject {
		return &fatalError{fmt.Errorf("record at offset %d rejected: %w", m.Offset, cause)}
	}
	if first {
		p.rejected++
	}
	return nil
}

// A filter knows which transactions of a segment were aborted.
type filter struct {
	aborted []abortedTxn // to come, by first offset
	active  []int64      // producers inside one
}

type abortedTxn struct{ producer, first int64 }

// drops reports whether the batch gives no records to anyone: a marker, or part
// of an aborted transaction.
func (f *filter) drops(b *batch) (bool, error) {
	if !b.txn() {
		return b.marks(), nil
	}
	// Also at a marker: reading may begin there.
	for len(f.aborted) > 0 && f.aborted[0].first < b.next() {
		if !slices.Contains(f.active, f.aborted[0].producer) {
			f.active = append(f.active, f.aborted[0].producer)
		}
		f.aborted = f.aborted[1:]
	}
	if b.marks() {
		abort, err := b.aborts()
		if i := slices.Index(f.active, b.producer); abort && i >= 0 {
			f.active = slices.Delete(f.active, i, i+1)
		}
		return true, err
	}
	return slices.Contains(f.active, b.producer), nil
}

// A batchReader goes through a segment, batch by batch, record by record.
type batchReader struct {
	unpack unpacker
	seg    *segment // nil: none
	rest   []byte   // batches to come
	batch  batch
	walker walker
	inside bool    // of batch
	plain  *buffer // what batch was decompressed to; nil: it lies in the segment
}

type status int

const (
	atRecord status = iota
	atBatchEnd
	atSegmentEnd
)

func (r *batchReader) begin(s *segment) {
	r.seg, r.rest, r.inside = s, s.data, false
}

// next sets rec to the next record at or after from. What is read to its end
// goes to spent.
func (r *batchReader) next(rec *record, f *filter, from int64, spent *[]*buffer) (st status, err error) {
	for r.seg != nil {
		if !r.inside {
			if len(r.rest) == 0 {
				err = r.seg.err
				r.close(spent)
				return atSegmentEnd, err
			}
			if r.rest, err = r.batch.parse(r.rest); err != nil {
				return atRecord, err
			}
			if err = r.batch.check(); err != nil {
				return atRecord, fmt.Errorf("batch at offset %d: %w", r.batch.base, err)
			}
			drop, err := f.drops(&r.batch)
			if err != nil {
				return atRecord, err
			}
			if drop || r.batch.next() <= from {
				return atBatchEnd, nil
			}
			records := r.batch.records
			if c := r.batch.codec(); c != codecNone {
				if r.plain, err = r.unpack.unpack(c, records); err != nil {
					return atRecord, fmt.Errorf("batch at offset %d: %w", r.batch.base, err)
				}
				records = r.plain.b
			}
			r.walker, r.inside = walk(&r.batch, records), true
		}
		ok, err := r.walker.next(rec)
		if err != nil {
			return atRecord, fmt.Errorf("batch at offset %d: %w", r.batch.base, err)
		}
		if !ok {
			r.leave(spent)
			return atBatchEnd, nil
		}
		if rec.Offset >= from {
			return atRecord, nil
		}
	}
	return atSegmentEnd, nil
}

func (r *batchReader) leave(spent *[]*buffer) {
	if r.plain != nil {
		*spent = append(*spent, r.plain)
	}
	r.plain, r.inside = nil, false
}

// close lets go of the segment.
func (r *batchReader) close(spent *[]*buffer) {
	r.leave(spent)
	if r.seg != nil {
		*spent = append(*spent, r.seg.buf)
	}
	r.seg, r.rest = nil, nil
}

var (
	_ tumble.Partition = (*partition)(nil)
	_ tumble.Committer = (*partition)(nil)
)
