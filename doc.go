// Package tumble counts keyed events in tumbling windows of event time, inside
// the service that imports it, and keeps the counts exact in the store that the
// service's API reads.
//
// # The model
//
// A [Source] is a set of partitions, each an ordered log of events: the
// partitions of a Kafka topic, or a channel. A [Sink] stores counts by key and
// window, spread over shards: Redis, or a map. A [Pipeline] reads the one and
// keeps the other up to date; any number of processes may run the same pipeline,
// and the source shares its partitions out among them.
//
//	Source ── Partition ─┐                       ┌─ Shard
//	       ── Partition ─┼─ Pipeline ── Batch ───┼─ Shard
//	       ── Partition ─┘  (increments only)    └─ Shard     Reader: key, window -> count, final?
//
// The sink is the only state. It stores counts and, in the same atomic step, how
// far into each partition those counts reach: the [Checkpoint]. The process in
// between holds nothing but the increments since its last flush.
//
// # The guarantee
//
// The counts in the store are those that a plain loop over the log would find.
// A crash, a rebalance, a retry, a lost answer or a process that was believed
// dead can repeat a stretch of the log, and never count it twice: a batch is
// applied only to the checkpoint that it starts from. A store that loses its
// last seconds, or everything, loses counts and checkpoints together, so the
// stretch is read again and the counts heal by themselves. A restart has nothing
// to restore, however many windows are open.
//
// Exact means with respect to the log. What a producer wrote twice is counted
// twice. After a loss in the store the log must still hold the stretch that was
// lost, so its retention should exceed what the store can lose; on a compacted
// topic records vanish by their key, and a replay counts what is left. Where the
// log no longer holds what is not counted, the source stops with an error or, if
// it was told to, goes on, and Stats reports an upper bound of what was Lost. A
// channel's past goes with its process.
//
// Nothing that is not counted is silent: see the sum in [Stats].
//
// # Its price
//
//   - Counts in the store lag by up to FlushInterval and one round trip.
//   - One checkpoint for each partition and shard, compared and written with
//     every batch; a batch waits for the answer to the one before it, in its
//     own shard.
//   - After a loss, or when two processes hold one partition, a stretch is read
//     again. Rivals stay exact and are slower than one alone.
//   - A store that is away holds up reading once MaxPending increments wait.
//
// # Time
//
// A window is [start, end) in event time. The watermark of a partition is the
// largest event time read so far; it is stored with the checkpoint. The frontier
// of a shard is the smallest watermark of its partitions. A window is final when
// the frontier has passed its end by Grace, and expired, so that a sink may
// forget it, when it has passed that by Retention. Retention is event time as
// well: no clock deletes a window that is still counted.
//
// An event whose window is final by its own partition's watermark is late. It
// is counted and reported, or with DropLate it is not counted and reported:
// then final means that a count never changes again, as long as the store loses
// nothing.
//
// A time far beyond the clock (MaxAhead) is counted in its own window and does
// not move the watermark, so that one broken clock does not make everybody else
// late. A partition that has been caught up and silent for Idle lets its
// watermark follow the clock, so that the last windows become final without
// another event; one that lags never does. A partition whose channel was closed
// holds nothing up.
//
// Window, lateness and retention depend on data alone. The clock decides when to
// flush, how long to wait before a retry, when a partition is idle and what is
// ahead; nothing else.
//
// # Goroutines
//
// Run blocks. The source calls the pipeline once for each partition, in a
// goroutine of its own, which owns all state of that partition: it hands events
// to lanes, one for each shard, and seals their batches. A Fetch, and at most
// one call on each lane's shard, run beside it and answer through channels. One
// goroutine for each shard looks at it every 5 seconds, for what other processes
// did and for losses. Run returns when all have ended. OnLate is called on the
// partition's goroutine. Stats and a Reader may be used from any goroutine.
package tumble

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// ErrDefinition is wrapped by a sink that holds counts under another
// [Definition] than the one it was opened with. It is fatal: adding one
// definition's counts to another's would make both wrong.
var ErrDefinition = errors.New("definition differs from the stored one")

