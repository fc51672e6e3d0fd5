package tumble_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/channel"
)

var shrinking = flag.Duration("shrink", 20*time.Second, "how long TestSimulation may look for the shortest schedule that fails")

// TestSimulation lets several processes count one topic (or a channel each) into
// one store while everything breaks, by a schedule that is drawn from a seed,
// and compares what is left with a plain loop. A seed that fails is cut down to
// the steps that it takes.
//
//	go test -run TestSimulation -seeds 10000 .
//	go test -run TestSimulation -seed 4711 .
func TestSimulation(t *testing.T) {
	var all tumble.Stats
	var reads simReads
	var endings int
	var shrunk bool
	n := 0
	eachSeed(t, 200, func(t *testing.T, seed uint64) {
		n++
		setup, steps := draw(seed)
		w, err := simulate(t, setup, steps)
		all = sum(all, w.books())
		endings += w.endings
		reads.final += w.readers.reads.final
		reads.fallen += w.readers.reads.fallen
		if err == nil {
			return
		}
		if shrunk {
			t.Fatalf("%v\n%v", err, setup)
		}
		shrunk = true
		steps, took, err := shrink(t, setup, steps, err)
		var b strings.Builder
		for _, s := range steps {
			fmt.Fprintln(&b, s)
		}
		t.Fatalf("%v\n%v\nof %d steps these are left after %v:\n%v", err, setup, simSteps, took.Round(time.Second), b.String())
	})
	if n < 200 || t.Failed() {
		return
	}
	// A schedule in which nothing breaks proves nothing.
	for what, n := range map[string]int64{
		"Counted": all.Counted, "DroppedLate": all.DroppedLate, "Expired": all.Expired, "Rejected": all.Rejected, "Skipped": all.Skipped,
		"Replayed": all.Replayed, "Pending": all.Pending, "Late": all.Late, "Ahead": all.Ahead, "Lost": all.Lost, "Conflicts": all.Conflicts, "Retries": all.Retries,
		"final reads": reads.final, "reads during which the store fell back": reads.fallen, "partitions that were ended": int64(endings),
	} {
		require.Positive(t, n, what)
	}
}

const (
	simSteps    = 40
	simChunk    = 100 + simRecord // events of one Fetch, at most
	simRecord   = 50              // events of one record, at most
	simAhead    = time.Hour       // MaxAhead
	simGrace    = time.Second     // ShutdownTimeout
	simSettling = 3 * time.Minute
)

// A setup is what does not change while a simulation runs.
type setup struct {
	seed                    uint64
	kind                    kind
	def                     tumble.Definition
	shards, slots           int // of processes
	idle, flush             time.Duration
	maxPending              int
	losses, crashes, rivals bool
	ahead, growth, untilEnd bool
}

// A kind says what the counts are compared with.
type kind string

const (
	plain    kind = "plain"    // every event is counted
	judged   kind = "judged"   // late events are dropped or expire, by what the log alone says
	promised kind = "promised" // ... and by what the clock and other partitions say: bounds
	gaps     kind = "gaps"     // retention deletes what is not counted, topics are recreated: bounds
	channels kind = "channels" // a crash takes events with it
	latest   kind = "latest"   // counting begins at the end
	cuts     kind = "cuts"     // logs are truncated and grow again: bounds
)

var kinds = []kind{plain, plain, plain, judged, judged, promised, promised, gaps, channels, latest, cuts}

// A step is one thing that happens. It means the same without those before it,
// so that a schedule can be cut down.
type step struct {
	wait  time.Duration // before it
	op    op
	on, n int // which one, and how much
	seed  uint64
}

type op string

var ops = []op{
	"add", "add", "add", "add", "add", "add", "start", "start", "start", "start all", "stop", "crash", "crash", "assign", "assign", "revoke",
	"down", "down", "hang", "stall", "snapshot", "snapshot", "restore", "restore all", "wipe", "wipe all", "late batches", "late batches",
	"grow", "truncate", "recreate", "close", "noise", "calm", "cut", "cut", "end",
}

func (s step) String() string {
	return fmt.Sprintf("%7v  %-12s on %d  n %d  seed %d", s.wait, s.op, s.on, s.n, s.seed)
}

func (s setup) String() string {
	return fmt.Sprintf("seed %d: %s, %d shards, %d processes, %v, idle %v, flush %v, at most %d pending; losses %v, crashes %v, rivals %v, ahead %v, growth %v, until end %v",
		s.seed, s.kind, s.shards, s.slots, s.def, s.idle, s.flush, s.maxPending, s.losses, s.crashes, s.rivals, s.ahead, s.growth, s.untilEnd)
}

