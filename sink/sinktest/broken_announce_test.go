package sinktest_test

import (
	"context"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// asked is a Load whose request is changed; it is told what the shard holds.
func asked(change func(s shard, is tumble.ShardState, r *tumble.LoadRequest)) func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	return func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
		change(s, s.state(ctx), &r)
		return s.Load(ctx, r)
	}
}

// rounded returns tokens as floating point holds them.
func rounded(tokens map[string]uint64) map[string]uint64 {
	all := make(map[string]uint64)
	for id, t := range tokens {
		all[id] = uint64(float64(t / 2))
	}
	return all
}

// overruled is a sink in which an objection outlives the announcement.
func overruled() *fault {
	var mu sync.Mutex
	objected := make(map[spot]map[string]bool)
	return &fault{name: "an objection is to all tokens that come", rules: []string{"Load/another announcement"},
		load: func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
			mu.Lock()
			defer mu.Unlock()
			if objected[s.spot()] == nil {
				objected[s.spot()] = make(map[string]bool)
			}
			is := s.state(ctx)
			for id, t := range r.Object {
				if is.Announced[id] == t {
					objected[s.spot()][id] = true
				}
			}
			object := make(map[string]uint64)
			for id, t := range r.Announce {
				if objected[s.spot()][id] {
					object[id] = t
				}
			}
			if _, err := s.Load(ctx, r); err != nil {
				return tumble.ShardState{}, err
			}
			return s.Load(ctx, tumble.LoadRequest{Object: object})
		}}
}

var announceFaults = []*fault{
	{name: "announcements are not told", rules: []string{"Load/announcements", "Load/objections", "Load/another announcement"},
		load: telling(func(_ shard, _, is *tumble.ShardState) { is.Announced = nil })},
	{name: "announcements are told the next time", rules: []string{"Load/announcements"},
		load: telling(func(_ shard, was, is *tumble.ShardState) { is.Announced = was.Announced })},
	{name: "tokens are floating point", rules: []string{"Load/announcements", "Apply/a token that is not announced"},
		load: func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
			r.Announce, r.Object = rounded(r.Announce), rounded(r.Object)
			return s.Load(ctx, r)
		},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.Token = rounded(map[string]uint64{"": b.Token})[""]
			return s.Apply(ctx, b)
		}},
	{name: "an announcement is of all shards", rules: []string{"Load/an announcement in one shard"},
		load: func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
			for _, other := range s.all {
				if _, err := other.Load(ctx, tumble.LoadRequest{Announce: r.Announce}); err != nil {
					return tumble.ShardState{}, err
				}
			}
			return s.Load(ctx, r)
		}},
	{name: "an objection is to all shards", rules: []string{"Apply/an objection in one shard"},
		load: func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
			for _, other := range s.all {
				if _, err := other.Load(ctx, tumble.LoadRequest{Object: r.Object}); err != nil {
					return tumble.ShardState{}, err
				}
			}
			return s.Load(ctx, r)
		}},
	{name: "nobody can object", rules: []string{"Load/objections", "Load/another announcement", "Apply/a token that was objected to", "Apply/an objection in one shard"},
		load: asked(func(_ shard, _ tumble.ShardState, r *tumble.LoadRequest) { r.Object = nil })},
	{name: "an objection is to any token", rules: []string{"Load/objections", "Load/another announcement"},
		load: asked(func(_ shard, is tumble.ShardState, r *tumble.LoadRequest) {
			object := make(map[string]uint64)
			for id := range r.Object {
				object[id] = is.Announced[id]
			}
			r.Object = object
		})},
	{name: "the first token stays", rules: []string{"Load/another announcement"},
		load: asked(func(_ shard, is tumble.ShardState, r *tumble.LoadRequest) {
			announce := make(map[string]uint64)
			for id, t := range r.Announce {
				if _, ok := is.Announced[id]; !ok {
					announce[id] = t
				}
			}
			r.Announce = announce
		})},
	overruled(),
	{name: "tokens are ignored", rules: []string{
		"Apply/a token that is not announced", "Apply/a token that was objected to", "Apply/an objection in one shard", "Load/another announcement",
	},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.Token = 0
			return s.Apply(ctx, b)
		}},
	{name: "any token that is announced will do", rules: []string{"Apply/a token that is not announced", "Load/another announcement"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if t, ok := s.state(ctx).Announced[b.Partition]; ok && b.Token != 0 {
				b.Token = t
			}
			return s.Apply(ctx, b)
		}},
	{name: "a token of another partition will do", rules: []string{"Apply/a token that is not announced"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			for _, t := range s.state(ctx).Announced {
				if t == b.Token {
					b.Token = 0
				}
			}
			return s.Apply(ctx, b)
		}},
	{name: "nobody ends a partition that he does not read", rules: []string{"Apply/a token that is announced"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if b.Token != 0 {
				b.To.Ended = false
			}
			return s.Apply(ctx, b)
		}},
	{name: "what is refused is done", rules: []string{"Apply/a token that was objected to"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if err != nil && b.Token != 0 {
				_ = s.move(ctx, b.Partition, b.From, b.To)
			}
			return err
		}},
	{name: "an objection holds up who reads", rules: []string{"Apply/a token that was objected to"},
		load: func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
			s.f.mu.Lock()
			defer s.f.mu.Unlock()
			for id := range r.Object {
				s.f.keep[id] = checkpoints{}
			}
			return s.Load(ctx, r)
		},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			s.f.mu.Lock()
			defer s.f.mu.Unlock()
			if s.f.keep[b.Partition] != nil {
				return tumble.ErrObjected
			}
			return s.Apply(ctx, b)
		}},
}

