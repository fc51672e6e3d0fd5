package tumble

import (
	"context"
	"errors"
	"time"
)

// A Count is how many events of Key were counted in one window.
type Count struct {
	Key     string
	Window  time.Time // its start
	N       int64
	Final   bool // no event that is yet to come is on time for it; with DropLate N never changes again
	Expired bool // past retention: N may be gone; never Final
}

// A Page is a part of one window's counts.
type Page struct {
	Counts  []Count // each with the page's Final and Expired
	Final   bool    // of the window in every shard
	Expired bool    // past retention in some shard
	Cursor  string  // of the next page; "" on the last
}

// A Reader reads what a sink holds. It is safe for concurrent use. It reads
// finality first, then counts, then whether the window is past retention, so
// what it calls Final had all its counts when they were read, and what it does
// not call Expired had not been deleted. Of a name under which nothing is
// stored, Definition returns ErrNoDefinition.
//
// Every other method needs the definition too, and wraps ErrNoDefinition when
// there is none. A time that is no event time, one outside the years 1700 to
// 2199, is an error; the bounds of Range may be any.
type Reader interface {
	// Definition returns what the counts mean.
	Definition(ctx context.Context) (Definition, error)

	// Count returns the count of key in the window that holds at.
	Count(ctx context.Context, key string, at time.Time) (Count, error)

	// Range returns the counts of key, those above 0, in the windows whose
	// start is in [from, to), ascending.
	Range(ctx context.Context, key string, from, to time.Time) ([]Count, error)

	// Top returns the n highest counts in the window that holds at, descending,
	// equal ones by ascending Key. Its Cursor is "".
	Top(ctx context.Context, at time.Time, n int) (Page, error)

	// Scan returns about limit of the counts in the window that holds at, in no
	// order, beginning at cursor, which is "" for the first page and then the
	// Cursor of the page before. Over the pages of a window that does not
	// change every key comes exactly once. An error wraps ErrCursor if cursor
	// is not one that Scan returned.
	Scan(ctx context.Context, at time.Time, cursor string, limit int) (Page, error)
}

// ErrNoDefinition is wrapped by a Reader when nothing was ever stored under its
// name, or all of it was lost.
var ErrNoDefinition = errors.New("nothing is stored under this name")

// ErrCursor is wrapped by [Reader.Scan] for a cursor that it never returned.
var ErrCursor = errors.New("not a cursor of this scan")
