package recipes

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/tumblestream/tumble"
)

// A Destination takes windows. Exactly once rests on it: what Write writes and the cursor
// are stored together, or what is written twice is known to be the same.
type Destination interface {
	// Cursor returns where to go on, "" at first.
	Cursor(ctx context.Context) (string, error)
	// Write writes a window's counts, ascending by key, and its cursor.
	Write(ctx context.Context, t tumble.Total, counts []tumble.Count) error
	// Move stores a cursor alone.
	Move(ctx context.Context, cursor string) error
}

// Follow hands final windows to d, each when it is final, until ctx ends or something goes
// wrong. Call it again then: it goes on where d stands. A *tumble.LostWindowsError is
// returned once, after the cursor has been moved past the windows that are gone.
func Follow(ctx context.Context, r tumble.Reader, d Destination) error {
	cursor, err := d.Cursor(ctx)
	if err != nil {
		return err
	}
	for t, err := range tumble.Finals(ctx, r, cursor) {
		anew, lost := new(tumble.NewTermError), new(tumble.LostWindowsError)
		switch {
		case errors.As(err, &anew):
			// The store lost counts and has them again from the log. What was handed on
			// stays: it was final, and the log holds the same events.
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

// all returns the counts of a window, ascending by key: in the same order each time.
func all(ctx context.Context, r tumble.Reader, t tumble.Total) ([]tumble.Count, error) {
	counts := make([]tumble.Count, 0, t.Keys)
	for c, err := range tumble.All(ctx, r, t.Start) {
		if err != nil {
			return nil, err
		}
		counts = append(counts, c)
	}
	slices.SortFunc(counts, func(a, b tumble.Count) int { return cmp.Compare(a.Key, b.Key) })
	return counts, nil
}
