package tumble_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// A consumer that waits for another one's registration must still be able to
// give up its partition; and a partition that is known need not wait.
func TestRegistrationHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a", "b"), newStore(2)
		more := make(chan string)
		p := start(t, tumble.Config{Source: &logSource{topic: log, own: []string{"a"}, more: more}, Sink: sink, ShutdownTimeout: time.Second})
		time.Sleep(time.Second)
		sink.setFault(func(shard int, b *tumble.Batch) fault {
			if shard == 1 {
				return refused
			}
			return fine
		})
		log.change("new", func(*logPart) {})
		more <- "new" // registers for as long as the shard is down
		time.Sleep(time.Second)
		more <- "b" // known to all shards
		time.Sleep(time.Second)
		log.add("b", at(0, "x"), at(0, "y"), at(0, "z"), at(0, "v"), at(0, "w"))
		sink.setFault(nil)
		time.Sleep(time.Minute)
		require.NoError(t, p.stop())
		require.Len(t, sink.counts(), 5)
	})
}

// flaky is a source whose listing fails while err is set.
type flaky struct {
	*logSource
	err  atomic.Pointer[error]
	asks atomic.Int32
}

func (f *flaky) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	f.asks.Add(1)
	if err := f.err.Load(); err != nil {
		return nil, *err
	}
	return f.logSource.Partitions(ctx, stored)
}

// A source that cannot list a new partition for a while stops nobody; one that
// says why it never will ends the pipeline.
func TestGrowthWaitsForTheListing(t *testing.T) {
	for _, never := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			log, sink := newTopic("a"), newStore(2)
			source := &flaky{logSource: &logSource{topic: log, more: make(chan string)}}
			p := start(t, tumble.Config{Source: source, Sink: sink})
			time.Sleep(time.Second)
			refusal := errors.New("no such topic")
			if !never {
				refusal = fmt.Errorf("%w: %w", refusal, tumble.ErrUnavailable)
			}
			source.err.Store(&refusal)
			log.change("b", func(*logPart) {})
			log.add("b", at(1, "new"))
			source.more <- "b"
			time.Sleep(time.Minute)
			if never {
				require.ErrorIs(t, p.stop(), refusal)
				return
			}
			require.Greater(t, source.asks.Load(), int32(5))
			log.add("a", at(1, "old"))
			time.Sleep(time.Second)
			require.EqualValues(t, 1, p.Stats().Counted)
			source.err.Store(nil)
			time.Sleep(10 * time.Second)
			require.EqualValues(t, 2, p.Stats().Counted)
			require.NoError(t, p.stop())
		})
	}
}

// A start policy must mean one place, though a crash comes between the shards.
func TestLatestIsOnePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(3)
		log.add("a", at(0, "before"))
		loads := 0
		sink.setFault(func(shard int, b *tumble.Batch) fault {
			if loads++; loads > 4 { // the first shard is registered, the rest is not
				return hung
			}
			return fine
		})
		p := start(t, tumble.Config{Source: &logSource{topic: log, latest: true}, Sink: sink})
		time.Sleep(time.Second)
		require.NoError(t, p.stop())
		sink.setFault(nil)
		require.NotEmpty(t, sink.shards[0].stored)
		require.Empty(t, sink.shards[2].stored)

		var want []tumble.Event
		for i := range 20 {
			want = append(want, at(1, fmt.Sprint("after-", i)))
		}
		log.add("a", want...)
		p = start(t, tumble.Config{Source: &logSource{topic: log, latest: true}, Sink: sink})
		time.Sleep(10 * time.Second)
		require.NoError(t, p.stop())
		require.Equal(t, count(tumble.Window{Size: time.Minute}, want), sink.counts())
	})
}

// The books of a second run are its own, also where the first left some of what
// it read.
func TestBooksOfASecondRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		log.add("a", at(0, "x"), at(0, "y"))
		sink.setFault(func(shard int, b *tumble.Batch) fault {
			if b != nil {
				return refused
			}
			return fine
		})
		p, err := tumble.New(tumble.Config{
			Source: &logSource{topic: log, untilEnd: true}, Sink: sink, Logger: quiet,
			Window: tumble.Window{Size: time.Minute}, ShutdownTimeout: time.Second,
		})
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, p.Run(ctx))
		require.EqualValues(t, 2, p.Stats().Pending)
		sink.setFault(nil)
		require.NoError(t, p.Run(t.Context()))
		books := p.Stats()
		require.Equal(t, []int64{2, 2, 0, 0}, []int64{books.Read, books.Counted, books.Pending, books.Increments})
	})
}

