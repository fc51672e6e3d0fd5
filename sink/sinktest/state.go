package sinktest

import (
	"fmt"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docMark       = "State returns what a shard's closed mark and floor, each perhaps none, mean for the window that ends at end."
	docOpenState  = "Open: events of the window may come that are on time."
	docClosed     = "Closed: no event that is yet to come is on time. Late ones may still be added."
	docFinalState = "Final: closed, and late events are dropped (DropLate)."
	docExpired    = "Expired: the window is past retention, and its counts may be gone."
	docClosedAt   = "ClosedAt returns the mark up to which a frontier closes windows, those that end at or before it: the start of the window that holds the instant Grace before the frontier."
	docPageState  = "Closed and Final if they hold in every shard, Expired if it does in some shard."
)

// states ends the check if minute 0 is not want by each of the four reads: of
// every shard's key, and of the page.
func (p *process) states(want tumble.State, when string) {
	p.c.settle()
	for i := range p.shards {
		key := p.keyOf(i)
		got, err := p.Count(p.c.ctx, key, t0)
		p.c.ok(err, "Count")
		if got.State != want || !got.Start.Equal(t0) || !got.End.Equal(minute(1)) {
			p.c.failf("%s: Count is %+v, want %v", when, got, want)
		}
		list, err := p.Range(p.c.ctx, key, t0, minute(1))
		p.c.ok(err, "Range")
		if got.N > 0 && got.State != tumble.Expired && len(list) != 1 {
			p.c.failf("%s: Range gave %+v, and Count %+v", when, list, got)
		}
		for _, got := range list {
			if got.State != want || !got.Start.Equal(t0) || !got.End.Equal(minute(1)) {
				p.c.failf("%s: Range gave %+v, want %v", when, got, want)
			}
		}
	}
	p.page(want, when)
}

// page ends the check if minute 0 is not want by Top and by Scan, whether they
// read all of it or a part.
func (p *process) page(want tumble.State, when string) {
	p.c.settle()
	at := t0.Add(time.Second)
	for name, read := range map[string]func() (tumble.Page, error){
		"Top":       func() (tumble.Page, error) { return p.Top(p.c.ctx, at, 1000) },
		"Top of 1":  func() (tumble.Page, error) { return p.Top(p.c.ctx, at, 1) },
		"Scan":      func() (tumble.Page, error) { return p.Scan(p.c.ctx, at, "", 1000) },
		"Scan of 1": func() (tumble.Page, error) { return p.Scan(p.c.ctx, at, "", 1) },
		"Scan's second page": func() (tumble.Page, error) {
			page, err := p.Scan(p.c.ctx, at, "", 1)
			if err == nil && page.Cursor != "" {
				page, err = p.Scan(p.c.ctx, at, page.Cursor, 1000)
			}
			return page, err
		},
	} {
		got, err := read()
		p.c.ok(err, "%s", name)
		if got.State != want || !got.Start.Equal(t0) || !got.End.Equal(minute(1)) {
			p.c.failf("%s: %s is %v in [%v, %v), want %v", when, name, got.State, got.Start, got.End, want)
		}
		for _, n := range got.Counts {
			if n.State != got.State || !n.Start.Equal(t0) || !n.End.Equal(minute(1)) {
				p.c.failf("%s: %s, which is %v, holds %+v", when, name, got.State, n)
			}
		}
	}
}

