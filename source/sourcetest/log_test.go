package sourcetest_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/sourcetest"
)

// A log is a source that keeps the contract, with three partitions in memory,
// but for what its fault's functions, those that are not nil, do instead.
type log struct {
	fault *fault

	mu     sync.Mutex // guards what follows
	parts  map[string]*part
	latest bool
}

type fault struct {
	name  string
	rules []string // that must find it

	partitions func(l *log, stored, all map[string]tumble.Checkpoint) map[string]tumble.Checkpoint
	run        func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error
	id         func(id string) string
	resume     func(p *part, stored tumble.Checkpoint) (tumble.Checkpoint, error)
	fetch      func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error)
	committed  func(p *part, offset int64)
	reuses     bool // writing to a partition writes into the last Chunk

	end error // of a partition; nil: ErrEnded
}

// part is one partition. Its records have their index as offset.
type part struct {
	id      string
	l       *log
	records [][]tumble.Event // no event: rejected or skipped
	kinds   []kind
	epochs  []int32
	epoch   int32 // of what is written next
	first   int64 // before it all is forgotten
	ended   bool
	done    int64         // committed
	told    int64         // records that gave no event are told of up to here
	more    chan struct{} // closed when records or ended change

	// For faults.
	last  []tumble.Event // Events of the last Chunk
	calls int
}

type kind int

const (
	counted kind = iota
	rejected
	skipped
)

func newLog(f *fault) *log {
	l := &log{fault: f, parts: make(map[string]*part)}
	for _, id := range []string{"clicks/0", "clicks/1", "clicks/2"} {
		l.parts[id] = &part{id: id, l: l, more: make(chan struct{})}
	}
	return l
}

// change changes a partition and wakes who waits for it.
func (l *log) change(id string, f func(p *part)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.parts[id]
	if !ok {
		return fmt.Errorf("no partition %q", id)
	}
	f(p)
	if l.fault.reuses && len(p.last) > 0 {
		p.last[0].Key = "reused"
	}
	close(p.more)
	p.more = make(chan struct{})
	return nil
}

func (p *part) write(k kind, events ...tumble.Event) {
	p.records, p.kinds, p.epochs = append(p.records, events), append(p.kinds, k), append(p.epochs, p.epoch)
}

// truncate removes the records from an offset on.
func (p *part) truncate(at int64) {
	p.records, p.kinds, p.epochs = p.records[:at], p.kinds[:at], p.epochs[:at]
	p.told = min(p.told, at)
	p.epoch++
}

// parted returns where the log parts from the one that was read to a position, or
// the position.
func (p *part) parted(at tumble.Position) tumble.Position {
	end := int64(len(p.records))
	if i := slices.IndexFunc(p.epochs, func(e int32) bool { return e > at.Epoch }); i >= 0 {
		end = int64(i)
	}
	if end >= at.Offset {
		return at
	}
	at.Offset = end
	if end > 0 {
		at.Epoch = p.epochs[end-1]
	}
	return at
}

// under returns the log as another process has it, with its start policy.
func (l *log) under(latest bool) *log {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &log{fault: l.fault, parts: l.parts, latest: latest}
}

func (f *fault) config() sourcetest.Config {
	return sourcetest.Config{New: func(context.Context) (*sourcetest.Log, error) {
		l := newLog(f)
		return &sourcetest.Log{
			Source:     l,
			Partitions: slices.Sorted(maps.Keys(l.parts)),
			Append: func(_ context.Context, id string, events ...tumble.Event) error {
				return l.change(id, func(p *part) {
					for _, e := range events {
						p.write(counted, e)
					}
				})
			},
			AppendRecord: func(_ context.Context, id string, events ...tumble.Event) error {
				return l.change(id, func(p *part) { p.write(counted, events...) })
			},
			Reject: func(_ context.Context, id string) error { return l.change(id, func(p *part) { p.write(rejected) }) },
			Skip:   func(_ context.Context, id string) error { return l.change(id, func(p *part) { p.write(skipped) }) },
			End:    func(_ context.Context, id string) error { return l.change(id, func(p *part) { p.ended = true }) },
			Forget: func(_ context.Context, id string, before int64) error {
				return l.change(id, func(p *part) { p.first = before })
			},
			Lost: func(err error) int64 {
				lost, _ := err.(lostError)
				return int64(lost)
			},
			Elect: func(_ context.Context, id string) error { return l.change(id, func(p *part) { p.epoch++ }) },
			Truncate: func(_ context.Context, id string, at int64) error {
				return l.change(id, func(p *part) { p.truncate(at) })
			},
			Another: func(context.Context) (tumble.Source, error) { return l.under(false), nil },
			Latest:  func(context.Context) (tumble.Source, error) { return l.under(true), nil },
		}, nil
	}}
}

