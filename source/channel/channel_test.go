package channel_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/channel"
)

// reading runs a source of events and calls f with its partition.
func reading(t *testing.T, cfg channel.Config, f func(ctx context.Context, s *channel.Source, p tumble.Partition)) {
	t.Helper()
	if cfg.ID == "" {
		cfg.ID = "clicks"
	}
	s, err := channel.New(cfg)
	require.NoError(t, err)
	require.NoError(t, s.Run(t.Context(), func(ctx context.Context, p tumble.Partition) error {
		f(ctx, s, p)
		return nil
	}))
}

// filledWith returns a channel that holds n events.
func filledWith(n int) chan tumble.Event {
	events := make(chan tumble.Event, n+1)
	for i := range n {
		events <- tumble.Event{Key: fmt.Sprint("user_", i), Time: time.Unix(int64(i), 0), Offset: 99}
	}
	return events
}

// all fetches from an offset until n events have come.
func all(ctx context.Context, t *testing.T, p tumble.Partition, from int64, n int) (got []tumble.Event) {
	t.Helper()
	for len(got) < n {
		c, err := p.Fetch(ctx, tumble.Position{Offset: from})
		require.NoError(t, err)
		got = append(got, c.Events...)
		from = c.Next
	}
	return got
}

func TestNewNamesTheField(t *testing.T) {
	events := make(chan tumble.Event)
	for want, cfg := range map[string]channel.Config{
		"ID is empty":   {Events: events},
		"Events is nil": {ID: "clicks"},
		"MaxKept is -1": {ID: "clicks", Events: events, MaxKept: -1},
	} {
		_, err := channel.New(cfg)
		require.ErrorContains(t, err, want)
	}
}

func TestOffsetsAreTheSources(t *testing.T) {
	reading(t, channel.Config{Events: filledWith(3000)}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
		for i, e := range all(ctx, t, p, 0, 3000) {
			require.Equal(t, tumble.Event{Key: fmt.Sprint("user_", i), Time: time.Unix(int64(i), 0), Offset: int64(i)}, e)
		}
	})
}

func TestOffsetOfTheEventThatWasWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(chan tumble.Event)
		reading(t, channel.Config{Events: events}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
			for i := range int64(3) {
				time.AfterFunc(100*time.Millisecond, func() { events <- tumble.Event{Key: "user_1", Offset: 99} })
				begun := time.Now()
				c, err := p.Fetch(ctx, tumble.Position{Offset: i})
				require.NoError(t, err)
				require.Equal(t, []tumble.Event{{Key: "user_1", Offset: i}}, c.Events)
				require.Equal(t, 100*time.Millisecond, time.Since(begun))
			}
		})
	})
}

func TestEndCountsWhatLiesInTheChannel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := filledWith(1500)
		reading(t, channel.Config{Events: events}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
			c, err := p.Fetch(ctx, tumble.Position{Offset: 0})
			require.NoError(t, err)
			require.EqualValues(t, 1500, c.End)
			require.Less(t, c.Next, c.End)
			for from := c.Next; c.Next < c.End; from = c.Next {
				c, err = p.Fetch(ctx, tumble.Position{Offset: from})
				require.NoError(t, err)
			}
			begun := time.Now()
			c, err = p.Fetch(ctx, tumble.Position{Offset: 1500})
			require.NoError(t, err)
			require.Equal(t, tumble.Chunk{Next: 1500, End: 1500, AsOf: begun.Add(500 * time.Millisecond)}, c)
		})
	})
}

func TestKeepsWhatIsNotCommitted(t *testing.T) {
	reading(t, channel.Config{Events: filledWith(5000)}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
		first := all(ctx, t, p, 0, 5000)
		require.Equal(t, first, all(ctx, t, p, 0, 5000))
		p.(tumble.Committer).Committed(2500)
		p.(tumble.Committer).Committed(1000) // does not bring anything back
		require.Equal(t, first[2500:], all(ctx, t, p, 2500, 2500))
		for _, gone := range []int64{0, 2499} {
			_, err := p.Fetch(ctx, tumble.Position{Offset: gone})
			require.ErrorIs(t, err, tumble.ErrOffsetOutOfRange)
		}
		_, err := p.Fetch(ctx, tumble.Position{Offset: 5001})
		require.ErrorIs(t, err, tumble.ErrOffsetOutOfRange)
	})
}

func TestChunkOutlivesCommitted(t *testing.T) {
	events := filledWith(3000)
	reading(t, channel.Config{Events: events}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
		_ = all(ctx, t, p, 0, 3000)
		c, err := p.Fetch(ctx, tumble.Position{Offset: 0})
		require.NoError(t, err)
		p.(tumble.Committer).Committed(3000)
		require.Equal(t, "user_0", c.Events[0].Key)
		require.Equal(t, "user_1023", c.Events[1023].Key)
	})
}

