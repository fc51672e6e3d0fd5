package sinktest_test

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

func sortedKeys(m checkpoints) []string { return slices.Sorted(maps.Keys(m)) }

// all returns what is stored, by shard, and what it means.
func all(s *memory.Sink) (tumble.Definition, []checkpoints) {
	ctx := context.Background()
	def, err := s.Definition(ctx)
	if err != nil {
		return def, nil
	}
	shards, _ := s.Open(ctx, def)
	stored := make([]checkpoints, len(shards))
	for i := range shards {
		stored[i], _ = shards[i].Load(ctx, nil)
	}
	return def, stored
}

// counting is a Count whose answer is changed, told of what its shard stores
// and when its window ends.
func counting(change func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time)) func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
	return func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
		c, err := s.Count(context.Background(), key, at)
		def, stored := all(s)
		_, end := def.Window.Bounds(at)
		change(&c, def, stored[tumble.Hash(key)%uint64(len(stored))], end)
		return c, err
	}
}

// ofShards is a Top whose answer is changed, told of the finality in each shard.
func ofShards(change func(p *tumble.Page, final, expired []bool)) func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
	return func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
		p, err := s.Top(context.Background(), at, n)
		def, stored := all(s)
		_, end := def.Window.Bounds(at)
		final, expired := make([]bool, len(stored)), make([]bool, len(stored))
		for i := range stored {
			final[i], expired[i] = def.Finality(def.Frontier(stored[i]), end)
		}
		change(&p, final, expired)
		return p, err
	}
}

