package sinktest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docSafe    = "It is safe for concurrent use."
	docWhole   = "What it does not call Expired had not been deleted."
	docReader  = "A Reader reads what a sink holds. It is safe for concurrent use."
	rivals     = 8
	raceRounds = 25
)

// together runs f(0) to f(n-1) at the same time and returns their errors.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var start, done sync.WaitGroup
	start.Add(1)
	for i := range n {
		done.Go(func() {
			start.Wait()
			errs[i] = f(i)
		})
	}
	start.Done()
	done.Wait()
	return errors.Join(errs...)
}

var raceRules = []Rule{
	rule("Apply/one of many wins", docConflict+" "+docSafe, func(c *check) {
		var processes [rivals]*process
		for i := range processes {
			processes[i] = c.open(minutes)
		}
		l := processes[0].register("clicks/0", first())
		key, total := processes[0].keyOf(0), int64(0)
		for range raceRounds {
			var won atomic.Int64 // the sum of 1 << winner
			err := together(rivals, func(i int) error {
				b := l.batch(0, time.Time{}, tumble.Delta{Start: t0, Key: key, N: 1 << i})
				b.To.Offset += int64(i)
				switch err := processes[i].shards[0].Apply(c.ctx, b); {
				case err == nil:
					won.Add(1 << i)
				case !errors.Is(err, tumble.ErrConflict):
					return fmt.Errorf("process %d: %w", i, err)
				}
				return nil
			})
			c.ok(err, "%d processes at once", rivals)
			winner := -1
			for i := range rivals {
				if won.Load() == 1<<i {
					winner = i
				}
			}
			if winner < 0 {
				c.failf("of %d batches from one checkpoint those applied were %b, want exactly one", rivals, won.Load())
			}
			l.at[0].Offset += 1 + int64(winner)
			total += 1 << winner
			processes[0].stored(0, one("clicks/0", l.at[0]), "a race")
			processes[0].counts(key, tumble.Delta{Start: t0, N: total})
		}
	}),

	rule("Load/one of many wins", docLoad+" "+docSafe, func(c *check) {
		var processes [rivals]*process
		for i := range processes {
			processes[i] = c.open(minutes)
		}
		for round := range raceRounds {
			a, b := fmt.Sprintf("clicks/%d-a", round), fmt.Sprintf("clicks/%d-b", round)
			var got [rivals]map[string]tumble.Checkpoint
			err := together(rivals, func(i int) error {
				init := tumble.Checkpoint{Log: fmt.Sprint("log-", i)}
				state, err := processes[i].shards[0].Load(c.ctx, tumble.LoadRequest{Init: map[string]tumble.Checkpoint{a: init, b: init}})
				got[i] = state.Checkpoints
				return err
			})
			c.ok(err, "%d Loads at once", rivals)
			for i := range got {
				if !got[i][a].Same(got[0][a]) || !got[i][b].Same(got[0][a]) || got[i][a].Log == "" {
					c.failf("%d Loads at once, each of one log for two partitions, returned %v and %v", rivals, got[0], got[i])
				}
			}
		}
	}),

	rule("Apply/all partitions at once", docSafe, func(c *check) {
		p := c.open(minutes)
		var all [rivals]*lanes
		for i := range all {
			all[i] = p.register(fmt.Sprint("clicks/", i), first())
		}
		key := p.keyOf(0)
		err := together(rivals, func(i int) error {
			for range raceRounds {
				b := all[i].batch(0, time.Time{}, tumble.Delta{Start: t0, Key: key, N: 1}, tumble.Delta{Start: minute(1 + i), Key: key, N: 1})
				if err := p.shards[0].Apply(c.ctx, b); err != nil {
					return fmt.Errorf("partition %d: %w", i, err)
				}
				all[i].at[0] = b.To
				if _, err := p.Count(c.ctx, key, t0); err != nil {
					return err
				}
			}
			return nil
		})
		c.ok(err, "%d partitions at once", rivals)
		p.counts(key, tumble.Delta{Start: t0, N: rivals * raceRounds})
		for i := range all {
			p.counts(key, tumble.Delta{Start: minute(1 + i), N: raceRounds})
		}
	}),

	rule("Apply/both at once", docApply, func(c *check) {
		p, q := c.open(minutes), c.open(minutes)
		l := p.register("clicks/0", first())
		key := p.keyOf(0)
		done := make(chan struct{})
		err := together(2, func(i int) error {
			if i == 0 {
				defer close(done)
				for range 4 * raceRounds {
					b := l.batch(0, time.Time{}, tumble.Delta{Start: t0, Key: key, N: 1})
					if err := p.shards[0].Apply(c.ctx, b); err != nil {
						return err
					}
					l.at[0] = b.To
				}
				return nil
			}
			for {
				before, err := q.shards[0].Load(c.ctx, tumble.LoadRequest{})
				if err != nil {
					return err
				}
				n, err := q.Count(c.ctx, key, t0)
				if err != nil {
					return err
				}
				after, err := q.shards[0].Load(c.ctx, tumble.LoadRequest{})
				if err != nil {
					return err
				}
				low, high := before.Checkpoints["clicks/0"].Offset, after.Checkpoints["clicks/0"].Offset
				if n.N > high || n.N < low && c.cfg.Settle == 0 {
					return fmt.Errorf("with each offset came one count, but %d were counted between offset %d and offset %d", n.N, low, high)
				}
				select {
				case <-done:
					return nil
				default:
				}
			}
		})
		c.ok(err, "reading during Apply")
	}),

	rule("Apply/interrupted", docApply+" "+docUnknown, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		key := p.keyOf(0)
		const rounds = 60
		for i := range rounds {
			b := l.batch(0, time.Time{}, tumble.Delta{Start: t0, Key: key, N: 1}, tumble.Delta{Start: minute(1), Key: key, N: 2})
			ctx, cancel := context.WithTimeout(c.ctx, time.Duration(rand.Int64N(int64(time.Millisecond))))
			if i%4 == 0 {
				cancel()
			}
			err := p.shards[0].Apply(ctx, b)
			cancel()
			if err != nil {
				if errors.Is(err, tumble.ErrConflict) {
					c.failf("Apply whose context ended, of a batch that fits, wraps ErrConflict: %w", err)
				}
				if err := p.shards[0].Apply(c.ctx, b); err != nil && !errors.Is(err, tumble.ErrConflict) {
					c.failf("the identical batch, sent again after %v: %w", err, err)
				}
			}
			p.stored(0, one("clicks/0", b.To), "a batch that was interrupted and sent again")
			l.at[0] = b.To
		}
		c.settle()
		p.counts(key, tumble.Delta{Start: t0, N: rounds}, tumble.Delta{Start: minute(1), N: 2 * rounds})
	}),

	rule("Reader/final has all its counts", docHeld+" "+docWhole, func(c *check) {
		c.whileMoving(func(p *process, key string) (int64, tumble.State, error) {
			got, err := p.Count(c.ctx, key, t0)
			return got.N, got.State, err
		})
	}),

	rule("Reader/final range has all its counts", docHeld+" "+docWhole, func(c *check) {
		c.whileMoving(func(p *process, key string) (int64, tumble.State, error) {
			got, err := p.Range(c.ctx, key, t0, minute(1))
			if err != nil || len(got) == 0 {
				// A window that has no count is not told of, nor whether it is final.
				return 0, tumble.Expired, err
			}
			return got[0].N, got[0].State, err
		})
	}),

	rule("Reader/final top has all its counts", docHeld+" "+docWhole, func(c *check) {
		c.whileMoving(func(p *process, key string) (int64, tumble.State, error) {
			got, err := p.Top(c.ctx, t0, 10)
			return sum(got, key), got.State, err
		})
	}),

	rule("Reader/final scan has all its counts", docHeld+" "+docWhole, func(c *check) {
		c.whileMoving(func(p *process, key string) (int64, tumble.State, error) {
			got, err := p.Scan(c.ctx, t0, "", 10)
			return sum(got, key), got.State, err
		})
	}),

	rule("Reader/many at once", docReader, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		want := l.some()
		c.settle()
		q := c.open(minutes)
		err := together(rivals, func(i int) error {
			for range raceRounds {
				for key, n := range want {
					if got, err := q.Count(c.ctx, key, t0); err != nil || got.N != n {
						return fmt.Errorf("Count(%q) is %d, want %d, error %w", key, got.N, n, err)
					}
					break // whichever comes first
				}
				page, err := q.Top(c.ctx, t0, 1000)
				if err != nil || len(page.Counts) != len(want) {
					return fmt.Errorf("top gave %d counts, want %d, error %w", len(page.Counts), len(want), err)
				}
				if page, err = q.Scan(c.ctx, t0, "", 1000); err != nil {
					return err
				}
				for _, n := range page.Counts {
					if n.N != want[n.Key] {
						return fmt.Errorf("scan gave %d of %q, want %d", n.N, n.Key, want[n.Key])
					}
				}
			}
			return nil
		})
		c.ok(err, "%d readers at once", rivals)
	}),
}

