package tumble_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

func TestGrowthJoinsAtTheFrontier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(3)
		topic.Add("a", at(0, "x"), at(130, "x"))
		source := &faketest.Source{Topic: topic, More: make(chan string)}
		p := faketest.Start(t, tumble.Config{Source: source, Sink: sink, Idle: -1})
		time.Sleep(time.Second)
		topic.Change("b", func(*faketest.Log) {})
		topic.Add("b", at(30, "joined"))
		source.More <- "b"
		time.Sleep(10 * time.Second)
		for i := range 3 {
			require.True(t, sink.Stored(i, "b").Watermark.Equal(t0.Add(130*time.Second)), "shard %d: %v", i, sink.Stored(i, "b"))
		}
		require.NoError(t, p.Stop())
		require.EqualValues(t, 1, p.Stats().Late)
		require.EqualValues(t, 3, p.Stats().Counted)
	})
}

// A consumer that waits for another one's registration must still be able to
// give up its partition; and a partition that is known need not wait.
func TestRegistrationHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(2)
		more := make(chan string)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Own: []string{"a"}, More: more}, Sink: sink, ShutdownTimeout: time.Second})
		time.Sleep(time.Second)
		sink.SetFault(func(shard int, b *tumble.Batch) faketest.Fault {
			if shard == 1 {
				return faketest.Refused
			}
			return faketest.Fine
		})
		topic.Change("new", func(*faketest.Log) {})
		more <- "new" // registers for as long as the shard is down
		time.Sleep(time.Second)
		more <- "b" // known to all shards
		time.Sleep(time.Second)
		topic.Add("b", at(0, "x"), at(0, "y"), at(0, "z"), at(0, "v"), at(0, "w"))
		sink.SetFault(nil)
		time.Sleep(time.Minute)
		require.NoError(t, p.Stop())
		require.Len(t, sink.Counts(), 5)
	})
}

func TestAKnownPartitionDoesNotWaitForANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(1)
		topic.Add("b", at(0, "x"))
		source := &listless{Source: &faketest.Source{Topic: topic, Own: []string{"a"}, More: make(chan string)}}
		source.from.Store(1)
		p := faketest.Start(t, tumble.Config{Source: source, Sink: sink})
		time.Sleep(time.Second)
		topic.Change("new", func(*faketest.Log) {})
		source.More <- "new"
		time.Sleep(time.Second)
		source.More <- "b"
		time.Sleep(time.Second)
		require.Len(t, sink.Counts(), 1)
		require.NoError(t, p.Stop())
	})
}

// A source whose list of partitions does not come.
type listless struct {
	*faketest.Source
	from atomic.Int64 // calls of Partitions that are answered
}

func (s *listless) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	if s.from.Add(-1) < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.Source.Partitions(ctx, stored)
}

func TestAPartitionIsGivenUpWhileAnotherOneRegisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		source := revoked{&listless{Source: &faketest.Source{Topic: topic}}, make(chan struct{}), make(chan struct{})}
		source.from.Store(1)
		p := faketest.Start(t, tumble.Config{Source: source, Sink: sink})
		time.Sleep(2 * time.Second)
		close(source.revoke)
		time.Sleep(time.Second)
		select {
		case <-source.given:
		default:
			t.Error("it waits for the other one")
		}
		require.NoError(t, p.Stop())
	})
}

// A revoked runs two partitions that are new, the second until revoke is closed.
type revoked struct {
	*listless
	revoke, given chan struct{}
}

func (s revoked) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _ = consume(ctx, s.Partition("new-1")) })
	time.Sleep(time.Second)
	until, cancel := context.WithCancel(ctx)
	wg.Go(func() {
		defer close(s.given)
		_ = consume(until, s.Partition("new-2"))
	})
	<-s.revoke
	cancel()
	return nil
}

// A source that cannot list a new partition for a while stops nobody; one that
// says why it never will ends the pipeline.
func TestGrowthWaitsForTheListing(t *testing.T) {
	for _, never := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
			source := &flaky{Source: &faketest.Source{Topic: topic, More: make(chan string)}}
			p := faketest.Start(t, tumble.Config{Source: source, Sink: sink})
			time.Sleep(time.Second)
			refusal := errors.New("no such topic")
			if !never {
				refusal = fmt.Errorf("%w: %w", refusal, tumble.ErrUnavailable)
			}
			source.err.Store(&refusal)
			topic.Change("b", func(*faketest.Log) {})
			topic.Add("b", at(1, "new"))
			source.More <- "b"
			time.Sleep(time.Minute)
			if never {
				require.ErrorIs(t, p.Stop(), refusal)
				return
			}
			require.Greater(t, source.asks.Load(), int32(5))
			topic.Add("a", at(1, "old"))
			time.Sleep(time.Second)
			require.EqualValues(t, 1, p.Stats().Counted)
			source.err.Store(nil)
			time.Sleep(10 * time.Second)
			require.EqualValues(t, 2, p.Stats().Counted)
			require.NoError(t, p.Stop())
		})
	}
}

