package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// A tape is a log in memory that outlives whoever reads it. Event times follow
// the clock, out of order and now and then late.
type tape struct {
	def  tumble.Definition
	keys []string

	mu    sync.Mutex
	rand  *rand.Rand
	reels map[string]*reel
	cells map[cell]bound
}

// A reel is one partition.
type reel struct {
	id     string
	steady bool // never silent for its readers, and never ended
	rate   int  // events a second, while it talks

	events []tumble.Event
	top    int64 // largest event time, in milliseconds
	silent bool  // since fell
	fell   time.Time
	quiet  time.Time     // it is silent before
	turn   time.Time     // it falls silent after
	grown  chan struct{} // closed when events come
}

// A cell is one key in the window that starts at start, in milliseconds.
type cell struct {
	start int64
	key   int32 // index of tape.keys
}

// A bound is what a plain loop knows of a final count. The watermark of a steady
// partition depends on its events alone, so these are on time or not, whoever
// judges. What promises and ends do to the others is not decidable.
type bound struct{ least, most int32 }

func newTape(def tumble.Definition, keys int, seed uint64) *tape {
	t := &tape{def: def, rand: rand.New(rand.NewPCG(seed, 11)), reels: map[string]*reel{}, cells: map[cell]bound{}}
	for i := range keys {
		t.keys = append(t.keys, fmt.Sprintf("user_%d", i))
	}
	return t
}

// add adds an empty partition.
func (t *tape) add(id string, steady bool, rate int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reels[id] = &reel{id: id, steady: steady, rate: rate, top: noMark, grown: make(chan struct{})}
}

// run writes events until ctx ends.
func (t *tape) run(ctx context.Context) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		t.mu.Lock()
		for _, id := range slices.Sorted(maps.Keys(t.reels)) {
			t.write(t.reels[id], now, min(now.Sub(last), 100*time.Millisecond))
		}
		t.mu.Unlock()
		last = now
	}
}

// write adds what came to one partition since the last time. t.mu is held.
func (t *tape) write(r *reel, now time.Time, since time.Duration) {
	if !r.steady && now.After(r.turn) {
		// Longer than Idle, so that its watermark follows the clock by promises.
		r.fell, r.silent = now, true
		r.quiet = now.Add(time.Duration(300+t.rand.IntN(1500)) * time.Millisecond)
		r.turn = r.quiet.Add(time.Duration(300+t.rand.IntN(2500)) * time.Millisecond)
	}
	if now.Before(r.quiet) {
		return
	}
	n := float64(r.rate) * since.Seconds()
	count := int(n)
	if t.rand.Float64() < n-float64(count) {
		count++
	}
	if r.silent {
		// As of a producer that was offline and kept its events. Those before the
		// promises of the silence are late, unless they are counted again after
		// a loss: then nobody waits, and nothing is promised.
		for at := r.fell.UnixMilli(); at < now.UnixMilli(); at += 15 {
			t.event(r, at, false)
		}
		r.silent = false
	}
	size := t.def.Window.Size.Milliseconds()
	for range count {
		behind := t.rand.ExpFloat64() * float64(size) / 3
		late := t.rand.IntN(25) == 0
		if late {
			behind += float64(size) * (1 + 6*t.rand.Float64())
		}
		t.event(r, now.UnixMilli()-int64(behind), late)
	}
	close(r.grown)
	r.grown = make(chan struct{})
}

// burst adds late events of many keys to the windows that have closed in the last
// second.
func (t *tape) burst() {
	t.mu.Lock()
	defer t.mu.Unlock()
	size := t.def.Window.Size.Milliseconds()
	for _, id := range slices.Sorted(maps.Keys(t.reels)) {
		r := t.reels[id]
		if !r.steady {
			continue
		}
		for n := range int64(10) {
			for range len(t.keys) / 2 {
				t.event(r, r.top-(n+2)*size, true)
			}
		}
	}
}

