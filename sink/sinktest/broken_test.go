package sinktest_test

import (
	"context"
	"slices"
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
	load       func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error)
	apply      func(s shard, ctx context.Context, b tumble.Batch) error
	definition func(s *memory.Sink, def tumble.Definition, err error) (tumble.Definition, error)
	count      func(s *memory.Sink, key string, at time.Time) (tumble.Count, error)
	counts     func(s *memory.Sink, key string, from, to time.Time) ([]tumble.Count, error)
	top        func(s *memory.Sink, at time.Time, n int) (tumble.Page, error)
	scan       func(s *memory.Sink, at time.Time, cursor string, limit int) (tumble.Page, error)

	several  func(s *memory.Sink, at time.Time, keys []string) ([]tumble.Count, error)
	windows  func(s *memory.Sink, from, to time.Time) ([]tumble.Total, error)
	progress func(s *memory.Sink) (tumble.Progress, error)
	rollup   func(s *memory.Sink, w tumble.Window) (tumble.Reader, error)

	snapshot func() (restore func()) // notes what the fault itself remembers

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

func (s shard) state(ctx context.Context) tumble.ShardState {
	state, _ := s.Shard.Load(ctx, tumble.LoadRequest{})
	return state
}

func (s shard) stored(ctx context.Context) checkpoints { return s.state(ctx).Checkpoints }

// init is a Load of checkpoints alone.
func (s shard) init(ctx context.Context, init checkpoints) (checkpoints, error) {
	state, err := s.Shard.Load(ctx, tumble.LoadRequest{Init: init})
	return state.Checkpoints, err
}

// initially is a Load that does something else with the checkpoints it is given.
func initially(f func(s shard, ctx context.Context, init checkpoints) (checkpoints, error)) func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	return func(s shard, ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
		all, err := f(s, ctx, r.Init)
		r.Init = nil
		state, _ := s.Load(ctx, r)
		state.Checkpoints = all
		return state, err
	}
}

// move is an Apply of a batch that only moves a checkpoint.
func (s shard) move(ctx context.Context, partition string, from, to tumble.Checkpoint) error {
	return s.Apply(ctx, tumble.Batch{Partition: partition, Writer: 1, From: from, To: to})
}

type faultyShard struct{ shard }

func (s faultyShard) Load(ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	if s.f.load != nil {
		return s.f.load(s.shard, ctx, r)
	}
	return s.Shard.Load(ctx, r)
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

func (f faulty) Counts(ctx context.Context, at time.Time, keys ...string) ([]tumble.Count, error) {
	if f.fault.several != nil {
		return f.fault.several(f.Sink, at, keys)
	}
	return f.Sink.Counts(ctx, at, keys...)
}

func (f faulty) Windows(ctx context.Context, from, to time.Time) ([]tumble.Total, error) {
	if f.fault.windows != nil {
		return f.fault.windows(f.Sink, from, to)
	}
	return f.Sink.Windows(ctx, from, to)
}

func (f faulty) Rollup(w tumble.Window) (tumble.Reader, error) {
	if f.fault.rollup != nil {
		return f.fault.rollup(f.Sink, w)
	}
	return f.Sink.Rollup(w)
}

func (f faulty) Progress(ctx context.Context) (tumble.Progress, error) {
	if f.fault.progress != nil {
		return f.fault.progress(f.Sink)
	}
	return f.Sink.Progress(ctx)
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
			sinks[name] = memory.New(memory.Config{Shards: 4})
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
		Snapshot: func(_ context.Context, name string) (func(context.Context) error, error) {
			restore, forget := get(name).Snapshot(), func() {}
			if f.snapshot != nil {
				forget = f.snapshot()
			}
			return func(context.Context) error { restore(); forget(); return nil }, nil
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
	for _, f := range slices.Concat(storeFaults, loadFaults, announceFaults, revivalFaults, termFaults, retentionFaults, readFaults, totalFaults, rollupFaults, stateFaults, raceFaults) {
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