// ErrConflict is wrapped by [Shard.Apply] when the stored checkpoint is not the
// batch's From. Nothing was changed.
var ErrConflict = errors.New("stored checkpoint is not the one the batch starts from")

// ErrEnded is returned by [Partition.Fetch] when the partition will never hold
// another event: its windows need not wait for it any more.
var ErrEnded = errors.New("partition has ended")

// ErrOffsetOutOfRange is wrapped by [Partition.Fetch] when events at the offset
// that was asked for can no longer be fetched: Resume says where to go on.
var ErrOffsetOutOfRange = errors.New("offset out of range")

// An Event is one thing to count.
type Event struct {
	Key    string    // borrowed: valid until the next Fetch
	Time   time.Time // event time: when it happened, as its producer says
	Offset int64     // of its record; all events of one record share it and come in one Chunk
}

// A Chunk is what one Fetch brought.
type Chunk struct {
	Events []Event   // by ascending Offset; valid until the next Fetch
	Next   int64     // the offset to fetch next: beyond every Offset, perhaps beyond records that are no events
	End    int64     // end of the log (Kafka: high watermark); -1: unknown, and never caught up. Caught up: Next >= End
	AsOf   time.Time // when the request that learned End was sent

	// Records that gave no event. Each is reported once, however often it is read.
	Rejected int64 // could not be understood
	Skipped  int64 // hold nothing to count, such as a tombstone
}

// A Source is a set of partitions, each an ordered log of events that can be
// fetched again from any offset that Resume allowed.
type Source interface {
	// Partitions returns every partition of the source, whoever reads it, by
	// its ID, with the checkpoint at which counting begins. stored is what the
	// sink knows, other sources' partitions included. A start policy ("latest")
	// applies only to a source of which nothing is stored; any other unknown
	// partition begins at its earliest offset. It may be called again, to learn
	// of partitions that are new. An error ends the pipeline, unless it wraps
	// ErrUnavailable and Run has been called: then it is asked again.
	Partitions(ctx context.Context, stored map[string]Checkpoint) (map[string]Checkpoint, error)

	// Run calls consume, in a goroutine of its own, for each partition that is
	// assigned to this process, and returns once every call has returned.
	// consume's ctx ends when ctx does or when the partition must be given up;
	// the source keeps the partition until consume, which flushes, has
	// returned. The first error from consume ends the others and is returned;
	// nil once ctx ended or all partitions are exhausted.
	Run(ctx context.Context, consume func(context.Context, Partition) error) error
}

// A Partition is one log of a Source. It is used by one goroutine at a time.
type Partition interface {
	// ID names the partition, the same in every process: "clicks/3".
	ID() string

	// Resume says where to go on from a stored checkpoint: there, if the
	// events from there on can still be fetched. If they cannot (retention
	// deleted them, the topic was recreated or truncated, a channel's past is
	// gone) it is the source's policy to return a later or a new checkpoint, or
	// an error that stops the pipeline and names what is lost. A transient
	// error wraps ErrUnavailable and is retried.
	Resume(ctx context.Context, stored Checkpoint) (Checkpoint, error)

	// Fetch waits until there is something at or after from, or ctx ends. It
	// returns an empty Chunk with a new AsOf at least every 500 ms. Any from
	// that Resume allowed may be asked for at any call, and asking again yields
	// the same events. io.EOF: stop here, for this run. ErrEnded: there will
	// never be more. ErrOffsetOutOfRange: Resume again. Any other error is
	// transient and retried with back-off.
	Fetch(ctx context.Context, from int64) (Chunk, error)
}

// ErrUnavailable is wrapped by [Partition.Resume] and [Source.Partitions] when
// they could not find out, because a server did not answer, say: the pipeline
// asks again, with back-off.
var ErrUnavailable = errors.New("temporarily unavailable")

