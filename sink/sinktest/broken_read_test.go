package sinktest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

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
		state, _ := shards[i].Load(ctx, tumble.LoadRequest{})
		stored[i] = state.Checkpoints
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

// of returns the state of the window that ends at end, by what a shard stores.
func of(def tumble.Definition, stored checkpoints, end time.Time) tumble.State {
	closed := def.ClosedAt(tumble.Frontier(stored))
	return def.State(closed, def.FloorAt(closed), end)
}

// ofShards is a Top whose state is another one, told of those in each shard.
func ofShards(state func(is tumble.State, shards []tumble.State) tumble.State) func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
	return func(s *memory.Sink, at time.Time, n int) (tumble.Page, error) {
		p, err := s.Top(context.Background(), at, n)
		def, stored := all(s)
		states := make([]tumble.State, len(stored))
		for i := range stored {
			states[i] = of(def, stored[i], p.End)
		}
		return stated(p, state(p.State, states)), err
	}
}

// stated returns the page with another state, which its counts have too.
func stated(p tumble.Page, state tumble.State) tumble.Page {
	p.State = state
	for i := range p.Counts {
		p.Counts[i].State = state
	}
	return p
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
	{name: "retention from the frontier", rules: []string{"Apply/keeps what is within retention"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if f := tumble.Frontier(stored); !f.IsZero() && !f.Before(end.Add(def.Retention)) {
				c.N = 0
			}
		})},
	{name: "retention by the largest watermark", rules: []string{"Apply/forgets by the frontier only"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if mark, _ := largest(stored); !mark.Before(end.Add(def.Grace + def.Retention)) {
				c.N = 0
			}
		})},
	{name: "retention by any shard's frontier", rules: []string{"Apply/forgets by a shard's own frontier"},
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			c, err := s.Count(context.Background(), key, at)
			def, stored := all(s)
			for i := range stored {
				if of(def, stored[i], c.End) == tumble.Expired {
					c.N = 0
				}
			}
			return c, err
		}},
	{name: "no retention keeps nothing", rules: []string{"Apply/keeps for ever"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if def.Retention == 0 && c.State != tumble.Open {
				c.State, c.N = tumble.Expired, 0
			}
		})},
	{name: "what has ended closes its last window", rules: []string{"Apply/keeps what ends with the source"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if mark, ended := largest(stored); ended && !mark.Before(c.Start) {
				c.State = tumble.Closed
			}
		})},
	{name: "every day is read as 24 hours", rules: []string{"Apply/days before 1970 within retention"},
		count: counting(func(c *tumble.Count, def tumble.Definition, stored checkpoints, end time.Time) {
			if def.Window.Calendar == tumble.Day {
				c.State = of(def, stored, c.Start.Add(24*time.Hour))
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
	{name: "no window begins before all times", rules: []string{"Reader/windows that begin before all times"},
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			if at.Year() < 1700 {
				return tumble.Count{}, fmt.Errorf("no window holds %v", at)
			}
			return s.Count(context.Background(), key, at)
		}},
	{name: "only the window is known", rules: []string{"Reader/the definition", "Open/stores the definition"},
		definition: func(_ *memory.Sink, def tumble.Definition, err error) (tumble.Definition, error) {
			return tumble.Definition{Window: def.Window}, err
		}},
	{name: "retention is not known", rules: []string{"Reader/the definition", "Open/stores the definition", "Load/the longest retention is in force"},
		definition: func(_ *memory.Sink, def tumble.Definition, err error) (tumble.Definition, error) {
			def.Retention = 0
			return def, err
		}},
	{name: "the window is what was asked for", rules: []string{"Reader/count"},
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			c, err := s.Count(context.Background(), key, at)
			c.Start = at
			return c, err
		}},
	{name: "a window ends where it starts", rules: []string{"Reader/count", "Reader/open and closed"},
		count: counting(func(c *tumble.Count, _ tumble.Definition, _ checkpoints, _ time.Time) { c.End = c.Start })},
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
