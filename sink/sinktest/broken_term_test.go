package sinktest_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// spot is a shard, whoever opened it.
type spot struct {
	s *memory.Sink
	i int
}

func (s shard) spot() spot { return spot{s.s, s.i} }

// A tally remembers a number for each spot, or for each string in it.
type tally struct {
	mu sync.Mutex
	n  map[any]uint64
}

func (t *tally) get(at any) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.n[at]
}

func (t *tally) set(at any, n uint64) (was uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = make(map[any]uint64)
	}
	was, t.n[at] = t.n[at], n
	return was
}

func (t *tally) add(at any) { t.set(at, t.get(at)+1) }

// snapshot is a fault's: the numbers are in the store too.
func (t *tally) snapshot() (restore func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := maps.Clone(t.n)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.n = maps.Clone(was)
	}
}

// keyIn returns a key of each shard of the sinks that are tested.
var keyIn = func() (keys [4]string) {
	for i := 0; i < 100; i++ {
		key := fmt.Sprint(i)
		keys[tumble.Hash(key)%4] = key
	}
	return keys
}()

// termed returns a fault whose readers tell the term that of makes of each
// shard's.
func termed(f *fault, of func(at spot, term uint64) uint64) *fault {
	ctx := context.Background()
	count := func(s *memory.Sink, c tumble.Count) tumble.Count {
		i := int(tumble.Hash(c.Key) % 4)
		c.Term = of(spot{s, i}, c.Term)
		return c
	}
	page := func(s *memory.Sink, p tumble.Page) tumble.Page {
		p.Term = 0
		for i, key := range keyIn {
			c, _ := s.Count(ctx, key, p.Start)
			p.Term = p.Term*31 + of(spot{s, i}, c.Term)
		}
		for i := range p.Counts {
			p.Counts[i] = count(s, p.Counts[i])
		}
		return p
	}
	f.count = func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
		c, err := s.Count(ctx, key, at)
		return count(s, c), err
	}
	f.counts = func(s *memory.Sink, key string, from, to time.Time) ([]tumble.Count, error) {
		all, err := s.Range(ctx, key, from, to)
		for i := range all {
			all[i] = count(s, all[i])
		}
		return all, err
	}
	f.top = func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
		p, err := s.Top(ctx, at, n)
		return page(s, p), err
	}
	f.scan = func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
		p, err := s.Scan(ctx, at, cursor, limit)
		return page(s, p), err
	}
	return f
}

// drawing returns a fault whose terms change also when drawn says so, of a batch
// that was applied and of what the shard was before.
func drawing(name string, drawn func(s shard, b tumble.Batch, was tumble.ShardState) bool, rules ...string) *fault {
	var extra tally
	return termed(&fault{name: name, rules: rules,
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			was := s.state(ctx)
			err := s.Apply(ctx, b)
			if err == nil && drawn(s, b, was) {
				extra.add(s.spot())
			}
			return err
		},
	}, func(at spot, term uint64) uint64 { return term + extra.get(at) })
}

// written returns a fault that takes the writer of a batch for another.
func written(name string, writer func(s shard, b tumble.Batch) uint64, rules ...string) *fault {
	return &fault{name: name, rules: rules,
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.Writer = writer(s, b)
			return s.Apply(ctx, b)
		}}
}

// lane is where a writer is stored.
type lane struct {
	spot
	partition string
}

