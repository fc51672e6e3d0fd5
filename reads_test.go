package tumble_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// A written store is filled by hand: one shard, one partition.
type written struct {
	*memory.Sink
	t     *testing.T
	shard tumble.Shard
	at    tumble.Checkpoint
}

func write(t *testing.T, def tumble.Definition) *written {
	t.Helper()
	w := &written{Sink: memory.New(memory.Config{}), t: t, at: tumble.Checkpoint{Log: "log"}}
	shards, err := w.Open(t.Context(), def)
	require.NoError(t, err)
	w.shard = shards[0]
	_, err = w.shard.Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"p": w.at}})
	require.NoError(t, err)
	return w
}

// add counts n of key in the minute i, and moves the watermark to the start of minute mark.
func (w *written) add(writer uint64, mark int, key string, i int, n int64) {
	w.t.Helper()
	to := w.at
	to.Offset++
	to.Watermark = minute(mark)
	b := tumble.Batch{Partition: "p", Writer: writer, From: w.at, To: to}
	if n > 0 {
		b.Deltas = []tumble.Delta{{Start: minute(i), Key: key, N: n}}
	}
	require.NoError(w.t, w.shard.Apply(w.t.Context(), b))
	w.at = to
}

func minute(i int) time.Time { return t0.Add(time.Duration(i) * time.Minute) }

var byMinute = tumble.Definition{Window: tumble.Window{Size: time.Minute}, DropLate: true}

func TestHistory(t *testing.T) {
	def := byMinute
	def.Retention = 10 * time.Minute
	w := write(t, def)
	for i := range 5 {
		w.add(1, i, "a", i, int64(i+1))
	}
	counts, sum, err := tumble.History(t.Context(), w, "a", minute(0).Add(1), minute(3).Add(1))
	require.NoError(t, err)
	require.Len(t, counts, 3)
	require.Equal(t, tumble.Count{Key: "a", Start: minute(1), End: minute(4), N: 2 + 3 + 4, State: tumble.Final, Term: sum.Term}, sum)
	sum, err = tumble.Sum(t.Context(), w, "a", minute(0), minute(5))
	require.NoError(t, err)
	require.Equal(t, tumble.Open, sum.State)
	require.EqualValues(t, 15, sum.N)
	for _, r := range [][2]time.Time{{minute(1), minute(1)}, {minute(2), minute(1)}, {minute(1).Add(1), minute(2)}} {
		_, err = tumble.Sum(t.Context(), w, "a", r[0], r[1])
		require.ErrorIs(t, err, tumble.ErrNoWindows)
	}
	w.add(1, 12, "a", 0, 0)
	sum, err = tumble.Sum(t.Context(), w, "a", minute(0), minute(5))
	require.NoError(t, err)
	require.Equal(t, tumble.Expired, sum.State, "minute 0 is past retention")
	_, err = tumble.Sum(t.Context(), memory.New(memory.Config{}), "a", minute(0), minute(1))
	require.ErrorIs(t, err, tumble.ErrNoDefinition)
}

// lossy is a reader whose store falls back while a range is read.
type lossy struct {
	*written
	fall func()
}

func (l lossy) Range(ctx context.Context, key string, from, to time.Time) ([]tumble.Count, error) {
	counts, err := l.written.Range(ctx, key, from, to)
	l.fall()
	return counts, err
}

func TestHistoryOfTwoLives(t *testing.T) {
	w := write(t, byMinute)
	w.add(1, 2, "a", 0, 5)
	writer := uint64(1)
	_, sum, err := tumble.History(t.Context(), lossy{w, func() {
		writer++ // another one each time, so that each read sees two terms
		w.add(writer, int(writer)+2, "a", 0, 0)
	}}, "a", minute(0), minute(1))
	require.NoError(t, err)
	require.Equal(t, tumble.Open, sum.State)
}

