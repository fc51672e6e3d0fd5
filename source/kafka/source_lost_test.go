package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

func sourceMissing(t *testing.T, c cluster) {
	topic := newTopic()
	s, err := New(c.config(topic))
	require.NoError(t, err)
	begin := time.Now()
	_, err = s.Partitions(t.Context(), nil)
	require.ErrorContains(t, err, fmt.Sprintf("topic %q does not exist at %s", topic, c.brokers[0]))
	require.Less(t, time.Since(begin), 5*time.Second)
	require.NotContains(t, c.topics(t), topic)
	s, err = New(c.config(c.create(t, 2), 0, 2))
	require.NoError(t, err)
	_, err = s.Partitions(t.Context(), nil)
	require.ErrorContains(t, err, "Config.Partitions holds 2")
}

// A topic deleted and made again while it is read, with more records than
// before.
func sourceRecreated(t *testing.T, c cluster) {
	for _, policy := range []Policy{Fail, GoOn} {
		topic := c.create(t, 1)
		cl := c.client(t)
		produce(t, cl, topic, 0, numbered("old", 5)...)
		cfg := c.config(topic, 0)
		cfg.OnRecreated = policy
		tl := follow(t, cfg, nil)
		tl.await(t, 5)
		c.delete(t, topic)
		time.Sleep(300 * time.Millisecond) // who reads finds no topic for a while
		c.createAs(t, topic, 1)
		produce(t, c.client(t), topic, 0, numbered("new", 20)...)
		if policy == Fail {
			require.ErrorContains(t, tl.result(t), "was recreated")
			require.Len(t, tl.keys(), 5)
			continue
		}
		tl.await(t, 25)
		keys := tl.keys()
		slices.Sort(keys)
		want := append(numbered("old", 5), numbered("new", 20)...)
		slices.Sort(want)
		require.Equal(t, want, keys)
		tl.stop(t)
	}
}

// The same while nobody reads.
func sourceRecreatedAway(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("old", 5)...)
	cfg := c.config(topic, 0)
	stored := whole0(t, cfg)
	stored.Offset = 3
	c.delete(t, topic)
	c.createAs(t, topic, 1)
	produce(t, c.client(t), topic, 0, numbered("new", 9)...)
	cfg.UntilEnd = true
	err := follow(t, cfg, map[string]tumble.Checkpoint{topic + "/0": stored}).result(t)
	require.ErrorContains(t, err, topic+"/0@3: the topic was recreated")
	require.ErrorContains(t, err, stored.Log)
	require.ErrorContains(t, err, "(Config.OnRecreated)")
	requireLost(t, err, LostError{Topic: topic, From: 3, To: -1, Cause: ErrRecreated})
	cfg.OnRecreated = GoOn
	tl := follow(t, cfg, map[string]tumble.Checkpoint{topic + "/0": stored})
	tl.end(t)
	require.Equal(t, numbered("new", 9), tl.keys())
}

// The same while it is read, and the pipeline does something else for a while:
// what the new topic holds beyond the old one's end is no part of the old one.
func sourceRecreatedIdle(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("old", 5)...)
	s, err := New(c.config(topic, 0))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		defer cancel()
		for from := int64(0); from < 5; {
			chunk, err := p.Fetch(ctx, unplaced(from))
			require.NoError(t, err)
			from = chunk.Next
		}
		f := p.(*partition).fetch
		known := func() topicID {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.layout.id
		}
		old := known()
		c.delete(t, topic)
		time.Sleep(300 * time.Millisecond)
		c.createAs(t, topic, 1)
		produce(t, c.client(t), topic, 0, numbered("new", 20)...)
		require.Eventually(t, func() bool { return known() != old }, 20*time.Second, 10*time.Millisecond)
		time.Sleep(300 * time.Millisecond)
		err := fetchError(t, ctx, p, unplaced(5))
		require.ErrorIs(t, err, tumble.ErrOffsetOutOfRange)
		require.ErrorContains(t, err, "was recreated")
		return nil
	}))
}

