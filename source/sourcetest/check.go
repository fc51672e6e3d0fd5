package sourcetest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// slack is how much longer than the contract says a call may take, on a machine
// that is busy.
const slack = time.Second

// A check is one run of a rule. Its methods end it by a panic with a failure,
// which rule turns into the rule's error. They are for the goroutine that the
// rule runs on.
type check struct {
	*Log
	ctx      context.Context
	patience time.Duration
}

type failure struct{ err error }

// rule returns a Rule whose Check is f on a new log.
func rule(name, doc string, f func(c *check)) Rule {
	return Rule{Name: name, Doc: doc, Check: func(ctx context.Context, cfg Config) (err error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		log, err := cfg.New(ctx)
		if err != nil {
			return fmt.Errorf("new log: %w", err)
		}
		if log.Close != nil {
			defer log.Close()
		}
		defer func() {
			switch r := recover().(type) {
			case nil:
			case failure:
				err = r.err
			default:
				panic(r)
			}
		}()
		c := &check{log, ctx, cfg.Patience}
		if c.patience == 0 {
			c.patience = 10 * time.Second
		}
		f(c)
		return nil
	}}
}

func needing(needs func(l *Log) bool, r Rule) Rule {
	r.Needs = needs
	return r
}

func (c *check) failf(format string, args ...any) {
	panic(failure{fmt.Errorf(format, args...)})
}

// ok ends the check if err is not nil.
func (c *check) ok(err error, doing string, args ...any) {
	if err != nil {
		c.failf("%s: %w", fmt.Sprintf(doing, args...), err)
	}
}

// an event as a rule remembers it.
type record struct {
	key    string
	time   time.Time
	offset int64
	epoch  int32           // of its Chunk
	at     tumble.Position // at which reading may begin with it
}

func (r record) same(s record) bool {
	return r.key == s.key && r.time.Equal(s.time) && r.offset == s.offset && r.epoch == s.epoch
}

func (r record) String() string {
	return fmt.Sprintf("%q at %v, offset %d, epoch %d", r.key, r.time, r.offset, r.epoch)
}

// remember returns the events that Fetch of a position brought.
func remember(from tumble.Position, chunk tumble.Chunk) []record {
	records := make([]record, len(chunk.Events))
	for i, e := range chunk.Events {
		at := tumble.Position{Offset: e.Offset, Epoch: chunk.Epoch}
		if e.Offset == from.Offset {
			at = from
		}
		records[i] = record{strings.Clone(e.Key), e.Time, e.Offset, chunk.Epoch, at}
	}
	return records
}

// events returns n events with keys of their own, the i-th as the from+i-th.
func events(from, n int) []tumble.Event {
	t0 := time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)
	all := make([]tumble.Event, n)
	for i := range all {
		// Event time is not in order.
		all[i] = tumble.Event{Key: fmt.Sprintf("key%d", from+i), Time: t0.Add(time.Duration((from+i)*7919%100_000) * time.Millisecond)}
	}
	return all
}

// append writes events.
func (c *check) append(partition string, events ...tumble.Event) {
	c.ok(c.Append(c.ctx, partition, events...), "Log.Append of %d events to %s", len(events), partition)
}

// arrived ends the check if got are not the events want, in order.
func (c *check) arrived(got []record, want []tumble.Event) {
	for i, r := range got {
		if i >= len(want) {
			break
		}
		if r.key != want[i].Key || !r.time.Equal(want[i].Time) {
			c.failf("event %d is %q at %v, want %q at %v", i, r.key, r.time, want[i].Key, want[i].Time)
		}
	}
	if len(got) != len(want) {
		c.failf("%d events came, want %d", len(got), len(want))
	}
}

// partitions calls Partitions of s.
func (c *check) partitions(s tumble.Source, stored map[string]tumble.Checkpoint) map[string]tumble.Checkpoint {
	got, err := s.Partitions(c.ctx, stored)
	c.ok(err, "Partitions")
	return got
}

// reading runs the source and calls f, on the rule's goroutine, with all its
// partitions, by ID. Then it ends the run, which must return nil.
func (c *check) reading(f func(ctx context.Context, all map[string]*reader)) {
	begin := c.partitions(c.Source, nil)
	ctx, cancel := context.WithCancel(c.ctx)
	var mu sync.Mutex
	all := make(map[string]*reader)
	have := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- c.Source.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
			mu.Lock()
			all[p.ID()] = &reader{c, ctx, p, begin[p.ID()]}
			if len(all) == len(c.Log.Partitions) {
				close(have)
			}
			mu.Unlock()
			<-ctx.Done()
			return nil
		})
	}()
	// Run is waited for also when f ends the check.
	wait := func() error {
		cancel()
		select {
		case err := <-ended:
			return err
		case <-time.After(c.patience):
			return fmt.Errorf("it has not returned after %v", c.patience)
		}
	}
	done := false
	defer func() {
		if !done {
			wait()
		}
	}()
	select {
	case <-have:
	case err := <-ended:
		done = true
		cancel()
		c.failf("Run returned before it called consume for every partition: %v", err)
	case <-time.After(c.patience):
		mu.Lock()
		n := len(all)
		mu.Unlock()
		c.failf("Run has called consume for %d of %d partitions after %v", n, len(c.Log.Partitions), c.patience)
	}
	mu.Lock()
	defer mu.Unlock()
	f(ctx, all)
	done = true
	c.ok(c.stopped(wait()), "Run, whose context ended")
}

