package tumble

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble/internal/rarely"
)

// Config configures a Pipeline. Source, Sink and Window are required, and the
// zero value of every other field is its default.
type Config struct {
	// Source is where the events come from: a kafka.Source or channel.Source,
	// say. It belongs to one pipeline at a time.
	Source Source

	// Sink is where the counts go: a redis.Sink or memory.Sink, say. Several
	// pipelines may share it if they count into different names.
	Sink Sink

	// Window cuts event time into the windows that are counted.
	Window Window

	// Grace is how long after the end of a window, in event time, an event of it
	// is still on time. Defaults to 0.
	Grace time.Duration

	// Retention is how long the counts of a window are kept after it has closed,
	// in event time. An event is left out, and booked as Expired, once its windows of
	// all levels are past retention. It may differ between processes and runs: in
	// force is the longest that a process asked for within the last minute. Defaults
	// to 0, which keeps counts for ever.
	Retention time.Duration

	// Rollups are coarser windows that are counted from the same read, each with a
	// Retention of its own: hours and days beside minutes. Whether an event is late is
	// judged by Window alone. They are a part of what the counts mean: others need a
	// new name.
	Rollups []Rollup

	// DropLate leaves late events out of the counts, so that a closed window is
	// Final. By default they are counted.
	DropLate bool

	// Sum adds up the N of events instead of counting 1 for each: bytes, cents. N is a
	// whole number of the smallest unit. An event with N = 0 is skipped, and one with
	// N below 0 or above MaxCount is rejected. A sum that would pass MaxCount ends Run
	// with an error that wraps ErrOverflow. Sum is a part of what the counts mean:
	// another one needs a new name. By default each event counts 1.
	Sum bool

	// MaxKey is the length of the longest key that is counted, in bytes. An event with
	// a longer one is rejected. It is a part of what the counts mean: another one needs
	// a new name. At most 65,536. Defaults to 1,024.
	MaxKey int

	// Idle is how long a partition must have been caught up and silent before
	// its watermark follows the clock. Defaults to 10 seconds. If it is
	// negative, the watermark never follows the clock.
	Idle time.Duration

	// MaxAhead is how far beyond the wall clock an event may be and still move
	// the watermark. Defaults to 1 hour.
	MaxAhead time.Duration

	// FlushInterval is how long increments are collected before they are sent.
	// Counts in the store lag by about as much. Defaults to 100 milliseconds.
	FlushInterval time.Duration

	// MaxPending bounds the number of increments of Window held in memory over all
	// partitions, and 256 times as much the bytes of their keys. At the limit reading
	// waits for the sink. One Chunk of each partition may pass it. Defaults to 1,000,000.
	MaxPending int

	// ShutdownTimeout bounds the last flush, after Run was told to stop. Defaults
	// to 10 seconds.
	ShutdownTimeout time.Duration

	// OnLate, if set, is called with each late event, counted or not. It runs on
	// the partition's goroutine and holds up its reading. An event that is read
	// again is reported again.
	OnLate func(Late)

	// Logger receives the lines that an operator should see: retries, conflicts
	// and losses. Defaults to slog.Default().
	Logger *slog.Logger
}

func (cfg *Config) definition() Definition {
	return Definition{Window: cfg.Window, Grace: cfg.Grace, Retention: cfg.Retention, DropLate: cfg.DropLate, Sum: cfg.Sum, MaxKey: cfg.MaxKey, Rollups: cfg.Rollups}
}

