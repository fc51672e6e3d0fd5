package tumble_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

func TestCommittedIsWhatEveryShardHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(3)
		var dead atomic.Bool
		sink.SetFault(func(shard int, b *tumble.Batch) faketest.Fault {
			if dead.Load() && shard == 2 && b != nil {
				return faketest.Refused
			}
			return faketest.Fine
		})
		topic.Add("a", faketest.Several(rand.New(rand.NewPCG(1, 1)), 100, 0)...)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 100, p.Stats().Partitions[0].Committed)
		dead.Store(true)
		topic.Add("a", faketest.Several(rand.New(rand.NewPCG(1, 1)), 100, 0)...)
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 100, p.Stats().Partitions[0].Committed)
		dead.Store(false)
		time.Sleep(10 * time.Second)
		require.EqualValues(t, 200, p.Stats().Partitions[0].Committed)
		require.NoError(t, p.Stop())
	})
}

func TestStopsAtOnceWhenIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(4)
		topic.Add("a", at(0, "x"))
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, FlushInterval: time.Hour})
		time.Sleep(time.Minute)
		began := time.Now()
		require.NoError(t, p.Stop())
		require.Less(t, time.Since(began), time.Second)
		for i := range 4 {
			require.EqualValues(t, 1, sink.Stored(i, "a").Offset, "every lane's checkpoint is written on the way out")
		}
	})
}

// A chunk that is out of order stops the pipeline; what was counted of it must
// not be counted again by the next.
func TestAWrongChunkIsNotCountedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		topic.Add("a", at(0, "x"), at(0, "y"), at(0, "z"))
		swap := func(ch *tumble.Chunk) {
			if len(ch.Events) == 3 {
				ch.Events = []tumble.Event{ch.Events[0], ch.Events[2], ch.Events[1]}
			}
		}
		p := faketest.Start(t, tumble.Config{Source: &wrongSource{Source: &faketest.Source{Topic: topic, UntilEnd: true}, chunk: swap}, Sink: sink})
		require.ErrorContains(t, <-p.Done, "returned offset 1")
		p = faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic, UntilEnd: true}, Sink: sink})
		require.NoError(t, <-p.Done)
		require.Equal(t, faketest.Count(tumble.Window{Size: time.Minute}, topic.Log("a").Events), sink.Counts())
	})
}

// A fatal error must be returned though another shard is down.
func TestAFatalErrorIsReturnedWhileAShardIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		topic.Add("a", at(0, "x"), at(0, "y"), at(0, "z"), at(0, "v"), at(0, "w"))
		bad := errors.New("no")
		var broken atomic.Bool
		source := &wrongSource{Source: &faketest.Source{Topic: topic}, resume: func(*tumble.Checkpoint) error {
			if broken.Load() {
				return bad
			}
			return nil
		}}
		p := faketest.Start(t, tumble.Config{Source: source, Sink: sink, ShutdownTimeout: time.Second})
		time.Sleep(time.Second)
		broken.Store(true)
		early := faketest.NewStore(2).Snapshot(0)
		loads := 0
		sink.SetFault(func(shard int, b *tumble.Batch) faketest.Fault {
			if shard == 1 && b == nil {
				if loads++; loads > 1 { // after the poll that notices the loss
					return faketest.Refused
				}
			}
			return faketest.Fine
		})
		sink.Restore(0, early)
		sink.Restore(1, early)
		require.ErrorIs(t, p.Ends(), bad)
	})
}

// wrongSource answers wrongly when it is told to.
type wrongSource struct {
	*faketest.Source
	before func(tumble.Position) // a Fetch
	chunk  func(*tumble.Chunk)
	resume func(*tumble.Checkpoint) error
}

func (s *wrongSource) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return s.Source.Run(ctx, func(ctx context.Context, p tumble.Partition) error { return consume(ctx, wrongPartition{p, s}) })
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
