package sinktest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/sink/sinktest"
)

// A faulty is a sink that keeps the contract but for what its functions, those
// that are not nil, do instead.
type faulty struct {
	*memory.Sink
	fault *fault
}

type fault struct {
	name  string
	rules []string // that must find it

	open       func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error)
	load       func(s shard, ctx context.Context, init map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error)
	apply      func(s shard, ctx context.Context, b tumble.Batch) error
	definition func(s *memory.Sink, def tumble.Definition, err error) (tumble.Definition, error)
	count      func(s *memory.Sink, key string, at time.Time) (tumble.Count, error)
	counts     func(s *memory.Sink, key string, from, to time.Time) ([]tumble.Count, error)
	top        func(s *memory.Sink, at time.Time, n int) (tumble.Page, error)
	scan       func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error)

	fresh, shared bool                   // every Open is a store of its own; all names are one store
	mu            sync.Mutex             // guards what follows
	lost          map[*memory.Sink]bool  // by lose
	opens         map[*memory.Sink]int   // calls of Open, told to open as n
	keep          map[string]checkpoints // for faults that remember
	pending       []tumble.Delta
}

type checkpoints = map[string]tumble.Checkpoint

// shard is what a fault works with: a shard that keeps the contract.
type shard struct {
	tumble.Shard
	f   *fault
	s   *memory.Sink
	def tumble.Definition
	i   int
	all []tumble.Shard
}

func (s shard) stored(ctx context.Context) checkpoints {
	all, _ := s.Shard.Load(ctx, nil)
	return all
}

type faultyShard struct{ shard }

func (s faultyShard) Load(ctx context.Context, init checkpoints) (checkpoints, error) {
	if s.f.load != nil {
		return s.f.load(s.shard, ctx, init)
	}
	return s.Shard.Load(ctx, init)
}

func (s faultyShard) Apply(ctx context.Context, b tumble.Batch) error {
	if s.f.apply != nil {
		return s.f.apply(s.shard, ctx, b)
	}
	return s.Shard.Apply(ctx, b)
}

func (f faulty) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	f.fault.mu.Lock()
	f.fault.opens[f.Sink]++
	n := f.fault.opens[f.Sink]
	f.fault.lost[f.Sink] = false
	f.fault.mu.Unlock()
	shards, err := f.Sink.Open(ctx, def)
	if f.fault.open != nil {
		shards, err = f.fault.open(f.Sink, n, shards, err)
	}
	wrapped := make([]tumble.Shard, len(shards))
	for i, s := range shards {
		wrapped[i] = faultyShard{shard{s, f.fault, f.Sink, def, i, shards}}
	}
	return wrapped, err
}

func (f faulty) Definition(ctx context.Context) (tumble.Definition, error) {
	def, err := f.Sink.Definition(ctx)
	if f.fault.definition != nil {
		return f.fault.definition(f.Sink, def, err)
	}
	return def, err
}

func (f faulty) Count(ctx context.Context, key string, at time.Time) (tumble.Count, error) {
	if f.fault.count != nil {
		return f.fault.count(f.Sink, key, at)
	}
	return f.Sink.Count(ctx, key, at)
}

func (f faulty) Range(ctx context.Context, key string, from, to time.Time) ([]tumble.Count, error) {
	if f.fault.counts != nil {
		return f.fault.counts(f.Sink, key, from, to)
	}
	return f.Sink.Range(ctx, key, from, to)
}

func (f faulty) Top(ctx context.Context, at time.Time, n int) (tumble.Page, error) {
	if f.fault.top != nil {
		return f.fault.top(f.Sink, at, n)
	}
	return f.Sink.Top(ctx, at, n)
}

func (f faulty) Scan(ctx context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	if f.fault.scan != nil {
		return f.fault.scan(f.Sink, at, cursor, limit)
	}
	return f.Sink.Scan(ctx, at, cursor, limit)
}

// config returns the configuration that tests sinks with the fault.
func (f *fault) config() sinktest.Config {
	f.lost, f.opens, f.keep = make(map[*memory.Sink]bool), make(map[*memory.Sink]int), make(map[string]checkpoints)
	sinks := make(map[string]*memory.Sink)
	get := func(name string) *memory.Sink {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.shared {
			name = "one"
		}
		if sinks[name] == nil || f.fresh {
			sinks[name] = &memory.Sink{Shards: 4}
		}
		return sinks[name]
	}
	return sinktest.Config{
		Open: func(_ context.Context, name string) (sinktest.Sink, error) { return faulty{get(name), f}, nil },
		Lose: func(_ context.Context, name string) error {
			s := get(name)
			s.Clear()
			f.mu.Lock()
			defer f.mu.Unlock()
			f.lost[s] = true
			return nil
		},
	}
}

