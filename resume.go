package tumble

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// To settle is to find out where a delivery's shard stands, and to go on from
// there: Load, then Resume, then adopt. A delivery settles at the start, after a
// conflict, after a loss in the store, and when its partition goes on after its
// end.

// settling says how far it concerns all deliveries at once.
type settling int

const (
	settleSome     settling = iota // each on its own, while reading goes on for the others
	settleFlushed                  // all before reading goes on. They flush first, because the events can't be read again
	settleDropping                 // all before reading goes on. They drop their lanes, because the log has lost the events
)

func (c *consumer) settleAll(how settling) {
	c.settling = how
	for _, d := range c.deliveries {
		d.unsettled = true
	}
}

// resume asks the source where deliveries are to go on.
func (c *consumer) resume(ctx context.Context, deliveries []*delivery) answer {
	a := answer{settled: deliveries}
	known := map[Checkpoint]Checkpoint{} // most stand at one place, and to ask may cost a request
	for _, d := range deliveries {
		stored := d.finding.stored
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
			if !wait.sleep(ctx, 0, nil) {
				return a
			}
		}
		known[stored] = to
		a.to = append(a.to, to)
	}
	a.err = nil
	return a
}

// adopt settles deliveries. Their lanes are dropped and go on from the stored
// checkpoint, or where the source says instead. Reading goes back to the lane that
// is furthest behind. All other lanes keep their batches and skip the events that
// they have seen.
func (c *consumer) adopt(a answer) {
	c.agg.keepPlaces()
	rival, overtaken, truncated := false, false, false
	var furthest int64 // that this process has stored
	for _, d := range c.deliveries {
		furthest = max(furthest, d.stored.Offset)
	}
	for i, d := range a.settled {
		rival = rival || d.rival
		// A shard with little to count may show the last flush of the process before us
		// only now. Overtaken is only who is found further than all that we have stored.
		overtaken = overtaken || d.rival && d.finding.stored.Offset >= furthest
		lost, err := c.settle(d, a.to[i])
		if err != nil {
			c.halt(err) // with it as it is found, and so never settled
			return
		}
		truncated = truncated || lost.counted
		c.lose(lost)
	}
	if truncated {
		// The other lanes may have read truncated records. They settle too.
		for _, d := range c.deliveries {
			d.unsettled = d.unsettled || !slices.Contains(a.settled, d)
		}
	}
	c.settling = settleSome
	c.over, c.agg.ended = nil, false
	was, log := c.log, c.agg.lanes[0].sealed.Log
	if slices.ContainsFunc(c.agg.lanes, func(ln *lane) bool { return ln.sealed.Log != log }) {
		// Offsets of two logs do not compare.
		c.settleAll(settleFlushed)
		return
	}
	if log != c.log {
		c.log, c.committed = log, -1
	}
	if log != was || truncated {
		c.agg.early = mark{} // the event that it was of may be gone
	}
	c.agg.rewind()
	c.arm()
	c.commit()
	if rival {
		c.rest(overtaken)
	}
}

// settle drops the lane of a delivery and places it at to, where the source says to
// go on from the stored checkpoint.
func (c *consumer) settle(d *delivery, to Checkpoint) (loss, error) {
	events, held := d.lane.drop(&c.agg.table)
	c.p.books.change(func(s *Stats) {
		s.Pending -= events
		s.Replayed += events
		held.take(s)
	})
	f := *d.finding
	step, m, lost, err := nextStep(f, to, d.revive)
	if err != nil {
		return lost, fmt.Errorf("tumble: resume %s@%v: %w", c.id, f.stored, err)
	}
	c.agg.place(d.lane, f.stored, step, Position{to.Offset, to.Epoch}, m, f.kept)
	d.phase, d.finding = idle, nil
	d.stored, d.writer = f.stored, newNumber()
	d.unsettled, d.rival, d.revive = false, false, false
	d.turns.Add(1)
	return lost, nil
}

// A loss is a stretch of a log that had to be given up.
type loss struct {
	log      string
	from, to int64
	counted  bool // the log was truncated: the counts of its records stay
}

// nextStep decides how a lane goes on, if the source answers to for the checkpoint
// that was found. step is the checkpoint to write before the first event is counted,
// and the stored one if none is needed. m is the watermark there.
func nextStep(f finding, to Checkpoint, revive bool) (step Checkpoint, m mark, lost loss, err error) {
	stored := f.stored
	m = later(markOf(stored.Watermark), markOf(to.Watermark))
	rebase := to.Log != stored.Log
	truncated := !rebase && to.Offset < stored.Offset && to.Origin <= to.Offset
	if stored.Ended && (revive || rebase) {
		// Nobody waited for it: windows may be closed that it had left open.
		m = later(m, markOf(f.frontier))
	}
	step = stored
	lost = loss{log: to.Log, from: stored.Offset, to: to.Offset}
	switch {
	case rebase:
		step = Checkpoint{Log: to.Log, Origin: to.Origin, Offset: to.Offset, Epoch: to.Epoch, Watermark: m.time()}
		lost.from = to.Origin
	case truncated:
		step.Origin, step.Offset, step.Epoch, step.Watermark = to.Origin, to.Offset, to.Epoch, m.time()
		lost = loss{fmt.Sprintf("%s, epoch %d", stored.Log, stored.Epoch), to.Offset, stored.Offset, true}
	case to.Origin != stored.Origin || to.Offset < stored.Offset:
		return step, m, loss{}, fmt.Errorf("the source answered %v, which begins elsewhere", to)
	case stored.Ended && revive:
		step.Ended, step.Watermark = false, m.time()
	}
	return step, m, lost, nil
}

// lose books and logs a loss.
func (c *consumer) lose(lost loss) {
	n := c.p.books.lose(c.id, lost)
	if n == 0 {
		return
	}
	message := "events were lost, they can no longer be read and are not counted"
	if lost.counted {
		message = "the log was truncated, events that it no longer holds stay counted"
	}
	c.p.cfg.Logger.Error(message, "partition", c.id, "from", lost.from, "to", lost.to, "events", n)
}

// revive is asked before reading moves on to next. Where the partition has ended before
// that, the delivery settles, so that it goes on no earlier than its shard's frontier. It
// reports whether there is one:
//
//	chunk beyond the end ▶ revive ▶ Load ▶ Resume ▶ nextStep: Ended off, watermark at the frontier
//	                     ▶ place: an empty parcel ▶ Apply ▶ Fetch again
func (c *consumer) revive(next int64) (any bool) {
	for _, d := range c.deliveries {
		at := c.agg.pos
		if d.lane.ahead {
			at = d.lane.next.Offset
		}
		if d.lane.sealed.Ended && at < next && d.phase != gone {
			d.revive, d.unsettled, any = true, true, true
		}
	}
	return any
}

// reviving reports whether a shard has yet to take back that the partition has
// ended there. Reading waits for that, so that the frontier has little time to
// pass the revival.
func (c *consumer) reviving() bool {
	return slices.ContainsFunc(c.deliveries, func(d *delivery) bool {
		if queue := d.lane.queue; len(queue) > 0 && queue[0].From.Ended && !queue[0].To.Ended {
			return d.phase != gone
		}
		return d.revive && d.phase != gone
	})
}