var readFaults = []*fault{
	{name: "windows are cut towards 1970", rules: []string{"Apply/windows before 1970"},
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			return s.Count(context.Background(), key, time.Unix(0, at.UnixNano()/60e9*60e9))
		}},
	{name: "days begin in UTC", rules: []string{"Apply/calendar windows"},
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			return s.Count(context.Background(), key, at.Truncate(24*time.Hour))
		}},
	{name: "retention without grace", rules: []string{"Apply/keeps what is within retention"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if f := def.Frontier(stored); !f.IsZero() && !f.Before(end.Add(def.Retention)) {
				c.N = 0
			}
		})},
	{name: "retention by the largest watermark", rules: []string{"Apply/forgets by the frontier only"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if mark, _ := largest(stored); !mark.Before(end.Add(def.Grace + def.Retention)) {
				c.N = 0
			}
		})},
	{name: "waits for a batch", rules: []string{"Reader/final where it was registered"},
		top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
			p, err := s.Top(context.Background(), at, n)
			_, stored := all(s)
			for _, at := range stored[0] {
				p.Final = p.Final && at.Offset > 0
			}
			return p, err
		}},
	{name: "waits for what ended without an event", rules: []string{"Reader/final without those that ended"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			for _, at := range stored {
				c.Final = c.Final && !at.Watermark.IsZero()
			}
		})},
	{name: "retention by any shard's frontier", rules: []string{"Apply/forgets by a shard's own frontier"},
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			c, err := s.Count(context.Background(), key, at)
			def, stored := all(s)
			_, end := def.Window.Bounds(at)
			for i := range stored {
				if _, expired := def.Finality(def.Frontier(stored[i]), end); expired {
					c.N = 0
				}
			}
			return c, err
		}},
	{name: "no retention keeps nothing", rules: []string{"Apply/keeps for ever"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if def.Retention == 0 && c.Final {
				c.Final, c.Expired, c.N = false, true, 0
			}
		})},
	{name: "what has ended has no frontier", rules: []string{"Apply/keeps what ends with the source"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if _, ended := largest(stored); ended {
				c.Final = false
			}
		})},
	{name: "every day is read as 24 hours", rules: []string{"Apply/days before 1970 within retention"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if def.Window.Calendar == tumble.Day {
				c.Final, c.Expired = def.Finality(def.Frontier(stored), c.Window.Add(24*time.Hour))
			}
		})},

	{name: "some definition for any name", rules: []string{"Reader/no definition"},
		definition: func(_ *memory.Sink, def tumble.Definition, _ error) (tumble.Definition, error) { return def, nil }},
	{name: "nothing counts as zero", rules: []string{"Reader/no definition, no counts"},
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			c, err := s.Count(context.Background(), key, at)
			if errors.Is(err, tumble.ErrNoDefinition) {
				err = nil
			}
			return c, err
		}},
	{name: "a window for any time", rules: []string{"Reader/times that are none"},
		top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
			if at.Year() < 1700 {
				return tumble.Page{}, nil
			}
			return s.Top(context.Background(), at, n)
		}},
	{name: "no count of a page is final", rules: []string{"Reader/counts of a page are as final as the page"},
		scan: func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
			page, err := s.Scan(context.Background(), at, cursor, limit)
			for i := range page.Counts {
				page.Counts[i].Final = false
			}
			return page, err
		}},
	{name: "only the window is known", rules: []string{"Reader/the definition", "Open/stores the definition"},
		definition: func(_ *memory.Sink, def tumble.Definition, err error) (tumble.Definition, error) {
			return tumble.Definition{Window: def.Window}, err
		}},
	{name: "where nothing is registered nothing is open", rules: []string{"Reader/nothing registered is final"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			c.Final = c.Final || len(stored) == 0
		})},
	{name: "pages are final where nothing is registered", rules: []string{"Reader/nothing registered is final"},
		top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
			p, err := s.Top(context.Background(), at, n)
			_, stored := all(s)
			p.Final = p.Final || len(stored[0]) == 0
			return p, err
		}},
	{name: "final without grace", rules: []string{"Reader/final and expired"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			def.Retention += def.Grace
			def.Grace = 0
			c.Final, c.Expired = def.Finality(def.Frontier(stored), end)
		})},
	{name: "final in milliseconds, rounded up", rules: []string{"Reader/final and expired"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if f := def.Frontier(stored); !f.IsZero() {
				c.Final, c.Expired = def.Finality(f.Add(time.Millisecond-1).Truncate(time.Millisecond), end)
			}
		})},
	{name: "expired and final", rules: []string{"Reader/final and expired"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			c.Final = c.Final || c.Expired
		})},
	{name: "a page is final in some shard", rules: []string{"Reader/a page is final in every shard"},
		top: ofShards(func(p *tumble.Page, final, _ []bool) { p.Final = slices.Contains(final, true) })},
	{name: "a page is final in the first shard", rules: []string{"Reader/a page is final in every shard"},
		top: ofShards(func(p *tumble.Page, final, _ []bool) { p.Final = final[0] })},
	{name: "a page is expired in every shard", rules: []string{"Reader/a page is expired in some shard"},
		top: ofShards(func(p *tumble.Page, _, expired []bool) { p.Expired = !slices.Contains(expired, false) })},
	{name: "a page is expired in the first shard", rules: []string{"Reader/a page is expired in some shard"},
		top: ofShards(func(p *tumble.Page, _, expired []bool) { p.Expired = expired[0] })},
	{name: "the window is what was asked for", rules: []string{"Reader/count"},
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			c, err := s.Count(context.Background(), key, at)
			c.Window = at
			return c, err
		}},
	{name: "a range holds its end", rules: []string{"Reader/range"},
		counts: func(s *memory.Sink, key string, from, to time.Time) ([]tumble.Count, error) {
			return s.Range(context.Background(), key, from, to.Add(1))
		}},
	{name: "a range descends", rules: []string{"Reader/range"},
		counts: func(s *memory.Sink, key string, from, to time.Time) ([]tumble.Count, error) {
			all, err := s.Range(context.Background(), key, from, to)
			slices.Reverse(all)
			return all, err
		}},
	{name: "a range holds windows without a count", rules: []string{"Reader/range"},
		counts: func(s *memory.Sink, key string, from, to time.Time) ([]tumble.Count, error) {
			var all []tumble.Count
			for at := from.Truncate(time.Minute); at.Before(to); at = at.Add(time.Minute) {
				c, err := s.Count(context.Background(), key, at)
				if all = append(all, c); err != nil {
					return nil, err
				}
			}
			return all, nil
		}},
	{name: "equal counts by descending key", rules: []string{"Reader/top"},
		top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
			p, err := s.Top(context.Background(), at, 1000)
			slices.Reverse(p.Counts)
			slices.SortStableFunc(p.Counts, func(a, b tumble.Count) int { return int(b.N - a.N) })
			p.Counts = p.Counts[:min(n, len(p.Counts))]
			return p, err
		}},
	{name: "one more than the top", rules: []string{"Reader/top"},
		top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
			return s.Top(context.Background(), at, n+1)
		}},
	{name: "a scan without the last of a page", rules: []string{"Reader/scan"},
		scan: func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
			p, err := s.Scan(context.Background(), at, cursor, limit)
			p.Counts = p.Counts[:max(0, len(p.Counts)-1)]
			return p, err
		}},
	{name: "a scan with one of a page twice", rules: []string{"Reader/scan"},
		scan: func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
			p, err := s.Scan(context.Background(), at, cursor, limit)
			p.Counts = append(p.Counts, p.Counts[:min(1, len(p.Counts))]...)
			return p, err
		}},
	{name: "a scan without pages", rules: []string{"Reader/scan"},
		scan: func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
			return s.Scan(context.Background(), at, cursor, 1<<30)
		}},
	{name: "a wrong cursor begins anew", rules: []string{"Reader/scan from a wrong cursor"},
		scan: func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
			p, err := s.Scan(context.Background(), at, cursor, limit)
			if errors.Is(err, tumble.ErrCursor) {
				return s.Scan(context.Background(), at, "", limit)
			}
			return p, err
		}},
}

