package tumble_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// t0 is where event time begins in these tests: that of a bubble's clock.
var t0 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// quiet keeps warnings that tests provoke out of their output.
var quiet = slog.New(slog.DiscardHandler)

var errFault = errors.New("injected fault")

// A topic is the log behind a logSource: partitions that many processes read.
type topic struct {
	mu    sync.Mutex
	parts map[string]*logPart
	rng   *rand.Rand // chunk sizes and faults; nil: whole chunks, no faults
}

type logPart struct {
	log    string
	events []tumble.Event // by Offset; those of one record share it
	end    int64          // next Offset
	epochs []int64        // where each began, but for the first one, which began at 0
	first  int64          // retention deleted what is before
	ended  bool
	final  bool           // it has ended for good
	grown  chan struct{}  // closed when something is appended
	holes  map[int64]hole // offsets of records that gave no event
}

// A hole is what a record without events was.
type hole int

const (
	nothing hole = iota // compacted, or of a transaction
	rejected
	skipped
)

// skip appends a record that gives no event.
func (p *logPart) skip(h hole) {
	if p.holes == nil {
		p.holes = map[int64]hole{}
	}
	p.holes[p.end] = h
	p.end++
}

// truncate takes away what is from end on, as a new leader does that never had it.
func (p *logPart) truncate(end int64) {
	at, _ := slices.BinarySearchFunc(p.events, end, func(e tumble.Event, o int64) int { return cmp.Compare(e.Offset, o) })
	p.events, p.end = p.events[:at:at], end
	maps.DeleteFunc(p.holes, func(o int64, _ hole) bool { return o >= end })
	for i, start := range p.epochs {
		p.epochs[i] = min(start, end)
	}
	p.epochs = append(p.epochs, end)
}

// epoch returns that of the record before an offset.
func (p *logPart) epoch(offset int64) int32 {
	n := int32(0)
	for _, start := range p.epochs {
		if start < offset {
			n++
		}
	}
	return n
}

// until returns where the records of an epoch end, or of the last one before it.
func (p *logPart) until(epoch int32) int64 {
	if int(epoch) < len(p.epochs) {
		return p.epochs[epoch]
	}
	return p.end
}

func newTopic(ids ...string) *topic {
	t := &topic{parts: map[string]*logPart{}}
	for _, id := range ids {
		t.parts[id] = &logPart{log: "log-1", grown: make(chan struct{})}
	}
	return t
}

// add appends events to a partition, a record each.
func (t *topic) add(id string, events ...tumble.Event) {
	t.change(id, func(p *logPart) {
		for _, e := range events {
			p.append(e)
		}
	})
}

// append appends one record.
func (p *logPart) append(events ...tumble.Event) {
	for _, e := range events {
		e.Offset = p.end
		p.events = append(p.events, e)
	}
	p.end++
}

func (t *topic) changed(p *logPart) {
	close(p.grown)
	p.grown = make(chan struct{})
}

// change edits a partition, which is created if it is missing.
func (t *topic) change(id string, f func(*logPart)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.parts[id]
	if p == nil {
		p = &logPart{log: "log-1", grown: make(chan struct{})}
		t.parts[id] = p
	}
	f(p)
	t.changed(p)
}

// A logSource reads some partitions of a topic: one process's view.
type logSource struct {
	topic    *topic
	own      []string // nil: all there are when Run begins
	latest   bool
	skipGap  bool // Resume policy: go on after a gap or in another log
	untilEnd bool
	more     chan string // partitions assigned while running; nil: none
}

func (s *logSource) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	s.topic.mu.Lock()
	defer s.topic.mu.Unlock()
	known := false
	for id := range s.topic.parts {
		_, ok := stored[id]
		known = known || ok
	}
	all := map[string]tumble.Checkpoint{}
	for id, p := range s.topic.parts {
		at := p.first
		if s.latest && !known {
			at = p.end
		}
		all[id] = tumble.Checkpoint{Log: p.log, Origin: at, Offset: at, Epoch: p.epoch(at)}
	}
	return all, nil
}

