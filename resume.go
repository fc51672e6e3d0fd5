package tumble

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// resume asks the source where lanes are to go on.
func (c *consumer) resume(ctx context.Context, lanes []*lane) answer {
	a := answer{lanes: lanes}
	known := map[Checkpoint]Checkpoint{} // lanes mostly stand at one place, and to ask may cost a request
	for _, ln := range lanes {
		stored := ln.found.stored
		stored.Watermark = stored.Watermark.UTC()
		to, ok := known[stored]
		for wait := (backoff{}); !ok; {
			var err error
			if to, err = c.part.Resume(ctx, stored); err == nil {
				break
			}
			a.err = fmt.Errorf("tumble: resume %s@%d: %w", c.id, stored.Offset, err)
			if !errors.Is(err, ErrUnavailable) || ctx.Err() != nil {
				return a
			}
			c.trouble(-1, a.err)
			c.p.books.change(func(s *Stats) { s.Retries++ })
			if !wait.sleep(ctx, nil) {
				return a
			}
		}
		known[stored] = to
		a.to = append(a.to, to)
	}
	a.err = nil
	c.trouble(-1, nil)
	return a
}

func (c *consumer) settleAll() {
	c.all = true
	for _, ln := range c.lanes {
		ln.reload = true
	}
}

// adopt settles lanes: they drop what they hold and go on from what is stored,
// or where the source says instead, and reading goes back to the lane that is
// furthest behind. The other lanes keep theirs.
func (c *consumer) adopt(ctx context.Context, a answer) {
	for _, ln := range c.lanes {
		if !ln.ahead {
			ln.ahead, ln.next, ln.mark = true, c.pos, c.wm
		}
	}
	var rival, again bool
	for i, ln := range a.lanes {
		found, to := ln.found, a.to[i]
		rival = rival || ln.rival
		ln.found, ln.rival, ln.reload = nil, false, false
		events, increments := ln.drop(&c.table)
		c.p.books.change(func(s *Stats) {
			s.Pending -= events
			s.Replayed += events
			s.Increments -= int64(increments)
		})
		if to.Log != found.stored.Log && found.stored.Ended {
			// Counts as missing: the new log begins at the frontier, which
			// only the shard can know for sure.
			c.start(ln, func() outcome { return c.load(ctx, ln, &to) })
			again = true
			continue
		}
		from, err := c.place(ln, found, to)
		if err != nil {
			ln.lost = true // it stands nowhere
			c.halt(err)
			return
		}
		if n := c.p.books.lose(c.id, to.Log, from, to.Offset); n > 0 {
			c.p.cfg.Logger.Error("events can no longer be read and were not counted", "partition", c.id, "from", from, "to", to.Offset, "at most", n)
		}
	}
	for _, ln := range c.lanes {
		again = again || ln.sealed.Log != c.lanes[0].sealed.Log
	}
	c.all = false
	c.over, c.ended = nil, false
	if again {
		// Offsets of two logs do not compare.
		c.settleAll()
		return
	}
	if log := c.lanes[0].sealed.Log; log != c.log {
		c.log, c.committed = log, -1
	}
	c.rewind()
	c.arm()
	c.commit()
	if rival {
		c.rest()
	}
}

// rest gives way to another process that counts this partition.
func (c *consumer) rest() {
	c.conflicts++
	if c.conflicts < 2 {
		return
	}
	if c.conflicts == 2 {
		c.p.cfg.Logger.Warn("another process counts this partition too: counts stay exact, but both are slowed down", "partition", c.id)
	}
	wait := min(rivalWait<<min(c.conflicts-2, 10), maxWait)
	c.restAt = time.Now().Add(wait/2 + rand.N(wait/2))
}
