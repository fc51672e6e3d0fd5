package tumble

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
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

// A Count is how many events of Key were counted in one window, or with
// [Definition.Sum] what they add up to.
type Count struct {
	Key        string
	Start, End time.Time // of the window, [Start, End)
	N          int64
	State      State

	// Term is a random number. A shard draws a new one with the first window
	// that closes after a partition has got another writer: a pipeline was
	// restarted, a group rebalanced, a batch was sent again, or the store lost
	// something and counts again. So it changes without a loss as well, at most
	// once for each window that closes, and after a loss always. Two reads of
	// one key and window that are both Final under the same Term are equal;
	// under another Term a Final count may differ from what was lost. Without a
	// loss N is the same: compare it to know. Term says nothing while the window
	// is Open.
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

// A Total is all that was counted in one window. To read it costs the same however
// many keys there are.
type Total struct {
	Start, End time.Time // of the window
	Keys       int64     // how many distinct keys have a count
	N          int64     // sum of their counts
	State      State     // Closed and Final if they hold in every shard, Expired if it does in some shard
	Term       uint64    // of all shards, as that of a Page
	Cursor     string    // set by Finals and ClosedWindows: goes on behind this window
}

// Progress says how far counting has come.
type Progress struct {
	Partitions []PartitionProgress // all that are known, by ID
	Frontier   time.Time           // the lowest of the shards'; zero: some shard has none
}

// PartitionProgress says how far a partition is counted in every shard.
type PartitionProgress struct {
	ID        string
	Log       string    // incarnation of the log, "" while it is not the same in all shards and Offset says nothing
	Offset    int64     // the lowest of the shards': all events before it are counted
	Watermark time.Time // the lowest of the shards'; zero: some shard has none
	Ended     bool      // in all shards
}

// ProgressOf returns the progress of a store whose shards hold these checkpoints, by
// partition. It is for those who write a Reader.
func ProgressOf(shards []map[string]Checkpoint) (p Progress) {
	ids := map[string]struct{}{}
	for i, checkpoints := range shards {
		if f := Frontier(checkpoints); i == 0 || f.Before(p.Frontier) {
			p.Frontier = f
		}
		for id := range checkpoints {
			ids[id] = struct{}{}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		first := shards[0][id] // zero if it is missing: nothing is counted there
		part := PartitionProgress{ID: id, Log: first.Log, Offset: first.Offset, Watermark: first.Watermark, Ended: first.Ended}
		for _, checkpoints := range shards[1:] {
			c := checkpoints[id]
			if c.Log != part.Log {
				part.Log = ""
			}
			if c.Watermark.Before(part.Watermark) {
				part.Watermark = c.Watermark
			}
			part.Offset, part.Ended = min(part.Offset, c.Offset), part.Ended && c.Ended
		}
		p.Partitions = append(p.Partitions, part)
	}
	return p
}

// A Reader reads what a sink holds. It is safe for concurrent use. A count that
// it calls Closed or Final held all events that were on time when it was read,
// also if the store fell back to an earlier state, and counted again, while it
// was being read. What it does not call Expired had not been deleted. Of a name
// under which nothing is stored, Definition returns ErrNoDefinition.
//
// Every other method but Rollup needs the definition too, and wraps ErrNoDefinition when
// there is none. A time whose window holds none of the years 1700 to 2199 is an error,
// see [Window.Find]; the bounds of Range and Windows may be any.
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

	// Rollup returns the Reader of a window that is counted beside the finest one, or of
	// that. It reads nothing: each method of it wraps ErrNoRollup if the definition that
	// is stored does not count the window. Its own Definition is that of the level alone.
	// An error says that the window is none.
	Rollup(w Window) (Reader, error)

	// Counts returns the counts of keys in the window that holds at, one for each, in
	// the order of keys.
	Counts(ctx context.Context, at time.Time, keys ...string) ([]Count, error)

	// Windows returns the totals of the windows whose start is in [from, to) and that
	// hold a count, ascending.
	Windows(ctx context.Context, from, to time.Time) ([]Total, error)

	// Progress returns how far the partitions are counted. What it says is counted is
	// in what this Reader reads later.
	Progress(ctx context.Context) (Progress, error)

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
