package sinktest

import (
	"fmt"
	"math"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docApply    = "Apply adds b.Deltas and b.Rollups to the counts and moves the partition's checkpoint from b.From to b.To, doing both or neither."
	docConflict = "If the stored checkpoint is not the Same as b.From, or none is stored, it changes nothing and wraps ErrConflict."
	docUnknown  = "After any other error the outcome is unknown, and the identical batch is sent again with another Writer; ErrDefinition and ErrOverflow are fatal."
	docSame     = "Same reports whether c and d are the same checkpoint in every field; times are compared as instants."
)

// conflicts is a rule that Apply refuses a batch that is From a checkpoint
// which is stored with one field changed.
func conflicts(field string, stored tumble.Checkpoint, others ...tumble.Checkpoint) Rule {
	return rule("Apply/conflict in "+field, docConflict+" "+docSame, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", stored)
		for i := range p.shards {
			key := p.keyOf(i)
			for _, from := range others {
				b := l.batch(i, time.Time{}, tumble.Delta{Start: t0, Key: key, N: 1})
				b.From = from
				c.wraps(p.shards[i].Apply(c.ctx, b), tumble.ErrConflict, "Apply from %v where %v is stored", from, stored)
			}
			c.settle()
			p.stored(i, one("clicks/0", l.at[i]), "conflicts")
			p.counts(key, tumble.Delta{Start: t0})
			l.apply(i, l.batch(i, time.Time{}, tumble.Delta{Start: t0, Key: key, N: 1}))
			p.counts(key, tumble.Delta{Start: t0, N: 1})
		}
	})
}

// at is a checkpoint that has every field but Ended, big enough to show what a
// store loses that keeps numbers in floating point.
var at = tumble.Checkpoint{Log: "log-1", Origin: 1<<53 + 1, Offset: 1<<60 + 1, Epoch: 1<<31 - 1, Watermark: t0.Add(123456789)}

func with(change func(c *tumble.Checkpoint)) tumble.Checkpoint {
	c := at
	change(&c)
	return c
}

func marked(times ...time.Time) []tumble.Checkpoint {
	var all []tumble.Checkpoint
	for _, t := range times {
		all = append(all, with(func(c *tumble.Checkpoint) { c.Watermark = t }))
	}
	return all
}

