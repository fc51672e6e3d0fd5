package tumble

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// askedShard records the Loads that it answers, with what it has.
type askedShard struct {
	mu    sync.Mutex
	has   map[string]Checkpoint
	inits []map[string]Checkpoint // of all calls
	took  time.Duration           // each of them
	err   error
}

func (s *askedShard) Load(ctx context.Context, r LoadRequest) (ShardState, error) {
	s.mu.Lock()
	has, err, took := maps.Clone(s.has), s.err, s.took
	s.inits = append(s.inits, r.Init)
	for id, c := range r.Init {
		if _, ok := has[id]; !ok {
			has[id] = c
		}
	}
	s.has = maps.Clone(has)
	s.mu.Unlock()
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return ShardState{}, ctx.Err()
	}
	return ShardState{Checkpoints: has}, err
}

func (s *askedShard) Apply(context.Context, Batch) error { return errors.New("not called") }

func (s *askedShard) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.inits)
}

// loading returns a pipeline with one shard and partitions of these names.
func loading(s *askedShard, ids ...string) *Pipeline {
	p := &Pipeline{shards: []Shard{s}, tops: make([]mark, 1), registry: map[string]Checkpoint{}}
	p.loaders = []*loader{newLoader(p, 0)}
	for _, id := range ids {
		p.registry[id] = Checkpoint{Log: "log"}
	}
	return p
}

func quiet(error) {}

func TestManyAskOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &askedShard{has: map[string]Checkpoint{}, took: time.Second}
		p := loading(s, "a", "b", "c")
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				state, err := p.loaders[0].load(t.Context(), true, quiet)
				require.NoError(t, err)
				require.Len(t, state.Checkpoints, 3)
			})
		}
		wg.Wait()
		p.loads.Wait()
		require.LessOrEqual(t, s.calls(), 3, "one may be under way while the others ask")
	})
}

// What is asked while a call is under way is not answered by that one: its answer
// may be older than the reason to ask.
func TestAnAnswerIsNoOlderThanTheQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &askedShard{has: map[string]Checkpoint{"a": {Log: "log", Offset: 1}}, took: time.Second}
		p := loading(s)
		first := make(chan int64, 1)
		go func() {
			state, _ := p.loaders[0].load(t.Context(), false, quiet)
			first <- state.Checkpoints["a"].Offset
		}()
		time.Sleep(time.Second / 2)
		s.mu.Lock()
		s.has = map[string]Checkpoint{"a": {Log: "log", Offset: 2}}
		s.mu.Unlock()
		state, err := p.loaders[0].load(t.Context(), false, quiet)
		require.NoError(t, err)
		require.EqualValues(t, 1, <-first)
		require.EqualValues(t, 2, state.Checkpoints["a"].Offset)
		p.loads.Wait()
	})
}

// A shard that lacks partitions gets all of the registry in one step, and one that
// has them gets nothing.
func TestTheRegistryIsStoredInOneStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &askedShard{has: map[string]Checkpoint{}}
		p := loading(s, "a", "b")
		load := func() (inits []int) {
			before := s.calls()
			state, err := p.loaders[0].load(t.Context(), true, quiet)
			require.NoError(t, err)
			require.ElementsMatch(t, slices.Collect(maps.Keys(p.registry)), slices.Collect(maps.Keys(state.Checkpoints)))
			for _, init := range s.inits[before:] {
				inits = append(inits, len(init))
			}
			return inits
		}
		require.Equal(t, []int{2}, load())
		require.Equal(t, []int{0}, load())
		p.registry["c"] = Checkpoint{Log: "log"}
		require.Equal(t, []int{3}, load())
		s.has = map[string]Checkpoint{} // lost
		require.Equal(t, []int{0, 3}, load())
		delete(s.has, "a")
		p.registry["d"] = Checkpoint{Log: "log"}
		require.Equal(t, []int{4}, load())
		p.loads.Wait()
	})
}

func TestWhoAsksMayLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &askedShard{has: map[string]Checkpoint{}, took: time.Hour}
		p := loading(s, "a")
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := p.loaders[0].load(ctx, true, quiet)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Equal(t, time.Second, time.Since(began))
		}
		p.loads.Wait() // the call was given up with the last who asked
		s.took = 0
		_, err := p.loaders[0].load(t.Context(), true, quiet)
		require.NoError(t, err)
		p.loads.Wait()
	})
}

// A call that fails late is not followed at once by the next, which would double
// what the store has to do.
func TestASlowFailureIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &askedShard{has: map[string]Checkpoint{}, took: 10 * time.Second, err: errors.New("too late")}
		p := loading(s, "a")
		var told int
		ctx, cancel := context.WithTimeout(t.Context(), 55*time.Second)
		defer cancel()
		_, err := p.loaders[0].load(ctx, true, func(error) { told++ })
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, 3, s.calls(), "each 10 seconds, and 10 seconds between them")
		require.Equal(t, 3, told)
		require.EqualValues(t, 3, p.Stats().Retries)
		p.loads.Wait()
	})
}
