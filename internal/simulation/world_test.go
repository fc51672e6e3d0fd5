package simulation

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
	"github.com/tumblestream/tumble/source/channel"
)

// A world is a simulation that runs. Its fields belong to the goroutine of
// simulate, but for those that mu guards.
type world struct {
	setup
	began time.Time
	topic *faketest.Topic
	sink  *faketest.Store
	ids   []string   // partitions
	procs []*process // by slot; nil: none
	all   []*process // that ever ran

	readers *readers // of final counts

	owners map[string][]int // slots that read a partition
	sent   []writtenEvent   // all that were ever written
	first  map[string]int   // initial partitions
	chans  []chan tumble.Event
	lossy  map[string]bool // channels of which events may be gone
	ended  map[string]bool // partitions that somebody ended, or tried to
	ends   sync.WaitGroup

	old []*faketest.Shard // snapshots

	mu      sync.Mutex
	noise   int // calls in a thousand that fail
	rng     *rand.Rand
	down    map[int]time.Time // shards that refuse
	hangs   map[int]time.Time // ... that do not answer
	lost    bool              // the store has lost something
	final   int64             // events added to windows that were closed
	endings int               // of partitions that somebody ended
	yielded int               // partitions, to another process
	newest  map[string]int    // slot that a partition was given to last
	filled  int               // times that keys filled the memory that MaxPending allows
	broken  error
}

// A writtenEvent is an event of the log and where it was written.
type writtenEvent struct {
	tumble.Event
	id, log string
	at      time.Time
	gone    bool // the log was truncated before it
}

func newWorld(s setup) *world {
	w := &world{
		setup: s, topic: faketest.NewTopic(), sink: faketest.NewStore(s.shards), procs: make([]*process, s.slots),
		owners: map[string][]int{}, first: map[string]int{}, lossy: map[string]bool{}, ended: map[string]bool{}, old: make([]*faketest.Shard, s.shards),
		rng: rand.New(rand.NewPCG(s.seed, 2)), down: map[int]time.Time{}, hangs: map[int]time.Time{}, noise: 20, newest: map[string]int{},
	}
	w.topic.Rand = rand.New(rand.NewPCG(s.seed, 3))
	w.sink.SetFault(w.fault)
	w.sink.Applied = w.applied
	w.sink.Deletes = s.deletes
	return w
}

func (w *world) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.broken
}

// fail remembers the first rule that was broken.
func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken == nil {
		w.broken = fmt.Errorf("after %v: %w", time.Since(w.began), fmt.Errorf(format, args...))
	}
}

// fault decides what becomes of a call on the store.
func (w *world) fault(shard int, b *tumble.Batch) faketest.Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Now().Before(w.down[shard]) {
		return faketest.Refused
	}
	if w.rng.IntN(1000) >= w.noise {
		return faketest.Fine
	}
	return []faketest.Fault{faketest.Refused, faketest.Lost, faketest.Doubled, faketest.Delayed, faketest.Overdue}[w.rng.IntN(5)]
}

// applied looks at each batch that changes the store.
func (w *world) applied(shard int, b tumble.Batch, frontier time.Time) {
	w.mu.Lock()
	lost := w.lost
	w.mu.Unlock()
	if after := tumble.Frontier(w.sink.Shards[shard].Checkpoints); !lost && after.Before(frontier) {
		w.fail("the frontier of shard %d goes back from %v to %v with %v to %v", shard, frontier, after, b.From, b.To)
	}
	for i, deltas := range b.Rollups {
		for _, d := range deltas {
			w.compareLevels(shard, faketest.Cell{Start: d.Start.UnixNano(), Key: d.Key, Level: 1 + i})
		}
	}
	for _, d := range b.Deltas {
		_, end := w.def.Window.Bounds(d.Start)
		if end.After(w.def.ClosedAt(frontier)) || frontier.IsZero() {
			continue
		}
		w.mu.Lock()
		w.final += d.N
		w.mu.Unlock()
		if w.def.DropLate && !lost {
			w.fail("shard %d: %d of %s were added to window %v, which was closed at %v", shard, d.N, d.Key, d.Start, frontier)
		}
	}
}