// event adds an event of that time. Windows differ in how many keys they have, and
// so in how they are stored; late events may be of any. t.mu is held.
func (t *tape) event(r *reel, at int64, late bool) {
	size := t.def.Window.Size.Milliseconds()
	start := at - at%size
	keys := len(t.keys)
	if (start/size%4 == 0 || !t.def.DropLate) && !late {
		keys /= 6
	}
	u := t.rand.Float64()
	if !late {
		u *= u
	}
	key := int32(u * float64(keys))
	r.events = append(r.events, tumble.Event{Key: t.keys[key], Time: time.UnixMilli(at), Offset: int64(len(r.events))})
	b := t.cells[cell{start, key}]
	b.most++
	if r.steady && r.top < start+size+t.def.Grace.Milliseconds() {
		b.least++
	}
	t.cells[cell{start, key}] = b
	r.top = max(r.top, at)
}

// bounds returns what a plain loop knows of a count.
func (t *tape) bounds(cells []cell) []bound {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]bound, len(cells))
	for i, c := range cells {
		all[i] = t.cells[c]
	}
	return all
}

// fetch returns some events from an offset on, and what is closed when there are
// more.
func (t *tape) fetch(id string, from int64, most int) (events []tumble.Event, end int64, steady bool, grown <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.reels[id]
	end = int64(len(r.events))
	return r.events[min(from, end):min(from+int64(most), end)], end, r.steady, r.grown
}

// A tapeSource is what one writer reads: some partitions of a tape, of which
// it holds some at a time.
type tapeSource struct {
	tape *tape

	mu      sync.Mutex
	lists   map[string]bool // all that it knows
	holds   map[string]bool
	changed chan struct{} // closed when holds change
}

func newTapeSource(t *tape) *tapeSource {
	return &tapeSource{tape: t, lists: map[string]bool{}, holds: map[string]bool{}, changed: make(chan struct{})}
}

// assign has the source hold these partitions and know them all.
func (s *tapeSource) assign(all, holds []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists, s.holds = map[string]bool{}, map[string]bool{}
	for _, id := range all {
		s.lists[id] = true
	}
	for _, id := range holds {
		s.holds[id] = true
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *tapeSource) held() (map[string]bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.holds), s.changed
}

// Partitions lists what the source knows; see tumble.Source.
func (s *tapeSource) Partitions(context.Context, map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]tumble.Checkpoint{}
	for id := range s.lists {
		all[id] = tumble.Checkpoint{Log: "tape"}
	}
	return all, nil
}

// Run consumes what the source holds, as that changes; see tumble.Source.
func (s *tapeSource) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type run struct {
		stop context.CancelFunc
		done chan struct{}
	}
	running := map[string]run{}
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	for ctx.Err() == nil {
		holds, changed := s.held()
		for id, r := range running {
			if !holds[id] {
				r.stop()
				<-r.done
				delete(running, id)
			}
		}
		for id := range holds {
			if _, ok := running[id]; ok {
				continue
			}
			one, stop := context.WithCancel(ctx)
			r := run{stop, make(chan struct{})}
			running[id] = r
			wg.Go(func() {
				defer close(r.done)
				defer stop()
				if err := consume(one, &tapePartition{s.tape, id}); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					cancel()
				}
			})
		}
		select {
		case <-ctx.Done():
		case <-changed:
		}
	}
	wg.Wait()
	return failed
}

type tapePartition struct {
	tape *tape
	id   string
}

func (p *tapePartition) ID() string { return p.id }

// Resume goes on where the counts are: a tape keeps everything.
func (p *tapePartition) Resume(_ context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	return stored, nil
}

// Fetch returns up to 500 events; see tumble.Partition. Who reads a steady
// partition is never told that it has caught up, so that nothing is promised.
func (p *tapePartition) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	asOf := time.Now()
	events, end, steady, grown := p.tape.fetch(p.id, from.Offset, 500)
	if len(events) == 0 {
		wait := time.NewTimer(50 * time.Millisecond)
		defer wait.Stop()
		select {
		case <-ctx.Done():
			return tumble.Chunk{}, ctx.Err()
		case <-grown:
		case <-wait.C:
		}
		asOf = time.Now()
		events, end, _, _ = p.tape.fetch(p.id, from.Offset, 500)
	}
	if steady {
		end = -1
	}
	return tumble.Chunk{Events: events, Next: from.Offset + int64(len(events)), End: end, AsOf: asOf}, nil
}