var termFaults = []*fault{
	termed(&fault{name: "there is one term", rules: []string{
		"Apply/another writer, another term", "Apply/another writer closes at once", "Apply/writers are 64 bits", "Apply/terms by any partition",
		"Apply/final again at once", "Apply/final again later", "Reader/terms of a page", "Reader/terms of a range",
		"Reader/final count through a fall back", "Reader/final range through a fall back",
		"Reader/final top through a fall back", "Reader/final scan through a fall back",
	}}, func(spot, uint64) uint64 { return 7 }),

	func() *fault {
		var loads tally
		f := &fault{name: "Load draws a term", rules: []string{"Load/leaves the term"},
			load: func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
				loads.add(s.spot())
				return s.Load(ctx, r)
			}}
		return termed(f, func(at spot, term uint64) uint64 { return term + loads.get(at) })
	}(),

	func() *fault {
		var loads tally
		f := written("a Load hands the shard over", func(s shard, b tumble.Batch) uint64 { return b.Writer + loads.get(s.spot()) }, "Load/leaves the term")
		f.load = func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
			loads.add(s.spot())
			return s.Load(ctx, r)
		}
		return f
	}(),

	drawing("each batch draws a term", func(shard, tumble.Batch, tumble.ShardState) bool { return true },
		"Apply/one writer, one term", "Apply/another writer, another term"),

	drawing("each window that closes draws a term", func(s shard, b tumble.Batch, was tumble.ShardState) bool {
		return s.def.ClosedAt(s.state(context.Background()).Frontier).After(s.def.ClosedAt(was.Frontier))
	}, "Apply/one writer, one term", "Apply/another writer closes at once", "Apply/terms by any partition", "Load/leaves the term"),

	func() *fault {
		var writers tally
		return drawing("another writer draws a term at once", func(s shard, b tumble.Batch, _ tumble.ShardState) bool {
			return writers.set(lane{s.spot(), b.Partition}, b.Writer) != b.Writer
		}, "Apply/another writer, another term", "Apply/terms by any partition")
	}(),

	written("writers are forgotten", func(shard, tumble.Batch) uint64 { return 1 },
		"Apply/another writer, another term", "Apply/another writer closes at once", "Apply/final again at once", "Apply/final again later",
		"Reader/final count through a fall back", "Reader/final scan through a fall back"),

	written("each batch is another writer's", func(shard, tumble.Batch) uint64 { return 1 + rand.Uint64()/2 },
		"Apply/one writer, one term", "Load/leaves the term"),

	func() *fault {
		var writers tally
		return written("a writer is noticed at its second batch", func(s shard, b tumble.Batch) uint64 {
			if was := writers.set(lane{s.spot(), b.Partition}, b.Writer); was != 0 {
				return was
			}
			return b.Writer
		}, "Apply/another writer closes at once")
	}(),

	func() *fault {
		var told, sent tally
		return written("a writer is noticed if its first batch closes a window", func(s shard, b tumble.Batch) uint64 {
			at := lane{s.spot(), b.Partition}
			if told.set(at, b.Writer) != b.Writer {
				stored := s.stored(context.Background())
				was := s.def.ClosedAt(tumble.Frontier(stored))
				stored[b.Partition] = b.To
				if sent.get(at) == 0 || s.def.ClosedAt(tumble.Frontier(stored)).After(was) {
					sent.set(at, b.Writer)
				}
			}
			return sent.get(at)
		}, "Apply/another writer, another term", "Apply/terms by any partition", "Apply/final again later")
	}(),

	written("writers are floating point", func(_ shard, b tumble.Batch) uint64 { return max(1, uint64(float64(b.Writer/2))) },
		"Apply/writers are 64 bits"),
	written("writers are 32 bits", func(_ shard, b tumble.Batch) uint64 { return 1<<40 + uint64(uint32(b.Writer)) },
		"Apply/writers are 64 bits"),

	func() *fault {
		var last, alias tally
		return written("a shard has one writer", func(s shard, b tumble.Batch) uint64 {
			if last.set(s.spot(), b.Writer) != b.Writer {
				alias.set(s.spot(), rand.Uint64())
			}
			return alias.get(s.spot())
		}, "Apply/terms by any partition")
	}(),

	func() *fault {
		var writers tally
		return &fault{name: "another writer is a conflict", rules: []string{"Apply/writer is no part of Same"},
			apply: func(s shard, ctx context.Context, b tumble.Batch) error {
				at := lane{s.spot(), b.Partition}
				if was := writers.get(at); was != 0 && was != b.Writer {
					return tumble.ErrConflict
				}
				writers.set(at, b.Writer)
				return s.Apply(ctx, b)
			}}
	}(),

	{name: "a refused batch is remembered", rules: []string{"Apply/refused batches draw no term"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if stored, ok := s.stored(ctx)[b.Partition]; ok && err != nil {
				b.From, b.To, b.Token, b.Deltas = stored, stored, 0, nil
				_ = s.Apply(ctx, b)
			}
			return err
		}},

	func() *fault {
		var terms tally
		f := &fault{name: "terms are counted up", rules: []string{
			"Apply/final again at once", "Apply/final again later",
			"Reader/final count through a fall back", "Reader/final top through a fall back",
		}}
		type seen struct{ spot }
		f.apply = func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if c, e := s.s.Count(ctx, keyIn[s.i], time.Unix(0, 0)); e == nil && terms.set(seen{s.spot()}, c.Term) != c.Term {
				terms.add(s.spot())
			}
			return err
		}
		f.snapshot = terms.snapshot
		return termed(f, func(at spot, _ uint64) uint64 { return terms.get(at) })
	}(),

	{name: "a page has the term of one shard", rules: []string{"Reader/terms of a page"},
		top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
			p, err := s.Top(context.Background(), at, n)
			c, _ := s.Count(context.Background(), keyIn[0], at)
			p.Term = c.Term
			return p, err
		}},
	{name: "the counts of a page have its term", rules: []string{"Reader/terms of a page"},
		scan: func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
			p, err := s.Scan(context.Background(), at, cursor, limit)
			for i := range p.Counts {
				p.Counts[i].Term = p.Term
			}
			return p, err
		}},
	{name: "a page has another term each time", rules: []string{"Reader/terms of a page"},
		top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
			p, err := s.Top(context.Background(), at, n)
			p.Term = rand.Uint64()
			return p, err
		}},
	{name: "a range has no term", rules: []string{"Reader/terms of a range"},
		counts: func(s *memory.Sink, key string, from, to time.Time) ([]tumble.Count, error) {
			all, err := s.Range(context.Background(), key, from, to)
			for i := range all {
				all[i].Term = 0
			}
			return all, err
		}},
}