func sourceGap(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	cl := c.client(t)
	for i := range 10 {
		produce(t, cl, topic, 0, fmt.Sprint(i))
	}
	cfg := c.config(topic, 0)
	cfg.UntilEnd = true
	stored := whole0(t, cfg)
	stored.Offset = 2
	c.deleteBefore(t, topic, 0, 7)
	err := follow(t, cfg, map[string]tumble.Checkpoint{topic + "/0": stored}).result(t)
	require.ErrorContains(t, err, "kafka: "+topic+"/0@2: retention deleted offsets 2 to 6 before they were counted (Config.OnGap)")
	requireLost(t, err, LostError{Topic: topic, From: 2, To: 7, Cause: ErrGap})
	cfg.OnGap = GoOn
	tl := follow(t, cfg, map[string]tumble.Checkpoint{topic + "/0": stored})
	tl.end(t)
	require.Equal(t, []string{"7", "8", "9"}, tl.keys())
	require.EqualValues(t, 7, whole0(t, cfg).Origin)

	// While it is read: what Fetch had not asked for is out of range.
	s, err := New(c.config(topic, 0))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		defer cancel()
		err := fetchError(t, ctx, p, unplaced(3))
		require.ErrorIs(t, err, tumble.ErrOffsetOutOfRange)
		require.ErrorContains(t, err, "kafka: fetch "+topic+"/0@3: ")
		require.Equal(t, "8", fetchSome(t, ctx, p, unplaced(8)).Events[0].Key)
		return nil
	}))
}

// Another process may have counted what came since this one looked where the log
// ends, a moment ago: that is no truncation.
func sourceGrewSince(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	cl := c.client(t)
	produce(t, cl, topic, 0, numbered("", 5)...)
	stored := whole0(t, c.config(topic, 0))
	s, err := New(c.config(topic, 0))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		defer cancel()
		for _, stored.Offset = range []int64{5, 8} {
			to, err := p.Resume(ctx, stored)
			require.NoError(t, err)
			require.True(t, to.Same(stored), "%v", to)
			produce(t, cl, topic, 0, numbered("", 3)...)
		}
		return nil
	}))
}

// A log that ends before what was counted, whether its epoch is known or not.
func sourceTruncated(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("", 5)...)
	cfg := c.config(topic, 0)
	cfg.UntilEnd = true
	stored := whole0(t, cfg)
	epoch := stored.Epoch
	stored.Offset, stored.Origin, stored.Watermark = 100, 50, time.Unix(5, 0)
	for _, stored.Epoch = range []int32{epoch, -1} {
		cfg.OnTruncated = Fail
		err := follow(t, cfg, map[string]tumble.Checkpoint{topic + "/0": stored}).result(t)
		require.ErrorContains(t, err, topic+"/0@100: the log was truncated")
		require.ErrorContains(t, err, "it ends at offset 5, counts reach to 100 (Config.OnTruncated)")
		requireLost(t, err, LostError{Topic: topic, From: 5, To: 100, Cause: tumble.ErrTruncated})
		cfg.OnTruncated = GoOn
		s, err := New(cfg)
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
			defer cancel()
			to, err := p.Resume(ctx, stored)
			require.NoError(t, err)
			require.Equal(t, tumble.Checkpoint{Log: stored.Log, Origin: 5, Offset: 5, Epoch: epoch, Watermark: stored.Watermark}, to)
			same, err := p.Resume(ctx, to) // and that is a position like any other
			require.NoError(t, err)
			require.True(t, to.Same(same), "%v", same)
			_, err = p.Fetch(ctx, tumble.Position{Offset: to.Offset, Epoch: to.Epoch})
			require.Equal(t, io.EOF, err)
			chunk := fetchSome(t, ctx, p, tumble.Position{Offset: 1, Epoch: epoch})
			require.Len(t, chunk.Events, 4)
			require.Equal(t, epoch, chunk.Epoch)
			return nil
		}))
	}
}

// requireLost is what a program sees of an error of Run's.
func requireLost(t *testing.T, err error, want LostError) {
	t.Helper()
	lost := new(LostError)
	require.ErrorAs(t, err, &lost)
	require.ErrorIs(t, err, want.Cause)
	for _, other := range []error{ErrGap, ErrRecreated, tumble.ErrTruncated} {
		require.Equal(t, other == want.Cause, errors.Is(lost.Cause, other), "%v", other)
	}
	want.Cause = lost.Cause
	require.Equal(t, want, *lost)
}

// A pipeline's Run hands the error on.
func sourceLostToPipeline(t *testing.T, c cluster) {
	topic := c.create(t, 2)
	sink := newNamedSink("clicks", "s")
	produce(t, c.client(t), topic, 1, numbered("", 5)...)
	s, err := New(c.config(topic))
	require.NoError(t, err)
	first := startCounter(t, s, sink)
	require.Eventually(t, func() bool { return sink.count(t, "4") == 1 }, 10*time.Second, 5*time.Millisecond)
	first.stop(t)
	produce(t, c.client(t), topic, 1, numbered("", 5)...)
	c.deleteBefore(t, topic, 1, 8)
	s, err = New(c.config(topic))
	require.NoError(t, err)
	select {
	case err = <-startCounter(t, s, sink).done:
	case <-time.After(20 * time.Second):
		require.Fail(t, "Run does not return")
	}
	requireLost(t, err, LostError{Topic: topic, Partition: 1, From: 5, To: 8, Cause: ErrGap})
}