func draw(seed uint64) (setup, []step) {
	rng := rand.New(rand.NewPCG(seed, 1))
	yes := func(percent int) bool { return rng.IntN(100) < percent }
	s := setup{
		seed: seed, kind: kinds[seed%uint64(len(kinds))],
		shards: 1 + rng.IntN(4), slots: 1 + rng.IntN(4),
		idle:       []time.Duration{-1, time.Second, 5 * time.Second}[rng.IntN(3)],
		flush:      time.Duration(1+rng.IntN(300)) * time.Millisecond,
		maxPending: 1 + rng.IntN(300),
		losses:     yes(50), crashes: yes(60), rivals: yes(50), ahead: yes(40), growth: yes(40), untilEnd: yes(20),
	}
	s.def = tumble.Definition{Window: tumble.Window{Size: 10 * time.Second}, Grace: time.Duration(rng.IntN(3)) * 4 * time.Second}
	switch s.kind {
	case judged, promised:
		s.def.DropLate = yes(70)
		if !s.def.DropLate || yes(30) {
			s.def.Retention = 30 * time.Second
		}
		if s.kind == judged {
			s.idle, s.ahead, s.growth = -1, false, false
		} else if s.idle < 0 {
			s.idle = time.Second
		}
		s.losses = s.losses && yes(60)
	case channels:
		s.def.DropLate = yes(30)
		s.rivals, s.growth, s.losses, s.crashes, s.untilEnd = false, false, s.losses && yes(50), s.crashes && yes(50), false
	}
	var steps []step
	for range simSteps {
		st := step{time.Duration(rng.IntN(2500)) * time.Millisecond, ops[rng.IntN(len(ops))], rng.IntN(60), rng.IntN(1000), rng.Uint64N(1e6)}
		switch ok := true; {
		case strings.HasPrefix(string(st.op), "restore") || strings.HasPrefix(string(st.op), "wipe"):
			ok = s.losses && (s.kind != latest || st.op != "wipe all")
			fallthrough
		default:
			switch st.op {
			case "crash":
				ok = s.crashes
			case "grow":
				ok = s.growth && s.kind != latest
			case "truncate", "recreate":
				ok = s.kind == gaps
			case "cut":
				ok = s.kind == cuts
			case "end":
				ok = s.kind == plain || s.kind == promised || s.kind == cuts
			case "close":
				ok = s.kind == channels
			}
			if !ok {
				st.op = "add"
			}
		}
		steps = append(steps, st)
	}
	return s, steps
}

// shrink looks for a shorter schedule that fails as well: by halves, quarters
// and so on, and then by single steps. Goroutines do not always run in the same
// order, so each is given some tries.
func shrink(t *testing.T, s setup, steps []step, why error) ([]step, time.Duration, error) {
	began := time.Now()
	fails := func(steps []step) error {
		for range 3 {
			if _, err := simulate(t, s, steps); err != nil {
				return err
			}
		}
		return nil
	}
	for size := len(steps) / 2; size > 0; {
		cut := false
		for at := 0; at < len(steps) && time.Since(began) < *shrinking; {
			shorter := slices.Concat(steps[:at], steps[min(at+size, len(steps)):])
			if err := fails(shorter); err != nil {
				steps, why, cut = shorter, err, true
			} else {
				at += size
			}
		}
		if size > 1 || !cut {
			size /= 2
		}
		if time.Since(began) >= *shrinking {
			break
		}
	}
	return steps, time.Since(began), why
}

// simulate runs a schedule and returns the first rule that it found broken.
func simulate(t *testing.T, s setup, steps []step) (*world, error) {
	w := newWorld(s)
	synctest.Test(t, func(t *testing.T) {
		w.began = time.Now()
		w.readers = w.read()
		for i := range s.parts() {
			w.grow(i)
		}
		for _, st := range steps {
			if w.err() != nil {
				break
			}
			time.Sleep(st.wait)
			w.do(st)
			w.audit()
		}
		w.finish()
	})
	return w, w.err()
}

func (s setup) parts() int {
	if s.kind == channels {
		return s.slots
	}
	return 1 + int(s.seed/uint64(len(kinds)))%3
}

