package tumble

import (
	"math"
	"slices"
	"time"
)

// A tally counts the outcomes of one batch's events. It is booked when the batch
// is applied.
type tally struct{ counted, late, ahead, dropped, expired, rejected, skipped int64 }

func (t tally) events() int64 { return t.counted + t.dropped + t.expired + t.rejected + t.skipped }

func (t tally) book(s *Stats) {
	s.Counted += t.counted
	s.Late += t.late
	s.Ahead += t.ahead
	s.DroppedLate += t.dropped
	s.Expired += t.expired
	s.Rejected += t.rejected
	s.Skipped += t.skipped
}

// A parcel is a sealed batch. It is frozen but for its Writer, so that it can be
// sent again after an unknown outcome.
type parcel struct {
	Batch
	tally tally
	bytes int64 // of the keys
	sum   int64 // of the Deltas' N, see sumOf
}

// sumOf adds two sums up, to 2^63 - 1 at most.
func sumOf(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
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

	floors     []int64         // by level; windows that end at or before it are past retention in the shard, as far as is known
	retentions []time.Duration // by level, as the shard told them last; none before

	open  *openBatch
	tally tally     // of the open batch
	queue []*parcel // the first one may be under way
	due   bool      // a flush came while the queue was not empty
}

// empty reports whether all increments of the lane are stored.
func (ln *lane) empty() bool { return len(ln.queue) == 0 && len(ln.open.counters) == 0 }

// seal freezes the open batch into a parcel that moves the checkpoint to to.
// spare returns an empty slice to reuse.
func (ln *lane) seal(partition string, t *table, to Checkpoint, up *rollups, spare func() []Delta) {
	var deltas []Delta
	if len(ln.open.counters) > 0 {
		deltas = slices.Grow(spare(), len(ln.open.counters))
	}
	var start time.Time
	var sum int64
	for i := range ln.open.counters {
		c := &ln.open.counters[i]
		if i == 0 || c.window != ln.open.counters[i-1].window {
			start = time.Unix(0, c.window).UTC()
		}
		deltas = append(deltas, Delta{Start: start, Key: c.key, N: c.n})
		sum = sumOf(sum, c.n)
	}
	bytes, coarse := ln.open.bytes, up.of(ln.open, spare)
	t.reset(ln.open)
	ln.queue = append(ln.queue, &parcel{Batch{Partition: partition, From: ln.sealed, To: to, Deltas: deltas, Rollups: coarse}, ln.tally, bytes, sum})
	ln.sealed = to
	ln.tally = tally{}
	ln.due = false
	ln.wrote = time.Now()
}

// shift takes the first parcel, which was applied, off the queue.
func (ln *lane) shift() { ln.queue = ln.queue[1:] }

// held is how much a lane, or what was counted into it, takes.
type held struct{ increments, bytes int64 }

func (h held) add(s *Stats) {
	s.Increments += h.increments
	s.KeyBytes += h.bytes
}

func (h held) take(s *Stats) { held{-h.increments, -h.bytes}.add(s) }

// holds returns what a sealed batch takes.
func (b *parcel) holds() held { return held{int64(len(b.Deltas)), b.bytes} }

// drop empties the lane and returns how much it held.
func (ln *lane) drop(t *table) (events int64, all held) {
	events, all = ln.tally.events(), held{int64(len(ln.open.counters)), ln.open.bytes}
	t.reset(ln.open)
	ln.tally = tally{}
	for _, b := range ln.queue {
		events += b.tally.events()
		all.increments += int64(len(b.Deltas))
		all.bytes += b.bytes
	}
	ln.queue = nil
	return events, all
}

// kept is what a shard tells of how long it keeps windows, by level.
type kept struct {
	floors     []time.Time
	retentions []time.Duration
}

// keeps returns for how long the shard keeps the windows of a level of a process that
// wants to keep them for own.
func (ln *lane) keeps(level int, own time.Duration) time.Duration {
	if level >= len(ln.retentions) {
		return own
	}
	return longer(own, ln.retentions[level])
}

// longer returns the retention that keeps counts for longer. 0 keeps them for ever.
func longer(a, b time.Duration) time.Duration {
	if a == 0 || b == 0 {
		return 0
	}
	return max(a, b)
}

// shorter returns the other one.
func shorter(a, b time.Duration) time.Duration {
	if longer(a, b) == a {
		return b
	}
	return a
}

// raise takes note of the shard's floors. They never fall but with a store that
// lost them, which settles the lane.
func (ln *lane) raise(floors []time.Time) {
	for i, floor := range floors[:min(len(floors), len(ln.floors))] {
		if !floor.IsZero() {
			ln.floors[i] = max(ln.floors[i], floor.UnixNano())
		}
	}
}

// fell forgets the shard's floors.
func (ln *lane) fell() {
	for i := range ln.floors {
		ln.floors[i] = math.MinInt64 // none
	}
}

// forgot reports whether the windows of all levels are past retention in the shard.
func (ln *lane) forgot(sp *span) bool {
	if sp.end > ln.floors[0] {
		return false
	}
	for i, end := range sp.ends {
		if end > ln.floors[1+i] {
			return false
		}
	}
	return true
}