var checkpointRules = []Rule{
	conflicts("Log", at,
		with(func(c *tumble.Checkpoint) { c.Log = "log-2" }),
		with(func(c *tumble.Checkpoint) { c.Log = "LOG-1" }),
		with(func(c *tumble.Checkpoint) { c.Log = "log-1 " }),
		with(func(c *tumble.Checkpoint) { c.Log = "" })),
	conflicts("Origin", at,
		with(func(c *tumble.Checkpoint) { c.Origin-- }),
		with(func(c *tumble.Checkpoint) { c.Origin++ }),
		with(func(c *tumble.Checkpoint) { c.Origin = 0 })),
	conflicts("Offset", at,
		with(func(c *tumble.Checkpoint) { c.Offset-- }),
		with(func(c *tumble.Checkpoint) { c.Offset++ }),
		with(func(c *tumble.Checkpoint) { c.Offset = 0 })),
	conflicts("Epoch", at,
		with(func(c *tumble.Checkpoint) { c.Epoch-- }),
		with(func(c *tumble.Checkpoint) { c.Epoch = 0 }),
		with(func(c *tumble.Checkpoint) { c.Epoch = -1 })),
	conflicts("Epoch: none, asked for unknown", with(func(c *tumble.Checkpoint) { c.Epoch = 0 }), with(func(c *tumble.Checkpoint) { c.Epoch = -1 })),
	conflicts("Watermark", at, marked(
		at.Watermark.Add(1), at.Watermark.Add(-1), at.Watermark.Truncate(time.Microsecond), at.Watermark.Truncate(time.Second))...),
	conflicts("Watermark: there, asked for none", at, marked(time.Time{})...),
	conflicts("Watermark: none, asked for one", marked(time.Time{})[0], marked(
		time.Unix(0, 0), time.Unix(0, -1), time.Unix(0, math.MinInt64), time.Time{}.Add(1))...),
	conflicts("Watermark: the epoch, asked for none", marked(time.Unix(0, 0))[0], marked(time.Time{})...),
	conflicts("Ended", at, with(func(c *tumble.Checkpoint) { c.Ended = true })),
	conflicts("Ended: so, asked for not", with(func(c *tumble.Checkpoint) { c.Ended = true }), at),

	rule("Apply/the same instant", docSame, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", tumble.Checkpoint{Log: "log-1", Watermark: t0.In(time.FixedZone("here", 3600))})
		for i := range p.shards {
			l.at[i].Watermark = t0.In(time.FixedZone("there", -7200))
			l.apply(i, l.batch(i, time.Time{}))
		}
	}),

	rule("Apply/conflict with none", docConflict, func(c *check) {
		p := c.open(minutes)
		p.register("clicks/0", first())
		l := &lanes{p, "clicks/1", newWriter(), make([]tumble.Checkpoint, len(p.shards))}
		for i := range p.shards {
			for _, from := range []tumble.Checkpoint{{}, first()} {
				l.at[i] = from
				b := l.batch(i, time.Time{}, tumble.Delta{Start: t0, Key: p.keyOf(i), N: 1})
				c.wraps(p.shards[i].Apply(c.ctx, b), tumble.ErrConflict, "Apply from %v where none is stored", from)
			}
			c.settle()
			p.stored(i, one("clicks/0", first()), "a conflict with none")
			p.counts(p.keyOf(i), tumble.Delta{Start: t0})
		}
	}),

	rule("Apply/the identical batch again", docConflict+" "+docUnknown, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		for i := range p.shards {
			key := p.keyOf(i)
			b := l.batch(i, t0, tumble.Delta{Start: t0, Key: key, N: 5})
			l.apply(i, b)
			for range 2 {
				c.wraps(c.open(minutes).shards[i].Apply(c.ctx, b), tumble.ErrConflict, "Apply of a batch that was applied")
				b.Writer = newWriter() // as after an outcome that is unknown
			}
			c.settle()
			p.counts(key, tumble.Delta{Start: t0, N: 5})
			p.stored(i, one("clicks/0", b.To), "the identical batch came again")
		}
	}),

	rule("Apply/moves the whole checkpoint", docApply, func(c *check) {
		p := c.open(minutes)
		now := tumble.Checkpoint{Log: "log-1"}
		l := p.register("clicks/0", now)
		for n, to := range []tumble.Checkpoint{
			{Log: "log-1", Offset: 5},
			{Log: "log-1", Offset: 5, Epoch: -1},
			{Log: "log-1", Offset: 1<<53 + 1, Epoch: 7},
			{Log: "log-1", Offset: 1<<53 + 1, Epoch: 1<<31 - 1},
			{Log: "log-1", Offset: math.MaxInt64},
			{Log: "log-2", Origin: 1<<53 + 1, Offset: 1<<53 + 1},
			{Log: "log-2", Origin: 1<<53 + 1, Offset: 1<<53 + 3, Watermark: time.Date(1701, 1, 1, 0, 0, 0, 1, time.UTC)},
			{Log: "log-2", Origin: 1<<53 + 1, Offset: 1<<53 + 3, Watermark: time.Unix(0, -1)},
			{Log: "log-2", Origin: 1<<53 + 1, Offset: 1<<53 + 3, Watermark: time.Unix(0, 0)},
			{Log: "log-2", Origin: 1<<53 + 1, Offset: 1<<53 + 3, Watermark: time.Unix(0, 1)},
			{Log: "log-2", Origin: 1<<53 + 1, Offset: 1<<53 + 3, Watermark: t0.Add(999999999)},
			{Log: "log-2", Origin: 1<<53 + 1, Offset: 1<<53 + 3, Watermark: time.Date(2199, 12, 31, 23, 59, 59, 999999999, time.UTC)},
			{Log: "log-2", Origin: 1<<53 + 1, Offset: 1<<53 + 3, Watermark: time.Date(2199, 12, 31, 23, 59, 59, 999999999, time.UTC), Ended: true},
		} {
			for i := range p.shards {
				l.apply(i, l.move(i, to))
				p.stored(i, one("clicks/0", to), fmt.Sprintf("move %d, from %v", n, now))
			}
			now = to
		}
		c.open(minutes).stored(0, one("clicks/0", now), "another process opened it")
	}),
}