// TestFaultless guards the table below: without a fault nothing is found.
func TestFaultless(t *testing.T) {
	t.Parallel()
	sinktest.Test(t, (&fault{}).config())
}

// TestFaults is the proof that each rule can fail.
func TestFaults(t *testing.T) {
	t.Parallel()
	rules := make(map[string]sinktest.Rule)
	for _, r := range sinktest.Rules() {
		require.NotContains(t, rules, r.Name, "two rules have one name")
		rules[r.Name] = r
	}
	found := make(map[string]bool)
	for _, f := range slices.Concat(storeFaults, readFaults, raceFaults) {
		for _, name := range f.rules {
			found[name] = true
			require.Contains(t, rules, name, "no such rule: see the fault %q", f.name)
		}
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			require.NotEmpty(t, f.rules)
			cfg := f.config()
			for _, name := range f.rules {
				var err error
				for try := 0; err == nil && try < 10; try++ { // a race is not lost each time
					err = rules[name].Check(t.Context(), cfg)
				}
				require.Error(t, err, "the rule %q does not find it", name)
			}
		})
	}
	for name := range rules {
		require.True(t, found[name], "no fault shows that the rule %q can fail", name)
	}
}

// lenient is an Apply that takes a conflict for none where same says so.
func lenient(same func(stored, from tumble.Checkpoint) bool) func(s shard, ctx context.Context, b tumble.Batch) error {
	return func(s shard, ctx context.Context, b tumble.Batch) error {
		stored, ok := s.stored(ctx)[b.Partition]
		if ok && same(stored, b.From) {
			b.From = stored
		}
		return s.Apply(ctx, b)
	}
}

// but compares checkpoints after change.
func but(change func(c *tumble.Checkpoint)) func(a, b tumble.Checkpoint) bool {
	return func(a, b tumble.Checkpoint) bool {
		change(&a)
		change(&b)
		return a.Same(b)
	}
}

// joining is a Load that raises partitions that join to what frontier says.
func joining(frontier func(def tumble.Definition, stored checkpoints) time.Time) func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
	return func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
		before := s.stored(ctx)
		mark := frontier(s.def, before)
		after, err := s.Load(ctx, init)
		for id, c := range init {
			if have, ok := before[id]; ok && after[id].Same(have) {
				continue
			}
			if c.Watermark.Before(mark) {
				c.Watermark = mark
			}
			if err := s.Apply(ctx, tumble.Batch{Partition: id, From: after[id], To: c}); err != nil {
				return nil, err
			}
			after[id] = c
		}
		return after, err
	}
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

// deltas is an Apply that changes each delta.
func deltas(change func(d *tumble.Delta)) func(s shard, ctx context.Context, b tumble.Batch) error {
	return func(s shard, ctx context.Context, b tumble.Batch) error {
		b.Deltas = slices.Clone(b.Deltas)
		for i := range b.Deltas {
			change(&b.Deltas[i])
		}
		return s.Apply(ctx, b)
	}
}