func (s *logSource) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	own := s.own
	if own == nil {
		s.topic.mu.Lock()
		own = slices.Sorted(maps.Keys(s.topic.parts))
		s.topic.mu.Unlock()
	}
	var wg sync.WaitGroup
	start := func(id string) {
		wg.Go(func() {
			if err := consume(ctx, &logPartition{s: s, id: id}); err != nil {
				cancel(err)
			}
		})
	}
	for _, id := range own {
		start(id)
	}
	for s.more != nil {
		select {
		case id := <-s.more:
			start(id)
			continue
		case <-ctx.Done():
		}
		break
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

type logPartition struct {
	s         *logSource
	log       string // as Resume saw it
	id        string
	reported  int64 // holes up to here were told
	committed int64
	buf       []tumble.Event
	keys      [][]byte
}

func (p *logPartition) ID() string { return p.id }

func (p *logPartition) Committed(offset int64) { p.committed = offset }

func (p *logPartition) Resume(ctx context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	t := p.s.topic
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.parts[p.id]
	p.log = l.log
	switch {
	case stored.Log == l.log && stored.Offset >= l.first && stored.Offset <= l.until(stored.Epoch):
		return stored, nil
	case !p.s.skipGap:
		return stored, fmt.Errorf("%s: events from %d to %d are gone", p.id, stored.Offset, l.first)
	case stored.Log == l.log && stored.Offset > l.until(stored.Epoch):
		stored.Offset = max(l.first, l.until(stored.Epoch))
		stored.Origin, stored.Epoch = min(stored.Origin, stored.Offset), l.epoch(stored.Offset)
		p.reported = min(p.reported, stored.Offset)
		return stored, nil
	case stored.Log == l.log:
		stored.Offset = l.first
		return stored, nil
	}
	return tumble.Checkpoint{Log: l.log, Offset: l.first, Epoch: l.epoch(l.first)}, nil
}

// Fetch hands out a random number of events, in a buffer that it scribbles over
// at the next call: keys are borrowed.
func (p *logPartition) Fetch(ctx context.Context, at tumble.Position) (tumble.Chunk, error) {
	from := at.Offset
	for i := range p.buf {
		p.buf[i] = tumble.Event{Key: "overwritten", Offset: -1}
		for j := range p.keys[i] {
			p.keys[i][j] = '#'
		}
	}
	asOf := time.Now()
	timeout := time.NewTimer(500 * time.Millisecond)
	defer timeout.Stop()
	for {
		t := p.s.topic
		t.mu.Lock()
		l := t.parts[p.id]
		grown := l.grown
		end := l.end
		if l.log == p.log && from > l.until(at.Epoch) {
			t.mu.Unlock()
			return tumble.Chunk{}, fmt.Errorf("%v is beyond %d: %w", at, l.until(at.Epoch), tumble.ErrTruncated)
		}
		if from < l.first || from > end || l.log != p.log {
			t.mu.Unlock()
			return tumble.Chunk{}, fmt.Errorf("%d is not in [%d, %d]: %w", from, l.first, end, tumble.ErrOffsetOutOfRange)
		}
		at, _ := slices.BinarySearchFunc(l.events, from, func(e tumble.Event, o int64) int { return cmp.Compare(e.Offset, o) })
		n := len(l.events) - at
		if t.rng != nil && n > 0 {
			if t.rng.IntN(20) == 0 {
				t.mu.Unlock()
				return tumble.Chunk{}, errFault
			}
			n = min(n, 1+t.rng.IntN(100))
		}
		if n > 0 {
			for at+n < len(l.events) && l.events[at+n].Offset == l.events[at+n-1].Offset {
				n++
			}
			epoch := l.epoch(l.events[at].Offset + 1)
			for l.epoch(l.events[at+n-1].Offset+1) != epoch {
				n--
			}
			p.buf, p.keys = p.buf[:0], p.keys[:0]
			for _, e := range l.events[at : at+n] {
				key := []byte(e.Key)
				e.Key = borrowed(key)
				p.buf = append(p.buf, e)
				p.keys = append(p.keys, key)
			}
			ch := tumble.Chunk{Events: p.buf, Next: p.buf[n-1].Offset + 1, Epoch: epoch, End: end, AsOf: asOf}
			if at+n == len(l.events) && l.epoch(end) == epoch {
				ch.Next = end
			}
			p.tell(&ch, l, from)
			t.mu.Unlock()
			return ch, nil
		}
		if from < end { // holes alone
			ch := tumble.Chunk{Next: end, Epoch: l.epoch(end), End: end, AsOf: asOf}
			p.tell(&ch, l, from)
			t.mu.Unlock()
			return ch, nil
		}
		ended, final := l.ended, l.final
		t.mu.Unlock()
		switch {
		case ended && final:
			return tumble.Chunk{}, tumble.ErrFinal
		case ended:
			return tumble.Chunk{}, tumble.ErrEnded
		case p.s.untilEnd:
			return tumble.Chunk{}, io.EOF
		}
		select {
		case <-grown:
		case <-timeout.C:
			return tumble.Chunk{Next: from, End: end, AsOf: asOf}, nil
		case <-ctx.Done():
			return tumble.Chunk{}, ctx.Err()
		}
	}
}

// tell reports the holes of a chunk, each once.
func (p *logPartition) tell(ch *tumble.Chunk, l *logPart, from int64) {
	for o := max(from, p.reported); o < ch.Next; o++ {
		switch l.holes[o] {
		case rejected:
			ch.Rejected++
		case skipped:
			ch.Skipped++
		}
	}
	p.reported = max(p.reported, ch.Next)
}

// borrowed makes a string of b without a copy, as a source's keys may be.
func borrowed(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// count is the model: a plain loop over the log.
func count(w tumble.Window, logs ...[]tumble.Event) map[cell]int64 {
	all := map[cell]int64{}
	for _, log := range logs {
		for _, e := range log {
			start, _ := w.Bounds(e.Time)
			all[cell{start.UnixNano(), e.Key}]++
		}
	}
	return all
}

// A process is a pipeline that runs.
type process struct {
	*tumble.Pipeline
	cancel context.CancelFunc
	done   chan error
	exited chan struct{}
}

func start(t *testing.T, cfg tumble.Config) *process {
	t.Helper()
	if cfg.Window == (tumble.Window{}) {
		cfg.Window.Size = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = quiet
	}
	p, err := tumble.New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	run := &process{p, cancel, make(chan error, 1), make(chan struct{})}
	go func() {
		defer close(run.exited)
		run.done <- p.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-run.exited
	})
	return run
}

// stop asks the process to stop and returns what Run did.
func (p *process) stop() error {
	p.cancel()
	return <-p.done
}

// ends waits until Run returns by itself, and not for ever, which fake time
// makes a busy loop.
func (p *process) ends() error {
	select {
	case err := <-p.done:
		return err
	case <-time.After(time.Minute):
		return errors.New("Run goes on")
	}
}

// balanced checks the sum that Stats promises.
func balanced(t *testing.T, s tumble.Stats) {
	t.Helper()
	require.Equal(t, s.Read, s.Counted+s.DroppedLate+s.Expired+s.Rejected+s.Skipped+s.Replayed+s.Pending, "books: %+v", s)
}

// at returns an event sec seconds after t0.
func at(sec float64, key string) tumble.Event {
	return tumble.Event{Key: key, Time: t0.Add(time.Duration(sec * float64(time.Second)))}
}

// several returns n events, out of order by up to a minute, of a few keys.
func several(rng *rand.Rand, n int, from float64) []tumble.Event {
	var events []tumble.Event
	for i := range n {
		events = append(events, at(from+float64(i)/10+60*rng.Float64(), fmt.Sprint("key-", rng.IntN(20))))
	}
	return events
}

func TestCountsWhatAPlainLoopCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 1))
		log := newTopic("a", "b")
		log.rng = rng
		log.add("a", several(rng, 5000, 0)...)
		log.add("b", several(rng, 3000, 0)...)
		sink := newStore(4)
		p := start(t, tumble.Config{Source: &logSource{topic: log, untilEnd: true}, Sink: sink})
		require.NoError(t, <-p.done)
		require.Equal(t, count(tumble.Window{Size: time.Minute}, log.parts["a"].events, log.parts["b"].events), sink.counts())
		s := p.Stats()
		balanced(t, s)
		require.EqualValues(t, 8000, s.Read)
		require.EqualValues(t, 8000, s.Counted)
		require.Zero(t, s.Increments)
		for i := range 4 {
			require.EqualValues(t, 5000, sink.stored(i, "a").Offset)
		}
	})
}

