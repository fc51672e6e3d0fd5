package recipes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

// A Destination takes windows. Exactly once rests on it: what Write writes and the cursor
// are stored together, or what is written twice is known to be the same.
type Destination interface {
	// Cursor returns where to go on, "" at first.
	Cursor(ctx context.Context) (string, error)
	// Write writes a window's counts, ascending by key, and its cursor, in one step that
	// fails if the stored cursor is not the one before: another process may have gone on.
	// Where there is no such step, whoever gets a count twice must know it again.
	Write(ctx context.Context, t tumble.Total, counts []tumble.Count) error
	// Move stores a cursor alone.
	Move(ctx context.Context, cursor string) error
}

// Follow hands final windows to d, each when it is final, until ctx ends or something goes
// wrong. Call it again then: it goes on where d stands. A *tumble.LostWindowsError is
// returned once, after the cursor has been moved past the windows that are gone. An error
// wraps tumble.ErrChanged if a window is no longer the one that was final, because the
// store has lost something: nothing of it was written. nil says that the store has a new
// term, as it has after each restart of a pipeline.
func Follow(ctx context.Context, r tumble.Reader, d Destination) error {
	cursor, err := d.Cursor(ctx)
	if err != nil {
		return err
	}
	for t, err := range tumble.Finals(ctx, r, cursor) {
		anew, lost := new(tumble.NewTermError), new(tumble.LostWindowsError)
		switch {
		case errors.As(err, &anew):
			// A pipeline was started, or the store lost counts and has them again from the
			// log: nothing tells which. What was handed on stays in both cases.
			return d.Move(ctx, anew.Cursor)
		case errors.As(err, &lost):
			return errors.Join(err, d.Move(ctx, lost.Cursor))
		case err != nil:
			return err
		}
		counts, err := all(ctx, r, t)
		if err != nil {
			return err
		}
		if err := d.Write(ctx, t, counts); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// all returns the counts of a window, ascending by key: in the same order each time. They
// are those that t tells of, or it is an error: the store may fall back after t was read,
// and the window is open again then, with a part of its counts.
func all(ctx context.Context, r tumble.Reader, t tumble.Total) ([]tumble.Count, error) {
	for tries := 1; ; tries++ {
		counts, sum := make([]tumble.Count, 0, t.Keys), int64(0)
		for c, err := range tumble.All(ctx, r, t.Start) {
			if err != nil {
				return nil, err
			}
			counts, sum = append(counts, c), sum+c.N
		}
		after, err := r.Windows(ctx, t.Start, t.End)
		if err != nil {
			return nil, err
		}
		if int64(len(counts)) != t.Keys || sum != t.N || len(after) != 1 || after[0].State != tumble.Final {
			return nil, fmt.Errorf("window %s: %w: it was final with %d keys and %d in all, and there were %d with %d, or it is not final any more",
				t.Start.Format(time.RFC3339), tumble.ErrChanged, t.Keys, t.N, len(counts), sum)
		}
		if after[0].Term == t.Term {
			slices.SortFunc(counts, func(a, b tumble.Count) int { return cmp.Compare(a.Key, b.Key) })
			return counts, nil
		}
		// The term is a new one. Counts that were read under both may be of two histories,
		// so they are read again. It changes once a window, without a loss.
		if t.Term = after[0].Term; tries == 3 {
			return nil, fmt.Errorf("window %s: %w: its term changes all the time", t.Start.Format(time.RFC3339), tumble.ErrChanged)
		}
	}
}
