package tumble_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// simReaders read counts of closed windows as a Reader with a cache does: a look
// at the marks, the count, another look, while the store may fall back and count
// again in between. The world remembers all that they were told is final.
type simReaders struct {
	w    *world
	wg   sync.WaitGroup
	stop chan struct{}

	mu     sync.Mutex
	finals map[simFinal]int64
	reads  simReads
}

// A simFinal is what a final count was read of.
type simFinal struct {
	cell
	term uint64
}

// simReads are how many reads were final, and how many were not because the
// second look found another term, or the window open again.
type simReads struct{ final, fallen int64 }

func (w *world) read() *simReaders {
	r := &simReaders{w: w, stop: make(chan struct{}), finals: map[simFinal]int64{}}
	if !w.def.DropLate { // nothing is final
		return r
	}
	for i := range 3 {
		rng := rand.New(rand.NewPCG(w.seed, uint64(1000+i)))
		r.wg.Go(func() {
			for {
				select {
				case <-r.stop:
					return
				case <-time.After(time.Duration(rng.IntN(400)) * time.Millisecond):
					r.once(rng)
				}
			}
		})
	}
	return r
}

func (r *simReaders) end() {
	close(r.stop)
	r.wg.Wait()
	for f, n := range r.finals {
		shard := int(tumble.Hash(f.key) % uint64(r.w.shards))
		_, end := r.w.def.Window.Bounds(time.Unix(0, f.window))
		marks, now := r.w.sink.look(shard, f.cell)
		if marks.term == f.term && marks.final(end) && now != n {
			r.w.fail("%d were read of %s in window %v, final in term %x, in the end it holds %d", n, f.key, time.Unix(0, f.window).UTC(), f.term, now)
		}
	}
}

func (r *simReaders) once(rng *rand.Rand) {
	pause := func() {
		if rng.IntN(2) == 0 {
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
		}
	}
	start, end := r.w.def.Window.Bounds(time.Now().Add(-time.Duration(rng.IntN(60)) * time.Second))
	c := cell{start.UnixNano(), fmt.Sprint("k", rng.IntN(12))}
	shard := int(tumble.Hash(c.key) % uint64(r.w.shards))
	before, _ := r.w.sink.look(shard, c)
	if !before.final(end) {
		return
	}
	pause()
	_, n := r.w.sink.look(shard, c)
	pause()
	after, _ := r.w.sink.look(shard, c)
	r.mu.Lock()
	defer r.mu.Unlock()
	if after.term != before.term || !after.final(end) {
		r.reads.fallen++
		return
	}
	r.reads.final++
	f := simFinal{c, after.term}
	if had, ok := r.finals[f]; ok && had != n {
		r.w.fail("%d were read of %s in window %v, final in term %x, and later %d", had, c.key, start, f.term, n)
	}
	r.finals[f] = n
}

// simMarks are what a look at a shard finds.
type simMarks struct {
	closed, floor time.Time
	term          uint64
}

func (m simMarks) final(end time.Time) bool {
	return !m.closed.IsZero() && !end.After(m.closed) && end.After(m.floor)
}

// look returns a shard's marks and one of its counts.
func (s *store) look(shard int, c cell) (simMarks, int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sh := s.shards[shard]
	return simMarks{sh.closed, sh.floor, sh.term}, sh.counts[c]
}

// endPartition has somebody end a partition whose process is not there, or so he
// thinks.
func (w *world) endPartition(id string) {
	w.ended[id] = true
	delete(w.first, id) // so it is judged by the frontier when it goes on
	w.ends.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := tumble.EndPartition(ctx, definedSink{w.sink, nil}, id); err == nil {
			w.mu.Lock()
			w.endings++
			w.mu.Unlock()
		}
	})
}

// A definedSink is a store that tells its definition.
type definedSink struct {
	*store
	tumble.Reader
}

func (s definedSink) Definition(context.Context) (tumble.Definition, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.def == (tumble.Definition{}) {
		return s.def, tumble.ErrNoDefinition
	}
	return s.def, nil
}