func sum(page tumble.Page, key string) (n int64) {
	for _, c := range page.Counts {
		if c.Key == key {
			n += c.N
		}
	}
	return n
}

// whileMoving reads a window with read while a writer fills it, makes it final
// with the last count, and moves it past retention, again and again under new
// names. A read that says final, or does not say expired once all was
// counted, must see all counts.
func (c *check) whileMoving(read func(p *process, key string) (n int64, state tumble.State, err error)) {
	for round := range raceRounds {
		c := c.under(round)
		def := keeping
		def.DropLate = true
		p, q := c.open(def), c.open(def)
		l := p.register("clicks/0", first())
		key := p.keyOf(0)
		var counted atomic.Bool
		done := make(chan struct{})
		err := together(2, func(i int) error {
			if i == 0 {
				defer close(done)
				for step := range 6 {
					for shard := range p.shards {
						if step < 5 {
							// Shard 0, which has the key, comes last with what makes
							// it final and first with what makes it expired.
							shard = len(p.shards) - 1 - shard
						}
						b := l.batch(shard, time.Time{})
						if step < 4 && shard == 0 {
							b.Deltas = []tumble.Delta{{Start: t0, Key: key, N: 1}}
						}
						switch step {
						case 3: // the last count makes the window final
							b.To.Watermark = minute(2)
						case 5:
							b.To.Watermark = minute(5)
						}
						if err := p.shards[shard].Apply(c.ctx, b); err != nil {
							return err
						}
						l.at[shard] = b.To
					}
					if step == 3 {
						time.Sleep(c.cfg.Settle)
						counted.Store(true)
					}
				}
				return nil
			}
			for {
				all := counted.Load()
				n, state, err := read(q, key)
				switch {
				case err != nil:
					return err
				case state == tumble.Closed:
					return errors.New("a window that drops late events was called closed, not final")
				case state == tumble.Final && n != 4:
					return fmt.Errorf("a window was called final with a count of %d; it had 4 before it was final", n)
				case all && state != tumble.Expired && n != 4:
					return fmt.Errorf("a window was not called expired, with a count of %d; it had 4 before that, and until it was expired", n)
				}
				select {
				case <-done:
					return nil
				default:
				}
			}
		})
		c.ok(err, "reading while counting goes on")
	}
}
