package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// A hook is an OnReject that remembers, and fails as long as it is told to.
type hook struct {
	t testing.TB

	mu     sync.Mutex
	calls  []string // "partition@offset value"
	told   []string // of these, where nil was returned
	kept   []Message
	inside map[string]bool
	answer func(ctx context.Context, r Rejected) error // nil: nil at once
}

func (h *hook) set(answer func(ctx context.Context, r Rejected) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = answer
}

func (h *hook) reject(ctx context.Context, r Rejected) error {
	name := fmt.Sprintf("%d@%d %s", r.Partition, r.Offset, r.Message.Value)
	part := fmt.Sprint(r.Topic, r.Partition)
	h.mu.Lock()
	if h.inside == nil {
		h.inside = map[string]bool{}
	}
	if h.inside[part] {
		h.t.Errorf("OnReject of partition %d is called twice at a time", r.Partition)
	}
	h.inside[part] = true
	h.calls = append(h.calls, name)
	answer := h.answer
	h.mu.Unlock()
	var err error
	if answer != nil {
		err = answer(ctx, r)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.inside[part] = false
	if err == nil {
		h.told = append(h.told, name)
		h.kept = append(h.kept, r.Message)
	}
	return err
}

func (h *hook) all() (calls, told []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls), slices.Clone(h.told)
}

var errDown = errors.New("the dead letters are down")

func down(context.Context, Rejected) error { return errDown }

// While OnReject fails the record is not passed, what was before it is; other
// partitions go on; the error is shown.
func rejectsWait(t *testing.T, c cluster) {
	topic := c.create(t, 2)
	cl := c.client(t)
	produce(t, cl, topic, 0, "a", "bad1", "b", "bad2", "c")
	produce(t, cl, topic, 1, "x")
	h := &hook{t: t, answer: down}
	cfg := c.config(topic)
	cfg.OnReject = h.reject
	tl := follow(t, cfg, nil)
	tl.await(t, 2)
	for i := range 20 {
		produce(t, cl, topic, 1, fmt.Sprint("x", i))
	}
	tl.await(t, 22)
	require.Eventually(t, func() bool { return tl.trouble() != nil }, 5*time.Second, 5*time.Millisecond)
	require.ErrorIs(t, tl.trouble(), errDown)
	require.ErrorContains(t, tl.trouble(), "kafka: fetch "+topic+"/0@1: record at offset 1 was rejected (bad value), and Config.OnReject fails: the dead letters are down")
	calls, told := h.all()
	require.Empty(t, told)
	require.Greater(t, len(calls), 1)
	tl.mu.Lock()
	require.EqualValues(t, 1, tl.next[topic+"/0"])
	require.False(t, tl.caught[topic+"/0"], "so that it is not taken for idle")
	require.Zero(t, tl.rejected, "it is not counted before it is passed")
	tl.mu.Unlock()

	h.set(nil)
	tl.await(t, 24)
	require.Equal(t, []string{"a", "b", "c"}, tl.keys()[:3])
	_, told = h.all()
	require.Equal(t, []string{"0@1 bad1", "0@3 bad2"}, told)
	tl.mu.Lock()
	defer tl.mu.Unlock()
	require.EqualValues(t, 2, tl.rejected)
}