func (l *log) Partitions(_ context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make(map[string]tumble.Checkpoint)
	for id, p := range l.parts {
		at := p.first
		if l.latest && len(stored) == 0 {
			at = int64(len(p.records))
		}
		all[id] = tumble.Checkpoint{Log: "log", Origin: at, Offset: at}
	}
	if l.fault.partitions != nil {
		return l.fault.partitions(l, stored, all), nil
	}
	return all, nil
}

func (l *log) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	if l.fault.run != nil {
		return l.fault.run(l, ctx, consume)
	}
	return l.run(ctx, consume)
}

func (l *log) run(parent context.Context, consume func(context.Context, tumble.Partition) error) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	var wg sync.WaitGroup
	var first sync.Once
	var failed error
	for _, p := range l.parts {
		wg.Go(func() {
			if err := consume(ctx, p); err != nil {
				first.Do(func() { failed = err })
				cancel(err)
			}
		})
	}
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := lostError(0)
	for _, p := range l.parts {
		lost += lostError(int64(len(p.records)) - p.done)
	}
	if failed == nil && parent.Err() != nil && lost > 0 {
		return lost
	}
	return failed
}

// A lostError says how many records nobody has committed.
type lostError int64

func (e lostError) Error() string { return fmt.Sprintf("%d records are lost", int64(e)) }

func (p *part) ID() string {
	if p.l.fault.id != nil {
		return p.l.fault.id(p.id)
	}
	return p.id
}

func (p *part) Resume(_ context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	if p.l.fault.resume != nil {
		return p.l.fault.resume(p, stored)
	}
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	if at := p.parted(tumble.Position{Offset: stored.Offset, Epoch: stored.Epoch}); at.Offset < stored.Offset {
		stored.Offset, stored.Epoch = at.Offset, at.Epoch
		stored.Origin = min(stored.Origin, at.Offset)
	}
	if stored.Offset < p.first {
		stored.Offset, stored.Epoch = p.first, p.epochs[p.first]
	}
	return stored, nil
}

func (p *part) Committed(offset int64) {
	if p.l.fault.committed != nil {
		p.l.fault.committed(p, offset)
	}
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	p.done = offset
}

func (p *part) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	if p.l.fault.fetch != nil {
		return p.l.fault.fetch(p, ctx, from)
	}
	return p.fetch(ctx, from, 500*time.Millisecond)
}

func (p *part) fetch(ctx context.Context, from tumble.Position, wait time.Duration) (tumble.Chunk, error) {
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		chunk, more, err := p.look(ctx, from)
		if err != nil || chunk.Next > from.Offset {
			return chunk, err
		}
		select {
		case <-more:
		case <-ctx.Done():
			return tumble.Chunk{}, ctx.Err()
		case <-timeout.C:
			chunk, _, err = p.look(ctx, from)
			return chunk, err
		}
	}
}

// look returns what there is, and what is closed when there is more.
func (p *part) look(ctx context.Context, from tumble.Position) (tumble.Chunk, <-chan struct{}, error) {
	p.l.mu.Lock()
	defer p.l.mu.Unlock()
	end := int64(len(p.records))
	switch {
	case ctx.Err() != nil:
		return tumble.Chunk{}, nil, ctx.Err()
	case from.Offset < p.first:
		return tumble.Chunk{}, nil, fmt.Errorf("fetch %s@%v: %w", p.id, from, tumble.ErrOffsetOutOfRange)
	case p.parted(from) != from:
		return tumble.Chunk{}, nil, fmt.Errorf("fetch %s@%v: %w", p.id, from, tumble.ErrTruncated)
	case from.Offset == end && p.ended:
		return tumble.Chunk{}, nil, cmp.Or(p.l.fault.end, tumble.ErrEnded)
	}
	c := tumble.Chunk{Next: from.Offset, Epoch: from.Epoch, End: end, AsOf: time.Now()}
	for ; c.Next < end && c.Next < from.Offset+100; c.Next++ {
		if c.Next > from.Offset && p.epochs[c.Next] != c.Epoch {
			break
		}
		c.Epoch = p.epochs[c.Next]
		if c.Next >= p.told {
			p.told = c.Next + 1
			switch p.kinds[c.Next] {
			case rejected:
				c.Rejected++
			case skipped:
				c.Skipped++
			}
		}
		for _, e := range p.records[c.Next] {
			e.Offset = c.Next
			c.Events = append(c.Events, e)
		}
	}
	p.last = c.Events
	return c, p.more, nil
}
