package tumble

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"time"
)

// What is asked of any Reader: sums over windows, all counts of one, final windows
// handed on.

// Starts returns the starts of the first and the last window that start in [from, to),
// and false if none does. Of times that are no event times, those outside the years 1700 to
// 2199, it knows no windows.
func (w Window) Starts(from, to time.Time) (first, last time.Time, ok bool) {
	if earliest := time.Unix(minTime, 0); from.Before(earliest) {
		from = earliest
	}
	if latest := time.Unix(maxTime, 0); to.After(latest) {
		to = latest
	}
	if !from.Before(to) {
		return first, last, false
	}
	first, next := w.Bounds(from)
	if first.Before(from) {
		first = next
	}
	last, _ = w.Bounds(to.Add(-1))
	return first, last, first.Before(to)
}

// ErrNoWindows is wrapped by [History] and [Sum] when no window starts in the range.
var ErrNoWindows = errors.New("no window starts in the range")

// History returns the counts of key, those above 0, in the windows whose start is in
// [from, to), ascending, and their sum. The sum is that of one window from the start of
// the first to the end of the last: it is Expired if any of them is past retention, and
// else in the state of the last, with its Term. N stays at 2^63 - 1 once it would pass
// that.
func History(ctx context.Context, r Reader, key string, from, to time.Time) ([]Count, Count, error) {
	def, err := r.Definition(ctx)
	if err != nil {
		return nil, Count{}, err
	}
	first, last, ok := def.Window.Starts(from, to)
	if !ok {
		return nil, Count{}, fmt.Errorf("tumble: %w: from %v to %v, of %v", ErrNoWindows, from, to, def.Window)
	}
	for tries := 1; ; tries++ {
		// The counts are as final as the last window was before they were read,
		// if the store had lost nothing by the end.
		before, err := r.Count(ctx, key, last)
		if err != nil {
			return nil, Count{}, err
		}
		counts, err := r.Range(ctx, key, from, to)
		if err != nil {
			return nil, Count{}, err
		}
		after, err := r.Count(ctx, key, last)
		if err != nil {
			return nil, Count{}, err
		}
		// Expiry deletes the earliest window first, and shows there afterwards.
		oldest, err := r.Count(ctx, key, first)
		if err != nil {
			return nil, Count{}, err
		}
		sum := Count{Key: key, Start: first, End: after.End, State: Open, Term: after.Term}
		for _, c := range counts {
			sum.N = sumOf(sum.N, c.N)
		}
		switch {
		case oldest.State == Expired:
			sum.State = Expired
		case after.State == Open:
		case before.Term == after.Term:
			sum.State = before.State
		case tries < 3: // a term changes once a window, without a loss
			continue
		}
		return counts, sum, nil
	}
}

// Sum returns the sum of key's counts in the windows whose start is in [from, to). See
// [History].
func Sum(ctx context.Context, r Reader, key string, from, to time.Time) (Count, error) {
	_, sum, err := History(ctx, r, key, from, to)
	return sum, err
}

// ErrChanged ends [All] when the counts changed while they were read.
var ErrChanged = errors.New("the counts changed while they were read")

