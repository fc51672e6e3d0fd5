package sinktest

import (
	"fmt"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

// keeping counts per minute with a grace of 1 minute and a retention of 3.
var keeping = tumble.Definition{Window: tumble.Window{Size: time.Minute}, Grace: time.Minute, Retention: 3 * time.Minute}

// fill adds to each of the first n minutes a count of every shard's key.
func (l *lanes) fill(n int) {
	for w := range n {
		for i := range l.shards {
			l.apply(i, l.batch(i, time.Time{}, tumble.Delta{Start: minute(w), Key: l.keyOf(i), N: int64(w + 1)}))
		}
	}
}

// stateAt returns the state that a frontier which has only moved on gives to the window
// that ends at end.
func stateAt(def tumble.Definition, frontier, end time.Time) tumble.State {
	closed := def.ClosedAt(frontier)
	return def.State(closed, def.FloorAt(closed), end)
}

// kept ends the check if the first n minutes are not what frontier, every
// shard's, makes of them. A window past retention may still be counted.
func (p *process) kept(n int, frontier time.Time) {
	p.c.settle()
	for w := range n {
		want := stateAt(p.def, frontier, minute(w+1))
		for i := range p.shards {
			key := p.keyOf(i)
			p.c.soon(func() error {
				got, err := p.Count(p.c.ctx, key, minute(w))
				switch {
				case err != nil:
					return fmt.Errorf("Count(%q, minute %d): %w", key, w, err)
				case got.State != want:
					return fmt.Errorf("with the frontier at %v minute %d is %v, want %v", frontier, w, got.State, want)
				case want != tumble.Expired && got.N != int64(w+1):
					return fmt.Errorf("with the frontier at %v minute %d holds %d, want %d", frontier, w, got.N, w+1)
				}
				return nil
			})
		}
	}
}

const (
	docForget  = "It may forget windows at or before their level's floor: those that end Retention before the closed mark, by the retention in force."
	docGone    = "Deltas of such windows are not counted."
	docFloor   = "The floor of a level never falls: windows of that level that end at or before it are past retention."
	docAsked   = "It notes the Retention of each level of the definition that the shard was opened with as asked for at this moment of the store's clock: in force is the longest that was asked for within the last minute."
	docLately  = "Retentions holds, by level, the longest that was asked for within the last half minute."
	docStays   = "It stays in force for as long again, so that what a process counts by it now is not past retention by the time it is stored."
	docInForce = "Its Retention is the one in force."
	docFor     = "in event time, after the window has closed. 0 keeps counts for ever."
)

// floor ends the check if a shard does not tell these floors, by level.
func (p *process) floor(want time.Time, when string) { p.floors(when, want) }

func (p *process) floors(when string, want ...time.Time) {
	for i := range p.shards {
		if got := p.ask(i, tumble.LoadRequest{}).Floors; !slices.EqualFunc(got, want, time.Time.Equal) {
			p.c.failf("%s: shard %d tells the floors %v, want %v", when, i, got, want)
		}
	}
}

// inForce ends the check if Definition does not tell this retention.
func (p *process) inForce(want time.Duration, when string) {
	p.c.soon(func() error {
		switch got, err := p.Definition(p.c.ctx); {
		case err != nil:
			return fmt.Errorf("read the definition: %w", err)
		case got.Retention != want || !got.Same(p.def):
			return fmt.Errorf("%s: the definition is %v, want a retention of %v", when, got, want)
		}
		return nil
	})
}

// tellsRetentions ends the check if a Load of these shards by a process does not tell
// these retentions, by level.
func (p *process) tellsRetentions(when string, want ...time.Duration) {
	for i := range p.shards {
		if got := p.ask(i, tumble.LoadRequest{}).Retentions; !slices.Equal(got, want) {
			p.c.failf("%s: shard %d tells the retentions %v, want %v", when, i, got, want)
		}
	}
}

// asking returns keeping with another retention.
func asking(retention time.Duration) tumble.Definition {
	def := keeping
	def.Retention = retention
	return def
}

var retentionRules = []Rule{
	rule("Apply/keeps what is within retention", docForget, func(c *check) {
		p := c.open(keeping)
		l := p.register("clicks/0", first())
		l.fill(8)
		p.kept(8, time.Time{})
		for _, mark := range []time.Time{
			minute(0), minute(2).Add(-1), minute(2), minute(3), minute(5).Add(-1), minute(5), minute(6).Add(-1), minute(6), minute(8),
		} {
			l.add(mark)
			p.kept(8, mark)
			c.open(keeping).kept(8, mark)
		}
	}),

	rule("Apply/forgets by the frontier only", docForget+" "+docFrontier, func(c *check) {
		p := c.open(keeping)
		ahead := p.register("clicks/0", first())
		behind := p.register("clicks/1", first())
		ahead.fill(8)
		ahead.add(minute(100))
		p.kept(8, time.Time{}) // one has no watermark: no frontier
		behind.add(minute(4))
		p.kept(8, minute(4))
		ahead.add(minute(101))
		p.kept(8, minute(4))
		behind.add(minute(6))
		p.kept(8, minute(6))
		behind.end()
		p.kept(8, minute(101))
	}),

	rule("Apply/forgets by a shard's own frontier", docForget+" "+docAlone, func(c *check) {
		p := c.open(keeping)
		l := p.register("clicks/0", first())
		l.fill(3)
		for i := 1; i < len(p.shards); i++ { // shard 0 stays behind
			l.apply(i, l.batch(i, minute(100)))
		}
		c.settle()
		p.counts(p.keyOf(0), tumble.Delta{Start: minute(0), N: 1}, tumble.Delta{Start: minute(2), N: 3})
	}),

	rule("Apply/keeps for ever", docFor, func(c *check) {
		def := keeping
		def.Retention = 0
		p := c.open(def)
		l := p.register("clicks/0", first())
		l.fill(3)
		far := time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)
		l.add(far)
		p.kept(3, far)
	}),

	rule("Apply/keeps what ends with the source", docForget+" "+docFrontier, func(c *check) {
		p := c.open(keeping)
		l := p.register("clicks/0", first())
		l.fill(5)
		mark := minute(4).Add(30 * time.Second)
		l.add(mark)
		p.kept(5, mark)
		l.end()
		p.kept(5, mark)
	}),

	rule("Apply/floor", docForget+" "+docState, func(c *check) {
		p := c.open(keeping)
		p.floor(time.Time{}, "nothing is registered")
		l := p.register("clicks/0", first())
		p.floor(time.Time{}, "there is no frontier")
		for _, mark := range []time.Time{minute(2), minute(6).Add(-1), minute(6), minute(9).Add(time.Second)} {
			l.add(mark)
			p.floor(keeping.FloorAt(keeping.ClosedAt(mark)), fmt.Sprintf("with the frontier at %v", mark))
		}
		q := c.under(1).open(asking(0))
		q.register("clicks/0", first()).add(minute(100))
		q.floor(time.Time{}, "counts are kept for ever")
	}),

	rule("Apply/the floor never falls", docFloor+" "+docAsked, func(c *check) {
		p := c.open(keeping)
		l := p.register("clicks/0", first())
		l.fill(8)
		l.add(minute(7))
		floor := keeping.FloorAt(keeping.ClosedAt(minute(7)))
		p.floor(floor, "3 minutes are kept")
		for _, retention := range []time.Duration{time.Hour, 0} {
			q := c.open(asking(retention))
			q.floor(floor, fmt.Sprintf("somebody wants to keep %v", retention))
			l.add(minute(8))
			q.floor(floor, fmt.Sprintf("somebody wants to keep %v and the frontier has moved on", retention))
		}
		c.settle()
		for i := range p.shards {
			for w := range 8 {
				got, err := p.Count(c.ctx, p.keyOf(i), minute(w))
				c.ok(err, "Count")
				if expired := !minute(w + 1).After(floor); (got.State == tumble.Expired) != expired || !expired && got.N != int64(w+1) {
					c.failf("with the floor at %v minute %d is %v and holds %d", floor, w, got.State, got.N)
				}
			}
		}
	}),

	rule("Apply/past retention is not counted", docGone, func(c *check) {
		p := c.open(keeping)
		l := p.register("clicks/0", first())
		l.fill(4)
		l.add(minute(6)) // the floor is the end of minute 1
		c.settle()
		for i := range p.shards {
			key := p.keyOf(i)
			was := make([]int64, 4)
			for w := range was {
				got, err := p.Count(c.ctx, key, minute(w))
				c.ok(err, "Count")
				was[w] = got.N
			}
			l.apply(i, l.batch(i, time.Time{},
				tumble.Delta{Start: minute(1), Key: key, N: 100}, tumble.Delta{Start: minute(2), Key: key, N: 100},
				tumble.Delta{Start: minute(0), Key: key, N: 100}, tumble.Delta{Start: minute(3), Key: key, N: 100}))
			p.counts(key, tumble.Delta{Start: minute(2), N: was[2] + 100}, tumble.Delta{Start: minute(3), N: was[3] + 100})
			for w := range 2 {
				got, err := p.Count(c.ctx, key, minute(w))
				c.ok(err, "Count")
				// It may have been forgotten in the meantime.
				if got.N > was[w] || got.State != tumble.Expired {
					c.failf("minute %d, past retention, held %d, and holds %d and is %v after a batch for it", w, was[w], got.N, got.State)
				}
			}
		}
	}),

	rule("Load/the longest retention is in force", docAsked+" "+docInForce, func(c *check) {
		p, q := c.open(keeping), c.open(asking(10*time.Minute))
		l := p.register("clicks/0", first())
		l.fill(8)
		q.loadAll()
		q.inForce(10*time.Minute, "one process asked for 3 minutes, then one for 10")
		p.loadAll()
		p.inForce(10*time.Minute, "a process has asked for 3 minutes again")
		l.add(minute(8))
		q.kept(8, minute(8))
		l.add(minute(13)) // now the first minute is too old for both
		q.kept(8, minute(13))
		r := c.open(asking(0))
		r.loadAll()
		p.loadAll()
		p.inForce(0, "a process has asked to keep all")
		l.add(minute(50))
		floor := q.def.FloorAt(q.def.ClosedAt(minute(13)))
		p.floor(floor, "counts were kept for 10 minutes, and then for ever")
		for w := range 8 {
			got, err := p.Count(c.ctx, p.keyOf(0), minute(w))
			c.ok(err, "Count")
			if expired := !minute(w + 1).After(floor); !expired && (got.N != int64(w+1) || got.State == tumble.Expired) {
				c.failf("minute %d, which is kept for ever, is %v and holds %d", w, got.State, got.N)
			}
		}
	}),

	rule("Load/tells the retentions", docLately+" "+docStays, func(c *check) {
		p := c.open(keeping)
		p.tellsRetentions("one process asked for 3 minutes", 3*time.Minute)
		q := c.open(asking(10 * time.Minute))
		q.tellsRetentions("another one asked for 10", 10*time.Minute)
		p.tellsRetentions("the first one asked again", 10*time.Minute)
		c.open(asking(time.Minute)).tellsRetentions("a third one asked for 1", 10*time.Minute)
		c.open(asking(0)).tellsRetentions("a fourth one asked for all", 0)
		p.tellsRetentions("the first one asked once more", 0)
	}),

	rule("Apply/days before 1970 within retention", docForget+" "+docBounds, func(c *check) {
		zone, err := time.LoadLocation("Europe/Berlin")
		c.ok(err, "time.LoadLocation")
		def := tumble.Definition{Window: tumble.Window{Calendar: tumble.Day, Zone: zone}, Retention: 48 * time.Hour}
		day := func(d int) time.Time { return time.Date(1945, 4, d, 0, 0, 0, 0, zone) }
		p := c.open(def)
		l := p.register("clicks/0", first())
		for d := 1; d <= 6; d++ { // clocks went forward on the 2nd
			l.add(time.Time{}, tumble.Delta{Start: day(d), Key: "a", N: int64(d)})
		}
		for d := 2; d <= 7; d++ {
			for _, mark := range []time.Time{day(d).Add(-1), day(d)} {
				l.add(mark)
				c.settle()
				for w := 1; w <= 6; w++ {
					want := stateAt(def, mark, day(w+1))
					got, err := p.Count(c.ctx, "a", day(w))
					c.ok(err, "Count(a, %v)", day(w))
					if got.State != want || want != tumble.Expired && got.N != int64(w) {
						c.failf("with the frontier at %v the day %v is %+v, want %d, %v", mark, day(w), got, w, want)
					}
				}
			}
		}
	}),
}