// One flush that came while a batch was under way must not make every later
// batch leave at once.
func TestFlushesAtTheIntervalAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: &slowSink{sink, 3 * time.Millisecond, time.Now().Add(time.Second)}, FlushInterval: 100 * time.Millisecond})
		for i := range 10_000 {
			log.add("a", at(0, fmt.Sprint(i%100)))
			time.Sleep(time.Millisecond)
		}
		require.NoError(t, p.stop())
		require.Less(t, p.Stats().Flushes, int64(150), "10 seconds, 10 flushes a second")
	})
}

// A slowSink takes a while for each batch, and half a second in the beginning.
type slowSink struct {
	*store
	d    time.Duration
	slow time.Time
}

func (s *slowSink) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.store.Open(ctx, def)
	for i := range shards {
		shards[i] = slowShard{shards[i], s}
	}
	return shards, err
}

type slowShard struct {
	tumble.Shard
	s *slowSink
}

func (s slowShard) Apply(ctx context.Context, b tumble.Batch) error {
	time.Sleep(s.s.d)
	if time.Now().Before(s.s.slow) {
		time.Sleep(500 * time.Millisecond)
	}
	return s.Shard.Apply(ctx, b)
}

// wrongSource answers wrongly when it is told to.
type wrongSource struct {
	*logSource
	before func(tumble.Position) // a Fetch
	chunk  func(*tumble.Chunk)
	resume func(*tumble.Checkpoint) error
}

func (s *wrongSource) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return s.logSource.Run(ctx, func(ctx context.Context, p tumble.Partition) error { return consume(ctx, wrongPartition{p, s}) })
}

type wrongPartition struct {
	tumble.Partition
	s *wrongSource
}

func (p wrongPartition) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	if p.s.before != nil {
		p.s.before(from)
	}
	ch, err := p.Partition.Fetch(ctx, from)
	if err == nil && p.s.chunk != nil {
		p.s.chunk(&ch)
	}
	return ch, err
}

func (p wrongPartition) Resume(ctx context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	to, err := p.Partition.Resume(ctx, stored)
	if err == nil && p.s.resume != nil {
		err = p.s.resume(&to)
	}
	return to, err
}

// A chunk that is out of order stops the pipeline; what was counted of it must
// not be counted again by the next.
func TestAWrongChunkIsNotCountedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		log.add("a", at(0, "x"), at(0, "y"), at(0, "z"))
		swap := func(ch *tumble.Chunk) {
			if len(ch.Events) == 3 {
				ch.Events = []tumble.Event{ch.Events[0], ch.Events[2], ch.Events[1]}
			}
		}
		p := start(t, tumble.Config{Source: &wrongSource{logSource: &logSource{topic: log, untilEnd: true}, chunk: swap}, Sink: sink})
		require.ErrorContains(t, <-p.done, "returned offset 1")
		p = start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink})
		require.NoError(t, <-p.done)
		require.Equal(t, count(tumble.Window{Size: time.Minute}, log.parts["a"].events), sink.counts())
	})
}

// A Resume that makes no sense stops the pipeline; what was dropped then must not be
// passed over by the last flush.
func TestAWrongResumeLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		log.add("a", at(0, "x"))
		source := &wrongSource{logSource: &logSource{topic: log}}
		p := start(t, tumble.Config{Source: source, Sink: sink})
		time.Sleep(time.Second)
		early := sink.snapshot(0)
		log.add("a", at(0, "y"), at(0, "z"))
		time.Sleep(time.Second)
		source.resume = func(c *tumble.Checkpoint) error { c.Origin = 5; return nil }
		sink.restore(0, early)
		require.ErrorContains(t, p.ends(), "which begins elsewhere")
		p = start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink})
		require.NoError(t, <-p.done)
		require.Equal(t, count(tumble.Window{Size: time.Minute}, log.parts["a"].events), sink.counts())
	})
}

// Two first starts at the same time: "latest" must be one place in all shards.
func TestLatestIsOnePlaceForTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		log.add("a", at(0, "before"))
		// The first process has asked where the end is, and waits at the first shard.
		slowed := &pausedSink{store: sink, shard: 0, nth: 2, d: time.Second}
		p := start(t, tumble.Config{Source: &logSource{topic: log, latest: true}, Sink: slowed})
		time.Sleep(500 * time.Millisecond)
		log.add("a", at(0, "between"))
		// The second asks later, and is delayed between the shards.
		q := start(t, tumble.Config{Source: &logSource{topic: log, latest: true}, Sink: &pausedSink{store: sink, shard: 1, nth: 2, d: 2 * time.Second}})
		time.Sleep(10 * time.Second)
		require.NoError(t, p.stop())
		require.NoError(t, q.stop())
		require.Equal(t, sink.stored(0, "a").Origin, sink.stored(1, "a").Origin)
	})
}

// A pausedSink waits before its nth Load of one shard.
type pausedSink struct {
	*store
	shard, nth int
	d          time.Duration
}

func (s *pausedSink) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.store.Open(ctx, def)
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