// What was committed must leave the memory, keys too.
func TestLetsGoOfKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(chan tumble.Event, 10_000)
		reading(t, channel.Config{Events: events}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
			heap := func() int {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return int(m.HeapAlloc)
			}
			before := heap()
			for range 10_000 {
				events <- tumble.Event{Key: strings.Repeat("k", 4096)}
			}
			for from := int64(0); from < 10_000; {
				c, err := p.Fetch(ctx, tumble.Position{Offset: from})
				require.NoError(t, err)
				from = c.Next
			}
			require.Greater(t, heap()-before, 40_000_000)
			p.(tumble.Committer).Committed(10_000)
			for range 40 { // a few quiet seconds
				_, err := p.Fetch(ctx, tumble.Position{Offset: 10_000})
				require.NoError(t, err)
			}
			require.Less(t, heap()-before, 1_000_000)
		})
	})
}

func TestNoAllocations(t *testing.T) {
	const rounds = 200
	events := make(chan tumble.Event, 2048)
	reading(t, channel.Config{Events: events}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
		from := int64(0)
		allocated := testing.AllocsPerRun(rounds, func() {
			for range cap(events) {
				events <- tumble.Event{Key: "user_1"}
			}
			for to := from + int64(cap(events)); from < to; {
				c, err := p.Fetch(ctx, tumble.Position{Offset: from})
				if err != nil {
					panic(err)
				}
				from = c.Next
			}
			p.(tumble.Committer).Committed(from - 500)
		})
		require.Zero(t, allocated)
	})
}

func TestMaxKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(chan tumble.Event) // no buffer: nothing shows that senders wait
		sent := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ; sent < 10_000; sent++ {
				events <- tumble.Event{Key: "user_1"}
			}
		}()
		reading(t, channel.Config{Events: events, MaxKept: 3000}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
			from := int64(0)
			for {
				c, err := p.Fetch(ctx, tumble.Position{Offset: from})
				require.NoError(t, err)
				if len(c.Events) == 0 {
					require.Greater(t, c.End, c.Next, "at the limit the source is not caught up")
					break
				}
				from = c.Next
			}
			synctest.Wait()
			require.GreaterOrEqual(t, from, int64(3000))
			require.Less(t, from, int64(3000+1024))
			require.EqualValues(t, from, sent)

			// Committed ends the wait at once.
			go func() {
				time.Sleep(100 * time.Millisecond)
				p.(tumble.Committer).Committed(1000)
			}()
			begun := time.Now()
			c, err := p.Fetch(ctx, tumble.Position{Offset: from})
			require.NoError(t, err)
			require.NotEmpty(t, c.Events)
			require.Equal(t, 100*time.Millisecond, time.Since(begun))

			for from = c.Next; from < 10_000; from = c.Next {
				p.(tumble.Committer).Committed(from)
				c, err = p.Fetch(ctx, tumble.Position{Offset: from})
				require.NoError(t, err)
			}
			<-done
		})
	})
}

func TestClosed(t *testing.T) {
	events := filledWith(1500)
	close(events)
	reading(t, channel.Config{Events: events}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
		first := all(ctx, t, p, 0, 1500)
		for range 2 {
			_, err := p.Fetch(ctx, tumble.Position{Offset: 1500})
			require.ErrorIs(t, err, tumble.ErrEnded)
			require.Equal(t, first, all(ctx, t, p, 0, 1500))
		}
		p.(tumble.Committer).Committed(1500)
		_, err := p.Fetch(ctx, tumble.Position{Offset: 1500})
		require.ErrorIs(t, err, tumble.ErrEnded)
	})
}

func TestFinal(t *testing.T) {
	for _, final := range []bool{false, true} {
		events := filledWith(3)
		close(events)
		reading(t, channel.Config{Events: events, Final: final}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
			_ = all(ctx, t, p, 0, 3)
			_, err := p.Fetch(ctx, tumble.Position{Offset: 3})
			require.ErrorIs(t, err, tumble.ErrEnded)
			require.Equal(t, final, errors.Is(err, tumble.ErrFinal))
		})
	}
}

func TestClosedWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events := make(chan tumble.Event)
		reading(t, channel.Config{Events: events}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
			time.AfterFunc(100*time.Millisecond, func() { close(events) })
			_, err := p.Fetch(ctx, tumble.Position{Offset: 0})
			require.ErrorIs(t, err, tumble.ErrEnded)
		})
	})
}

// logOf returns the name of the source's run.
func logOf(t *testing.T, s *channel.Source) string {
	t.Helper()
	got, err := s.Partitions(t.Context(), nil)
	require.NoError(t, err)
	require.Len(t, got, 1)
	require.Equal(t, tumble.Checkpoint{Log: got["clicks"].Log}, got["clicks"])
	return got["clicks"].Log
}