// flaky is a source whose listing fails while err is set.
type flaky struct {
	*faketest.Source
	err  atomic.Pointer[error]
	asks atomic.Int32
}

func (f *flaky) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	f.asks.Add(1)
	if err := f.err.Load(); err != nil {
		return nil, *err
	}
	return f.Source.Partitions(ctx, stored)
}

// A start policy must mean one place, though a crash comes between the shards.
func TestLatestIsOnePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(3)
		topic.Add("a", at(0, "before"))
		loads := 0
		sink.SetFault(func(shard int, b *tumble.Batch) faketest.Fault {
			if loads++; loads > 4 { // the first shard is registered, the rest is not
				return faketest.Hung
			}
			return faketest.Fine
		})
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Latest: true}, Sink: sink})
		time.Sleep(time.Second)
		require.NoError(t, p.Stop())
		sink.SetFault(nil)
		require.NotEmpty(t, sink.Shards[0].Checkpoints)
		require.Empty(t, sink.Shards[2].Checkpoints)

		var want []tumble.Event
		for i := range 20 {
			want = append(want, at(1, fmt.Sprint("after-", i)))
		}
		topic.Add("a", want...)
		p = faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Latest: true}, Sink: sink})
		time.Sleep(10 * time.Second)
		require.NoError(t, p.Stop())
		require.Equal(t, faketest.Count(tumble.Window{Size: time.Minute}, want), sink.Counts())
	})
}

// Two first starts at the same time: "latest" must be one place in all shards.
func TestLatestIsOnePlaceForTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", at(0, "before"))
		// The first process has asked where the end is, and waits at the first shard.
		slowed := &pausedSink{Store: sink, shard: 0, nth: 2, d: time.Second}
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Latest: true}, Sink: slowed})
		time.Sleep(500 * time.Millisecond)
		topic.Add("a", at(0, "between"))
		// The second asks later, and is delayed between the shards.
		q := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Latest: true}, Sink: &pausedSink{Store: sink, shard: 1, nth: 2, d: 2 * time.Second}})
		time.Sleep(10 * time.Second)
		require.NoError(t, p.Stop())
		require.NoError(t, q.Stop())
		require.Equal(t, sink.Stored(0, "a").Origin, sink.Stored(1, "a").Origin)
	})
}

// A pausedSink waits before its nth Load of one shard.
type pausedSink struct {
	*faketest.Store
	shard, nth int
	d          time.Duration
}

func (s *pausedSink) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.Store.Open(ctx, def)
	shards[s.shard] = &pausedShard{Shard: shards[s.shard], s: s}
	return shards, err
}

type pausedShard struct {
	tumble.Shard
	s *pausedSink
	n int
}

func (s *pausedShard) Load(ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	if s.n++; s.n == s.s.nth {
		time.Sleep(s.s.d)
	}
	return s.Shard.Load(ctx, r)
}

// Of a partition that ended in one shard only, and a shard that lost it: what
// has not ended is counted again from its origin.
func TestAShardIsHealedFromOneThatHasNotEnded(t *testing.T) {
	for _, ended := range []int{0, 1} {
		t.Run(fmt.Sprint(ended), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				topic, sink := faketest.NewTopic("a"), faketest.NewStore(3)
				for i := range 30 {
					topic.Add("a", at(0, fmt.Sprint(i)))
				}
				cfg := tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink}
				p := faketest.Start(t, cfg)
				require.NoError(t, <-p.Done)
				c := sink.Shards[ended].Checkpoints["a"]
				c.Ended = true
				sink.Shards[ended].Checkpoints["a"] = c
				sink.Restore(2, faketest.NewStore(1).Shards[0])
				p = faketest.Start(t, cfg)
				require.NoError(t, <-p.Done)
				require.Len(t, sink.Counts(), 30)
			})
		})
	}
}

// A store that was given to somebody else since it was opened.
func TestALoadThatFindsAnotherDefinitionIsFatal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: faketest.NewTopic("a")}, Sink: givenAway{faketest.NewStore(1)}})
		require.ErrorIs(t, p.Ends(), tumble.ErrDefinition)
	})
}