func TestAll(t *testing.T) {
	w := write(t, byMinute)
	want := map[string]int64{}
	for i := range 2500 {
		key := fmt.Sprint("user", i)
		want[key] = int64(i + 1)
		w.add(1, 0, key, 0, int64(i+1))
	}
	got := map[string]int64{}
	for c, err := range tumble.All(t.Context(), w, minute(0)) {
		require.NoError(t, err)
		got[c.Key] = c.N
	}
	require.Equal(t, want, got)
	for c, err := range tumble.All(t.Context(), w, minute(0)) {
		require.NoError(t, err)
		require.EqualValues(t, 1, c.N)
		break // ends it
	}
	n, last := 0, error(nil)
	for _, err := range tumble.All(t.Context(), w, minute(0)) {
		if n++; n == 1200 {
			w.add(1, 0, "user0", 0, 1)
		}
		last = err
	}
	require.ErrorIs(t, last, tumble.ErrChanged)
	for _, err := range tumble.All(t.Context(), memory.New(memory.Config{}), minute(0)) {
		require.ErrorIs(t, err, tumble.ErrNoDefinition)
	}
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := write(t, byMinute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, tumble.Await(ctx, w, "p", "log", 0), context.DeadlineExceeded)
		go func() {
			time.Sleep(time.Minute)
			w.add(1, 0, "a", 0, 1)
		}()
		began := time.Now()
		require.NoError(t, tumble.Await(t.Context(), w, "p", "", 0))
		require.InDelta(t, time.Minute, time.Since(began), float64(50*time.Millisecond))
		require.NoError(t, tumble.Await(t.Context(), w, "p", "log", 0))
		for _, c := range []struct {
			partition, log string
			offset         int64
		}{{"p", "log", 1}, {"p", "other", 0}, {"q", "log", 0}} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			require.ErrorIs(t, tumble.Await(ctx, w, c.partition, c.log, c.offset), context.DeadlineExceeded)
			cancel()
		}
	})
}

// take returns what Finals yields until an error.
func take(ctx context.Context, r tumble.Reader, cursor string) (all []tumble.Total, err error) {
	for t, err := range tumble.Finals(ctx, r, cursor) {
		if err != nil {
			return all, err
		}
		all = append(all, t)
	}
	panic("it ends without an error")
}

func TestFinals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := write(t, byMinute)
		ctx, cancel := context.WithCancel(t.Context())
		type result struct {
			all []tumble.Total
			err error
		}
		done := make(chan result)
		go func() {
			all, err := take(ctx, w, "")
			done <- result{all, err}
		}()
		w.add(1, 0, "a", 0, 5)
		w.add(1, 0, "b", 0, 1)
		time.Sleep(time.Second)
		w.add(1, 1, "a", 3, 2) // minute 0 is final
		time.Sleep(time.Second)
		w.add(1, 6, "a", 5, 7) // minutes 3 and 5 are
		time.Sleep(time.Second)
		cancel()
		r := <-done
		require.ErrorIs(t, r.err, context.Canceled)
		require.Len(t, r.all, 3)
		for i, want := range []tumble.Total{
			{Start: minute(0), End: minute(1), Keys: 2, N: 6, State: tumble.Final}, {Start: minute(3), End: minute(4), Keys: 1, N: 2, State: tumble.Final}, {Start: minute(5), End: minute(6), Keys: 1, N: 7, State: tumble.Final},
		} {
			got := r.all[i]
			require.NotEmpty(t, got.Cursor)
			want.Term, want.Cursor = got.Term, got.Cursor
			require.Equal(t, want, got)
		}

		// It goes on behind a cursor, in any process.
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		all, err := take(ctx, w, r.all[0].Cursor)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, r.all[1:], all)
		for _, bad := range []string{"x", "1h0m0s 0 0", r.all[0].Cursor + " ", "1m0s 1 +1", r.all[0].Cursor + "0 0"} {
			_, err = take(t.Context(), w, bad)
			require.ErrorIs(t, err, tumble.ErrCursor, bad)
		}
	})
}

func TestFinalsOfALoss(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := write(t, byMinute)
		w.add(1, 1, "a", 0, 5)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		all, _ := take(ctx, w, "")
		require.Len(t, all, 1)
		w.add(2, 2, "a", 1, 3) // another writer: a new term
		_, err := take(t.Context(), w, all[0].Cursor)
		var term *tumble.NewTermError
		require.ErrorAs(t, err, &term)
		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		all, err = take(ctx, w, term.Cursor)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Len(t, all, 1)
		require.Equal(t, minute(1), all[0].Start)
	})
}

