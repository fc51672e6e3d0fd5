package sinktest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble"
)

const docHeld = "A count that it calls Closed or Final held all events that were on time when it was read, also if the store fell back to an earlier state, and counted again, while it was being read."

// snapshot notes the contents of the store.
func (c *check) snapshot() (restore func(context.Context) error) {
	restore, err := c.cfg.Snapshot(c.ctx, c.name)
	c.ok(err, "Config.Snapshot")
	return restore
}

// fall makes the store fall back.
func (c *check) fall(restore func(context.Context) error) {
	c.ok(restore(c.ctx), "restore, of Config.Snapshot")
}

// reread returns a rule that a window which is final again, after the store
// fell back, has another term. heal counts n of key again, as another writer,
// and closes minute 1.
func reread(name string, heal func(l *lanes, shard int, key string, n int64)) Rule {
	return falling(rule("Apply/"+name, docSoTwo+" "+docDraws+" "+docCountTerm, func(c *check) {
		p := c.open(dropping)
		l := p.register("clicks/0", first())
		l.add(minute(1)) // there is a term before the fall back
		restore := c.snapshot()
		for i := range p.shards {
			key := p.keyOf(i)
			finals := make(map[uint64]int64)
			look := func(want int64) {
				p.c.settle()
				got, err := p.Count(c.ctx, key, minute(1))
				c.ok(err, "Count")
				if got.State != tumble.Final || got.N != want {
					c.failf("a window that was closed with %d holds %d and is %v", want, got.N, got.State)
				}
				if n, ok := finals[got.Term]; ok && n != got.N {
					c.failf("under the term %x a window was final with %d, and after the store fell back with %d", got.Term, n, got.N)
				}
				finals[got.Term] = got.N
			}
			same := l.settled(p)
			same.writer = l.writer
			same.apply(i, same.batch(i, minute(2), tumble.Delta{Start: minute(1), Key: key, N: 100}))
			look(100)
			// Again and again from the same state: a term that is counted up would
			// come to the same number.
			for n := range int64(3) {
				c.fall(restore)
				c.settle()
				got, err := p.Count(c.ctx, key, minute(1))
				c.ok(err, "Count")
				if got.State != tumble.Open || got.N != 0 {
					c.failf("after the store fell back to an empty open window it holds %d and is %v", got.N, got.State)
				}
				heal(l.settled(p), i, key, n+1)
				look(n + 1)
			}
			c.fall(restore)
		}
	}))
}

// finalRead reads minute 1 and tells how many of key it holds, by which term,
// if it is final.
type finalRead func(ctx context.Context, p *process, key string) (n int64, term uint64, final bool, err error)

// throughFalls reads minute 1 with read while a writer fills it and makes it
// final, and the store falls back in which it is filled again, with another
// sum each time. A final count must be a whole sum, and the same one under the
// same term.
func throughFalls(name string, read finalRead) Rule {
	return falling(rule("Reader/"+name, docHeld+" "+docCountTerm, func(c *check) {
		p, q := c.open(dropping), c.open(dropping)
		l := p.register("clicks/0", first())
		l.add(minute(1))
		restore := c.snapshot()
		r := reader{finals: make(map[uint64]int64), done: make(chan struct{})}
		written := make(chan struct{})
		err := together(2, func(i int) error {
			if i == 1 {
				defer close(r.done)
				return r.run(c.ctx, q, p.keyOf(0), read, written)
			}
			defer close(written)
			for life := range 2 * raceRounds {
				if err := l.settled(p).live(life, p.keyOf(0)); err != nil {
					return err
				}
				time.Sleep(c.cfg.Settle)
				r.interrupt()
				if err := restore(c.ctx); err != nil {
					return fmt.Errorf("restore, of Config.Snapshot: %w", err)
				}
			}
			return nil
		})
		c.ok(err, "reading while the store falls back and counts again")
		if len(r.finals) == 0 {
			c.failf("a window that was final %d times was never read as final", 2*raceRounds)
		}
	}))
}

// reader reads a window again and again.
type reader struct {
	finals map[uint64]int64 // by term
	reads  atomic.Int64     // that have ended
	took   atomic.Int64     // nanoseconds, of the last one
	done   chan struct{}    // closed when there are no more
}