type givenAway struct{ *faketest.Store }

func (s givenAway) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.Store.Open(ctx, def)
	return []tumble.Shard{givenAwayShard{shards[0]}}, err
}

type givenAwayShard struct{ tumble.Shard }

func (givenAwayShard) Load(context.Context, tumble.LoadRequest) (tumble.ShardState, error) {
	return tumble.ShardState{}, fmt.Errorf("shard 0: %w", tumble.ErrDefinition)
}

// ender counts "gone" once and never again, while "a" goes on in a pipeline that
// does not know of it.
func ender(t *testing.T) (sink *faketest.Store, p *faketest.Process, both *faketest.Topic) {
	both = faketest.NewTopic("a", "gone")
	both.Add("gone", at(10, "x"))
	both.Add("a", at(10, "x"))
	sink = faketest.NewStore(3)
	first := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: both}, Sink: sink, Idle: -1, DropLate: true})
	time.Sleep(time.Second)
	require.NoError(t, first.Stop())
	topic := both.Only("a")
	p = faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, Idle: -1, DropLate: true})
	topic.Add("a", at(100, "x"))
	time.Sleep(time.Second)
	return sink, p, both
}

func TestEndPartitionReleasesWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, _ := ender(t)
		require.False(t, sink.Closed(0).After(t0))
		began := time.Now()
		require.NoError(t, tumble.EndPartition(t.Context(), sink.Defined(), "gone"))
		require.Equal(t, 15*time.Second, time.Since(began))
		for i := range sink.Shards {
			require.True(t, sink.Stored(i, "gone").Ended)
			require.True(t, sink.Closed(i).Equal(t0.Add(time.Minute)), "%v", sink.Closed(i))
		}
		require.NoError(t, tumble.EndPartition(t.Context(), sink.Defined(), "gone"), "nothing is left to do")
		require.ErrorContains(t, tumble.EndPartition(t.Context(), sink.Defined(), "never"), "tumble: end never: shard 0 knows no such partition")
		require.NoError(t, p.Stop())
	})
}

// A pipeline objects to the end of a partition that its source has, also while
// another process, or none, reads it.
func TestEndPartitionIsObjectedTo(t *testing.T) {
	for _, own := range [][]string{{"a", "gone"}, {"a"}} {
		t.Run(fmt.Sprint(own), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink, p, both := ender(t)
				other := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: both, Own: own}, Sink: sink, Idle: -1, DropLate: true})
				time.Sleep(time.Second)
				err := tumble.EndPartition(t.Context(), sink.Defined(), "gone")
				require.ErrorIs(t, err, tumble.ErrObjected)
				for i := range sink.Shards {
					require.False(t, sink.Stored(i, "gone").Ended, "shard %d", i)
				}
				require.NoError(t, other.Stop())
				// What was objected to is no objection to the next.
				require.NoError(t, tumble.EndPartition(t.Context(), sink.Defined(), "gone"))
				require.NoError(t, p.Stop())
			})
		})
	}
}

// A partition that moves on between the ender's look and its step has a reader,
// whatever became of that one's objections.
func TestEndPartitionOfOneThatMovesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, _ := ender(t)
		done := make(chan error)
		go func() { done <- tumble.EndPartition(t.Context(), sink.Defined(), "gone") }()
		time.Sleep(14 * time.Second)
		sink.SetFault(func(shard int, b *tumble.Batch) faketest.Fault {
			if shard == 1 && b != nil && b.Token != 0 {
				c := sink.Shards[1].Checkpoints["gone"]
				c.Offset++
				sink.Shards[1].Checkpoints["gone"] = c
			}
			return faketest.Fine
		})
		err := <-done
		require.ErrorIs(t, err, tumble.ErrConflict)
		require.ErrorContains(t, err, "tumble: end gone: shard 1: ")
		require.ErrorContains(t, err, "(it has ended in the shards [0])")
		require.NoError(t, p.Stop())
	})
}

func TestEndPartitionGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink, p, _ := ender(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.ErrorIs(t, tumble.EndPartition(ctx, sink.Defined(), "gone"), context.DeadlineExceeded)
		require.False(t, sink.Stored(0, "gone").Ended)
		require.NoError(t, p.Stop())
	})
}

