package tumble

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Stats are a pipeline's books since Run began. They count events, and records
// that gave none, and they always balance:
//
//	Read = Counted + DroppedLate + Expired + Rejected + Skipped + Replayed + Pending
type Stats struct {
	Read        int64 // Read is the number of events, and of records without any, that Fetch returned.
	Counted     int64 // Counted events are in the sink.
	DroppedLate int64 // DroppedLate events belong to a closed window and were left out because of DropLate.
	Expired     int64 // Expired events belong to a window past retention and were left out.
	Rejected    int64 // Rejected records, or events with an unusable time, key or N, could not be understood.
	Skipped     int64 // Skipped records hold nothing to count, or events have N = 0 with Config.Sum.
	Replayed    int64 // Replayed events were read again, or were counted by another process.
	Pending     int64 // Pending events have been read and are not in the sink yet. MaxPending bounds Increments, not these. The next run reads those that are left at exit.

	Late  int64 // Late events, of Counted, came after their window was closed.
	Ahead int64 // Ahead events, of Counted, were further than MaxAhead beyond the wall clock.

	// Lost is an upper bound, in offsets, of the difference between counts and
	// log: offsets that could no longer be read, and counted ones that a
	// truncated log no longer holds.
	Lost int64

	// Sum is what the Counted events add up to: with Config.Sum their N, else their
	// number. It stays at 2^63 - 1 once it would pass that.
	Sum int64

	Increments int64 // Increments are held in memory at the moment. MaxPending bounds them.
	KeyBytes   int64 // KeyBytes is how long the keys of Increments are together. MaxPending bounds it, too.
	Flushes    int64 // Flushes is the number of batches that the sink applied.
	Conflicts  int64 // Conflicts is the number of batches that it refused because another process was faster or it had lost something.
	Retries    int64 // Retries is the number of calls that were repeated after an error.

	// Partitions that are being read, and those that no process counts, by ID.
	Partitions []PartitionStats
}

// PartitionStats is the state of one partition that is being read, or that no
// process counts.
type PartitionStats struct {
	ID        string    // ID as the Partition gives it.
	Offset    int64     // Offset to fetch next, -1 before the first Fetch.
	End       int64     // End of the log, -1 if it is unknown.
	Committed int64     // Committed is the offset up to which every shard holds the counts, -1 if it is unknown.
	Watermark time.Time // Watermark of the partition, zero if there is none.
	CaughtUp  bool      // CaughtUp says that Offset has reached End.
	Waits     string    // Waits says what holds reading up, such as a quota or an open transaction. "" if nothing does.
	Err       error     // Err is the last error, nil once it has passed.

	// Uncounted says that no process counts the partition, although windows wait for
	// it: for a minute its checkpoint has stood where another process left it. Offset
	// and Watermark are the stored ones. Every process says so of every such partition,
	// as long as its Config.Idle is not negative.
	Uncounted bool
}

// Stats returns the books. It is safe for concurrent use.
func (p *Pipeline) Stats() Stats { return p.books.stats() }

// Late is an event that came after its window was closed.
type Late struct {
	Partition string    // Partition that the event was read from.
	Event     Event     // Event itself. Its Key may be kept.
	Start     time.Time // Start of the event's window.
	End       time.Time // End of the event's window.
	Watermark time.Time // Watermark that the event was judged by.
	Counted   bool      // Counted is false if the event was left out, because of DropLate or because its window has expired.
	Expired   bool      // Expired says that the window is past retention.
}

// books keep the Stats and apply back-pressure. They are safe for concurrent use.
type books struct {
	mu    sync.Mutex
	sum   Stats // without Partitions
	parts map[string]*PartitionStats
	left  []PartitionStats // that no process counts
	lost  map[string]gap   // by partition
	limit int64            // of Increments, and a bytesEach-th of KeyBytes
	room  chan struct{}    // closed when they fall below limit. nil if nobody waits
}

// A gap is the stretch of a log that is booked as lost. It makes sure that each
// offset is booked once, however many shards lose it.
type gap struct {
	log        string
	from, upTo int64
}

// begin opens new books for a run.
func (b *books) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum, b.lost, b.left = Stats{}, map[string]gap{}, nil
}

// open enters a partition, and returns false if it is there already.
func (b *books) open(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.parts[id]; ok {
		return false
	}
	b.parts[id] = &PartitionStats{ID: id, Offset: -1, End: -1, Committed: -1}
	return true
}

func (b *books) close(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.parts, id)
}

func (b *books) change(f func(*Stats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.sum)
	if b.room != nil && b.hasRoom() {
		close(b.room)
		b.room = nil
	}
}

// of changes the state of an open partition.
func (b *books) of(id string, f func(*PartitionStats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b.parts[id])
}

// others enters the partitions that no process counts.
func (b *books) others(left []PartitionStats) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = left
}

// MaxPending allows bytesEach bytes of keys for each increment. Where keys are longer on
// average, their bytes are the limit.
const bytesEach = 256

func (b *books) hasRoom() bool {
	return b.sum.Increments < b.limit && b.sum.KeyBytes/bytesEach < b.limit
}

// full returns nil if another chunk may be read. Otherwise it returns a channel
// that is closed when it may.
func (b *books) full() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.hasRoom() {
		return nil
	}
	if b.room == nil {
		b.room = make(chan struct{})
	}
	return b.room
}

// lose books the lost offsets of one lane, and returns how many of them are new
// to the books.
func (b *books) lose(id string, l loss) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l.from >= l.to {
		return 0
	}
	g, ok := b.lost[id]
	if !ok || g.log != l.log {
		g = gap{l.log, l.from, l.from}
	}
	all := gap{l.log, min(g.from, l.from), max(g.upTo, l.to)}
	n := (all.upTo - all.from) - (g.upTo - g.from)
	b.lost[id] = all
	b.sum.Lost += n
	return n
}

func (b *books) stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.sum
	for _, part := range b.parts {
		s.Partitions = append(s.Partitions, *part)
	}
	for _, part := range b.left {
		if _, mine := b.parts[part.ID]; !mine {
			s.Partitions = append(s.Partitions, part)
		}
	}
	slices.SortFunc(s.Partitions, func(a, b PartitionStats) int { return cmp.Compare(a.ID, b.ID) })
	return s
}