// complete sets the defaults, or returns an error that names a wrong field.
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
	if err := cfg.definition().nest(); err != nil {
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

// maxApplies is how many calls on a shard are under way at once. One more would only wait
// in a queue of the client or the server.
const maxApplies = 64

// A Pipeline reads a Source, counts per key and window, and keeps the counts in
// a Sink.
type Pipeline struct {
	cfg      Config
	def      Definition
	shards   []Shard
	loaders  []*loader // of the shards
	loads    sync.WaitGroup
	cleaning context.Context // until it ends, what is past retention is deleted: ShutdownTimeout after the run
	places   []chan struct{} // of the shards: each bounds the Applies that are under way at once
	books    books
	running  atomic.Bool

	registering chan struct{} // a semaphore: one registration at a time

	mu        sync.Mutex
	first     map[string]Checkpoint // the source's first answer on each partition
	consumers map[*consumer]struct{}
	registry  map[string]Checkpoint // where every known partition begins, for a shard that lost it
	tops      []mark                // the largest watermark of each shard when it was last loaded
	looking   chan struct{}         // closed to poll all shards at once
	looked    time.Time             // when looking was last closed
	lookout   lookout               // for partitions that nobody counts

	changes rarely.Line // of checkpoints that are not as they were left
	waits   rarely.Line // of what holds up reading
	rivals  rarely.Line // of conflicts with other processes

	troubles troubles
}

// New returns a Pipeline, or an error that names the wrong field of cfg. It calls
// neither the source nor the sink.
func New(cfg Config) (*Pipeline, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	return &Pipeline{
		cfg: cfg, def: cfg.definition(),
		books:       books{limit: int64(cfg.MaxPending), parts: map[string]*PartitionStats{}},
		consumers:   map[*consumer]struct{}{},
		registry:    map[string]Checkpoint{},
		looking:     make(chan struct{}),
		registering: make(chan struct{}, 1),
	}, nil
}

// Run counts until ctx ends or every partition is exhausted. Then it flushes and
// returns nil. It returns an error if the source or the sink cannot be opened, if
// one of them has an error that retrying cannot mend, or if it was stopped and the
// source holds events that no later run can fetch. It may be called again after it
// has returned, and then opens new books.
func (p *Pipeline) Run(ctx context.Context) error {
	if !p.running.CompareAndSwap(false, true) {
		return errors.New("tumble: Run is running already")
	}
	defer p.running.Store(false)
	cleaning, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	p.cleaning = cleaning
	err := p.run(ctx)
	deadline := time.AfterFunc(p.cfg.ShutdownTimeout, stop)
	defer deadline.Stop()
	p.loads.Wait()
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return nil
	}
	return err
}

func (p *Pipeline) run(ctx context.Context) error {
	if err := p.begin(ctx); err != nil {
		if ctx.Err() != nil {
			// Stopped before anything was read. The source may hold events that no
			// later run can fetch: it says so when it is run.
			return cmp.Or(p.cfg.Source.Run(ctx, p.consume), err)
		}
		return err
	}
	var wg sync.WaitGroup
	polling, stop := context.WithCancel(ctx)
	for i := range p.shards {
		wg.Go(func() { p.poll(polling, i) })
	}
	wg.Go(func() { p.compareCuts(polling) })
	err := p.cfg.Source.Run(ctx, p.consume)
	stop()
	wg.Wait()
	return err
}

// begin opens the sink, and registers the source's partitions there.
func (p *Pipeline) begin(ctx context.Context) error {
	p.shards = nil
	shards, err := p.cfg.Sink.Open(ctx, p.def)
	if err != nil {
		return fmt.Errorf("tumble: open the sink: %w", err)
	}
	if n := len(shards); n == 0 || n > maxShards {
		return fmt.Errorf("tumble: open the sink: it has %d shards, must be 1 to %d", n, maxShards)
	}
	p.shards, p.loaders, p.places = shards, nil, nil
	for i := range shards {
		p.loaders = append(p.loaders, newLoader(p, i))
		p.places = append(p.places, make(chan struct{}, maxApplies))
	}
	p.books.begin()
	p.mu.Lock()
	p.first = map[string]Checkpoint{}
	p.tops = make([]mark, len(shards))
	p.lookout = newLookout(p.def, p.cfg.Idle)
	p.mu.Unlock()
	if sharer, ok := p.cfg.Source.(Sharer); ok {
		if sink, ok := p.cfg.Sink.(Identifier); ok {
			sharer.Share(sink.Identity)
		}
	}
	return p.register(ctx)
}