var (
	seeds   = flag.Uint64("seeds", 0, "how many seeds TestModel and TestSimulation run; 0: 100 and 200")
	oneSeed = flag.Int64("seed", -1, "the one seed that TestModel and TestSimulation run; -1: all")
)

// eachSeed runs a test for the seeds that were asked for.
func eachSeed(t *testing.T, n uint64, test func(t *testing.T, seed uint64)) {
	first := uint64(0)
	if *seeds > 0 {
		n = *seeds
	}
	if *oneSeed >= 0 {
		first, n = uint64(*oneSeed), uint64(*oneSeed)+1
	}
	for seed := first; seed < n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { test(t, seed) })
	}
}

func TestModel(t *testing.T) {
	eachSeed(t, 100, func(t *testing.T, seed uint64) {
		synctest.Test(t, func(t *testing.T) { model(t, seed) })
	})
}

// model lets processes count random logs while everything breaks, and compares
// what is in the store with a plain loop in the end.
func model(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	log := newTopic("a", "b", "c")
	log.rng = rand.New(rand.NewPCG(seed, 8))
	sink := newStore(1 + rng.IntN(5))
	window := tumble.Window{Size: time.Minute}
	faults := rand.New(rand.NewPCG(seed, 9))
	var down sync.Map
	breaking := func(shard int, b *tumble.Batch) fault {
		if until, ok := down.Load(shard); ok && time.Now().Before(until.(time.Time)) {
			return refused
		}
		switch faults.IntN(30) {
		case 0:
			return refused
		case 1:
			return lost
		case 2:
			return doubled
		}
		return fine
	}
	sink.setFault(breaking)
	cfg := func() tumble.Config {
		return tumble.Config{
			Source: &logSource{topic: log}, Sink: sink, Window: window,
			FlushInterval: time.Duration(1+rng.IntN(200)) * time.Millisecond,
			MaxPending:    1 + rng.IntN(500), ShutdownTimeout: time.Second,
		}
	}
	snapshots := map[int]*storeShard{}
	var running []*process
	var from float64
	for range 40 {
		switch action := rng.IntN(10); {
		case action < 4:
			for _, id := range []string{"a", "b", "c"} {
				events := several(rng, rng.IntN(300), from)
				log.change(id, func(p *logPart) {
					for len(events) > 0 { // records of one event, of some, of many
						n := min(len(events), []int{1, 1, 1, 5, 100}[rng.IntN(5)])
						p.append(events[:n]...)
						events = events[n:]
					}
				})
			}
			from += 20
		case action == 4 && len(running) < 3: // a first process, or a rival
			running = append(running, start(t, cfg()))
		case action == 5 && len(running) > 0: // stopped in the middle
			i := rng.IntN(len(running))
			require.NoError(t, running[i].stop())
			balanced(t, running[i].Stats())
			running = slices.Delete(running, i, i+1)
		case action == 6:
			down.Store(rng.IntN(len(sink.shards)), time.Now().Add(time.Duration(rng.IntN(20))*time.Second))
		case action == 7:
			i := rng.IntN(len(sink.shards))
			if old := snapshots[i]; old != nil {
				sink.restore(i, old)
			}
			snapshots[i] = sink.snapshot(i)
		case action == 8:
			sink.repeat()
		case action == 9 && rng.IntN(5) == 0: // all data lost
			for i := range sink.shards {
				sink.restore(i, newShard())
			}
		}
		time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
	}
	sink.setFault(nil)
	last := start(t, cfg())
	time.Sleep(3 * time.Minute)
	sink.repeat()
	require.NoError(t, last.stop())
	balanced(t, last.Stats())
	for _, p := range running {
		require.NoError(t, p.stop())
		balanced(t, p.Stats())
	}
	want := count(window, log.parts["a"].events, log.parts["b"].events, log.parts["c"].events)
	require.Equal(t, len(want), len(sink.counts()))
	require.Equal(t, want, sink.counts())
}