// A Committer is a Partition that wants to know how far its events are counted
// for good, to forget them or to tell others.
type Committer interface {
	// Committed reports that every shard holds the counts of all events before
	// offset. It may run beside Fetch, does not block, and offset never falls
	// within a log while the Partition is consumed.
	Committed(offset int64)
}

// A Checkpoint says how far the counts of one partition reach in one shard.
type Checkpoint struct {
	Log       string    // incarnation of the log (Kafka: topic id; a channel: this run)
	Origin    int64     // where counting began; never changes within a Log
	Offset    int64     // the next to fetch
	Watermark time.Time // events from Offset on are judged by at least this; zero: none yet, a case of its own
	Ended     bool      // the source said that there will never be more
}

// Same reports whether c and d are the same checkpoint in every field; times
// are compared as instants.
func (c Checkpoint) Same(d Checkpoint) bool {
	return c.Log == d.Log && c.Origin == d.Origin && c.Offset == d.Offset &&
		c.Ended == d.Ended && c.Watermark.Equal(d.Watermark)
}

func (c Checkpoint) String() string {
	w := "none"
	if !c.Watermark.IsZero() {
		w = c.Watermark.UTC().Format(time.RFC3339Nano)
	}
	ended := ""
	if c.Ended {
		ended = " ended"
	}
	return fmt.Sprintf("%d (log %s from %d, watermark %s%s)", c.Offset, c.Log, c.Origin, w, ended)
}

// A Delta is an increment: N more events of Key in the window that starts at
// Window.
type Delta struct {
	Window time.Time
	Key    string
	N      int64 // > 0
}

// A Batch is what a shard applies as one step.
type Batch struct {
	Partition string

	// Within a Log, To is not before From. Equal offsets carry a later
	// Watermark (a promise) or Ended. Another Log is a rebase, without Deltas.
	From, To Checkpoint

	// At most one per window and key, in no order; any number of them, none
	// included. The sink may read them until Apply returns.
	Deltas []Delta
}

// A Definition is what the counts under one name mean. Counts of different
// definitions must not be added up, so a sink stores it and refuses another.
type Definition struct {
	Window    Window
	Grace     time.Duration // a window is final once the frontier is Grace past its end
	Retention time.Duration // in event time, after Grace; 0: counts are kept for ever
	DropLate  bool          // events of final windows are not counted
}

// A Sink stores counts together with the checkpoints they reach to.
type Sink interface {
	// Open checks def against what is stored under this sink's name (an error
	// that wraps ErrDefinition is fatal), stores it if nothing is, and returns
	// the shards, 1 to 65,535. Key k belongs to shard Hash(k) % len(shards).
	// Their number never changes for one name.
	Open(ctx context.Context, def Definition) ([]Shard, error)
}

// A Shard holds a part of the counts and, for every partition, the checkpoint
// that they reach to. It commits alone. It is safe for concurrent use.
type Shard interface {
	// Load stores, in one step, those of init that are missing, their Watermark
	// raised to the shard's frontier (see [Definition.Frontier]) as it was
	// before the call, and returns all checkpoints by partition. A stored
	// checkpoint that has Ended under another Log than init's counts as
	// missing. It also writes the definition where it is missing and wraps
	// ErrDefinition where it differs.
	Load(ctx context.Context, init map[string]Checkpoint) (map[string]Checkpoint, error)

	// Apply adds b.Deltas to the counts and moves the partition's checkpoint
	// from b.From to b.To, doing both or neither. If the stored checkpoint is
	// not the Same as b.From, or none is stored, it changes nothing and wraps
	// ErrConflict. After any other error the outcome is unknown, and the
	// identical batch is sent again; ErrDefinition is fatal. It may forget
	// windows that the shard's frontier has passed by Grace + Retention.
	Apply(ctx context.Context, b Batch) error
}

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

