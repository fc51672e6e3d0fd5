package tumble

import (
	"slices"
	"sync/atomic"
	"time"
)

// A tally is what became of the events of one batch; it is booked with it.
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

// A parcel is a sealed batch: frozen but for its Writer, so that it can be sent
// again after an unknown outcome.
type parcel struct {
	Batch
	tally tally
}

// A lane carries the increments of one partition to one shard. At most one of
// its parcels, the first of the queue, is outstanding.
type lane struct {
	shard  Shard
	index  int
	stored Checkpoint // in the shard, as far as is known
	sealed Checkpoint // To of the newest parcel; stored if there is none
	wrote  time.Time  // when the newest parcel was sealed

	// A lane that is ahead has seen the events up to next already, when reading
	// went back for another lane; mark is the watermark there. Any other lane
	// stands where reading stands.
	ahead   bool
	next    Position
	mark    mark
	vouched bool // the source has just said that the log holds what is before next

	writer uint64 // of the batches, see Batch
	floor  int64  // windows that end at or before it are past retention in the shard, as far as is known

	open  *open
	tally tally // of the open batch
	queue []*parcel

	busy   bool          // a call is under way: a parcel's delivery or a Load
	due    bool          // a flush came while busy
	reload bool          // Load once empty, then settle
	found  *found        // what is stored instead; the lane waits to be settled
	rival  bool          // found by a conflict
	revive bool          // the lane's partition had ended, and goes on
	lost   bool          // found while draining: what the lane holds is not sent
	calls  atomic.Uint64 // counts their begins and ends, so that the poll can tell whether one came in between
}

// found is what a lane's shard holds, as Load saw it.
type found struct {
	stored   Checkpoint // of the lane's partition
	frontier time.Time  // of the shard
	floor    time.Time  // of the shard
}

// empty reports whether the lane holds nothing that was not sent.
func (ln *lane) empty() bool { return !ln.busy && len(ln.queue) == 0 && len(ln.open.counters) == 0 }

// seal freezes the open batch into a parcel that moves the checkpoint to to;
// deltas is an empty slice to use.
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