func TestFinalsPastRetention(t *testing.T) {
	for _, gap := range []int{2, 3, 50, 1000} {
		synctest.Test(t, func(t *testing.T) {
			def := byMinute
			def.Retention = 10 * time.Minute
			w := write(t, def)
			w.add(1, 1, "a", 0, 5)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			all, _ := take(ctx, w, "")
			require.Len(t, all, 1)
			w.add(1, 1, "a", 1, 5)
			w.add(1, gap+10, "a", gap+9, 3) // floor: minute gap
			_, err := take(t.Context(), w, all[0].Cursor)
			var lost *tumble.LostWindowsError
			require.ErrorAs(t, err, &lost)
			require.Equal(t, minute(1), lost.From)
			require.Equal(t, minute(gap), lost.To)
			ctx, cancel = context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			all, err = take(ctx, w, lost.Cursor)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Len(t, all, 1)
			require.Equal(t, minute(gap+9), all[0].Start)
			// Without a cursor it begins at the floor.
			ctx, cancel = context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			again, _ := take(ctx, w, "")
			require.Equal(t, all, again)
		})
	}
}

func TestFinalsNeedDropLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		def := byMinute
		def.DropLate = false
		w := write(t, def)
		w.add(1, 1, "a", 0, 5)
		_, err := take(t.Context(), w, "")
		require.ErrorIs(t, err, tumble.ErrNotFinal)
		for total, err := range tumble.ClosedWindows(t.Context(), w, "") {
			require.NoError(t, err)
			require.Equal(t, tumble.Closed, total.State)
			require.EqualValues(t, 5, total.N)
			break
		}
		_, err = take(t.Context(), memory.New(memory.Config{}), "")
		require.ErrorIs(t, err, tumble.ErrNoDefinition)
	})
}

// A range that reaches far beyond all events ends in the last window that there may be,
// which is open.
func TestASumOverFarTimes(t *testing.T) {
	def := byMinute
	def.Retention = 0
	w := write(t, def)
	for i := range 3 {
		w.add(1, i, "a", i, 1)
	}
	year := func(y int) time.Time { return time.Date(y, 1, 1, 0, 3, 0, 0, time.UTC) }
	for _, to := range []time.Time{year(2199), year(2200), year(2300), year(2500), year(9999)} {
		for _, from := range []time.Time{{}, year(1500), year(1700), minute(0)} {
			c, err := tumble.Sum(t.Context(), w, "a", from, to)
			require.NoError(t, err, "%v to %v", from, to)
			require.EqualValues(t, 3, c.N, "%v to %v", from, to)
			require.Equal(t, tumble.Open, c.State, "%v to %v", from, to)
			require.True(t, c.Start.Before(c.End) && c.Start.Year() >= 1700, "%v to %v: %v", from, to, c)
		}
	}
	_, err := tumble.Sum(t.Context(), w, "a", year(9999), year(9999).Add(time.Hour))
	require.ErrorIs(t, err, tumble.ErrNoWindows)
}

// Windows that were looked at while they were closed, and held nothing, are not lost when
// retention passes them: a log that is silent for longer is no alarm.
func TestFinalsOfASilentLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		def := byMinute
		def.Retention = 3 * time.Minute
		w := write(t, def)
		w.add(1, 2, "a", 0, 1)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Hour)
		defer cancel()
		go func() {
			for i := 3; ctx.Err() == nil; i++ { // the clock goes on
				w.add(1, i, "", 0, 0)
				time.Sleep(time.Minute)
			}
		}()
		all, err := take(ctx, w, "")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Len(t, all, 1)
		time.Sleep(2 * time.Minute)
	})
}

// Who begins without a cursor is told as well of windows that go past retention before
// they were handed on, once it has begun.
func TestFinalsThatBeginBesideACatchUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		def := byMinute
		def.Retention = 10 * time.Minute
		w := write(t, def)
		w.add(1, 0, "a", 0, 1) // it is open
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		go func() {
			time.Sleep(5 * time.Second)
			w.add(1, 99, "a", 60, 1)
		}()
		all, err := take(ctx, w, "")
		lost := new(tumble.LostWindowsError)
		require.ErrorAs(t, err, &lost)
		require.Empty(t, all)
		require.Equal(t, minute(0), lost.From.UTC())
		require.Equal(t, minute(89), lost.To.UTC())
	})
}