func (cfg *Config) definition() Definition {
	return Definition{cfg.Window, cfg.Grace, cfg.Retention, cfg.DropLate}
}

// complete sets the defaults, or returns an error that names a field that is
// wrong.
func (cfg *Config) complete() error {
	if cfg.Source == nil {
		return errors.New("tumble: Source is nil, must be set")
	}
	if cfg.Sink == nil {
		return errors.New("tumble: Sink is nil, must be set")
	}
	if err := cfg.definition().Validate(); err != nil {
		return fmt.Errorf("tumble: %w", err)
	}
	cfg.Idle = cmp.Or(cfg.Idle, 10*time.Second)
	cfg.MaxPending = cmp.Or(cfg.MaxPending, 1_000_000)
	if cfg.MaxPending < 0 {
		return fmt.Errorf("tumble: MaxPending is %d, must be positive", cfg.MaxPending)
	}
	for _, f := range []struct {
		name  string
		value *time.Duration
		or    time.Duration
	}{
		{"MaxAhead", &cfg.MaxAhead, time.Hour},
		{"FlushInterval", &cfg.FlushInterval, 100 * time.Millisecond},
		{"ShutdownTimeout", &cfg.ShutdownTimeout, 10 * time.Second},
	} {
		*f.value = cmp.Or(*f.value, f.or)
		if *f.value < 0 || *f.value > maxKeep {
			return fmt.Errorf("tumble: %s is %v, must be positive and at most 50 years", f.name, *f.value)
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return nil
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

// End marks a partition as one that nobody will ever read again, in every shard
// of s, so that windows need not wait for it: a channel whose process will not
// come back, a topic that is no longer counted. s must also be a Reader. A
// partition that a process is still counting, or that is not known, is an error.
func End(ctx context.Context, s Sink, partition string) error {
	r, ok := s.(Reader)
	if !ok {
		return fmt.Errorf("tumble: end %s: the sink %T is no Reader, which tells its definition", partition, s)
	}
	def, err := r.Definition(ctx)
	if err != nil {
		return fmt.Errorf("tumble: end %s: %w", partition, err)
	}
	shards, err := s.Open(ctx, def)
	if err != nil {
		return fmt.Errorf("tumble: end %s: %w", partition, err)
	}
	for i, shard := range shards {
		stored, err := shard.Load(ctx, nil)
		if err != nil {
			return fmt.Errorf("tumble: end %s: shard %d: %w", partition, i, err)
		}
		from, ok := stored[partition]
		if !ok {
			return fmt.Errorf("tumble: end %s: shard %d knows no such partition", partition, i)
		}
		if from.Ended {
			continue
		}
		to := from
		to.Ended = true
		if err := shard.Apply(ctx, Batch{Partition: partition, From: from, To: to}); err != nil {
			return fmt.Errorf("tumble: end %s: shard %d: %w", partition, i, err)
		}
	}
	return nil
}

// Stats returns the books. It may be called at any time, from any goroutine.
func (p *Pipeline) Stats() Stats { return p.books.stats() }

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

// lose books offsets in [from, to) of a partition's log as lost, and returns
// how many of them were not yet.
func (b *books) lose(id, log string, from, to int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if from >= to {
		return 0
	}
	g, ok := b.lost[id]
	if !ok || g.log != log {
		g = gap{log, from, from}
	}
	all := gap{log, min(g.from, from), max(g.upTo, to)}
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

// Hash maps a key to its shard: key k belongs to shard Hash(k) % shards. It is
// the same in every version and process, so that a program in another language
// can find a key: 64-bit FNV-1a over the key's bytes, mixed by the finalizer
// of MurmurHash3 (fmix64), because the low bits of FNV-1a alone depend only on
// the low bits of the bytes.
//
// See http://www.isthe.com/chongo/tech/comp/fnv and
// https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp.
func Hash(key string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(key) {
		h ^= uint64(key[i])
		h *= 1099511628211
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}
