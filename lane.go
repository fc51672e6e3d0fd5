package tumble

import (
	"math"
	"slices"
	"time"
)

// A tally counts the outcomes of one batch's events. It is booked when the batch
// is applied.
type tally struct{ counted, late, ahead, dropped, expired, rejected int64 }

func (t tally) events() int64 { return t.counted + t.dropped + t.expired + t.rejected }

func (t tally) book(s *Stats) {
	s.Counted += t.counted
	s.Late += t.late
	s.Ahead += t.ahead
	s.DroppedLate += t.dropped
	s.Expired += t.expired
	s.Rejected += t.rejected
}

// A parcel is a sealed batch. It is frozen but for its Writer, so that it can be
// sent again after an unknown outcome.
type parcel struct {
	Batch
	tally tally
}

// A lane is the open batch, the queue and the position of one partition in one
// shard. An aggregator fills it and a delivery empties it, both on the
// goroutine of the partition's consumer.
type lane struct {
	index  int        // of the shard
	sealed Checkpoint // To of the newest parcel, also after it has been applied
	wrote  time.Time  // when the newest parcel was sealed

	// A lane that is ahead has seen the events before next already, and reading
	// went back for another lane. mark is the watermark at next. Any other lane
	// stands where reading stands.
	ahead   bool
	next    Position
	mark    mark
	vouched bool // the source has just confirmed that the log still holds the records before next

	floor int64 // windows that end at or before it are past retention in the shard, as far as is known

	open  *openBatch
	tally tally     // of the open batch
	queue []*parcel // the first one may be under way
	due   bool      // a flush came while the queue was not empty
}

// empty reports whether all increments of the lane are stored.
func (ln *lane) empty() bool { return len(ln.queue) == 0 && len(ln.open.counters) == 0 }

// seal freezes the open batch into a parcel that moves the checkpoint to to.
// deltas is an empty slice to reuse.
func (ln *lane) seal(partition string, t *table, to Checkpoint, deltas []Delta) {
	deltas = slices.Grow(deltas, len(ln.open.counters))
	var start time.Time
	for i := range ln.open.counters {
		c := &ln.open.counters[i]
		if i == 0 || c.window != ln.open.counters[i-1].window {
			start = time.Unix(0, c.window).UTC()
		}
		deltas = append(deltas, Delta{Start: start, Key: c.key, N: c.n})
	}
	t.reset(ln.open)
	ln.queue = append(ln.queue, &parcel{Batch{Partition: partition, From: ln.sealed, To: to, Deltas: deltas}, ln.tally})
	ln.sealed = to
	ln.tally = tally{}
	ln.due = false
	ln.wrote = time.Now()
}

// shift takes the first parcel, which was applied, off the queue.
func (ln *lane) shift() { ln.queue = ln.queue[1:] }

// drop empties the lane and returns how much it held.
func (ln *lane) drop(t *table) (events int64, increments int) {
	events, increments = ln.tally.events(), len(ln.open.counters)
	t.reset(ln.open)
	ln.tally = tally{}
	for _, b := range ln.queue {
		events += b.tally.events()
		increments += len(b.Deltas)
	}
	ln.queue = nil
	return events, increments
}

// raise takes note of the shard's floor. It never falls but with a store that
// lost it, which settles the lane.
func (ln *lane) raise(floor time.Time) {
	if !floor.IsZero() {
		ln.floor = max(ln.floor, floor.UnixNano())
	}
}

// noFloor is the floor of a shard that has none.
const noFloor = math.MinInt64