// A shard that lost everything begins again where counting began, and nobody
// knows in which epoch that was. To take it for the first one would make a log
// that has had several leaders look truncated.
func TestALostShardBeginsInAnUnknownEpoch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", faketest.Keyed("before", 10)...)
		topic.Change("a", func(l *faketest.Log) { l.Truncate(5) }) // another leader since
		topic.Add("a", faketest.Keyed("before", 10)...)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, Latest: true}, Sink: sink})
		time.Sleep(time.Second)
		topic.Add("a", faketest.Several(rand.New(rand.NewPCG(1, 1)), 100, 0)...)
		time.Sleep(time.Second)
		sink.Restore(0, faketest.NewShard())
		time.Sleep(10 * time.Second)
		require.NoError(t, p.Stop())
		require.Equal(t, faketest.Count(tumble.Window{Size: time.Minute}, topic.Log("a").Events[15:]), sink.Counts())
		require.Zero(t, p.Stats().Lost)
	})
}

// A partition was ended while its log is still there. A shard that then loses its
// data is healed from the log, as it is for any other partition.
func TestAShardIsHealedOfAPartitionThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		for i := range 30 {
			topic.Add("a", at(0, fmt.Sprint(i)))
		}
		cfg := tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink}
		require.NoError(t, faketest.Start(t, cfg).Ends())
		require.NoError(t, tumble.EndPartition(t.Context(), sink.Defined(), "a"))
		sink.Restore(1, faketest.NewShard())
		require.Less(t, len(sink.Counts()), 30)
		require.NoError(t, faketest.Start(t, cfg).Ends())
		require.Len(t, sink.Counts(), 30)
	})
}

// What a shard is asked does not grow with the square of the partitions.
func TestManyPartitionsAskNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []string
		for i := range 300 {
			ids = append(ids, fmt.Sprint("p-", i))
		}
		topic, sink := faketest.NewTopic(ids...), &countedLoads{Store: faketest.NewStore(3)}
		for _, id := range ids {
			topic.Add(id, at(0, id))
		}
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		time.Sleep(time.Minute)
		require.Len(t, sink.Counts(), 300)
		require.NoError(t, p.Stop())
		polls := 12 // one each 5 s
		require.LessOrEqual(t, sink.loads, 3*(polls+5))
		require.LessOrEqual(t, sink.inits, 3*300, "each partition once for each shard")
	})
}

// countedLoads counts the Loads, and the checkpoints that they bring.
type countedLoads struct {
	*faketest.Store
	mu           sync.Mutex
	loads, inits int
}

func (s *countedLoads) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.Store.Open(ctx, def)
	for i := range shards {
		shards[i] = countedShard{shards[i], s}
	}
	return shards, err
}

type countedShard struct {
	tumble.Shard
	s *countedLoads
}

func (c countedShard) Load(ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	c.s.mu.Lock()
	c.s.loads++
	c.s.inits += len(r.Init)
	c.s.mu.Unlock()
	time.Sleep(10 * time.Millisecond) // so that others ask meanwhile
	return c.Shard.Load(ctx, r)
}

// A shard that cannot delete all at once is called until it has, before Run
// returns, too.
func TestABacklogIsWorkedOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), &piecemeal{Store: faketest.NewStore(2)}
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		time.Sleep(3 * time.Second)
		require.Zero(t, sink.backlog.Load())
		topic.Add("a", at(0, "x"), at(0, "y"), at(0, "z"))
		time.Sleep(time.Second) // less than to the next poll
		require.Positive(t, sink.applied.Load())
		require.Zero(t, sink.backlog.Load())
		topic.Add("a", at(0, "x"), at(0, "y"), at(0, "z"))
		time.Sleep(time.Millisecond)
		require.NoError(t, p.Stop())
		require.Zero(t, sink.backlog.Load())
	})
}

// piecemeal is a store of which each Apply leaves something to delete, for several
// Loads.
type piecemeal struct {
	*faketest.Store
	applied, backlog atomic.Int64
}

func (s *piecemeal) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.Store.Open(ctx, def)
	for i := range shards {
		shards[i] = &piece{Shard: shards[i], s: s}
	}
	return shards, err
}

type piece struct {
	tumble.Shard
	s    *piecemeal
	left atomic.Int64
}

func (p *piece) Apply(ctx context.Context, b tumble.Batch) error {
	p.s.applied.Add(1)
	p.s.backlog.Add(10 - p.left.Swap(10))
	return p.Shard.Apply(ctx, b)
}

func (p *piece) Load(ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	if p.left.Load() > 0 {
		p.left.Add(-1)
		p.s.backlog.Add(-1)
	}
	return p.Shard.Load(ctx, r)
}

func (p *piece) Backlog() bool { return p.left.Load() > 0 }