// nap lets others run.
func nap() { time.Sleep(time.Duration(rand.Int64N(int64(500 * time.Microsecond)))) }

func slowly(s shard, ctx context.Context, b tumble.Batch) error {
	nap()
	return s.Apply(ctx, b)
}

// finality tells a window's finality from one read and its counts from another.
type answer struct {
	page  tumble.Page
	count tumble.Count
	list  []tumble.Count
}

func (a answer) with(b answer, final, expired bool) answer {
	if final {
		a.page.Final, a.count.Final = b.page.Final, b.count.Final
	}
	if expired {
		a.page.Expired, a.count.Expired = b.page.Expired, b.count.Expired
	}
	for i := range a.list {
		if i < len(b.list) {
			a.list[i].Final = b.list[i].Final
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
func finalLast(first, second answer) answer { return first.with(second, true, false) }

// expiredFirst looks whether the window is past retention and then takes the
// counts.
func expiredFirst(first, second answer) answer { return second.with(first, false, true) }

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
		load: func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			for id, c := range init { // in any order
				if _, err := s.Load(ctx, checkpoints{id: c}); err != nil {
					return nil, err
				}
				nap()
			}
			return s.Load(ctx, nil)
		}},
	{name: "reads a count, then writes it", rules: []string{"Apply/all partitions at once"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.Deltas = slices.Clone(b.Deltas)
			was := make([]tumble.Count, len(b.Deltas))
			for i, d := range b.Deltas {
				was[i], _ = s.s.Count(ctx, d.Key, d.Window)
			}
			nap()
			for i, d := range b.Deltas {
				is, _ := s.s.Count(ctx, d.Key, d.Window)
				b.Deltas[i].N += was[i].N - is.N
			}
			return s.Apply(ctx, b)
		}},
	{name: "moves, then adds", rules: []string{"Apply/both at once"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if err := s.Apply(ctx, tumble.Batch{Partition: b.Partition, From: b.From, To: b.To}); err != nil {
				return err
			}
			nap()
			b.From = b.To
			return s.Apply(ctx, b)
		}},
	{name: "adds, then moves", rules: []string{"Apply/both at once"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if err := s.Apply(ctx, tumble.Batch{Partition: b.Partition, From: b.From, To: b.From, Deltas: b.Deltas}); err != nil {
				return err
			}
			nap()
			b.Deltas = nil
			return s.Apply(ctx, b)
		}},
	{name: "stops between adding and moving", rules: []string{"Apply/interrupted"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if ctx.Err() != nil {
				_ = s.Apply(ctx, tumble.Batch{Partition: b.Partition, From: b.From, To: b.From, Deltas: b.Deltas})
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
}