// stopped returns an error that Run should not have returned when its context ended.
func (c *check) stopped(err error) error {
	if err != nil && c.Lost != nil && c.Lost(err) > 0 {
		return nil
	}
	return err
}

// one runs the source and calls f with its first partition, from where counting
// begins, after Resume.
func (c *check) one(f func(r *reader, begin tumble.Position)) {
	c.reading(func(ctx context.Context, all map[string]*reader) {
		r := all[c.Log.Partitions[0]]
		if r == nil {
			c.failf("consume was not called for %s", c.Log.Partitions[0])
		}
		f(r, at(r.resume(r.begin)))
	})
}

func at(c tumble.Checkpoint) tumble.Position {
	return tumble.Position{Offset: c.Offset, Epoch: c.Epoch}
}

// A reader reads a partition as a pipeline does.
type reader struct {
	*check
	ctx   context.Context
	p     tumble.Partition
	begin tumble.Checkpoint // as Partitions said
}

// resume calls Resume, which must not fail.
func (r *reader) resume(stored tumble.Checkpoint) tumble.Checkpoint {
	got, err := r.settle(stored)
	r.ok(err, "Resume(%v) of %s", stored, r.p.ID())
	return got
}

// settle calls Resume, again while an error is transient.
func (r *reader) settle(stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	for end := time.Now().Add(r.patience); ; time.Sleep(20 * time.Millisecond) {
		got, err := r.p.Resume(r.ctx, stored)
		if err == nil || !errors.Is(err, tumble.ErrUnavailable) || time.Now().After(end) {
			return got, err
		}
	}
}

// fetch calls Fetch, again while an error is transient.
func (r *reader) fetch(from tumble.Position) (tumble.Chunk, error) {
	for end := time.Now().Add(r.patience); ; time.Sleep(20 * time.Millisecond) {
		chunk, err := r.p.Fetch(r.ctx, from)
		switch {
		case err == nil, errors.Is(err, io.EOF), errors.Is(err, tumble.ErrEnded), errors.Is(err, tumble.ErrOffsetOutOfRange), errors.Is(err, tumble.ErrTruncated):
			return chunk, err
		case time.Now().After(end):
			r.failf("Fetch(%v) of %s: %w", from, r.p.ID(), err)
		}
	}
}

// stored is a checkpoint at a position of the log that the reader began with.
func (r *reader) stored(at tumble.Position) tumble.Checkpoint {
	return tumble.Checkpoint{Log: r.begin.Log, Origin: r.begin.Origin, Offset: at.Offset, Epoch: at.Epoch}
}

// A piece holds the records of one Fetch.
type piece struct {
	tumble.Chunk                 // its Events are no longer valid
	from         tumble.Position // that was asked for
	records      []record        // of its Events
}

// next returns the position to fetch next.
func (p piece) next() tumble.Position {
	if p.Next == p.from.Offset {
		return p.from
	}
	return tumble.Position{Offset: p.Next, Epoch: p.Epoch}
}

// read fetches from a position until n events have come, and returns them and
// the pieces they came in.
func (r *reader) read(from tumble.Position, n int) ([]record, []piece) {
	var records []record
	var pieces []piece
	for end := time.Now().Add(r.patience); len(records) < n; {
		chunk, err := r.fetch(from)
		r.ok(err, "Fetch(%v) of %s after %d of %d events", from, r.p.ID(), len(records), n)
		p := piece{chunk, from, remember(from, chunk)}
		records, pieces = append(records, p.records...), append(pieces, p)
		if len(chunk.Events) > 0 && chunk.Next <= from.Offset {
			r.failf("Fetch(%v) brought %d events and Next %d: reading would not go on", from, len(chunk.Events), chunk.Next)
		}
		from = p.next()
		if len(records) < n && time.Now().After(end) {
			r.failf("%d of %d events have come after %v", len(records), n, r.patience)
		}
	}
	return records, pieces
}

// quiet fetches from a position until an empty Chunk comes.
func (r *reader) quiet(from tumble.Position) piece {
	for end := time.Now().Add(r.patience); ; {
		chunk, err := r.fetch(from)
		r.ok(err, "Fetch(%v) of %s", from, r.p.ID())
		p := piece{Chunk: chunk, from: from}
		if len(chunk.Events) == 0 && chunk.Next == from.Offset {
			return p
		}
		from = p.next()
		if time.Now().After(end) {
			r.failf("no empty Chunk has come after %v", r.patience)
		}
	}
}

// begins returns the positions at which reading may begin, in order.
func begins(pieces []piece, records []record) []tumble.Position {
	var all []tumble.Position
	for _, p := range pieces {
		all = append(all, p.from, p.next())
	}
	for _, r := range records {
		all = append(all, r.at)
	}
	slices.SortFunc(all, func(a, b tumble.Position) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Epoch, b.Epoch))
	})
	return slices.Compact(all)
}