// reviving is an Apply that does something else with revivals.
func reviving(f func(s shard, ctx context.Context, frontier time.Time, b tumble.Batch) error) func(s shard, ctx context.Context, b tumble.Batch) error {
	return func(s shard, ctx context.Context, b tumble.Batch) error {
		if b.From.Ended && !b.To.Ended {
			return f(s, ctx, s.state(ctx).Frontier, b)
		}
		return s.Apply(ctx, b)
	}
}

var revivalFaults = []*fault{
	{name: "revives behind the frontier", rules: []string{"Apply/revival behind the frontier", "Apply/revival of the last"},
		apply: reviving(func(s shard, ctx context.Context, frontier time.Time, b tumble.Batch) error {
			to := b.To
			if to.Watermark.Before(frontier) {
				to.Watermark = frontier
			}
			if err := s.move(ctx, b.Partition, b.From, to); err != nil {
				return err
			}
			return s.move(ctx, b.Partition, to, b.To)
		})},
	{name: "raises what revives", rules: []string{"Apply/revival behind the frontier", "Apply/revival of the last"},
		apply: reviving(func(s shard, ctx context.Context, frontier time.Time, b tumble.Batch) error {
			if b.To.Watermark.Before(frontier) {
				b.To.Watermark = frontier
			}
			return s.Apply(ctx, b)
		})},
	{name: "revives within a millisecond of the frontier", rules: []string{"Apply/revival behind the frontier"},
		apply: reviving(func(s shard, ctx context.Context, frontier time.Time, b tumble.Batch) error {
			if frontier.Sub(b.To.Watermark) < time.Millisecond {
				b.To.Watermark = frontier
			}
			return s.Apply(ctx, b)
		})},
	{name: "a conflict, where the frontier has passed", rules: []string{"Apply/revival behind the frontier"},
		apply: reviving(func(s shard, ctx context.Context, frontier time.Time, b tumble.Batch) error {
			if s.Apply(ctx, b) != nil {
				return tumble.ErrConflict
			}
			return nil
		})},
	{name: "what has ended has ended", rules: []string{
		"Apply/revival at the frontier", "Apply/revival of the last", "Apply/revival without a frontier", "Reader/expired, then going on",
	},
		apply: reviving(func(shard, context.Context, time.Time, tumble.Batch) error { return tumble.ErrPassed })},
	{name: "revives beyond the frontier only", rules: []string{"Apply/revival at the frontier", "Apply/revival of the last"},
		apply: reviving(func(s shard, ctx context.Context, frontier time.Time, b tumble.Batch) error {
			if !b.To.Watermark.After(frontier) {
				return tumble.ErrPassed
			}
			return s.Apply(ctx, b)
		})},
	{name: "revives with a watermark only", rules: []string{"Apply/revival without a frontier"},
		apply: reviving(func(s shard, ctx context.Context, frontier time.Time, b tumble.Batch) error {
			if b.To.Watermark.IsZero() {
				return tumble.ErrPassed
			}
			return s.Apply(ctx, b)
		})},
	{name: "without a frontier the largest watermark counts", rules: []string{"Apply/revival without a frontier"},
		apply: reviving(func(s shard, ctx context.Context, frontier time.Time, b tumble.Batch) error {
			if top, _ := largest(s.stored(ctx)); b.To.Watermark.Before(top) {
				return tumble.ErrPassed
			}
			return s.Apply(ctx, b)
		})},
}