var storeFaults = []*fault{
	{name: "takes any definition", rules: []string{"Open/refuses another definition"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			if err != nil {
				stored, _ := s.Definition(context.Background())
				return s.Open(context.Background(), stored)
			}
			return shards, err
		}},
	{name: "takes a refused definition for its own", rules: []string{"Open/a refused one changes nothing"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			if err != nil && n > 1 {
				other, _ := s.Definition(context.Background())
				other.Grace = time.Hour
				s.Clear()
				_, _ = s.Open(context.Background(), other)
			}
			return shards, err
		}},
	{name: "adds up what is counted by two definitions", rules: []string{"Apply/refuses another definition"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if errors.Is(err, tumble.ErrDefinition) {
				stored, _ := s.s.Definition(ctx)
				shards, _ := s.s.Open(ctx, stored)
				return shards[s.i].Apply(ctx, b)
			}
			return err
		}},
	{name: "a shard less each time", rules: []string{"Open/always as many shards"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			return shards[:max(1, len(shards)-n)], err
		}},
	{name: "shards in another order", rules: []string{"Open/keys by hash"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			return append(slices.Clone(shards[1:]), shards[0]), err
		}},
	{name: "nothing outlives the process", rules: []string{"Sink/outlives the process"}, fresh: true},
	{name: "one store for all names", rules: []string{"Sink/names are apart"}, shared: true},

	{name: "Load stores nothing", rules: []string{"Load/stores what is missing"},
		load: func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			all := s.stored(ctx)
			for id, c := range init {
				if _, ok := all[id]; !ok {
					all[id] = c
				}
			}
			return all, nil
		}},
	{name: "Load overwrites", rules: []string{"Load/keeps what is stored", "Load/ended under the same log"},
		load: func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			all, err := s.Load(ctx, init)
			for id, c := range init {
				if !all[id].Same(c) {
					if err := s.Apply(ctx, tumble.Batch{Partition: id, From: all[id], To: c}); err != nil {
						return nil, err
					}
				}
			}
			return all, err
		}},
	{name: "Load raises to nothing", rules: []string{"Load/raised to the frontier", "Reader/expired, then registered anew"}, load: joining(none)},
	{name: "Load raises by whole milliseconds", rules: []string{"Load/raised to the frontier"},
		load: joining(func(def tumble.Definition, stored checkpoints) time.Time {
			return def.Frontier(stored).Truncate(time.Millisecond)
		})},
	{name: "Load one after the other", rules: []string{"Load/frontier before the call"},
		load: func(s shard, ctx context.Context, init checkpoints) (all checkpoints, err error) {
			all, err = s.Load(ctx, nil)
			for _, id := range sortedKeys(init) {
				all, err = s.Load(ctx, checkpoints{id: init[id]})
			}
			return all, err
		}},
	{name: "the frontier waits for ended partitions", rules: []string{"Load/frontier without the ended"},
		load: joining(func(def tumble.Definition, stored checkpoints) time.Time {
			open := make(checkpoints)
			for id, c := range stored {
				c.Ended = false
				open[id] = c
			}
			return def.Frontier(open)
		})},
	{name: "the frontier of ended partitions is their watermark", rules: []string{"Load/frontier of ended partitions", "Load/ended under another log"},
		load: joining(func(def tumble.Definition, stored checkpoints) time.Time {
			if mark, ended := largest(stored); ended {
				return mark
			}
			return def.Frontier(stored)
		})},
	{name: "every day has 24 hours", rules: []string{"Load/frontier of ended days"},
		load: joining(func(def tumble.Definition, stored checkpoints) time.Time {
			if mark, ended := largest(stored); ended && !mark.IsZero() {
				start, _ := def.Window.Bounds(mark)
				return start.Add(24*time.Hour + def.Grace)
			}
			return def.Frontier(stored)
		})},
	{name: "what has ended stays", rules: []string{"Load/ended under another log"},
		load: func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			missing := make(checkpoints)
			for id, c := range init {
				if _, ok := s.stored(ctx)[id]; !ok {
					missing[id] = c
				}
			}
			return s.Load(ctx, missing)
		}},
	{name: "partitions are trimmed", rules: []string{"Load/any names"},
		load: func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			trimmed := make(checkpoints)
			for id, c := range init {
				trimmed[strings.TrimSpace(id)] = c
			}
			return s.Load(ctx, trimmed)
		}},
	{name: "Load returns its own map", rules: []string{"Load/own map"},
		load: func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			s.f.mu.Lock()
			defer s.f.mu.Unlock()
			if own := s.f.keep[fmt.Sprintf("%p", s.Shard)]; own != nil && len(init) == 0 {
				return own, nil
			}
			own, err := s.Load(ctx, init)
			s.f.keep[fmt.Sprintf("%p", s.Shard)] = own
			return own, err
		}},
	{name: "only Open writes the definition", rules: []string{"Load/writes the definition"},
		load: func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			s.f.mu.Lock()
			defer s.f.mu.Unlock()
			if s.f.lost[s.s] {
				return nil, nil
			}
			return s.Load(ctx, init)
		}},
	{name: "Load does not look at the definition", rules: []string{"Load/refuses another definition"},
		load: func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			all, err := s.Load(ctx, init)
			if errors.Is(err, tumble.ErrDefinition) {
				return init, nil
			}
			return all, err
		}},

	{name: "logs are not compared", rules: []string{"Apply/conflict in Log"}, apply: lenient(but(func(c *tumble.Checkpoint) { c.Log = "" }))},
	{name: "logs are compared without case", rules: []string{"Apply/conflict in Log"}, apply: lenient(but(func(c *tumble.Checkpoint) { c.Log = strings.ToLower(c.Log) }))},
	{name: "origins are not compared", rules: []string{"Apply/conflict in Origin"}, apply: lenient(but(func(c *tumble.Checkpoint) { c.Origin = 0 }))},
	{name: "offsets are not compared", rules: []string{"Apply/conflict in Offset", "Apply/the identical batch again"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Offset, c.Watermark = 0, time.Time{} }))},
	{name: "numbers are floating point", rules: []string{"Apply/conflict in Offset", "Apply/conflict in Origin"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Offset, c.Origin = int64(float64(c.Offset)), int64(float64(c.Origin)) }))},
	{name: "a position further on is good enough", rules: []string{"Apply/conflict in Offset"},
		apply: lenient(func(stored, from tumble.Checkpoint) bool {
			return stored.Log == from.Log && from.Offset > stored.Offset
		})},
	{name: "watermarks are compared in microseconds", rules: []string{"Apply/conflict in Watermark"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Watermark = c.Watermark.Truncate(time.Microsecond) }))},
	{name: "watermarks are not compared with none", rules: []string{"Apply/conflict in Watermark: there, asked for none"},
		apply: lenient(func(stored, from tumble.Checkpoint) bool {
			return from.Watermark.IsZero() && but(func(c *tumble.Checkpoint) { c.Watermark = time.Time{} })(stored, from)
		})},
	{name: "no watermark is the epoch",
		rules: []string{"Apply/conflict in Watermark: none, asked for one", "Apply/conflict in Watermark: the epoch, asked for none"},
		apply: lenient(but(func(c *tumble.Checkpoint) {
			if c.Watermark.IsZero() {
				c.Watermark = time.Unix(0, 0)
			}
		}))},
	{name: "ended is not compared", rules: []string{"Apply/conflict in Ended", "Apply/conflict in Ended: so, asked for not"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Ended = false }))},
	{name: "times are compared by ==", rules: []string{"Apply/the same instant"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if stored := s.stored(ctx)[b.Partition]; stored != b.From {
				return tumble.ErrConflict
			}
			return s.Apply(ctx, b)
		}},
	{name: "none is stored, so any will do", rules: []string{"Apply/conflict with none"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if _, err := s.Load(ctx, checkpoints{b.Partition: b.From}); err != nil {
				return err
			}
			return s.Apply(ctx, b)
		}},
	{name: "a conflict adds", rules: []string{"Apply/conflict in Offset", "Apply/the identical batch again"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if stored, ok := s.stored(ctx)[b.Partition]; ok && err != nil {
				_ = s.Apply(ctx, tumble.Batch{Partition: b.Partition, From: stored, To: stored, Deltas: b.Deltas})
			}
			return err
		}},
	{name: "a conflict moves", rules: []string{"Apply/conflict in Origin"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if stored, ok := s.stored(ctx)[b.Partition]; ok && err != nil {
				_ = s.Apply(ctx, tumble.Batch{Partition: b.Partition, From: stored, To: b.To})
			}
			return err
		}},
	{name: "the same batch again is fine", rules: []string{"Apply/the identical batch again"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if s.stored(ctx)[b.Partition].Same(b.To) {
				return nil
			}
			return s.Apply(ctx, b)
		}},
	{name: "watermarks are kept in milliseconds", rules: []string{"Apply/moves the whole checkpoint"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.To.Watermark = b.To.Watermark.Truncate(time.Millisecond)
			return s.Apply(ctx, b)
		}},
	{name: "every increment is 1", rules: []string{"Apply/adds"}, apply: deltas(func(d *tumble.Delta) { d.N = 1 })},
	{name: "one checkpoint for all partitions", rules: []string{"Apply/partitions add up"},
		load: func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			for id, c := range init {
				all, err := s.Load(ctx, checkpoints{"all": c})
				return checkpoints{id: all["all"]}, err
			}
			return s.Load(ctx, nil)
		},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.Partition = "all"
			return s.Apply(ctx, b)
		}},
	{name: "a shard moves the others", rules: []string{"Apply/one shard alone"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			for _, other := range s.all {
				if other != s.Shard {
					_ = other.Apply(ctx, tumble.Batch{Partition: b.Partition, From: b.From, To: b.To})
				}
			}
			return s.Apply(ctx, b)
		}},
	{name: "keys end at a zero byte", rules: []string{"Apply/keys of any bytes"},
		apply: deltas(func(d *tumble.Delta) { d.Key, _, _ = strings.Cut(d.Key, "\x00") })},
	{name: "keys are cut", rules: []string{"Apply/keys of any bytes"}, apply: deltas(func(d *tumble.Delta) { d.Key = d.Key[:min(len(d.Key), 65535)] })},
	{name: "a thousand deltas are enough", rules: []string{"Apply/many deltas"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.Deltas = b.Deltas[:min(len(b.Deltas), 1000)]
			return s.Apply(ctx, b)
		}},
	{name: "without deltas there is nothing to do", rules: []string{"Apply/no deltas"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if len(b.Deltas) == 0 {
				return nil
			}
			return s.Apply(ctx, b)
		}},
	{name: "a rebase is refused", rules: []string{"Apply/rebase"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if b.From.Log != b.To.Log {
				return tumble.ErrConflict
			}
			return s.Apply(ctx, b)
		}},
	{name: "deltas are read later", rules: []string{"Apply/deltas are borrowed"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			s.f.mu.Lock()
			defer s.f.mu.Unlock()
			later := b.Deltas
			b.Deltas, s.f.pending = s.f.pending, later
			return s.Apply(ctx, b)
		}},
}