// A world is a simulation that runs. Its fields belong to the goroutine of
// simulate, but for those that mu guards.
type world struct {
	setup
	began time.Time
	log   *topic
	sink  *store
	ids   []string      // partitions
	procs []*simProcess // by slot; nil: none
	all   []*simProcess // that ever ran

	readers *simReaders // of final counts

	owners map[string][]int // slots that read a partition
	sent   []simEvent       // all that were ever written
	first  map[string]int   // initial partitions
	chans  []chan tumble.Event
	lossy  map[string]bool // channels of which events may be gone
	ended  map[string]bool // partitions that somebody ended, or tried to
	ends   sync.WaitGroup

	old []*storeShard // snapshots

	mu      sync.Mutex
	noise   int // calls in a thousand that fail
	rng     *rand.Rand
	down    map[int]time.Time // shards that refuse
	hangs   map[int]time.Time // ... that do not answer
	lost    bool              // the store has lost something
	final   int64             // events added to windows that were closed
	endings int               // of partitions that somebody ended
	broken  error
}

// A simEvent is an event of the log and where it was written.
type simEvent struct {
	tumble.Event
	id, log string
	at      time.Time
	gone    bool // the log was truncated before it
}

func newWorld(s setup) *world {
	w := &world{
		setup: s, log: newTopic(), sink: newStore(s.shards), procs: make([]*simProcess, s.slots),
		owners: map[string][]int{}, first: map[string]int{}, lossy: map[string]bool{}, ended: map[string]bool{}, old: make([]*storeShard, s.shards),
		rng: rand.New(rand.NewPCG(s.seed, 2)), down: map[int]time.Time{}, hangs: map[int]time.Time{}, noise: 20,
	}
	w.log.rng = rand.New(rand.NewPCG(s.seed, 3))
	w.sink.fault = w.fault
	w.sink.applied = w.applied
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
func (w *world) fault(shard int, b *tumble.Batch) fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Now().Before(w.down[shard]) {
		return refused
	}
	if w.rng.IntN(1000) >= w.noise {
		return fine
	}
	return []fault{refused, lost, doubled, delayed}[w.rng.IntN(4)]
}

