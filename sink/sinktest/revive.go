package sinktest

import (
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docRevival = "A To that has not Ended, from a From that has, is a revival, without Deltas."
	docPassed  = "A revival whose To.Watermark is before the frontier, or none where there is one, changes nothing and wraps ErrPassed."
)

// revived returns the ended checkpoint c as it goes on with a watermark.
func revived(c tumble.Checkpoint, watermark time.Time) tumble.Checkpoint {
	c.Ended, c.Watermark = false, watermark
	return c
}

// ended registers a partition that has ended at a watermark.
func (p *process) ended(partition string, watermark time.Time) *lanes {
	return p.register(partition, tumble.Checkpoint{Log: "log-1", Origin: 3, Offset: 9, Watermark: watermark, Ended: true})
}

var revivalRules = []Rule{
	rule("Apply/revival behind the frontier", docPassed, func(c *check) {
		p := c.open(minutes)
		l := p.ended("clicks/0", minute(2))
		p.register("clicks/1", tumble.Checkpoint{Log: "log-1", Watermark: minute(5)})
		for i := range p.shards {
			for _, mark := range []time.Time{{}, minute(2), minute(5).Add(-time.Millisecond), minute(5).Add(-1)} {
				l.refused(i, l.move(i, revived(l.at[i], mark)), tumble.ErrPassed)
				// Another log, too: it is a rebase and a revival.
				l.refused(i, l.move(i, tumble.Checkpoint{Log: "log-2", Watermark: mark}), tumble.ErrPassed)
			}
		}
	}),

	rule("Apply/revival at the frontier", docRevival+" "+docPassed, func(c *check) {
		p := c.open(minutes)
		alive := p.register("clicks/3", first()) // none is raised, while it has no watermark
		at, beyond, other := p.ended("clicks/0", minute(2)), p.ended("clicks/1", time.Time{}), p.ended("clicks/2", minute(9))
		alive.add(minute(5))
		for i := range p.shards {
			at.apply(i, at.move(i, revived(at.at[i], minute(5))))
			beyond.apply(i, beyond.move(i, revived(beyond.at[i], minute(6).Add(1))))
			other.apply(i, other.move(i, tumble.Checkpoint{Log: "log-2", Offset: 2, Watermark: minute(9)}))
			p.stored(i, map[string]tumble.Checkpoint{
				"clicks/0": at.at[i], "clicks/1": beyond.at[i], "clicks/2": other.at[i], "clicks/3": alive.at[i],
			}, "revivals at the frontier and beyond it")
		}
		at.add(minute(5), tumble.Delta{Start: minute(5), Key: "a", N: 3})
		p.counts("a", tumble.Delta{Start: minute(5), N: 3})
	}),

	rule("Apply/revival of the last", docPassed+" "+docFrontier, func(c *check) {
		p := c.open(minutes)
		last, before := p.ended("clicks/0", minute(2).Add(30*time.Second)), p.ended("clicks/1", minute(1))
		for i := range p.shards {
			before.refused(i, before.move(i, revived(before.at[i], minute(1))), tumble.ErrPassed)
			last.apply(i, last.move(i, revived(last.at[i], last.at[i].Watermark)))
			before.apply(i, before.move(i, revived(before.at[i], minute(3))))
		}
	}),

	rule("Apply/revival without a frontier", docPassed+" "+docFrontier, func(c *check) {
		p := c.open(minutes)
		alive := p.register("clicks/3", first()) // it has no watermark
		none, some, old := p.ended("clicks/0", time.Time{}), p.ended("clicks/1", minute(2)), p.ended("clicks/2", minute(9))
		for i := range p.shards {
			none.apply(i, none.move(i, revived(none.at[i], time.Time{})))
			some.apply(i, some.move(i, revived(some.at[i], minute(1))))
			old.apply(i, old.move(i, tumble.Checkpoint{Log: "log-2"}))
			p.stored(i, map[string]tumble.Checkpoint{
				"clicks/0": none.at[i], "clicks/1": some.at[i], "clicks/2": old.at[i], "clicks/3": alive.at[i],
			}, "revivals without a frontier")
		}
	}),
}
