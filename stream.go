package tumble

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// Config says what a Pipeline counts, and how.
type Config struct {
	Source Source // required
	Sink   Sink   // required

	// What the counts mean, see Definition. Window is required.
	Window    Window
	Grace     time.Duration
	Retention time.Duration
	DropLate  bool

	// Idle is how long a partition must have been caught up and silent before
	// its watermark follows the clock. Defaults to 10 seconds; negative: never.
	Idle time.Duration
	// MaxAhead is how far beyond the wall clock an event may be and still move
	// the watermark. Defaults to 1 hour.
	MaxAhead time.Duration
	// FlushInterval is how long increments are collected before they are sent.
	// Defaults to 100 milliseconds.
	FlushInterval time.Duration
	// MaxPending bounds the increments held in memory, over all partitions:
	// at the limit reading waits. Defaults to 1,000,000.
	MaxPending int
	// ShutdownTimeout bounds the last flush. Defaults to 10 seconds.
	ShutdownTimeout time.Duration

	// OnLate, if set, is told of each late event, counted or not. It is called
	// on the partition's goroutine, holds up its reading, and may be told of an
	// event again that is read again.
	OnLate func(Late)

	// Logger receives what an operator should see: retries, conflicts, losses.
	// Defaults to slog.Default().
	Logger *slog.Logger
}

// Late is an event that came after its window was final.
type Late struct {
	Partition string
	Event     Event     // its Key is borrowed: valid until OnLate returns
	Window    time.Time // start of its window
	Watermark time.Time // what the event was judged by
	Counted   bool      // false: dropped, by DropLate or because the window is past retention
	Expired   bool      // past Grace + Retention
}

// Stats are a pipeline's books since Run began:
//
//	Read = Counted + DroppedLate + Expired + Rejected + Skipped + Replayed + Pending
type Stats struct {
	Read        int64 // events, and records that gave none, that Fetch returned
	Counted     int64 // their counts are in the sink
	DroppedLate int64 // of a final window, not counted because of DropLate
	Expired     int64 // of a window past retention, not counted
	Rejected    int64 // could not be understood
	Skipped     int64 // records with nothing to count
	Replayed    int64 // read again, or counted by another process
	Pending     int64 // read, not yet in the sink; what is left at exit is read again by the next run

	Late  int64 // of Counted: came after their window was final
	Ahead int64 // of Counted: further than MaxAhead beyond the wall clock
	Lost  int64 // offsets that could no longer be read: an upper bound of the events lost

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

// A Pipeline reads a Source, counts per key and window, and keeps the counts in
// a Sink, exactly once.
type Pipeline struct{ cfg Config }

// New returns a pipeline that Run starts, or an error that names the field of
// cfg that is wrong.
func New(cfg Config) (*Pipeline, error) { return &Pipeline{cfg}, errors.New("not implemented") }

// Run counts until ctx ends, every partition is exhausted, or an error is
// fatal.
func (p *Pipeline) Run(ctx context.Context) error { return nil }

// Stats returns the books. It may be called at any time, from any goroutine.
func (p *Pipeline) Stats() Stats { return Stats{} }

// End marks a partition that nobody will ever read again.
func End(ctx context.Context, s Sink, partition string) error { return nil }