// applied looks at each batch that changes the store.
func (w *world) applied(shard int, b tumble.Batch, frontier time.Time) {
	w.mu.Lock()
	lost := w.lost
	w.mu.Unlock()
	if after := tumble.Frontier(w.sink.shards[shard].stored); !lost && after.Before(frontier) {
		w.fail("the frontier of shard %d goes back from %v to %v with %v to %v", shard, frontier, after, b.From, b.To)
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

// grow adds a partition.
func (w *world) grow(n int) {
	id := fmt.Sprint("p", n)
	w.ids = append(w.ids, id)
	w.owners[id] = []int{n % w.slots}
	if time.Since(w.began) == 0 {
		w.first[id] = n
	}
	if w.kind == channels {
		w.chans = append(w.chans, make(chan tumble.Event, 1<<16))
		return
	}
	w.log.change(id, func(*logPart) {})
}

// do makes one step happen.
func (w *world) do(s step) {
	slot := s.on % w.slots
	shard := s.on % w.shards
	p := w.procs[slot]
	after := func(most time.Duration) time.Time { return time.Now().Add(time.Duration(s.n) * most / 1000) }
	switch s.op {
	case "add":
		w.add(w.ids[s.on%len(w.ids)], s.n/5, rand.New(rand.NewPCG(s.seed, 4)))
	case "start":
		if p == nil {
			w.start(slot, w.untilEnd && s.seed%2 == 0)
		}
	case "start all": // at the same time, while something is written
		for slot, p := range w.procs {
			if p == nil {
				w.start(slot, false)
			}
		}
		for i := range 10 {
			time.Sleep(time.Duration(1+s.n%3) * time.Millisecond)
			w.add(w.ids[i%len(w.ids)], 3, rand.New(rand.NewPCG(s.seed, uint64(i))))
		}
	case "stop":
		if p != nil {
			w.stop(slot)
		}
	case "crash":
		if p != nil {
			p.crash(s.n%20, s.seed%2 == 0)
			w.procs[slot] = nil
			if w.kind == channels {
				w.lossy[w.ids[slot]] = true
			}
		}
	case "assign":
		w.assign(w.ids[s.n%len(w.ids)], slot)
	case "revoke":
		if id := w.ids[s.n%len(w.ids)]; w.kind != channels {
			w.owners[id] = w.owners[id][len(w.owners[id])-1:]
			w.share()
		}
	case "down":
		w.mu.Lock()
		w.down[shard] = after(20 * time.Second)
		w.mu.Unlock()
	case "hang":
		w.mu.Lock()
		w.hangs[shard] = after(10 * time.Second)
		w.mu.Unlock()
	case "stall":
		if p != nil {
			p.stall(after(15 * time.Second))
		}
	case "snapshot":
		for i := range w.old {
			w.old[i] = w.sink.snapshot(i)
		}
	case "restore":
		w.restore(shard, w.old[shard])
	case "restore all":
		for i := range w.old {
			w.restore(i, w.old[i])
		}
	case "wipe":
		if w.kind == latest { // the others know where it began
			for i := range w.shards {
				if i != shard && len(w.sink.snapshot(i).stored) > 0 {
					w.replace(shard, newShard())
					break
				}
			}
			break
		}
		w.replace(shard, newShard())
	case "wipe all":
		for i := range w.old {
			w.replace(i, newShard())
		}
	case "late batches":
		w.sink.repeat()
	case "grow":
		if len(w.ids) < 5 {
			w.grow(len(w.ids))
			w.share()
		}
	case "truncate":
		w.log.change(w.ids[s.on%len(w.ids)], func(p *logPart) { p.first += (p.end - p.first) * int64(s.n) / 1000 })
	case "cut":
		id := w.ids[s.on%len(w.ids)]
		w.log.change(id, func(p *logPart) {
			at := p.first + (p.end-p.first)*int64(s.n)/1000
			if s.seed%3 == 0 {
				at = max(at, p.end-10) // the tail, as most often
			}
			for i := range w.sent {
				if e := &w.sent[i]; e.id == id && e.Offset >= at {
					e.gone = true
				}
			}
			p.truncate(at)
		})
	case "end":
		w.endPartition(w.ids[s.n%len(w.ids)])
	case "recreate":
		w.log.change(w.ids[s.on%len(w.ids)], func(p *logPart) {
			*p = logPart{log: fmt.Sprintf("log-%v", time.Since(w.began)), grown: p.grown}
		})
	case "close":
		if p != nil {
			close(w.chans[slot])
			w.chans[slot] = make(chan tumble.Event, 1<<16)
			w.procs[slot] = nil // it ends by itself
			w.await(p, true)
		}
	case "noise":
		w.mu.Lock()
		w.noise = s.n / 4
		w.mu.Unlock()
	case "calm":
		w.mu.Lock()
		w.noise = 0
		w.mu.Unlock()
	}
}

func (w *world) restore(shard int, old *storeShard) {
	if old == nil || w.kind == latest && len(old.stored) == 0 {
		return
	}
	w.replace(shard, old)
}

func (w *world) replace(shard int, old *storeShard) {
	w.mu.Lock()
	w.lost = true
	w.mu.Unlock()
	w.sink.restore(shard, old)
}

// add writes n events, out of order, some late, some far ahead, some with no
// usable time, in records of one, of some and of none.
func (w *world) add(id string, n int, rng *rand.Rand) {
	now := time.Now()
	var events []tumble.Event
	for range n {
		age := time.Duration(rng.IntN(8000)) * time.Millisecond
		e := tumble.Event{Key: fmt.Sprint("k", rng.IntN(12)), Time: now.Add(-age)}
		switch x := rng.IntN(60); {
		case x < 4:
			e.Time = now.Add(-age * 10)
		case x == 4 && w.ahead:
			e.Time = now.Add(simAhead + time.Duration(rng.IntN(3))*time.Hour + age) // the least become timely while this runs
		case x == 5:
			e.Time = time.Time{}
		}
		events = append(events, e)
	}
	if w.kind == channels {
		for _, e := range events {
			w.sent = append(w.sent, simEvent{Event: e, id: id, at: now})
			w.chans[slices.Index(w.ids, id)] <- e
		}
		return
	}
	w.log.change(id, func(p *logPart) {
		for len(events) > 0 {
			size := 1
			if x := rng.IntN(40); w.kind != gaps && w.kind != cuts && x < 4 { // what is lost is bounded in offsets
				size = min(len(events), []int{2, 5, 20, simRecord}[x])
			} else if x > 35 {
				p.skip(hole(rng.IntN(3)))
			}
			at := len(p.events)
			p.append(events[:size]...)
			for _, e := range p.events[at:] {
				w.sent = append(w.sent, simEvent{Event: e, id: id, log: p.log, at: now})
			}
			events = events[size:]
		}
		if rng.IntN(4) == 0 {
			p.skip(hole(rng.IntN(3)))
		}
	})
}

// assign gives a partition to a slot. With rivals the one before keeps it, until
// it is revoked; without, it has given it up before.
func (w *world) assign(id string, slot int) {
	if w.kind == channels || slices.Contains(w.owners[id], slot) {
		return
	}
	if w.rivals {
		w.owners[id] = append(w.owners[id], slot)
		w.share()
		return
	}
	w.owners[id] = nil
	w.share()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if !slices.ContainsFunc(w.all, func(p *simProcess) bool { return p.source.reads(id) }) {
			break
		}
		if time.Now().After(deadline) {
			w.fail("%s is not given up", id)
			return
		}
	}
	w.owners[id] = []int{slot}
	w.share()
}

// share tells every process which partitions it is to read.
func (w *world) share() {
	for slot, p := range w.procs {
		if p == nil || p.source == nil {
			continue
		}
		var own []string
		for id, slots := range w.owners {
			if slices.Contains(slots, slot) {
				own = append(own, id)
			}
		}
		p.source.assign(own)
	}
}

// start starts a process in a slot.
func (w *world) start(slot int, untilEnd bool) {
	p := &simProcess{w: w, slot: slot, name: fmt.Sprintf("process %d in slot %d", len(w.all), slot), done: make(chan error, 1)}
	p.rng = rand.New(rand.NewPCG(w.seed, uint64(100+len(w.all))))
	var source tumble.Source
	if w.kind == channels {
		c, err := channel.New(channel.Config{ID: w.ids[slot], Events: w.chans[slot]})
		if err != nil {
			panic(err)
		}
		source = simWrapped{c, p}
	} else {
		p.source = &simSource{
			logSource: &logSource{topic: w.log, latest: w.kind == latest, skipGap: w.kind == gaps || w.kind == cuts, untilEnd: untilEnd},
			p:         p, wake: make(chan struct{}, 1), reading: map[string]bool{},
		}
		source = p.source
	}
	var err error
	p.Pipeline, err = tumble.New(tumble.Config{
		Source: source, Sink: simSink{p}, Window: w.def.Window, Grace: w.def.Grace, Retention: w.def.Retention, DropLate: w.def.DropLate,
		Idle: w.idle, MaxAhead: simAhead, FlushInterval: w.flush, MaxPending: w.maxPending, ShutdownTimeout: simGrace, Logger: quiet,
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
func (w *world) await(p *simProcess, closed bool) {
	if p.over {
		return
	}
	p.over = true
	timeout := simGrace + 200*time.Millisecond
	if closed {
		timeout = simSettling // not told to stop
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

func (w *world) check(p *simProcess) {
	s := p.Stats()
	if s.Read != s.Counted+s.DroppedLate+s.Expired+s.Rejected+s.Skipped+s.Replayed+s.Pending {
		w.fail("%s: books: %+v", p.name, s)
	}
	if limit := w.maxPending + simChunk*5; s.Increments < 0 || s.Increments > int64(limit) || s.Pending < 0 {
		w.fail("%s: held in memory: %+v", p.name, s)
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
		if p != nil && p.source != nil && p.source.untilEnd {
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
		time.Sleep(simSettling)
		w.sink.repeat()
		time.Sleep(simSettling)
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

func (w *world) books() (all tumble.Stats) {
	for _, p := range w.all {
		all = sum(all, p.Stats())
	}
	return all
}

func sum(a, b tumble.Stats) tumble.Stats {
	a.Read += b.Read
	a.Counted += b.Counted
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

// compare looks at what is left when all is over.
func (w *world) compare() {
	got := w.sink.counts()
	low, high := w.bounds()
	cells := maps.Clone(high)
	maps.Copy(cells, got)
	total := int64(0)
	for _, c := range slices.SortedFunc(maps.Keys(cells), func(a, b cell) int {
		return cmp.Or(cmp.Compare(a.window, b.window), cmp.Compare(a.key, b.key))
	}) {
		total += got[c]
		if got[c] < low[c] || got[c] > high[c] {
			w.fail("%s in window %v was counted %d times, not %d to %d", c.key, time.Unix(0, c.window).UTC(), got[c], low[c], high[c])
		}
	}
	all := w.books()
	if !w.lost && !w.rivals {
		if n := total - all.Counted; w.def.Retention == 0 && (n < 0 || n > all.Pending) {
			w.fail("the sink holds %d counts, the books say %d, and %d perhaps", total, all.Counted, all.Pending)
		}
		if !w.def.DropLate && w.final > all.Late+all.Pending {
			w.fail("%d events were added to windows that were final, the books say %d, and %d perhaps", w.final, all.Late, all.Pending)
		}
	}
	if w.kind == channels {
		return
	}
	recreated := false
	for _, id := range w.ids {
		l := w.log.parts[id]
		recreated = recreated || l.log != "log-1"
		var top time.Time
		for _, e := range l.events {
			if e.Time.After(top) {
				top = e.Time
			}
		}
		for i := range w.shards {
			c := w.sink.stored(i, id)
			if c.Log != l.log || c.Offset != l.end || c.Ended && !w.ended[id] || w.kind != gaps && c.Origin != w.sink.stored(0, id).Origin {
				w.fail("shard %d holds %s at %v, the first has %v, the end is %d of %s", i, id, c, w.sink.stored(0, id), l.end, l.log)
			}
			if w.kind == judged && !c.Watermark.Equal(top) {
				w.fail("shard %d holds %s at %v, the watermark is %v", i, id, c, top)
			}
		}
	}
	if w.kind == cuts {
		// No more is counted twice, or of what is gone, than the books say.
		for _, e := range w.sent {
			if !e.gone && !e.Time.IsZero() {
				total--
			}
		}
		if total > all.Lost {
			w.fail("%d events are counted that no log holds, the books say %d offsets at most", total, all.Lost)
		}
		return
	}
	if w.kind != gaps || recreated {
		return
	}
	missing := -total
	for _, e := range w.sent {
		origin := int64(0) // what was deleted before counting began is not lost
		for i := range w.shards {
			origin = max(origin, w.sink.stored(i, e.id).Origin)
		}
		if !e.Time.IsZero() && e.Offset >= origin {
			missing++
		}
	}
	if missing > all.Lost {
		w.fail("%d events are missing, the books say that %d were lost at most", missing, all.Lost)
	}
}

// bounds is the model: how often a plain loop over the log counts each key and
// window, at least and at most.
func (w *world) bounds() (low, high map[cell]int64) {
	low, high = map[cell]int64{}, map[cell]int64{}
	marks := map[string]time.Time{}
	top := w.ceiling()
	for _, e := range w.sent {
		if e.Time.IsZero() {
			continue
		}
		start, end := w.def.Window.Bounds(e.Time)
		shard := int(tumble.Hash(e.Key) % uint64(w.shards))
		expired := !end.After(w.sink.snapshot(shard).floor)
		mark := marks[e.id]
		if e.Time.After(mark) {
			marks[e.id] = e.Time
		}
		sure, perhaps := true, true
		switch w.kind {
		case judged:
			closed := w.def.ClosedAt(mark)
			state := w.def.State(closed, w.def.FloorAt(closed), end)
			if state == tumble.Final || state == tumble.Expired || expired {
				sure, perhaps = false, false
			}
		case promised:
			_, initial := w.first[e.id]
			late := !initial || !top(e).Before(end.Add(w.def.Grace))
			sure = !late && !expired
			perhaps = !expired
		case gaps:
			l := w.log.parts[e.id]
			sure = e.log == l.log && e.Offset >= l.first
		case channels:
			sure = !w.lossy[e.id] && !w.lost && !w.def.DropLate
		case cuts:
			sure = !e.gone
		case latest:
			perhaps = e.Offset >= w.sink.stored(0, e.id).Origin
			sure = perhaps
		}
		c := cell{start.UnixNano(), e.Key}
		if sure {
			low[c]++
		}
		if perhaps {
			high[c]++
		}
	}
	return low, high
}

// ceiling returns a function to what no watermark can have passed when an event
// was written: a watermark is an event's time and what promises add, which do
// not move faster than the clock, nor beyond it.
func (w *world) ceiling() func(simEvent) time.Time {
	over := make([]time.Duration, len(w.sent)) // most by which an event so far was ahead of the clock
	index := map[time.Time]int{}
	for i, e := range w.sent {
		if i > 0 {
			over[i] = over[i-1]
		}
		if d := e.Time.Sub(e.at); !e.Time.IsZero() && d < simAhead+30*time.Minute {
			over[i] = max(over[i], d)
		}
		index[e.at] = i
	}
	return func(e simEvent) time.Time { return e.at.Add(over[index[e.at]]) }
}