// All yields every count of the window that holds at, in no order. It holds a page of
// them at a time. At the end it compares what it has yielded with the window's total
// before and after: a difference yields ErrChanged, and what came before it is to be
// thrown away. That happens in a window that is counted into. An error ends the sequence.
func All(ctx context.Context, r Reader, at time.Time) iter.Seq2[Count, error] {
	return func(yield func(Count, error) bool) {
		before, err := totalAt(ctx, r, at)
		var keys, sum int64
		for cursor := ""; err == nil; {
			var page Page
			if page, err = r.Scan(ctx, at, cursor, 1000); err != nil {
				break
			}
			for _, c := range page.Counts {
				keys, sum = keys+1, sumOf(sum, c.N)
				if !yield(c, nil) {
					return
				}
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
		if err == nil {
			var after Total
			after, err = totalAt(ctx, r, at)
			if err == nil && (before.Keys != keys || before.N != sum || after.Keys != keys || after.N != sum) {
				err = fmt.Errorf("tumble: %w: %d keys with %d in all, the window had %d with %d before, and %d with %d after",
					ErrChanged, keys, sum, before.Keys, before.N, after.Keys, after.N)
			}
		}
		if err != nil {
			yield(Count{}, err)
		}
	}
}

// totalAt returns the total of the window that holds at.
func totalAt(ctx context.Context, r Reader, at time.Time) (Total, error) {
	def, err := r.Definition(ctx)
	if err != nil {
		return Total{}, err
	}
	start, end := def.Window.Bounds(at)
	totals, err := r.Windows(ctx, start, end)
	if err != nil || len(totals) == 0 {
		return Total{Start: start, End: end}, err
	}
	return totals[0], nil
}

// Await returns once the event at an offset of a partition's log is counted in every
// shard: what r reads later has it. log is the incarnation of the log (Kafka: the topic's
// id), "" for any. It asks every 50 milliseconds, and returns ctx's error when that ends.
func Await(ctx context.Context, r Reader, partition, log string, offset int64) error {
	for {
		p, err := r.Progress(ctx)
		if err != nil && !errors.Is(err, ErrNoDefinition) {
			return err
		}
		for _, part := range p.Partitions {
			if part.ID == partition && part.Log != "" && (log == "" || part.Log == log) && part.Offset > offset {
				return nil
			}
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// wait sleeps, but not beyond the end of ctx, whose error it returns.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// ErrNotFinal ends [Finals] at once where late events are counted: no window is ever
// final.
var ErrNotFinal = errors.New("without DropLate no window is final")

// A LostWindowsError ends [Finals] and [ClosedWindows] when windows went past retention
// before they were handed on: those that start in [From, To). Cursor goes on behind them.
type LostWindowsError struct {
	From, To time.Time
	Cursor   string
}

func (e *LostWindowsError) Error() string {
	return fmt.Sprintf("tumble: windows from %s to %s are past retention and were not handed on", e.From.Format(time.RFC3339Nano), e.To.Format(time.RFC3339Nano))
}

// A NewTermError ends [Finals] and [ClosedWindows] when the store has a new Term: a
// pipeline has started, perhaps because something was lost and is counted again. Windows
// that were handed on may differ then from what is stored now. Cursor goes on where the
// sequence was.
type NewTermError struct{ Cursor string }

func (e *NewTermError) Error() string {
	return "tumble: the store has a new term: what was handed on before may have been lost and counted again"
}

// Finals yields the total of each window with a count once, ascending, as soon as it is
// Final, and waits for the next. cursor is the Cursor of the last one that was handled,
// or "" to begin with the earliest that is kept. An error ends the sequence: ErrNotFinal,
// a LostWindowsError, a NewTermError, ErrCursor, one of r, or that of ctx when it ends.
// Only then does it end, unless the loop over it does.
//
// To hand each window on exactly once, keep the cursor where the windows go, and move it
// in the same transaction, with a comparison to the one before, for two may run at once.
func Finals(ctx context.Context, r Reader, cursor string) iter.Seq2[Total, error] {
	return follow(ctx, r, cursor, true)
}

// ClosedWindows is [Finals] for counts without DropLate: it yields each window once it is
// Closed. What it can't see is an event that comes late: neither that a window it has
// yielded grows, nor one that gets its first count behind the cursor.
func ClosedWindows(ctx context.Context, r Reader, cursor string) iter.Seq2[Total, error] {
	return follow(ctx, r, cursor, false)
}

const followEvery = 250 * time.Millisecond

func follow(ctx context.Context, r Reader, cursor string, final bool) iter.Seq2[Total, error] {
	return func(yield func(Total, error) bool) {
		f := follower{r: r}
		err := f.begin(ctx, cursor, final)
		for err == nil {
			var totals []Total
			if totals, err = f.next(ctx); err != nil {
				break
			}
			for _, t := range totals {
				if !yield(t, nil) {
					return
				}
			}
			err = wait(ctx, followEvery)
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		yield(Total{}, err)
	}
}

// A follower knows up to where windows were handed on.
type follower struct {
	r      Reader
	window Window
	def    Definition
	from   time.Time // the end of the last; zero: none was
	seen   time.Time // windows that end by then were looked at once they were closed, and before they were past retention
	term   uint64    // of the last
}

func (f *follower) begin(ctx context.Context, cursor string, final bool) error {
	def, err := f.r.Definition(ctx)
	if err != nil {
		return err
	}
	f.def = def
	if f.window = def.Window; final && !def.DropLate {
		return fmt.Errorf("tumble: %w", ErrNotFinal)
	}
	err = f.parse(cursor)
	f.seen = f.from
	return err
}

// next returns the windows that have closed since.
func (f *follower) next(ctx context.Context) ([]Total, error) {
	earliest, latest := time.Unix(minTime, 0).UTC(), time.Unix(maxTime, 0).UTC()
	from := f.from
	if from.IsZero() {
		from = earliest
	}
	p, err := f.r.Progress(ctx)
	if err != nil {
		return nil, err
	}
	closed := f.def.ClosedAt(p.Frontier)
	totals, err := f.r.Windows(ctx, from, latest)
	if err != nil {
		return nil, err
	}
	if !f.seen.IsZero() {
		// After the totals were read: none of them was deleted before.
		if err := f.lost(ctx); err != nil {
			return nil, err
		}
	}
	if closed.After(f.seen) {
		f.seen = closed
	}
	var ready []Total
	for _, t := range totals {
		if t.State == Expired {
			continue // before the first that is handed on
		}
		if t.State == Open {
			break
		}
		if !f.from.IsZero() && f.term != 0 && t.Term != f.term {
			if len(ready) > 0 {
				break
			}
			f.term = t.Term
			return nil, &NewTermError{f.cursor()}
		}
		f.from, f.term = t.End, t.Term
		t.Cursor = f.cursor()
		ready = append(ready, t)
	}
	return ready, nil
}

// lost returns an error if the window after the last is past retention.
func (f *follower) lost(ctx context.Context) error {
	expired := func(at time.Time) (bool, error) {
		page, err := f.r.Scan(ctx, at, "", 1)
		return page.State == Expired, err
	}
	if is, err := expired(f.seen); err != nil || !is {
		return err
	}
	// Windows get past retention in order: some after low are not, as that of high.
	low, high := f.seen, f.seen
	for step := time.Minute; !high.After(low); step *= 2 {
		at := f.seen.Add(step)
		switch is, err := expired(at); {
		case err != nil:
			return err
		case is:
			low, high = at, at
		default:
			high = at
		}
	}
	for {
		_, end := f.window.Bounds(low)
		start, _ := f.window.Bounds(high)
		if !start.After(end) {
			e := &LostWindowsError{From: f.seen, To: start}
			f.seen, f.from = start, start
			e.Cursor = f.cursor()
			return e
		}
		mid := low.Add(high.Sub(low) / 2)
		if is, err := expired(mid); err != nil {
			return err
		} else if is {
			low = mid
		} else {
			high = mid
		}
	}
}

// cursor names the window's length, the end of the last window and the term.
func (f *follower) cursor() string {
	return f.window.String() + " " + strconv.FormatInt(f.from.UnixMilli(), 10) + " " + strconv.FormatUint(f.term, 16)
}

func (f *follower) parse(cursor string) error {
	if cursor == "" {
		return nil
	}
	words := strings.Split(cursor, " ")
	if n := len(words); n >= 3 && strings.Join(words[:n-2], " ") == f.window.String() {
		ms, err1 := strconv.ParseInt(words[n-2], 10, 64)
		term, err2 := strconv.ParseUint(words[n-1], 16, 64)
		if f.from, f.term = time.UnixMilli(ms).UTC(), term; err1 == nil && err2 == nil && f.cursor() == cursor {
			return nil
		}
	}
	return fmt.Errorf("tumble: %.80q: %w, which goes on with windows of %v", cursor, ErrCursor, f.window)
}
