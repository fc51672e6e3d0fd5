package tumble

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A State says what can still happen to the counts of a window.
type State int

const (
	// Open: events of the window may come that are on time.
	Open State = iota
	// Closed: no event that is yet to come is on time. Late ones may still be
	// added.
	Closed
	// Final: closed, and late events are dropped (DropLate). The count never
	// changes again, as long as the store loses nothing: see [Count.Term].
	Final
	// Expired: the window is past retention, and its counts may be gone.
	Expired
)

var states = [...]string{Open: "open", Closed: "closed", Final: "final", Expired: "expired"}

// String returns "open", "closed", "final" or "expired".
func (s State) String() string {
	if s < 0 || int(s) >= len(states) {
		return fmt.Sprintf("State(%d)", int(s))
	}
	return states[s]
}

// MarshalText returns the word of String, so that a State is one word in JSON.
func (s State) MarshalText() ([]byte, error) {
	if s < 0 || int(s) >= len(states) {
		return nil, fmt.Errorf("tumble: no state has the number %d", int(s))
	}
	return []byte(states[s]), nil
}

// UnmarshalText reads what MarshalText writes.
func (s *State) UnmarshalText(text []byte) error {
	for i, word := range states {
		if word == string(text) {
			*s = State(i)
			return nil
		}
	}
	return fmt.Errorf("tumble: %q is no state, must be open, closed, final or expired", text)
}

// A Count is how many events of Key were counted in one window.
type Count struct {
	Key        string
	Start, End time.Time // of the window, [Start, End)
	N          int64
	State      State

	// Term is a random number that changes when the store has lost something
	// and counts again. Two reads of one key and window that are both Final
	// under the same Term are equal; under another Term a Final count may
	// differ from what was lost. It says nothing while the window is Open.
	Term uint64
}

// A Page is a part of one window's counts.
type Page struct {
	Start, End time.Time // of the window
	Counts     []Count   // each with the page's State and its own shard's Term
	State      State     // Closed and Final if they hold in every shard, Expired if it does in some shard
	Term       uint64    // of all shards that were read: another one if that of one of them is
	Cursor     string    // of the next page; "" on the last
}

// A Reader reads what a sink holds. It is safe for concurrent use. A count that
// it calls Closed or Final held all events that were on time when it was read,
// also if the store fell back to an earlier state, and counted again, while it
// was being read. What it does not call Expired had not been deleted. Of a name
// under which nothing is stored, Definition returns ErrNoDefinition.
//
// Every other method needs the definition too, and wraps ErrNoDefinition when
// there is none. A time that is no event time, one outside the years 1700 to
// 2199, is an error; the bounds of Range may be any.
type Reader interface {
	// Definition returns what the counts mean. Its Retention is the one in
	// force.
	Definition(ctx context.Context) (Definition, error)

	// Count returns the count of key in the window that holds at.
	Count(ctx context.Context, key string, at time.Time) (Count, error)

	// Range returns the counts of key, those above 0, in the windows whose
	// start is in [from, to), ascending. A window that it leaves out held no
	// count when it was read.
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