// What a Fetch does while OnReject is at work: it answers in time, without an
// error until there is one, and ends with its ctx.
func rejectsKeepFetchAlive(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, "a", "bad1", "b")
	release := make(chan error)
	h := &hook{t: t, answer: func(ctx context.Context, _ Rejected) error {
		select {
		case err := <-release:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	cfg := c.config(topic, 0)
	cfg.OnReject = h.reject
	s, err := New(cfg)
	require.NoError(t, err)
	start, err := s.Partitions(t.Context(), nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		_, err := p.Resume(ctx, start[p.ID()])
		require.NoError(t, err)
		ch := fetchSome(t, ctx, p, unplaced(0))
		require.EqualValues(t, 1, ch.Next)
		require.Len(t, ch.Events, 1)
		at := tumble.Position{Offset: ch.Next, Epoch: ch.Epoch}
		fetch := func() (tumble.Chunk, error) {
			begin := time.Now()
			ch, err := p.Fetch(ctx, at)
			require.Less(t, time.Since(begin), 500*time.Millisecond)
			if err == nil {
				require.Empty(t, ch.Events)
				require.Zero(t, ch.Rejected)
				require.Equal(t, at.Offset, ch.Next)
				require.Greater(t, ch.End, ch.Next)
				require.Equal(t, at.Epoch, ch.Epoch)
			}
			return ch, err
		}
		for range 3 {
			_, err := fetch()
			require.NoError(t, err, "OnReject takes its time, which is no error yet")
		}
		release <- errDown
		require.Eventually(t, func() bool { calls, _ := h.all(); return len(calls) == 2 }, time.Second, time.Millisecond)
		for range 2 {
			_, err := fetch()
			require.ErrorIs(t, err, errDown)
		}

		// Reading goes elsewhere, and comes back: one call at a time.
		_, err = p.Fetch(ctx, unplaced(2))
		require.NoError(t, err)
		ch, err = p.Fetch(ctx, unplaced(1))
		require.NoError(t, err)
		require.EqualValues(t, 1, ch.Next)

		release <- nil
		ch = fetchSome(t, ctx, p, unplaced(1))
		require.EqualValues(t, 3, ch.Next, "a quick answer does not cut the Chunk")
		require.EqualValues(t, 1, ch.Rejected)
		require.Equal(t, "b", ch.Events[0].Key)
		ch = fetchSome(t, ctx, p, unplaced(0))
		require.EqualValues(t, 3, ch.Next)
		require.Zero(t, ch.Rejected, "it was told of")
		_, told := h.all()
		require.Equal(t, []string{"0@1 bad1"}, told)
		cancel()
		return nil
	}))
}

// A record that OnReject was not told of when the process stopped is not passed:
// it is told of by whoever goes on. Run does not wait for longer than OnReject
// does after its ctx has ended.
func rejectsAreNotPassedAtShutdown(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, "a", "bad1", "b", "bad2", "c")
	for name, answer := range map[string]func(context.Context, Rejected) error{
		"fails": down,
		"hangs": func(ctx context.Context, _ Rejected) error { <-ctx.Done(); return ctx.Err() },
		"lingers": func(ctx context.Context, _ Rejected) error {
			<-ctx.Done()
			time.Sleep(300 * time.Millisecond)
			return ctx.Err()
		},
		"gives up": func(ctx context.Context, _ Rejected) error { <-ctx.Done(); return nil },
	} {
		h := &hook{t: t, answer: answer}
		cfg := c.config(topic)
		cfg.OnReject = h.reject
		tl := follow(t, cfg, nil)
		tl.await(t, 1)
		require.Eventually(t, func() bool { calls, _ := h.all(); return len(calls) > 0 }, 5*time.Second, time.Millisecond)
		begin := time.Now()
		tl.stop(t)
		require.Less(t, time.Since(begin), time.Second, name)
		h.mu.Lock()
		require.False(t, h.inside[fmt.Sprint(topic, 0)], "%s: Run waits for OnReject", name)
		h.mu.Unlock()
		tl.mu.Lock()
		at := tl.next[topic+"/0"]
		tl.mu.Unlock()
		require.EqualValues(t, 1, at, name)
		require.Zero(t, tl.rejected, name)

		next := &hook{t: t}
		cfg.OnReject = next.reject
		cfg.UntilEnd = true
		stored := whole0(t, cfg)
		stored.Offset = at
		tl = follow(t, cfg, map[string]tumble.Checkpoint{topic + "/0": stored})
		tl.end(t)
		_, told := next.all()
		require.Equal(t, []string{"0@1 bad1", "0@3 bad2"}, told, name)
		require.Equal(t, []string{"b", "c"}, tl.keys(), name)
		require.EqualValues(t, 2, tl.rejected, name)
	}
}

// A record that reading has dropped while OnReject was inside, and will not come
// out: the next one waits.
func rejectsOneAtATime(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, "bad0", "a", "bad2", "b")
	h := &hook{t: t, answer: func(context.Context, Rejected) error {
		time.Sleep(700 * time.Millisecond) // whatever ctx says
		return errDown
	}}
	cfg := c.config(topic, 0)
	cfg.OnReject = h.reject
	s, err := New(cfg)
	require.NoError(t, err)
	start, err := s.Partitions(t.Context(), nil)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		defer cancel()
		_, err := p.Resume(ctx, start[p.ID()])
		require.NoError(t, err)
		for i := range 10 {
			if i == 8 {
				h.set(nil)
			}
			_, _ = p.Fetch(ctx, unplaced([]int64{0, 2}[i%2])) // h fails the test
		}
		return nil
	}))
	calls, _ := h.all()
	require.Contains(t, calls, "0@0 bad0")
	require.Contains(t, calls, "0@2 bad2")
}

