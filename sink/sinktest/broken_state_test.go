package sinktest_test

import (
	"context"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// everyRead names the reads that tell a state.
var everyRead = []string{"Count", "Range", "Top", "Scan"}

// stating returns a fault for each read, in which it alone tells another state.
func stating(name string, state func(is tumble.State) tumble.State, rules ...string) (all []*fault) {
	ctx := context.Background()
	for _, read := range everyRead {
		f := &fault{name: name + ", by " + read, rules: rules}
		switch read {
		case "Count":
			f.count = func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
				c, err := s.Count(ctx, key, at)
				c.State = state(c.State)
				return c, err
			}
		case "Range":
			f.counts = func(s *memory.Sink, key string, from, to time.Time) ([]tumble.Count, error) {
				all, err := s.Range(ctx, key, from, to)
				for i := range all {
					all[i].State = state(all[i].State)
				}
				return all, err
			}
		case "Top":
			f.top = func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
				p, err := s.Top(ctx, at, n)
				return stated(p, state(p.State)), err
			}
		case "Scan":
			f.scan = func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
				p, err := s.Scan(ctx, at, cursor, limit)
				return stated(p, state(p.State)), err
			}
		}
		all = append(all, f)
	}
	return all
}

// instead returns what tells one state where it is another.
func instead(of, tell tumble.State) func(tumble.State) tumble.State {
	return func(is tumble.State) tumble.State {
		if is == of {
			return tell
		}
		return is
	}
}

// has reports whether some shard has the state.
func has(shards []tumble.State, state tumble.State) bool { return slices.Contains(shards, state) }

var stateFaults = slices.Concat(
	stating("what is closed is final", instead(tumble.Closed, tumble.Final), "Reader/open and closed"),
	stating("what is closed is open", instead(tumble.Closed, tumble.Open), "Reader/open and closed"),
	stating("what is open is closed", instead(tumble.Open, tumble.Closed), "Reader/open and closed", "Reader/final"),
	stating("what is final is closed", instead(tumble.Final, tumble.Closed), "Reader/final"),
	stating("nothing is final", instead(tumble.Final, tumble.Open), "Reader/final"),
	[]*fault{
		{name: "where nothing is registered nothing is open", rules: []string{"Reader/nothing registered is open"},
			count: counting(func(c *tumble.Count, _ tumble.Definition, stored checkpoints, _ time.Time) {
				if len(stored) == 0 {
					c.State = tumble.Closed
				}
			})},
		{name: "pages are closed where nothing is registered", rules: []string{"Reader/nothing registered is open"},
			top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
				p, err := s.Top(context.Background(), at, n)
				if _, stored := all(s); len(stored[0]) == 0 {
					p.State = tumble.Closed
				}
				return p, err
			}},
		{name: "closed without grace", rules: []string{"Reader/open and closed"},
			count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
				def.Grace = 0
				c.State = of(def, stored, end)
			})},
		{name: "closed in milliseconds, rounded up", rules: []string{"Reader/open and closed", "Reader/final", "Reader/expired"},
			count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
				if f := tumble.Frontier(stored); !f.IsZero() {
					f = f.Add(time.Millisecond - 1).Truncate(time.Millisecond)
					c.State = of(def, checkpoints{"": {Watermark: f}}, end)
				}
			})},
		{name: "expired is final", rules: []string{"Reader/expired"},
			count: counting(func(c *tumble.Count, def tumble.Definition, _ checkpoints, _ time.Time) {
				if c.State == tumble.Expired {
					c.State = tumble.Final
				}
			})},
		{name: "waits for a batch", rules: []string{"Reader/closed where it was registered"},
			top: func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
				p, err := s.Top(context.Background(), at, n)
				_, stored := all(s)
				for _, at := range stored[0] {
					if at.Offset == 0 {
						p.State = tumble.Open
					}
				}
				return p, err
			}},
		{name: "waits for what ended without an event", rules: []string{"Reader/closed without those that ended"},
			count: counting(func(c *tumble.Count, _ tumble.Definition, stored checkpoints, _ time.Time) {
				for _, at := range stored {
					if at.Watermark.IsZero() {
						c.State = tumble.Open
					}
				}
			})},
		{name: "a page is closed in some shard", rules: []string{"Reader/a page is closed in every shard"},
			top: ofShards(func(is tumble.State, shards []tumble.State) tumble.State { return slices.Max(shards) })},
		{name: "a page is closed in the first shard", rules: []string{"Reader/a page is closed in every shard"},
			top: ofShards(func(is tumble.State, shards []tumble.State) tumble.State { return shards[0] })},
		{name: "a page is closed in the shards of its counts", rules: []string{"Reader/a page is closed in every shard"},
			scan: func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
				p, err := s.Scan(context.Background(), at, cursor, limit)
				def, stored := all(s)
				state := tumble.Expired
				for _, c := range p.Counts {
					state = min(state, of(def, stored[tumble.Hash(c.Key)%4], p.End))
				}
				return stated(p, state), err
			}},
		{name: "a page is expired in every shard", rules: []string{"Reader/a page is expired in some shard"},
			top: ofShards(func(is tumble.State, shards []tumble.State) tumble.State { return slices.Min(shards) })},
		{name: "a page is expired in the first shard", rules: []string{"Reader/a page is expired in some shard"},
			top: ofShards(func(is tumble.State, shards []tumble.State) tumble.State {
				if is == tumble.Expired && shards[0] != is {
					return tumble.Closed
				}
				return is
			})},
		{name: "a shard that is open hides that another is expired", rules: []string{"Reader/a page is expired in some shard"},
			top: ofShards(func(is tumble.State, shards []tumble.State) tumble.State {
				if has(shards, tumble.Open) {
					return tumble.Open
				}
				return is
			})},
		{name: "counts of a page are open", rules: []string{"Reader/open and closed", "Reader/final"},
			scan: func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error) {
				p, err := s.Scan(context.Background(), at, cursor, limit)
				for i := range p.Counts {
					p.Counts[i].State = tumble.Open
				}
				return p, err
			}},
	},
)
