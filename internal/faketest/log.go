package faketest

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/tumblestream/tumble"
)

// A Topic is what Sources read: a log for each partition, by its ID.
type Topic struct {
	// Rand draws the size of each chunk, and whether a Fetch fails. If it is
	// nil, a chunk is all that there is and no Fetch fails. It is set before
	// anybody reads.
	Rand *rand.Rand

	mu   *sync.Mutex // guards the logs
	logs map[string]*Log
}

// A Log is the events of one partition. Topic.Change edits it while others read.
type Log struct {
	Name   string         // the incarnation, as in Checkpoint.Log
	Events []tumble.Event // by Offset; those of one record share it
	First  int64          // retention has deleted the records before
	End    int64          // next Offset
	Ended  bool           // a Fetch at the end answers ErrEnded
	Final  bool           // ... and ErrFinal

	epochs []int64        // where each began, but for the first one, which began at 0
	holes  map[int64]Hole // offsets of the records without an event
	grown  chan struct{}  // closed when something has changed
}

// A Hole is what a record without an event was.
type Hole int

const (
	Nothing  Hole = iota // compacted, or of a transaction
	Rejected             // the source could not understand it
	Skipped              // nothing to count
)

// NewTopic returns a topic with an empty log, called log-1, for each partition.
func NewTopic(ids ...string) *Topic {
	t := &Topic{mu: new(sync.Mutex), logs: map[string]*Log{}}
	for _, id := range ids {
		t.logs[id] = newLog()
	}
	return t
}

func newLog() *Log { return &Log{Name: "log-1", grown: make(chan struct{})} }

// Only returns a topic that knows no more than some of t's partitions, and
// shares their logs with it.
func (t *Topic) Only(ids ...string) *Topic {
	some := &Topic{Rand: t.Rand, mu: t.mu, logs: map[string]*Log{}}
	for _, id := range ids {
		some.logs[id] = t.logs[id]
	}
	return some
}

// Log returns a partition's log, to look at while nobody changes it.
func (t *Topic) Log(id string) *Log { return t.logs[id] }

// Add appends events to a partition, a record each.
func (t *Topic) Add(id string, events ...tumble.Event) {
	t.Change(id, func(l *Log) {
		for _, e := range events {
			l.Append(e)
		}
	})
}

// Change edits a partition's log, which is created if it is missing, and wakes
// those who wait for more.
func (t *Topic) Change(id string, f func(*Log)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.logs[id]
	if l == nil {
		l = newLog()
		t.logs[id] = l
	}
	f(l)
	close(l.grown)
	l.grown = make(chan struct{})
}

// ChangeUnnoticed edits a partition's log and wakes nobody: a Fetch that waits
// goes on waiting.
func (t *Topic) ChangeUnnoticed(id string, f func(*Log)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f(t.logs[id])
}

// Append appends one record.
func (l *Log) Append(events ...tumble.Event) {
	for _, e := range events {
		e.Offset = l.End
		l.Events = append(l.Events, e)
	}
	l.End++
}

// Skip appends a record that gives no event.
func (l *Log) Skip(h Hole) {
	if l.holes == nil {
		l.holes = map[int64]Hole{}
	}
	l.holes[l.End] = h
	l.End++
}

// Truncate takes away the records from end on, as a new leader does that never
// had them.
func (l *Log) Truncate(end int64) {
	at := l.index(end)
	l.Events, l.End = l.Events[:at:at], end
	maps.DeleteFunc(l.holes, func(o int64, _ Hole) bool { return o >= end })
	for i, start := range l.epochs {
		l.epochs[i] = min(start, end)
	}
	l.epochs = append(l.epochs, end)
}

// Recreate deletes the log and begins another one under a new name.
func (l *Log) Recreate(name string) { *l = Log{Name: name, grown: l.grown} }

// index returns that of the first event at or after an offset.
func (l *Log) index(offset int64) int {
	at, _ := slices.BinarySearchFunc(l.Events, offset, func(e tumble.Event, o int64) int { return cmp.Compare(e.Offset, o) })
	return at
}

// epoch returns that of the record before an offset.
func (l *Log) epoch(offset int64) int32 {
	n := int32(0)
	for _, start := range l.epochs {
		if start < offset {
			n++
		}
	}
	return n
}

// until returns where the records of an epoch end, or of the last one before it.
// An epoch that is not known says nothing.
func (l *Log) until(epoch int32) int64 {
	if epoch >= 0 && int(epoch) < len(l.epochs) {
		return l.epochs[epoch]
	}
	return l.End
}
