package kafka

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// A servant runs serve and writes down what its consumers do.
type servant struct {
	lists  chan []int32
	unsure atomic.Bool
	cancel context.CancelFunc
	done   chan error

	starts, ends [10]atomic.Int32
	live         [10]atomic.Pointer[partition]
	drain        time.Duration // of each consumer
	leave        [10]chan error
}

func newServant(t *testing.T, untilEnd, grow bool, drain time.Duration) *servant {
	src, err := New(Config{Brokers: []string{"nowhere:1"}, Topic: "clicks", Decode: JSON("k", "t"), UntilEnd: untilEnd})
	require.NoError(t, err)
	f := newFetcher(src, func(error) {})
	s := &servant{lists: make(chan []int32), done: make(chan error, 1), drain: drain}
	f.unsure = s.unsure.Load
	for n := range s.leave {
		s.leave[n] = make(chan error)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.cancel = cancel
	go func() {
		s.done <- src.serve(ctx, f, s.lists, grow, func(ctx context.Context, part tumble.Partition) error {
			p := part.(*partition)
			s.starts[p.n].Add(1)
			s.live[p.n].Store(p)
			defer s.ends[p.n].Add(1)
			defer s.live[p.n].Store(nil)
			select {
			case <-ctx.Done():
				time.Sleep(s.drain)
				return nil
			case err := <-s.leave[p.n]:
				return err
			}
		})
	}()
	return s
}

// has returns the partitions that are consumed now.
func (s *servant) has() (list []int32) {
	synctest.Wait()
	for n := range s.live {
		if s.live[n].Load() != nil {
			list = append(list, int32(n))
		}
	}
	return list
}

func (s *servant) stop(t *testing.T) {
	s.cancel()
	require.NoError(t, <-s.done)
	require.Empty(t, s.has())
}

// What a list keeps goes on without a break, what it takes is given up, and what it
// brings begins at once.
func TestServeFollowsTheShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServant(t, false, false, time.Second)
		require.Empty(t, s.has())
		s.lists <- []int32{}
		require.Empty(t, s.has())
		s.lists <- []int32{1, 2, 3}
		require.Equal(t, []int32{1, 2, 3}, s.has())
		s.lists <- []int32{2, 3, 4}
		require.Equal(t, []int32{1, 2, 3, 4}, s.has(), "1 flushes")
		time.Sleep(time.Second)
		require.Equal(t, []int32{2, 3, 4}, s.has())

		// Back before it has flushed: it begins again when it has.
		s.lists <- []int32{2, 4}
		s.lists <- []int32{2, 3}
		require.Equal(t, []int32{2, 3, 4}, s.has())
		require.Equal(t, int32(1), s.starts[3].Load())
		time.Sleep(time.Second)
		require.Equal(t, []int32{2, 3}, s.has())
		require.Equal(t, int32(2), s.starts[3].Load())

		s.lists <- nil // no member any more
		time.Sleep(time.Second)
		require.Empty(t, s.has())
		s.lists <- []int32{1, 2}
		require.Equal(t, []int32{1, 2}, s.has())
		require.Equal(t, int32(2), s.starts[2].Load(), "2 went on through all but the last")
		s.stop(t)
	})
}

func TestServeGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServant(t, false, true, 0)
		s.lists <- []int32{1}
		s.lists <- []int32{1, 2}
		s.lists <- []int32{2}
		require.Equal(t, []int32{1, 2}, s.has())
		s.stop(t)
	})
}

func TestServeFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServant(t, true, false, 0)
		s.lists <- []int32{1, 2, 3}
		s.leave[2] <- errors.New("broken")
		require.EqualError(t, <-s.done, "broken")
		require.Empty(t, s.has())
	})
}

// With UntilEnd all partitions of the last list must have ended. A process that is no
// member, or that gave one up for a rival, does not know that they have.
func TestServeUntilEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServant(t, true, false, 0)
		s.lists <- nil
		require.Empty(t, s.has())
		s.lists <- []int32{1, 2, 3}
		s.leave[1] <- nil
		s.lists <- []int32{1, 2}
		require.Equal(t, []int32{2}, s.has())
		require.Equal(t, int32(1), s.starts[1].Load(), "1 is at its end")
		s.unsure.Store(true)
		require.True(t, s.live[2].Load().Yield())
		s.leave[2] <- nil
		time.Sleep(400 * time.Millisecond)
		require.Empty(t, s.has())
		s.lists <- []int32{1}
		require.ErrorIs(t, <-s.done, errExhausted)

		s = newServant(t, true, false, 0)
		s.lists <- []int32{}
		require.ErrorIs(t, <-s.done, errExhausted, "no share, as there are more members than partitions")
	})
}

// A partition is given up for a rival only while somebody else may have it, and taken up
// again if nobody has.
func TestServeYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServant(t, false, false, 0)
		s.lists <- []int32{1, 2}
		s.has()
		require.False(t, s.live[1].Load().Yield())
		s.unsure.Store(true)
		require.True(t, s.live[1].Load().Yield())
		s.leave[1] <- nil
		time.Sleep(400 * time.Millisecond)
		require.Equal(t, []int32{2}, s.has())
		time.Sleep(300 * time.Millisecond)
		require.Equal(t, []int32{1, 2}, s.has(), "no assignment took it away: once more")
		require.True(t, s.live[1].Load().Yield())
		s.leave[1] <- nil
		s.unsure.Store(false)
		time.Sleep(200 * time.Millisecond)
		require.Equal(t, []int32{1, 2}, s.has(), "nobody else has it")

		s.unsure.Store(true)
		require.True(t, s.live[2].Load().Yield())
		s.leave[2] <- nil
		s.unsure.Store(false)
		s.lists <- []int32{1, 2}
		require.Equal(t, []int32{1, 2}, s.has(), "the next assignment has it")
		s.stop(t)
	})
}

// A goroutine that ends within consume, as FailNow has it, does not hold Run up.
func TestAConsumerThatExits(t *testing.T) {
	c := fakeCluster(t)
	s, err := New(c.config(c.create(t, 1), 0))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err = s.Run(ctx, func(context.Context, tumble.Partition) error {
		runtime.Goexit()
		return nil
	})
	require.ErrorIs(t, err, errExited)
}
