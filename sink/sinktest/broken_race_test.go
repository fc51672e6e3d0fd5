package sinktest_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// nap lets others run.
func nap() { time.Sleep(time.Duration(rand.Int64N(int64(500 * time.Microsecond)))) }

func slowly(s shard, ctx context.Context, b tumble.Batch) error {
	nap()
	return s.Apply(ctx, b)
}

// answer is that of one read of any kind.
type answer struct {
	page  tumble.Page
	count tumble.Count
	list  []tumble.Count
}

// as returns a with the state that b tells, and under its term, where is says so
// of both states.
func (a answer) as(b answer, is func(a, b tumble.State) bool) answer {
	if is(a.page.State, b.page.State) {
		a.page.State, a.page.Term = b.page.State, b.page.Term
	}
	if is(a.count.State, b.count.State) {
		a.count.State, a.count.Term = b.count.State, b.count.Term
	}
	for i := range a.list {
		if i < len(b.list) && is(a.list[i].State, b.list[i].State) {
			a.list[i].State, a.list[i].Term = b.list[i].State, b.list[i].Term
		}
	}
	return a
}

// twice reads two times, with a nap between, and returns what mix makes of it.
func twice(read func() (answer, error), mix func(first, second answer) answer) (answer, error) {
	first, err := read()
	if err != nil {
		return first, err
	}
	nap()
	second, err := read()
	return mix(first, second), err
}

// finalLast takes the counts first and then looks whether they are final.
func finalLast(first, second answer) answer {
	return first.as(second, func(_, b tumble.State) bool { return b == tumble.Final })
}

// expiredFirst looks whether the window is past retention and then takes the
// counts.
func expiredFirst(first, second answer) answer {
	return second.as(first, func(a, _ tumble.State) bool { return a == tumble.Expired })
}

// finalFirst looks whether the window is final and then takes the counts, but for
// those that are past retention by then.
func finalFirst(first, second answer) answer {
	return second.as(first, func(a, _ tumble.State) bool { return a != tumble.Expired })
}

func readsTwice(name string, mix func(first, second answer) answer, rules ...string) *fault {
	ctx := context.Background()
	return &fault{name: name, rules: rules, apply: slowly,
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			a, err := twice(func() (a answer, err error) { a.count, err = s.Count(ctx, key, at); return a, err }, mix)
			return a.count, err
		},
		counts: func(s *memory.Sink, key string, from, to time.Time) ([]tumble.Count, error) {
			a, err := twice(func() (a answer, err error) { a.list, err = s.Range(ctx, key, from, to); return a, err }, mix)
			return a.list, err
		},
		top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
			a, err := twice(func() (a answer, err error) { a.page, err = s.Top(ctx, at, n); return a, err }, mix)
			return a.page, err
		},
		scan: func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
			a, err := twice(func() (a answer, err error) { a.page, err = s.Scan(ctx, at, cursor, limit); return a, err }, mix)
			return a.page, err
		},
	}
}

var raceFaults = []*fault{
	{name: "compares, then sets", rules: []string{"Apply/one of many wins"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if stored, ok := s.stored(ctx)[b.Partition]; !ok || !stored.Same(b.From) {
				return tumble.ErrConflict
			}
			nap()
			b.From = s.stored(ctx)[b.Partition]
			return s.Apply(ctx, b)
		}},
	{name: "Load in several steps", rules: []string{"Load/one of many wins"},
		load: initially(func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			for id, c := range init { // in any order
				if _, err := s.init(ctx, checkpoints{id: c}); err != nil {
					return nil, err
				}
				nap()
			}
			return s.init(ctx, nil)
		})},
	{name: "reads a count, then writes it", rules: []string{"Apply/all partitions at once"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.Deltas = slices.Clone(b.Deltas)
			was := make([]tumble.Count, len(b.Deltas))
			for i, d := range b.Deltas {
				was[i], _ = s.s.Count(ctx, d.Key, d.Start)
			}
			nap()
			for i, d := range b.Deltas {
				is, _ := s.s.Count(ctx, d.Key, d.Start)
				b.Deltas[i].N += was[i].N - is.N
			}
			return s.Apply(ctx, b)
		}},
	{name: "moves, then adds", rules: []string{"Apply/both at once"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if err := s.move(ctx, b.Partition, b.From, b.To); err != nil {
				return err
			}
			nap()
			b.From = b.To
			return s.Apply(ctx, b)
		}},
	{name: "adds, then moves", rules: []string{"Apply/both at once"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if err := s.Apply(ctx, tumble.Batch{Partition: b.Partition, Writer: b.Writer, From: b.From, To: b.From, Deltas: b.Deltas}); err != nil {
				return err
			}
			nap()
			b.Deltas = nil
			return s.Apply(ctx, b)
		}},
	{name: "stops between adding and moving", rules: []string{"Apply/interrupted"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if ctx.Err() != nil {
				_ = s.Apply(ctx, tumble.Batch{Partition: b.Partition, Writer: b.Writer, From: b.From, To: b.From, Deltas: b.Deltas})
				return ctx.Err()
			}
			return s.Apply(ctx, b)
		}},
	{name: "an interruption is a conflict", rules: []string{"Apply/interrupted"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if ctx.Err() != nil {
				return tumble.ErrConflict
			}
			return s.Apply(ctx, b)
		}},
	readsTwice("reads counts before finality", finalLast,
		"Reader/final has all its counts", "Reader/final range has all its counts", "Reader/final top has all its counts", "Reader/final scan has all its counts"),
	readsTwice("reads retention before counts", expiredFirst,
		"Reader/final has all its counts", "Reader/final top has all its counts", "Reader/final scan has all its counts"),
	readsTwice("reads finality before counts", finalFirst,
		"Reader/final count through a fall back", "Reader/final range through a fall back",
		"Reader/final top through a fall back", "Reader/final scan through a fall back"),

	func() *fault {
		var mu sync.Mutex
		var asked string
		return &fault{name: "one reader at a time", rules: []string{"Reader/many at once"},
			count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
				mu.Lock()
				asked = key
				mu.Unlock()
				nap()
				mu.Lock()
				defer mu.Unlock()
				return s.Count(context.Background(), asked, at)
			}}
	}(),
}
