package simulation

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// readers read counts of closed windows as a Reader with a cache does: a look
// at the marks, the count, another look, while the store may fall back and count
// again in between. The world remembers all that they were told is final.
type readers struct {
	w    *world
	wg   sync.WaitGroup
	stop chan struct{}

	mu     sync.Mutex
	finals map[finalCell]int64
	reads  readTally
}

// A finalCell is what a final count was read of.
type finalCell struct {
	faketest.Cell
	term uint64
}

// readTally are how many reads were final, and how many were not because the
// second look found another term, or the window open again.
type readTally struct{ final, fallen int64 }

func (w *world) read() *readers {
	r := &readers{w: w, stop: make(chan struct{}), finals: map[finalCell]int64{}}
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

func (r *readers) end() {
	close(r.stop)
	r.wg.Wait()
	for f, n := range r.finals {
		shard := int(tumble.Hash(f.Key) % uint64(r.w.shards))
		_, end := r.w.def.Levels()[f.Level].Window.Bounds(time.Unix(0, f.Start))
		marks, now := r.w.sink.Look(shard, f.Cell)
		if marks.Term == f.term && marks.Final(f.Level, end) && now != n {
			r.w.fail("%d were read of %s in window %v, final in term %x, in the end it holds %d", n, f.Key, time.Unix(0, f.Start).UTC(), f.term, now)
		}
	}
}

func (r *readers) once(rng *rand.Rand) {
	pause := func() {
		if rng.IntN(2) == 0 {
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
		}
	}
	level := rng.IntN(1 + len(r.w.def.Rollups))
	start, end := r.w.def.Levels()[level].Window.Bounds(time.Now().Add(-time.Duration(rng.IntN(60)) * time.Second))
	c := faketest.Cell{Start: start.UnixNano(), Key: fmt.Sprint("k", rng.IntN(12)), Level: level}
	shard := int(tumble.Hash(c.Key) % uint64(r.w.shards))
	before, _ := r.w.sink.Look(shard, c)
	if !before.Final(level, end) {
		return
	}
	pause()
	_, n := r.w.sink.Look(shard, c)
	pause()
	after, _ := r.w.sink.Look(shard, c)
	r.mu.Lock()
	defer r.mu.Unlock()
	if after.Term != before.Term || !after.Final(level, end) {
		r.reads.fallen++
		return
	}
	r.reads.final++
	f := finalCell{c, after.Term}
	if had, ok := r.finals[f]; ok && had != n {
		r.w.fail("%d were read of %s in window %v, final in term %x, and later %d", had, c.Key, start, f.term, n)
	}
	r.finals[f] = n
}
