package tumble

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
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

// settleAll settles every lane before reading goes on. Unless they are to
// discard what they hold, it is flushed first.
func (c *consumer) settleAll(discard bool) {
	c.all, c.discard = true, discard
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
			ln.ahead, ln.next, ln.mark = true, Position{c.pos, c.epoch}, c.wm
		}
	}
	var rival, again, truncated bool
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
		gone, err := c.place(ln, found, to)
		if err != nil {
			ln.lost = true // it stands nowhere
			c.halt(err)
			return
		}
		truncated = truncated || gone.counted
		if n := c.p.books.lose(c.id, gone); n > 0 {
			message := "events can no longer be read and were not counted"
			if gone.counted {
				message = "the log was truncated: events that it no longer holds were counted, and stay so"
			}
			c.p.cfg.Logger.Error(message, "partition", c.id, "from", gone.from, "to", gone.to, "at most", n)
		}
	}
	if truncated {
		c.truncate(a.lanes)
	}
	for _, ln := range c.lanes {
		again = again || ln.sealed.Log != c.lanes[0].sealed.Log
	}
	c.all, c.discard = false, false
	c.over, c.ended = nil, false
	if again {
		// Offsets of two logs do not compare.
		c.settleAll(false)
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

// truncate has the lanes that were not settled drop what they hold, and settle:
// they may have read what was truncated.
func (c *consumer) truncate(settled []*lane) {
	for _, ln := range c.lanes {
		if !slices.Contains(settled, ln) {
			ln.reload = true
		}
	}
}

// revive has the lanes settle that have ended before next, to which reading
// could move on, so that they go on no earlier than their shards' frontiers. It
// reports whether there are any.
func (c *consumer) revive(next int64) (any bool) {
	for _, ln := range c.lanes {
		at := c.pos
		if ln.ahead {
			at = ln.next.Offset
		}
		if ln.sealed.Ended && at < next && !ln.lost {
			ln.revive, ln.reload, any = true, true, true
		}
	}
	return any
}

// reviving reports whether a shard has yet to take back that the partition has
// ended there. As long as reading waits for that, the frontier has little time to
// pass the revival.
func (c *consumer) reviving() bool {
	return slices.ContainsFunc(c.lanes, func(ln *lane) bool {
		return !ln.lost && (ln.revive || len(ln.queue) > 0 && ln.queue[0].From.Ended && !ln.queue[0].To.Ended)
	})
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
