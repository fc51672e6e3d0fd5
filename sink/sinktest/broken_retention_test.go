package sinktest_test

import (
	"context"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// inForce returns a fault whose retention in force is another: chosen from what
// was in force before and what a Load asks for.
func inForce(name string, choose func(was, asked time.Duration, first bool) time.Duration) *fault {
	var mu sync.Mutex
	var is time.Duration
	first := true
	return &fault{name: name, rules: []string{"Load/the longest retention is in force"},
		load: func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
			mu.Lock()
			is = choose(is, s.def.Retention, first)
			first = false
			mu.Unlock()
			return s.Load(ctx, r)
		},
		definition: func(_ *memory.Sink, def tumble.Definition, err error) (tumble.Definition, error) {
			mu.Lock()
			defer mu.Unlock()
			def.Retention = is
			return def, err
		}}
}

// told is what a Load tells as the floor.
func told(floor func(s shard, is *tumble.ShardState) time.Time) func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	return telling(func(s shard, _, is *tumble.ShardState) { is.Floors[0] = floor(s, is) })
}

var retentionFaults = []*fault{
	inForce("the last retention is in force", func(_, asked time.Duration, _ bool) time.Duration { return asked }),
	inForce("the first retention is in force", func(was, asked time.Duration, first bool) time.Duration {
		if first {
			return asked
		}
		return was
	}),
	inForce("for ever is no time at all", func(was, asked time.Duration, _ bool) time.Duration { return max(was, asked) }),
	{name: "each process deletes by its own retention", rules: []string{"Load/the longest retention is in force"},
		count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
			c, err := s.Count(context.Background(), key, at)
			def, stored := all(s)
			def.Retention = 3 * time.Minute
			if floor := def.FloorAt(def.ClosedAt(tumble.Frontier(stored[0]))); !floor.IsZero() && !c.End.After(floor) {
				c.N = 0
			}
			return c, err
		}},

	{name: "tells the retention of who asks", rules: []string{"Load/tells the retentions"},
		load: telling(func(s shard, _, is *tumble.ShardState) { is.Retentions[0] = s.def.Retention })},
	{name: "tells no retention", rules: []string{"Load/tells the retentions", "Rollup/its retention in force"},
		load: telling(func(_ shard, _, is *tumble.ShardState) { is.Retentions = nil })},
	{name: "tells the finest retention for all", rules: []string{"Rollup/its retention in force"},
		load: telling(func(_ shard, _, is *tumble.ShardState) {
			for i := range is.Retentions {
				is.Retentions[i] = is.Retentions[0]
			}
		})},

	{name: "tells no floor", rules: []string{"Apply/floor", "Apply/the floor never falls"},
		load: told(func(shard, *tumble.ShardState) time.Time { return time.Time{} })},
	{name: "the floor is the frontier less retention", rules: []string{"Apply/floor"},
		load: told(func(s shard, is *tumble.ShardState) time.Time { return s.def.FloorAt(is.Frontier) })},
	{name: "the floor falls", rules: []string{"Apply/the floor never falls"},
		load: told(func(s shard, is *tumble.ShardState) time.Time { return s.def.FloorAt(s.def.ClosedAt(is.Frontier)) })},

	func() *fault {
		var extra tally
		type gone struct {
			key   string
			start int64
		}
		return &fault{name: "what is past retention is counted", rules: []string{"Apply/past retention is not counted"},
			apply: func(s shard, ctx context.Context, b tumble.Batch) error {
				err := s.Apply(ctx, b)
				floor := s.state(ctx).Floors[0]
				for _, d := range b.Deltas {
					if _, end := s.def.Window.Bounds(d.Start); err == nil && !floor.IsZero() && !end.After(floor) {
						extra.set(gone{d.Key, d.Start.UnixNano()}, uint64(d.N))
					}
				}
				return err
			},
			count: func(s *memory.Sink, key string, at time.Time) (tumble.Count, error) {
				c, err := s.Count(context.Background(), key, at)
				c.N += int64(extra.get(gone{key, c.Start.UnixNano()}))
				return c, err
			}}
	}(),
	{name: "after what is past retention nothing is counted", rules: []string{"Apply/past retention is not counted"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			floor := s.state(ctx).Floors[0]
			for i, d := range b.Deltas {
				if _, end := s.def.Window.Bounds(d.Start); !floor.IsZero() && !end.After(floor) {
					b.Deltas = b.Deltas[:i]
					break
				}
			}
			return s.Apply(ctx, b)
		}},
}