var stateRules = []Rule{
	rule("Reader/nothing registered is open", "Of no checkpoints there is none. "+docMark, func(c *check) {
		p := c.open(minutes)
		p.states(tumble.Open, "no partition is registered")
		p.register("clicks/0", first())
		p.states(tumble.Open, "the partition has no watermark")
	}),

	rule("Reader/open and closed", docMark+" "+docClosedAt+" "+docOpenState+" "+docClosed+" "+docOwnTerm, func(c *check) {
		def := minutes
		def.Grace = 10 * time.Second
		p := c.open(def)
		l := p.register("clicks/0", first())
		l.some()
		l.fill(1)
		p.states(tumble.Open, "there is no frontier")
		end := minute(1).Add(10 * time.Second)
		for _, mark := range []time.Time{minute(1), end.Add(-time.Millisecond), end.Add(-1)} {
			l.add(mark)
			p.states(tumble.Open, fmt.Sprintf("with the frontier at %v", mark))
		}
		for _, mark := range []time.Time{end, end.Add(1), minute(100)} {
			l.add(mark)
			p.states(tumble.Closed, fmt.Sprintf("with the frontier at %v", mark))
		}
		// Late ones may still be added.
		key := p.keyOf(0)
		was, err := p.Count(c.ctx, key, t0)
		c.ok(err, "Count")
		l.add(time.Time{}, tumble.Delta{Start: t0, Key: key, N: 5})
		p.counts(key, tumble.Delta{Start: t0, N: was.N + 5})
		p.states(tumble.Closed, "late ones were added")
	}),

	rule("Reader/final", docMark+" "+docFinalState, func(c *check) {
		p := c.open(dropping)
		l := p.register("clicks/0", first())
		l.some()
		l.fill(1)
		for _, mark := range []time.Time{{}, minute(0), minute(1).Add(-1)} {
			l.add(mark)
			p.states(tumble.Open, fmt.Sprintf("with the frontier at %v", mark))
		}
		for _, mark := range []time.Time{minute(1), minute(2), minute(1000)} {
			l.add(mark)
			p.states(tumble.Final, fmt.Sprintf("with the frontier at %v", mark))
		}
	}),

	rule("Reader/expired", docMark+" "+docExpired, func(c *check) {
		for i, def := range []tumble.Definition{keeping, keeping} {
			def.DropLate = i == 1
			p := c.under(i).open(def)
			l := p.register("clicks/0", first())
			l.some()
			l.fill(1)
			for _, mark := range []time.Time{minute(2).Add(-1), minute(2), minute(5).Add(-time.Millisecond), minute(5).Add(-1), minute(5), minute(9)} {
				l.add(mark)
				p.states(stateAt(def, mark, minute(1)), fmt.Sprintf("with the frontier at %v", mark))
			}
		}
	}),

	rule("Reader/closed where it was registered", docClosedAt+" "+docFrontier, func(c *check) {
		p := c.open(keeping)
		for i := range p.shards {
			p.load(i, one("clicks/0", tumble.Checkpoint{Log: "log-1", Watermark: minute(2)}))
		}
		p.states(tumble.Closed, "a partition has begun with a watermark")
	}),

	rule("Reader/closed without those that ended", docClosedAt+" "+docFrontier, func(c *check) {
		p := c.open(keeping)
		l := p.register("clicks/0", first())
		empty := p.register("clicks/1", first())
		l.fill(1)
		l.add(minute(3))
		p.kept(1, time.Time{}) // one has no watermark
		empty.end()            // and never got one
		p.kept(1, minute(3))
	}),

	rule("Reader/expired, then going on", docFloor+" "+docRevival, func(c *check) {
		p := c.open(keeping)
		l := p.register("clicks/0", first())
		l.fill(3)
		l.add(minute(6))
		l.end()
		p.kept(3, minute(6))
		// The next run of the source goes on at the frontier.
		l = l.settled(c.open(keeping))
		for i := range p.shards {
			l.apply(i, l.move(i, tumble.Checkpoint{Log: "log-2", Watermark: minute(6)}))
		}
		p.kept(3, minute(6))
		l.add(minute(7))
		p.kept(3, minute(7))
	}),

	rule("Reader/a page is closed in every shard", docPageState, func(c *check) {
		for last := range c.open(minutes).shards {
			for i, def := range []tumble.Definition{minutes, dropping} {
				p := c.under(last*2 + i).open(def)
				l := p.register("clicks/0", first())
				l.some()
				for i := range p.shards {
					if i != last {
						l.apply(i, l.batch(i, minute(1)))
					}
				}
				p.page(tumble.Open, fmt.Sprintf("all shards but %d have closed the window", last))
				l.apply(last, l.batch(last, minute(1)))
				p.page(stateAt(def, minute(1), minute(1)), "all shards have closed the window")
			}
		}
	}),

	rule("Reader/a page is expired in some shard", docPageState, func(c *check) {
		for one := range c.open(keeping).shards {
			p := c.under(one).open(keeping)
			l := p.register("clicks/0", first())
			l.some()
			// One of the others has not even closed it.
			for i := range p.shards {
				if i != (one+1)%len(p.shards) {
					l.apply(i, l.batch(i, minute(3)))
				}
			}
			if len(p.shards) > 1 {
				p.page(tumble.Open, "a shard has not closed the window")
			}
			l.apply(one, l.batch(one, minute(5)))
			p.page(tumble.Expired, fmt.Sprintf("shard %d has passed retention", one))
		}
	}),
}