// start starts a process in a slot.
func (w *world) start(slot int, untilEnd bool) {
	p := &process{w: w, slot: slot, name: fmt.Sprintf("process %d in slot %d", len(w.all), slot), done: make(chan error, 1)}
	p.rng = rand.New(rand.NewPCG(w.seed, uint64(100+len(w.all))))
	var source tumble.Source
	if w.kind == channels {
		c, err := channel.New(channel.Config{ID: w.ids[slot], Events: w.chans[slot]})
		if err != nil {
			panic(err)
		}
		source = wrappedSource{c, p}
	} else {
		p.source = &groupSource{
			Source: &faketest.Source{Topic: w.topic, Latest: w.kind == latest, SkipGap: w.kind == gaps || w.kind == cuts, UntilEnd: untilEnd},
			p:      p, wake: make(chan struct{}, 1), reading: map[string]bool{},
		}
		source = p.source
	}
	def := w.def
	if w.differ { // processes of one place keep for longer than those of another
		def.Retention *= time.Duration(1 + slot)
		def.Rollups = slices.Clone(def.Rollups)
		for i := range def.Rollups {
			def.Rollups[i].Retention *= time.Duration(1 + slot)
		}
	}
	var err error
	p.Pipeline, err = tumble.New(tumble.Config{
		Source: source, Sink: processSink{p}, Window: def.Window, Grace: def.Grace, Retention: def.Retention, DropLate: def.DropLate, Rollups: def.Rollups, Sum: def.Sum,
		Idle: w.idle, MaxAhead: maxAhead, FlushInterval: w.flush, MaxPending: w.maxPending, ShutdownTimeout: shutdownTimeout, Logger: faketest.Quiet,
	})
	if err != nil {
		panic(err)
	}
	w.all = append(w.all, p)
	w.procs[slot] = p
	w.share()
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() { p.done <- p.Run(ctx) }()
}

func (w *world) stop(slot int) {
	p := w.procs[slot]
	w.procs[slot] = nil
	p.cancel()
	w.await(p, false)
}

// await waits until a process is over.
func (w *world) await(p *process, closed bool) {
	if p.over {
		return
	}
	p.over = true
	timeout := shutdownTimeout + 200*time.Millisecond
	if closed {
		timeout = settlingTime // not told to stop
	}
	told := false
	select {
	case err := <-p.done:
		if lost := new(channel.LostError); errors.As(err, &lost) {
			w.lossy[lost.ID], told = true, true
		} else if err != nil {
			w.fail("%s: %w", p.name, err)
		}
	case <-time.After(timeout):
		w.fail("%s does not stop", p.name)
		p.cancel()
		<-p.done
		told = true
	}
	w.check(p)
	s := p.Stats()
	if s.Increments != 0 || len(s.Partitions) != 0 {
		w.fail("%s has stopped and still holds something: %+v", p.name, s)
	}
	if w.kind == channels && s.Pending > 0 {
		if !told && !p.dead {
			w.fail("%s has stopped with %d events that it did not count, and says nothing", p.name, s.Pending)
		}
		w.lossy[w.ids[p.slot]] = true
	}
}

// audit checks the books of the processes that run.
func (w *world) audit() {
	for _, p := range w.procs {
		if p != nil {
			w.check(p)
		}
	}
}

func (w *world) check(p *process) {
	s := p.Stats()
	if err := faketest.Books(s); err != nil {
		w.fail("%s: %w", p.name, err)
	}
	if limit := w.maxPending + maxChunk*5; s.Increments < 0 || s.Increments > int64(limit) || s.Pending < 0 {
		w.fail("%s: held in memory: %+v", p.name, s)
	}
	full := int64(w.maxPending) * bytesEach
	if s.KeyBytes < 0 || s.KeyBytes > full+maxChunk*5*longestKey {
		w.fail("%s: bytes of keys held in memory: %+v", p.name, s)
	}
	if s.KeyBytes >= full && s.Increments < int64(w.maxPending) {
		w.mu.Lock()
		w.filled++
		w.mu.Unlock()
	}
}

// finish mends everything, lets the processes count to the end, stops them and
// compares.
func (w *world) finish() {
	w.mu.Lock()
	w.noise = 0
	clear(w.down)
	clear(w.hangs)
	w.mu.Unlock()
	for slot, p := range w.procs {
		if p != nil && p.source != nil && p.source.UntilEnd {
			w.stop(slot)
		}
		if w.procs[slot] == nil {
			w.start(slot, false)
		}
	}
	for id, slots := range w.owners {
		if !w.rivals && len(slots) == 0 {
			w.owners[id] = []int{0}
		}
	}
	w.share()
	if w.err() == nil {
		time.Sleep(settlingTime)
		w.sink.Repeat()
		time.Sleep(settlingTime)
	}
	for slot := range w.procs {
		w.stop(slot)
	}
	for _, p := range w.all {
		w.await(p, false)
	}
	w.ends.Wait()
	w.readers.end()
	if w.err() == nil {
		w.compare()
	}
}

// books adds up those of all processes.
func (w *world) books() (all tumble.Stats) {
	for _, p := range w.all {
		all = sum(all, p.Stats())
	}
	return all
}

func sum(a, b tumble.Stats) tumble.Stats {
	a.Read += b.Read
	a.Counted += b.Counted
	a.Sum += b.Sum
	a.DroppedLate += b.DroppedLate
	a.Expired += b.Expired
	a.Rejected += b.Rejected
	a.Skipped += b.Skipped
	a.Replayed += b.Replayed
	a.Pending += b.Pending
	a.Late += b.Late
	a.Ahead += b.Ahead
	a.Lost += b.Lost
	a.Conflicts += b.Conflicts
	a.Retries += b.Retries
	return a
}
