package tumble

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Stats are a pipeline's books since Run began:
//
//	Read = Counted + DroppedLate + Expired + Rejected + Skipped + Replayed + Pending
type Stats struct {
	Read        int64 // events, and records that gave none, that Fetch returned
	Counted     int64 // their counts are in the sink
	DroppedLate int64 // of a closed window, not counted because of DropLate
	Expired     int64 // of a window past retention, not counted
	Rejected    int64 // could not be understood
	Skipped     int64 // records with nothing to count
	Replayed    int64 // read again, or counted by another process
	Pending     int64 // read, not yet in the sink; what is left at exit is read again by the next run

	Late  int64 // of Counted: came after their window was closed
	Ahead int64 // of Counted: further than MaxAhead beyond the wall clock
	Lost  int64 // offsets that could no longer be read, and those counted that a truncated log no longer holds: an upper bound of the events by which counts and log differ

	Increments int64 // held in memory now; MaxPending bounds them
	Flushes    int64 // batches that the sink applied
	Conflicts  int64 // batches that it refused
	Retries    int64 // calls repeated after an error

	Partitions []PartitionStats // those being read, by ID
}

// PartitionStats is the state of one partition that is being read.
type PartitionStats struct {
	ID        string
	Offset    int64     // next to fetch
	End       int64     // end of the log; -1: unknown
	Committed int64     // every shard holds the counts up to here; -1: unknown
	Watermark time.Time // zero: none
	CaughtUp  bool      // Offset has reached End
	Err       error     // the last error, until it has passed; nil: none
}

// Stats returns the books. It may be called at any time, from any goroutine.
func (p *Pipeline) Stats() Stats { return p.books.stats() }

// Late is an event that came after its window was closed.
type Late struct {
	Partition string
	Event     Event     // its Key is borrowed: valid until OnLate returns
	Start     time.Time // of its window
	End       time.Time // of its window
	Watermark time.Time // what the event was judged by
	Counted   bool      // false: dropped, by DropLate or because the window is past retention
	Expired   bool      // past Grace + Retention
}

// books keep Stats, for any goroutine, and tell when reading must wait.
type books struct {
	mu    sync.Mutex
	sum   Stats // without Partitions
	parts map[string]*PartitionStats
	lost  map[string]gap // by partition: what was given up
	limit int64          // of Increments
	room  chan struct{}  // closed when they fall below it; nil: nobody waits
}

// A gap is what was given up of a log, so that each offset is booked once.
type gap struct {
	log        string
	from, upTo int64
}

// begin opens the books of a run.
func (b *books) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum, b.lost = Stats{}, map[string]gap{}
}

// open enters a partition, unless it is there already.
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
	if b.room != nil && b.sum.Increments < b.limit {
		close(b.room)
		b.room = nil
	}
}

// of changes the state of a partition, which is open.
func (b *books) of(id string, f func(*PartitionStats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(b.parts[id])
}

// full returns nil if another chunk may be read, else what is closed then.
func (b *books) full() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sum.Increments < b.limit {
		return nil
	}
	if b.room == nil {
		b.room = make(chan struct{})
	}
	return b.room
}

// lose books the offsets that a partition's lane had to give up, and returns how
// many of them were not booked yet.
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
	slices.SortFunc(s.Partitions, func(a, b PartitionStats) int { return cmp.Compare(a.ID, b.ID) })
	return s
}