func TestResume(t *testing.T) {
	older, err := channel.New(channel.Config{ID: "clicks", Events: make(chan tumble.Event)})
	require.NoError(t, err)
	old := logOf(t, older)
	mark := time.Unix(1000, 1)
	reading(t, channel.Config{Events: filledWith(3000)}, func(ctx context.Context, s *channel.Source, p tumble.Partition) {
		_ = all(ctx, t, p, 0, 3000)
		log := logOf(t, s)
		p.(tumble.Committer).Committed(2000)
		newer, err := channel.New(channel.Config{ID: "clicks", Events: make(chan tumble.Event)})
		require.NoError(t, err)

		for name, c := range map[string]struct{ stored, want tumble.Checkpoint }{
			"kept":         {tumble.Checkpoint{Log: log, Offset: 2000, Watermark: mark}, tumble.Checkpoint{Log: log, Offset: 2000, Watermark: mark}},
			"the next":     {tumble.Checkpoint{Log: log, Offset: 3000}, tumble.Checkpoint{Log: log, Offset: 3000}},
			"ended":        {tumble.Checkpoint{Log: log, Offset: 3000, Ended: true}, tumble.Checkpoint{Log: log, Offset: 3000, Ended: true}},
			"let go":       {tumble.Checkpoint{Log: log, Offset: 1999, Watermark: mark}, tumble.Checkpoint{Log: log, Offset: 2000, Watermark: mark}},
			"an older run": {tumble.Checkpoint{Log: old, Origin: 3, Offset: 7, Watermark: mark, Ended: true}, tumble.Checkpoint{Log: log, Offset: 2000, Watermark: mark}},
			"no run":       {tumble.Checkpoint{Log: "zzz"}, tumble.Checkpoint{Log: log, Offset: 2000}},
		} {
			got, err := p.Resume(ctx, c.stored)
			require.NoError(t, err, name)
			require.Equal(t, c.want, got, name)
		}
		_, err = p.Resume(ctx, tumble.Checkpoint{Log: logOf(t, newer)})
		require.ErrorContains(t, err, "clicks was taken over by another process")
		_, err = p.Resume(ctx, tumble.Checkpoint{Log: log, Offset: 3001})
		require.ErrorContains(t, err, "offset 3001")
	})
}

func TestRunsAreOrdered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		last := ""
		for _, wait := range []time.Duration{0, 1, 10, time.Second, 24 * time.Hour, 366 * 24 * time.Hour} {
			time.Sleep(wait)
			s, err := channel.New(channel.Config{ID: "clicks", Events: make(chan tumble.Event)})
			require.NoError(t, err)
			log := logOf(t, s)
			if wait > 0 {
				require.Greater(t, log, last)
			}
			require.NotEqual(t, last, log, "two runs that began at the same time")
			last = log
		}
	})
}

// A run that starts later is later, even if its clock is behind.
func TestStartsAfterWhatIsStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		behind, err := channel.New(channel.Config{ID: "clicks", Events: make(chan tumble.Event)})
		require.NoError(t, err)
		time.Sleep(time.Hour)
		ahead, err := channel.New(channel.Config{ID: "clicks", Events: make(chan tumble.Event)})
		require.NoError(t, err)
		stored := map[string]tumble.Checkpoint{"clicks": {Log: logOf(t, ahead), Offset: 5}}

		got, err := behind.Partitions(t.Context(), stored)
		require.NoError(t, err)
		require.Greater(t, got["clicks"].Log, stored["clicks"].Log)
		// From then on its name stays, so that it notices who takes over.
		again, err := behind.Partitions(t.Context(), map[string]tumble.Checkpoint{"clicks": {Log: "29" + stored["clicks"].Log[2:]}})
		require.NoError(t, err)
		require.Equal(t, got, again)
		// And the other one gives way.
		require.NoError(t, ahead.Run(t.Context(), func(ctx context.Context, p tumble.Partition) error {
			_, err := p.Resume(ctx, got["clicks"])
			require.ErrorContains(t, err, "taken over")
			return nil
		}))
	})
}

func TestRunAgainGoesOn(t *testing.T) {
	events := filledWith(3000)
	s, err := channel.New(channel.Config{ID: "clicks", Events: events})
	require.NoError(t, err)
	log := logOf(t, s)
	var first []tumble.Event
	broken := errors.New("the pipeline is broken")
	require.ErrorIs(t, s.Run(t.Context(), func(ctx context.Context, p tumble.Partition) error {
		first = all(ctx, t, p, 0, 2048)
		p.(tumble.Committer).Committed(1000)
		return broken
	}), broken)
	require.NoError(t, s.Run(t.Context(), func(ctx context.Context, p tumble.Partition) error {
		require.Equal(t, log, logOf(t, s))
		got := all(ctx, t, p, 1000, 2000)
		require.Equal(t, first[1000:], got[:1048])
		require.EqualValues(t, 2999, got[1999].Offset)
		return nil
	}))
}