// What was counted and is then lost by the store, beside a gap that was booked
// before, is lost as well.
func TestLostBeforeAGapThatWasBooked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		for range 50 {
			log.add("a", at(0, "x"))
		}
		p := start(t, tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink})
		empty := sink.snapshot(0)
		time.Sleep(time.Second)
		log.mu.Lock()
		l := log.parts["a"]
		for range 50 {
			l.append(at(0, "gone"))
		}
		l.first = 100
		log.changed(l)
		log.mu.Unlock()
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 50, p.Stats().Lost)
		sink.restore(0, empty)
		time.Sleep(10 * time.Second)
		require.NoError(t, p.stop())
		require.Empty(t, sink.counts())
		require.EqualValues(t, 100, p.Stats().Lost, "the first 50 cannot be read again either")
	})
}

// A fatal error must be returned though another shard is down.
func TestAFatalErrorIsReturnedWhileAShardIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(2)
		log.add("a", at(0, "x"), at(0, "y"), at(0, "z"), at(0, "v"), at(0, "w"))
		bad := errors.New("no")
		var broken atomic.Bool
		source := &wrongSource{logSource: &logSource{topic: log}, resume: func(*tumble.Checkpoint) error {
			if broken.Load() {
				return bad
			}
			return nil
		}}
		p := start(t, tumble.Config{Source: source, Sink: sink, ShutdownTimeout: time.Second})
		time.Sleep(time.Second)
		broken.Store(true)
		early := newStore(2).snapshot(0)
		loads := 0
		sink.setFault(func(shard int, b *tumble.Batch) fault {
			if shard == 1 && b == nil {
				if loads++; loads > 1 { // after the poll that notices the loss
					return refused
				}
			}
			return fine
		})
		sink.restore(0, early)
		sink.restore(1, early)
		require.ErrorIs(t, p.ends(), bad)
	})
}

// A stop while pending increments that cannot be read again are flushed must
// not drop them.
func TestStopWhileFlushingWhatCannotBeReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		log.add("a", at(0, "x"), at(0, "y"))
		p := start(t, tumble.Config{Source: &logSource{topic: log, skipGap: true}, Sink: sink})
		time.Sleep(time.Second)
		sink.setFault(func(int, *tumble.Batch) fault { return refused })
		log.add("a", at(0, "v"))
		time.Sleep(time.Second)
		log.add("a", at(0, "w")) // while the first is under way
		time.Sleep(time.Second)
		log.change("a", func(l *logPart) { l.append(at(0, "gone")); l.first = 5 })
		time.Sleep(2 * time.Second)
		sink.setFault(nil)
		p.cancel()
		require.NoError(t, <-p.done)
		require.Len(t, sink.counts(), 4)
	})
}

// A source whose list of partitions does not come.
type listless struct {
	*logSource
	from atomic.Int64 // calls of Partitions that are answered
}

func (s *listless) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	if s.from.Add(-1) < 0 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.logSource.Partitions(ctx, stored)
}

func TestAKnownPartitionDoesNotWaitForANewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a", "b"), newStore(1)
		log.add("b", at(0, "x"))
		source := &listless{logSource: &logSource{topic: log, own: []string{"a"}, more: make(chan string)}}
		source.from.Store(1)
		p := start(t, tumble.Config{Source: source, Sink: sink})
		time.Sleep(time.Second)
		log.change("new", func(*logPart) {})
		source.more <- "new"
		time.Sleep(time.Second)
		source.more <- "b"
		time.Sleep(time.Second)
		require.Len(t, sink.counts(), 1)
		require.NoError(t, p.stop())
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
	wg.Go(func() { _ = consume(ctx, &logPartition{s: s.logSource, id: "new-1"}) })
	time.Sleep(time.Second)
	until, cancel := context.WithCancel(ctx)
	wg.Go(func() {
		defer close(s.given)
		_ = consume(until, &logPartition{s: s.logSource, id: "new-2"})
	})
	<-s.revoke
	cancel()
	return nil
}

func TestAPartitionIsGivenUpWhileAnotherOneRegisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		source := revoked{&listless{logSource: &logSource{topic: log}}, make(chan struct{}), make(chan struct{})}
		source.from.Store(1)
		p := start(t, tumble.Config{Source: source, Sink: sink})
		time.Sleep(2 * time.Second)
		close(source.revoke)
		time.Sleep(time.Second)
		select {
		case <-source.given:
		default:
			t.Error("it waits for the other one")
		}
		require.NoError(t, p.stop())
	})
}