// FailOnReject tells OnReject, and stops in front of the record.
func rejectsFail(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, "a", "bad1", "b")
	h := &hook{t: t}
	cfg := c.config(topic, 0)
	cfg.OnReject, cfg.FailOnReject = h.reject, true
	tl := follow(t, cfg, nil)
	require.ErrorContains(t, tl.result(t), "kafka: fetch "+topic+"/0@1: record at offset 1 rejected: bad value")
	_, told := h.all()
	require.Equal(t, []string{"0@1 bad1"}, told)
	require.Equal(t, []string{"a"}, tl.keys())
	require.Zero(t, tl.rejected)
}

// Many rejected records, among others, in batches of all sizes: each is told of
// once, with its own bytes, and Chunks are not cut at each.
func rejectsMany(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	cl := c.client(t, kgo.ProducerBatchCompression(kgo.SnappyCompression()))
	var want, keys []string
	offset := 0
	for batch := range 20 {
		var values []string
		for i := range 1 + batch*7 {
			v := fmt.Sprintf("ok%d-%d", batch, i)
			if i%3 == 1 {
				v = fmt.Sprintf("bad%d-%d", batch, i)
				want = append(want, fmt.Sprintf("0@%d %s", offset, v))
			} else {
				keys = append(keys, v)
			}
			values = append(values, v)
			offset++
		}
		produce(t, cl, topic, 0, values...)
	}
	h := &hook{t: t}
	cfg := c.config(topic, 0)
	cfg.OnReject = h.reject
	tl := whole(t, cfg)
	_, told := h.all()
	require.Equal(t, want, told)
	require.Equal(t, keys, tl.keys())
	require.EqualValues(t, len(want), tl.rejected)
	for i, m := range h.kept { // its buffer has another batch by now
		require.Equal(t, want[i], fmt.Sprintf("0@%d %s", m.Offset, m.Value))
	}
}

// An OnReject that is quick does not cut Chunks short.
func rejectsWholeChunks(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	var values []string
	for i := range 500 {
		values = append(values, fmt.Sprint("bad", i), fmt.Sprint("ok", i))
	}
	produce(t, c.client(t), topic, 0, values...)
	cfg := c.config(topic, 0)
	cfg.OnReject = func(context.Context, Rejected) error { return nil }
	s, err := New(cfg)
	require.NoError(t, err)
	start, err := s.Partitions(t.Context(), nil)
	require.NoError(t, err)
	chunks := 0
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		defer cancel()
		_, err := p.Resume(ctx, start[p.ID()])
		require.NoError(t, err)
		for at := unplaced(0); at.Offset < 1000; {
			ch, err := p.Fetch(ctx, at)
			if err != nil {
				return err
			}
			if at = (tumble.Position{Offset: ch.Next, Epoch: ch.Epoch}); len(ch.Events) > 0 {
				chunks++
			}
		}
		return nil
	}))
	require.Less(t, chunks, 100)
}

// What the pipeline would reject, and does not count, is rejected by the source
// before: it is told of, too.
func rejectsWhatPipelinesReject(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	first, last := time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
	times := map[string]time.Time{
		"zero": {}, "before": first.Add(-1), "first": first, "last": last.Add(-1), "after": last,
	}
	values := []string{"zero", "before", "first", "last", "after", "good"}
	produce(t, c.client(t), topic, 0, values...)
	h := &hook{t: t}
	var log strings.Builder
	cfg := c.config(topic, 0)
	cfg.MaxSkew = -1
	cfg.UntilEnd = true
	cfg.OnReject = h.reject
	cfg.Decode = func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
		at, ok := times[string(m.Value)]
		if !ok {
			at = m.Time
		}
		return append(dst, tumble.Event{Key: string(m.Value), Time: at}), nil
	}
	s, err := New(cfg)
	require.NoError(t, err)
	p, err := tumble.New(tumble.Config{Source: s, Sink: memory.New(memory.Config{}), Window: tumble.Window{Size: time.Minute}, Logger: loggerTo(&log)})
	require.NoError(t, err)
	require.NoError(t, p.Run(t.Context()))
	_, told := h.all()
	require.Equal(t, []string{"0@0 zero", "0@1 before", "0@4 after"}, told)
	stats := p.Stats()
	require.EqualValues(t, 3, stats.Rejected)
	require.EqualValues(t, 3, stats.Counted)
	require.NotContains(t, log.String(), "not within the years", "the pipeline found none")
}