func TestRunTwiceAtOnce(t *testing.T) {
	s, err := channel.New(channel.Config{ID: "clicks", Events: make(chan tumble.Event)})
	require.NoError(t, err)
	require.NoError(t, s.Run(t.Context(), func(ctx context.Context, p tumble.Partition) error {
		err := s.Run(ctx, func(context.Context, tumble.Partition) error { return errors.New("must not be called") })
		require.ErrorContains(t, err, "clicks is being run already")
		return nil
	}))
}

func TestRunStopped(t *testing.T) {
	s, err := channel.New(channel.Config{ID: "clicks", Events: make(chan tumble.Event)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		cancel()
		_, err := p.Fetch(ctx, tumble.Position{Offset: 0})
		require.ErrorIs(t, err, context.Canceled)
		return err
	}), "being stopped is no error")
	late := errors.New("could not flush")
	require.ErrorIs(t, s.Run(ctx, func(context.Context, tumble.Partition) error { return late }), late)
}

// What a run leaves uncounted is in its error, whatever ended it.
func TestRunTellsWhatIsLost(t *testing.T) {
	broken := errors.New("the pipeline is broken")
	whim := errors.New("a cause of its own")
	for name, c := range map[string]struct {
		received, committed, waiting int
		end                          error // of the context; nil: it goes on
		err                          error // of consume
		lost                         int64
		is                           error
	}{
		"all counted":          {received: 5, committed: 5, end: context.Canceled},
		"nothing came":         {end: context.Canceled},
		"received":             {received: 5, committed: 2, end: context.Canceled, lost: 3},
		"never committed":      {received: 5, end: context.Canceled, lost: 5},
		"still in the channel": {received: 5, committed: 5, waiting: 4, end: context.Canceled, lost: 4},
		"both":                 {received: 2000, committed: 1500, waiting: 7, end: context.Canceled, lost: 507},
		"a cause":              {received: 5, committed: 2, end: whim, err: whim, lost: 3},
		// The pipeline takes an error of a context's for a stop without loss.
		"a context's error":    {received: 5, committed: 2, end: context.Canceled, err: fmt.Errorf("fetch: %w", context.Canceled), lost: 3},
		"a flush timed out":    {received: 5, committed: 2, end: context.Canceled, err: context.DeadlineExceeded, lost: 3},
		"it failed":            {received: 5, committed: 2, err: broken, lost: 3, is: broken},
		"it failed at a stop":  {received: 5, committed: 2, waiting: 1, end: context.Canceled, err: broken, lost: 4, is: broken},
		"it failed afterwards": {received: 5, committed: 5, err: broken, is: broken},
		"exhausted":            {received: 5, committed: 2, waiting: 1},
	} {
		t.Run(name, func(t *testing.T) {
			events := make(chan tumble.Event, 3000)
			s, err := channel.New(channel.Config{ID: "clicks", Events: events})
			require.NoError(t, err)
			send := func(n int) {
				for range n {
					events <- tumble.Event{Key: "user_1"}
				}
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			err = s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
				send(c.received)
				_ = all(ctx, t, p, 0, c.received)
				p.(tumble.Committer).Committed(int64(c.committed))
				send(c.waiting)
				if c.end != nil {
					cancel(c.end)
				}
				return c.err
			})
			var lost *channel.LostError
			if c.lost == 0 {
				require.False(t, errors.As(err, &lost))
				require.Equal(t, c.is, err)
				return
			}
			require.ErrorAs(t, err, &lost)
			require.Equal(t, channel.LostError{ID: "clicks", Events: c.lost}, *lost)
			require.ErrorContains(t, err, fmt.Sprintf("clicks: stopped with up to %d events", c.lost))
			require.ErrorContains(t, err, "close the channel and wait for Run")
			require.NotErrorIs(t, err, context.Canceled)
			require.NotErrorIs(t, err, context.DeadlineExceeded)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
		})
	}
}

// What was told as lost is not, if there is another run with the same source.
func TestRunAgainLosesNothing(t *testing.T) {
	events := filledWith(3)
	s, err := channel.New(channel.Config{ID: "clicks", Events: events})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	require.ErrorContains(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		_ = all(ctx, t, p, 0, 3)
		cancel()
		return nil
	}), "stopped with up to 3 events")
	close(events)
	ctx, cancel = context.WithCancel(t.Context())
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		require.Len(t, all(ctx, t, p, 0, 3), 3)
		p.(tumble.Committer).Committed(3)
		cancel()
		return nil
	}))
}