// Of a partition that ended in one shard only, and a shard that lost it: what
// has not ended is counted again from its origin.
func TestAShardIsHealedFromOneThatHasNotEnded(t *testing.T) {
	for _, ended := range []int{0, 1} {
		t.Run(fmt.Sprint(ended), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				log, sink := newTopic("a"), newStore(3)
				for i := range 30 {
					log.add("a", at(0, fmt.Sprint(i)))
				}
				cfg := tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink}
				p := start(t, cfg)
				require.NoError(t, <-p.done)
				c := sink.shards[ended].stored["a"]
				c.Ended = true
				sink.shards[ended].stored["a"] = c
				sink.restore(2, newStore(1).shards[0])
				p = start(t, cfg)
				require.NoError(t, <-p.done)
				require.Len(t, sink.counts(), 30)
			})
		})
	}
}

// A batch that is in the shard, and not yet answered, is no loss.
func TestAnAnswerOnItsWayIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: lateAnswers{sink, 11 * time.Second}})
		for i := range 30 {
			log.add("a", at(0, fmt.Sprint(i)))
			time.Sleep(time.Second)
		}
		require.NoError(t, p.stop())
		require.Zero(t, p.Stats().Replayed)
	})
}

// lateAnswers does what it is told at once and says so later.
type lateAnswers struct {
	*store
	d time.Duration
}

func (s lateAnswers) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.store.Open(ctx, def)
	for i := range shards {
		shards[i] = lateShard{shards[i], s.d}
	}
	return shards, err
}

type lateShard struct {
	tumble.Shard
	d time.Duration
}

func (s lateShard) Apply(ctx context.Context, b tumble.Batch) error {
	err := s.Shard.Apply(ctx, b)
	select {
	case <-time.After(s.d):
	case <-ctx.Done():
	}
	return err
}

// A stop does not wait for a retry that is seconds away, if the store is back.
func TestAStopHurriesRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		p := start(t, tumble.Config{Source: &logSource{topic: log}, Sink: sink, ShutdownTimeout: 100 * time.Millisecond})
		time.Sleep(time.Second)
		var tries atomic.Int64
		sink.setFault(func(_ int, b *tumble.Batch) fault {
			if b != nil {
				tries.Add(1)
			}
			return refused
		})
		log.add("a", at(0, "x"))
		time.Sleep(time.Minute)
		for before := tries.Load(); tries.Load() == before; { // just after a try
			time.Sleep(time.Millisecond)
		}
		sink.setFault(nil)
		require.NoError(t, p.stop())
		require.Len(t, sink.counts(), 1)
	})
}

// A rival is found by the last flush before the end: what it had not counted is
// read again.
func TestAConflictAtTheEndReadsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a"), newStore(1)
		log.add("a", at(0, "x"), at(1, "y"))
		first := true
		sink.setFault(func(_ int, b *tumble.Batch) fault {
			if b != nil && first {
				first = false
				c := tumble.Batch{Partition: "a", Writer: 1, From: b.From, To: b.From, Deltas: []tumble.Delta{{Start: t0, Key: "x", N: 1}}}
				c.To.Offset, c.To.Watermark = 1, t0
				require.NoError(t, sink.shards[0].apply(sink.def, c))
			}
			return fine
		})
		p := start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink, FlushInterval: time.Hour})
		require.NoError(t, <-p.done)
		require.Len(t, sink.counts(), 2)
	})
}

// Nobody waited for a partition that was said to be over. If it goes on after
// all, it begins where the others are.
func TestAPartitionThatGoesOnAfterItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, sink := newTopic("a", "b"), newStore(1)
		log.add("a", at(10, "x"))
		log.add("b", at(10, "x"), at(300, "x"))
		cfg := tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink, DropLate: true, Idle: -1}
		p := start(t, cfg)
		require.NoError(t, <-p.done)
		c := sink.shards[0].stored["a"]
		c.Ended = true
		sink.shards[0].stored["a"] = c
		require.True(t, sink.frontier(0).Equal(t0.Add(300*time.Second)))
		log.add("a", at(20, "x"), at(301, "x"))
		p = start(t, cfg)
		require.NoError(t, <-p.done)
		require.EqualValues(t, 2, sink.counts()[cell{t0.UnixNano(), "x"}], "the window was final")
		require.EqualValues(t, 1, p.Stats().DroppedLate)
	})
}

// A store that was given to somebody else since it was opened.
func TestALoadThatFindsAnotherDefinitionIsFatal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, tumble.Config{Source: &logSource{topic: newTopic("a")}, Sink: givenAway{newStore(1)}})
		require.ErrorIs(t, p.ends(), tumble.ErrDefinition)
	})
}

type givenAway struct{ *store }

func (s givenAway) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.store.Open(ctx, def)
	return []tumble.Shard{givenAwayShard{shards[0]}}, err
}

type givenAwayShard struct{ tumble.Shard }

func (givenAwayShard) Load(context.Context, tumble.LoadRequest) (tumble.ShardState, error) {
	return tumble.ShardState{}, fmt.Errorf("shard 0: %w", tumble.ErrDefinition)
}