func runRejectScenarios(t *testing.T, c cluster) {
	for name, scenario := range map[string]func(*testing.T, cluster){
		"Wait": rejectsWait, "Fetch": rejectsKeepFetchAlive, "Shutdown": rejectsAreNotPassedAtShutdown, "OneAtATime": rejectsOneAtATime,
		"Fail": rejectsFail, "Many": rejectsMany, "WholeChunks": rejectsWholeChunks, "Pipeline": rejectsWhatPipelinesReject,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scenario(t, c)
		})
	}
}

func TestRejectsOnFakeCluster(t *testing.T) {
	t.Parallel()
	c := fakeCluster(t)
	t.Run("", func(t *testing.T) { runRejectScenarios(t, c) })
}

// OnReject is called again after 50 ms, which doubles to 5 s, give or take half.
func TestRejectBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Time
		src := &Source{cfg: Config{OnReject: func(context.Context, Rejected) error {
			at = append(at, time.Now())
			return errDown
		}}}
		p := &partition{src: src, served: t.Context()}
		p.tell(Message{Offset: 7}, errors.New("bad"))
		require.NoError(t, p.telling.trouble())
		time.Sleep(5 * time.Minute)
		require.ErrorIs(t, p.telling.trouble(), errDown)
		p.endTelling()
		require.Greater(t, len(at), 30)
		want := 50 * time.Millisecond
		for i := 1; i < len(at); i++ {
			pause := at[i].Sub(at[i-1])
			require.GreaterOrEqual(t, pause, want/2, "%d", i)
			require.LessOrEqual(t, pause, want*3/2, "%d", i)
			want = min(2*want, 5*time.Second)
		}
	})
}

// What OnReject is told of stays as it is when reading has gone elsewhere and the
// buffer is used again.
func TestRejectedIsACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		borrowed := []byte("\x02h\x02vkeyvalue")
		var kept []Message
		src := &Source{cfg: Config{OnReject: func(_ context.Context, r Rejected) error {
			time.Sleep(time.Second)
			kept = append(kept, r.Message)
			return nil
		}}}
		p := &partition{src: src, served: t.Context()}
		p.tell(Message{headers: borrowed[:4], count: 1, Key: borrowed[4:7], Value: borrowed[7:]}, errors.New("bad"))
		clear(borrowed)
		p.telling.hasTold(2 * time.Second)
		p.endTelling()
		require.Len(t, kept, 1)
		require.Equal(t, "key value", fmt.Sprintf("%s %s", kept[0].Key, kept[0].Value))
		for k, v := range kept[0].Headers() {
			require.Equal(t, "h v", fmt.Sprintf("%s %s", k, v))
		}
	})
}

// One that does not come back is shown, though it has no error.
func TestRejectThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &Source{cfg: Config{OnReject: func(ctx context.Context, _ Rejected) error {
			<-ctx.Done()
			return nil
		}}}
		p := &partition{src: src, served: t.Context()}
		p.tell(Message{Offset: 7}, errors.New("bad"))
		time.Sleep(4900 * time.Millisecond)
		require.NoError(t, p.telling.trouble())
		time.Sleep(200 * time.Millisecond)
		require.ErrorContains(t, p.telling.trouble(), "record at offset 7 was rejected (bad), and Config.OnReject fails: it has not returned for 5s")
		p.endTelling()
	})
}

// Without a hook rejected records are one line in 10 seconds, with a sum.
func TestRejectLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		l := rejectLog{log: loggerTo(&out)}
		for range 100 {
			l.report(Rejected{Partition: 3, Offset: 9, Cause: errors.New("bad")})
		}
		require.Equal(t, 1, strings.Count(out.String(), "\n"))
		require.Contains(t, out.String(), "unreported=0")
		out.Reset()
		time.Sleep(10 * time.Second)
		l.report(Rejected{Partition: 3, Offset: 10, Cause: errors.New("bad")})
		require.Contains(t, out.String(), "partition=3 offset=10 cause=bad unreported=99")
	})
}
