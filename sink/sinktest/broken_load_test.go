package sinktest_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

func sortedKeys(m checkpoints) []string { return slices.Sorted(maps.Keys(m)) }

// joining is a Load that raises partitions that join to what frontier says.
func joining(frontier func(def tumble.Definition, stored checkpoints) time.Time) func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	return initially(func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
		before := s.stored(ctx)
		mark := frontier(s.def, before)
		after, err := s.init(ctx, init)
		for id, c := range init {
			if have, ok := before[id]; ok && after[id].Same(have) {
				continue
			}
			if c.Watermark.Before(mark) {
				c.Watermark = mark
			}
			if err := s.move(ctx, id, after[id], c); err != nil {
				return nil, err
			}
			after[id] = c
		}
		return after, err
	})
}

func none(tumble.Definition, checkpoints) time.Time { return time.Time{} }

func largest(stored checkpoints) (mark time.Time, allEnded bool) {
	allEnded = len(stored) > 0
	for _, c := range stored {
		if c.Watermark.After(mark) {
			mark = c.Watermark
		}
		allEnded = allEnded && c.Ended
	}
	return mark, allEnded
}

// telling is a Load that tells another state than it found; it is told what the
// shard was before.
func telling(change func(s shard, was, is *tumble.ShardState)) func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	return func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
		was := s.state(ctx)
		is, err := s.Load(ctx, r)
		if err == nil {
			change(s, &was, &is)
		}
		return is, err
	}
}

var loadFaults = []*fault{
	{name: "Load stores nothing", rules: []string{"Load/stores what is missing"},
		load: initially(func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			all := s.stored(ctx)
			for id, c := range init {
				if _, ok := all[id]; !ok {
					all[id] = c
				}
			}
			return all, nil
		})},
	{name: "Load overwrites", rules: []string{"Load/keeps what is stored", "Load/keeps what has ended"},
		load: initially(func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			all, err := s.init(ctx, init)
			for id, c := range init {
				if !all[id].Same(c) {
					if err := s.move(ctx, id, all[id], c); err != nil {
						return nil, err
					}
				}
			}
			return all, err
		})},
	{name: "Load raises to nothing", rules: []string{"Load/raised to the frontier"}, load: joining(none)},
	{name: "Load raises by whole milliseconds", rules: []string{"Load/raised to the frontier"},
		load: joining(func(def tumble.Definition, stored checkpoints) time.Time {
			return tumble.Frontier(stored).Truncate(time.Millisecond)
		})},
	{name: "Load one after the other", rules: []string{"Load/frontier before the call"},
		load: initially(func(s shard, ctx context.Context, init checkpoints) (all checkpoints, err error) {
			all, err = s.init(ctx, nil)
			for _, id := range sortedKeys(init) {
				all, err = s.init(ctx, checkpoints{id: init[id]})
			}
			return all, err
		})},
	{name: "the frontier waits for ended partitions", rules: []string{"Load/frontier without the ended"},
		load: joining(func(def tumble.Definition, stored checkpoints) time.Time {
			open := make(checkpoints)
			for id, c := range stored {
				c.Ended = false
				open[id] = c
			}
			return tumble.Frontier(open)
		})},
	{name: "the frontier of ended partitions is the end of their last window", rules: []string{"Load/frontier of ended partitions"},
		load: joining(func(def tumble.Definition, stored checkpoints) time.Time {
			if mark, ended := largest(stored); ended {
				return def.EndMark(mark)
			}
			return tumble.Frontier(stored)
		})},
	{name: "what has ended under another log is replaced", rules: []string{"Load/keeps what has ended"},
		load: initially(func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			was := s.state(ctx)
			for id, c := range init {
				if have, ok := was.Checkpoints[id]; ok && have.Ended && have.Log != c.Log {
					if c.Watermark.Before(was.Frontier) {
						c.Watermark = was.Frontier
					}
					if err := s.move(ctx, id, have, c); err != nil {
						return nil, err
					}
				}
			}
			return s.init(ctx, init)
		})},
	{name: "who asks is registered", rules: []string{"Load/only asks"},
		load: func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
			if len(r.Init) == 0 {
				r.Init = checkpoints{"": {}}
			}
			return s.Load(ctx, r)
		}},
	{name: "tells no frontier", rules: []string{"Load/tells the frontier"},
		load: telling(func(_ shard, _, is *tumble.ShardState) { is.Frontier = time.Time{} })},
	{name: "tells the frontier as it was before", rules: []string{"Load/tells the frontier"},
		load: telling(func(_ shard, was, is *tumble.ShardState) { is.Frontier = was.Frontier })},
	{name: "tells the frontier in milliseconds", rules: []string{"Load/tells the frontier"},
		load: telling(func(_ shard, _, is *tumble.ShardState) { is.Frontier = is.Frontier.Truncate(time.Millisecond) })},
	{name: "partitions are trimmed", rules: []string{"Load/any names"},
		load: initially(func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			trimmed := make(checkpoints)
			for id, c := range init {
				trimmed[strings.TrimSpace(id)] = c
			}
			return s.init(ctx, trimmed)
		})},
	{name: "Load returns its own map", rules: []string{"Load/own map"},
		load: initially(func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			s.f.mu.Lock()
			defer s.f.mu.Unlock()
			if own := s.f.keep[fmt.Sprintf("%p", s.Shard)]; own != nil && len(init) == 0 {
				return own, nil
			}
			own, err := s.init(ctx, init)
			s.f.keep[fmt.Sprintf("%p", s.Shard)] = own
			return own, err
		})},
	{name: "only Open writes the definition", rules: []string{"Load/writes the definition"},
		load: func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
			s.f.mu.Lock()
			defer s.f.mu.Unlock()
			if s.f.lost[s.s] {
				return tumble.ShardState{}, nil
			}
			return s.Load(ctx, r)
		}},
	{name: "Load does not look at the definition", rules: []string{"Load/refuses another definition"},
		load: initially(func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			all, err := s.init(ctx, init)
			if errors.Is(err, tumble.ErrDefinition) {
				return init, nil
			}
			return all, err
		})},
}