// run reads until written is closed.
func (r *reader) run(ctx context.Context, p *process, key string, read finalRead, written <-chan struct{}) error {
	for {
		begun := time.Now()
		n, term, final, err := read(ctx, p, key)
		if err != nil {
			return err
		}
		r.took.Store(int64(time.Since(begun)))
		r.reads.Add(1)
		if final {
			if n < whole || n >= whole+2*raceRounds {
				return fmt.Errorf("a window was called final with a count of %d; it had at least %d whenever it was final", n, whole)
			}
			if other, ok := r.finals[term]; ok && other != n {
				return fmt.Errorf("under the term %x a window was final with %d and with %d", term, other, n)
			}
			r.finals[term] = n
		}
		select {
		case <-written:
			return nil
		default:
		}
	}
}

// interrupt returns in the middle of a read, at a random point, after one that
// began and ended since it was called.
func (r *reader) interrupt() {
	for want := r.reads.Load() + 2; r.reads.Load() < want; {
		select {
		case <-r.done:
			return
		default:
			runtime.Gosched()
		}
	}
	// Shorter than the system's timers can sleep.
	for end := time.Now().Add(time.Duration(rand.Int64N(1 + r.took.Load()))); time.Now().Before(end); {
		runtime.Gosched()
	}
}

// whole is less than the sum of each life, and more than a part of one.
const whole = 1000

// live fills minute 1 with whole + life events of key, in parts, and closes it:
// with the last part, or after it.
func (l *lanes) live(life int, key string) error {
	parts := []int64{whole / 2, 1, whole/2 + int64(life) - 1, 0}
	for step, n := range parts {
		closes := step+1 == len(parts)-life%2
		for shard := range l.shards {
			if closes { // the shard that has the key is the first to count, and the last to close
				shard = len(l.shards) - 1 - shard
			}
			b := l.batch(shard, time.Time{})
			if shard == 0 && n > 0 {
				b.Deltas = []tumble.Delta{{Start: minute(1), Key: key, N: n}}
			}
			if closes {
				b.To.Watermark = minute(2)
			}
			if err := l.shards[shard].Apply(l.c.ctx, b); err != nil {
				return fmt.Errorf("apply after the store fell back: %w", err)
			}
			l.at[shard] = b.To
		}
	}
	return nil
}

var fallRules = []Rule{
	reread("final again at once", func(l *lanes, shard int, key string, n int64) {
		l.apply(shard, l.batch(shard, minute(2), tumble.Delta{Start: minute(1), Key: key, N: n}))
	}),

	reread("final again later", func(l *lanes, shard int, key string, n int64) {
		l.apply(shard, l.batch(shard, time.Time{}, tumble.Delta{Start: minute(1), Key: key, N: n}))
		l.apply(shard, l.batch(shard, minute(1).Add(time.Second)))
		l.apply(shard, l.batch(shard, minute(2)))
	}),

	throughFalls("final count through a fall back", func(ctx context.Context, p *process, key string) (int64, uint64, bool, error) {
		got, err := p.Count(ctx, key, minute(1))
		return got.N, got.Term, got.State == tumble.Final, err
	}),

	throughFalls("final range through a fall back", func(ctx context.Context, p *process, key string) (int64, uint64, bool, error) {
		got, err := p.Range(ctx, key, minute(1), minute(2))
		if err != nil || len(got) == 0 {
			return 0, 0, false, err
		}
		return got[0].N, got[0].Term, got[0].State == tumble.Final, nil
	}),

	throughFalls("final top through a fall back", func(ctx context.Context, p *process, key string) (int64, uint64, bool, error) {
		got, err := p.Top(ctx, minute(1), 10)
		return sum(got, key), got.Term, got.State == tumble.Final, err
	}),

	throughFalls("final scan through a fall back", func(ctx context.Context, p *process, key string) (int64, uint64, bool, error) {
		got, err := p.Scan(ctx, minute(1), "", 10)
		return sum(got, key), got.Term, got.State == tumble.Final, err
	}),
}
