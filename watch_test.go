package tumble_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

func TestLossOnAQuietTopicIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a", "b"), faketest.NewStore(3)
		topic.Add("a", faketest.Several(rand.New(rand.NewPCG(1, 2)), 500, 0)...)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		time.Sleep(62 * time.Second) // not when a poll is due, which may then see half of it
		want := sink.Counts()
		for i := range sink.Shards {
			sink.Restore(i, faketest.NewShard())
		}
		time.Sleep(20 * time.Second)
		require.Equal(t, want, sink.Counts())
		require.NoError(t, p.Stop())
		faketest.Balanced(t, p.Stats())
	})
}

// The first shard of which a loss is known has the others looked at, before
// reading goes back.
func TestALossIsReadAgainOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(3)
		topic.Add("a", faketest.Several(rand.New(rand.NewPCG(1, 2)), 500, 0)...)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		time.Sleep(62 * time.Second)
		for i := range sink.Shards {
			sink.Restore(i, faketest.NewShard())
		}
		topic.Add("a", at(0, "one shard hears of it now"))
		time.Sleep(20 * time.Second)
		require.NoError(t, p.Stop())
		require.Equal(t, faketest.Count(tumble.Window{Size: time.Minute}, topic.Log("a").Events), sink.Counts())
		require.EqualValues(t, 501+501, p.Stats().Read)
	})
}

func TestNoRereadWhileNothingIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(3)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		for i := range 600 {
			topic.Add("a", at(float64(i)/10, fmt.Sprint("key-", i%7)))
			time.Sleep(97 * time.Millisecond)
		}
		require.NoError(t, p.Stop())
		s := p.Stats()
		require.Zero(t, s.Replayed)
		require.Zero(t, s.Conflicts)
		require.EqualValues(t, 600, s.Counted)
	})
}

// The poll's answer may be older than what was sent meanwhile.
func TestASlowPollIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(2)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink})
		time.Sleep(time.Second)
		sink.SetFault(func(_ int, b *tumble.Batch) faketest.Fault {
			if b == nil {
				return faketest.Slow
			}
			return faketest.Fine
		})
		for i := range 300 {
			topic.Add("a", at(float64(i)/5, fmt.Sprint("key-", i)))
			time.Sleep(200 * time.Millisecond)
		}
		require.NoError(t, p.Stop())
		require.Zero(t, p.Stats().Replayed)
		require.EqualValues(t, 300, p.Stats().Counted)
	})
}

// A batch that is in the shard, and not yet answered, is no loss.
func TestAnAnswerOnItsWayIsNoLoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: lateAnswers{sink, 11 * time.Second}})
		for i := range 30 {
			topic.Add("a", at(0, fmt.Sprint(i)))
			time.Sleep(time.Second)
		}
		require.NoError(t, p.Stop())
		require.Zero(t, p.Stats().Replayed)
	})
}

// lateAnswers does what it is told at once and says so later.
type lateAnswers struct {
	*faketest.Store
	d time.Duration
}

func (s lateAnswers) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.Store.Open(ctx, def)
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

// A floor that rises while the pipeline runs: the poll tells of it.
func TestAFloorThatRises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		topic, sink := faketest.NewTopic("a"), faketest.NewStore(1)
		topic.Add("a", at(0, "x"), at(600, "x"))
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, Idle: -1, Retention: time.Hour})
		time.Sleep(time.Second)
		sink.Change(0, func(sh *faketest.Shard) { sh.Floors = []time.Time{t0.Add(5 * time.Minute)} })
		time.Sleep(6 * time.Second)
		topic.Add("a", at(10, "x"), at(599, "x"))
		time.Sleep(time.Second)
		require.NoError(t, p.Stop())
		require.EqualValues(t, 1, p.Stats().Expired)
		require.EqualValues(t, 1, p.Stats().Late)
	})
}

// A store that lost everything is a line of the process, not one of each partition
// and shard.
func TestALossIsOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids []string
		for i := range 20 {
			ids = append(ids, fmt.Sprint("p-", i))
		}
		topic, sink := faketest.NewTopic(ids...), faketest.NewStore(4)
		for _, id := range ids {
			topic.Add(id, faketest.Several(rand.New(rand.NewPCG(1, 2)), 50, 0)...)
		}
		var log strings.Builder
		p := faketest.Start(t, tumble.Config{Source: &faketest.Source{Topic: topic}, Sink: sink, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		time.Sleep(62 * time.Second)
		for i := range sink.Shards {
			sink.Restore(i, faketest.NewShard())
		}
		time.Sleep(20 * time.Second)
		require.NoError(t, p.Stop())
		require.Contains(t, log.String(), "the stored checkpoint has changed")
		require.LessOrEqual(t, strings.Count(log.String(), "\n"), 3, log.String())
	})
}
