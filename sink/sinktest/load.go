package sinktest

import (
	"maps"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docShard      = "A Shard holds a part of the counts and, for every partition, the checkpoint that they reach to."
	docAlone      = "It commits alone."
	docLoad       = "Load stores, in one step, those of r.Init that are missing, their Watermark raised to the shard's frontier (see [Frontier]) as it was before the call, and returns the shard's state after that."
	docReplaces   = "It replaces nothing."
	docInit       = "Init holds checkpoints by partition, for the partitions of which the shard knows nothing."
	docAsks       = "A LoadRequest says what a Load brings. The zero value only asks."
	docState      = "A ShardState is what Load finds."
	docDefined    = "Counts of different definitions must not be added up, so a sink stores it and refuses another."
	docLoadDefine = "It also writes the definition where it is missing and wraps ErrDefinition where it differs."
	docFrontier   = "Frontier returns the frontier of a shard that holds these checkpoints: the smallest watermark of its partitions that have not Ended, none (the zero time) if one of them has none. If all have ended it is the largest watermark. Of no checkpoints there is none."
)

var loadRules = []Rule{
	rule("Load/stores what is missing", docLoad, func(c *check) {
		p := c.open(minutes)
		for i := range p.shards {
			if got := p.load(i, nil); len(got) != 0 {
				c.failf("Load of a shard of a new store returned %v", got)
			}
			want := map[string]tumble.Checkpoint{
				"clicks/0": {Log: "log-1", Origin: 7, Offset: 9},
				"clicks/1": {Log: "log-2", Origin: 3, Offset: 3, Watermark: t0.Add(1)},
			}
			if got := p.load(i, maps.Clone(want)); !maps.EqualFunc(got, want, tumble.Checkpoint.Same) {
				c.failf("Load of %v returned %v", want, got)
			}
			want["clicks/2"] = tumble.Checkpoint{Log: "log-1", Offset: 5}
			if got := p.load(i, one("clicks/2", want["clicks/2"])); !maps.EqualFunc(got, want, tumble.Checkpoint.Same) {
				c.failf("Load of one more returned %v, want %v", got, want)
			}
			c.open(minutes).stored(i, want, "Load of two and of one more")
		}
	}),

	rule("Load/keeps what is stored", docReplaces+" "+docInit, func(c *check) {
		p := c.open(minutes)
		have := tumble.Checkpoint{Log: "log-1", Origin: 7, Offset: 9, Watermark: t0}
		p.register("clicks/0", have)
		for _, init := range []tumble.Checkpoint{
			{Log: "log-1", Origin: 0, Offset: 100, Watermark: minute(1)},
			{Log: "log-2", Origin: 1, Offset: 2},
			{Log: "log-2", Ended: true},
			{},
		} {
			if got := p.load(0, one("clicks/0", init)); !got["clicks/0"].Same(have) {
				c.failf("Load of %v where %v is stored returned %v", init, have, got)
			}
		}
		c.open(minutes).stored(0, one("clicks/0", have), "Loads of others")
	}),

	rule("Load/raised to the frontier", docLoad+" "+docFrontier, func(c *check) {
		p := c.open(minutes)
		mark := t0.Add(30*time.Second + 1)
		p.load(0, map[string]tumble.Checkpoint{
			"clicks/0": {Log: "l", Watermark: mark},
			"clicks/1": {Log: "l", Watermark: mark.Add(1)},
		})
		got := p.load(0, map[string]tumble.Checkpoint{
			"clicks/2": {Log: "l", Offset: 4},
			"clicks/3": {Log: "l", Watermark: mark.Add(-1)},
			"clicks/4": {Log: "l", Watermark: mark.Add(2)},
		})
		for partition, want := range map[string]time.Time{
			"clicks/0": mark, "clicks/1": mark.Add(1), "clicks/2": mark, "clicks/3": mark, "clicks/4": mark.Add(2),
		} {
			if !got[partition].Watermark.Equal(want) {
				c.failf("%s has %v, want watermark %v: the frontier was %v", partition, got[partition], want, mark)
			}
		}
		c.open(minutes).stored(0, got, "Load of partitions that join")
	}),

	rule("Load/frontier before the call", docLoad+" "+docFrontier, func(c *check) {
		p := c.open(minutes)
		want := map[string]tumble.Checkpoint{
			"clicks/0": {Log: "l", Watermark: minute(9)},
			"clicks/1": {Log: "l", Watermark: minute(3)},
			"clicks/2": {Log: "l"},
		}
		if got := p.load(0, maps.Clone(want)); !maps.EqualFunc(got, want, tumble.Checkpoint.Same) {
			c.failf("Load of %v into an empty shard returned %v", want, got)
		}
		// One has no watermark, so there is no frontier.
		want["clicks/3"] = tumble.Checkpoint{Log: "l", Watermark: minute(1)}
		want["clicks/4"] = tumble.Checkpoint{Log: "l"}
		if got := p.load(0, maps.Clone(want)); !maps.EqualFunc(got, want, tumble.Checkpoint.Same) {
			c.failf("Load where a partition has no watermark returned %v, want %v", got, want)
		}
	}),

	rule("Load/frontier without the ended", docLoad+" "+docFrontier, func(c *check) {
		def := minutes
		def.Grace = 10 * time.Second
		p := c.open(def)
		p.load(0, map[string]tumble.Checkpoint{
			"clicks/0": {Log: "l", Watermark: minute(1), Ended: true},
			"clicks/1": {Log: "l", Ended: true},
			"clicks/2": {Log: "l", Watermark: minute(5)},
		})
		got := p.load(0, one("clicks/3", first()))
		if at := got["clicks/3"].Watermark; !at.Equal(minute(5)) {
			c.failf("a partition joined at watermark %v, want %v, that of the one which has not ended", at, minute(5))
		}
	}),

	rule("Load/frontier of ended partitions", docLoad+" "+docFrontier, func(c *check) {
		p := c.open(minutes)
		p.load(0, map[string]tumble.Checkpoint{
			"clicks/0": {Log: "l", Watermark: minute(7).Add(1), Ended: true},
			"clicks/1": {Log: "l", Watermark: minute(3), Ended: true},
			"clicks/2": {Log: "l", Ended: true},
		})
		want := minute(7).Add(1)
		got := p.load(0, one("clicks/3", first()))
		if at := got["clicks/3"].Watermark; !at.Equal(want) {
			c.failf("a partition joined ended ones at watermark %v, want %v, their largest", at, want)
		}
	}),

	rule("Load/keeps what has ended", docReplaces+" "+docInit, func(c *check) {
		p := c.open(minutes)
		want := map[string]tumble.Checkpoint{
			"clicks/0": {Log: "log-1", Origin: 3, Offset: 9, Watermark: t0.Add(1), Ended: true},
			"clicks/1": {Log: "log-1", Offset: 9, Watermark: t0, Ended: true},
		}
		p.load(0, maps.Clone(want))
		got := p.load(0, map[string]tumble.Checkpoint{"clicks/0": first(), "clicks/1": {Log: "log-2", Origin: 1, Offset: 2, Watermark: minute(1)}})
		if !maps.EqualFunc(got, want, tumble.Checkpoint.Same) {
			c.failf("Load returned %v, want %v: both have ended, under the same log and under another", got, want)
		}
		c.open(minutes).stored(0, want, "Load of what had ended")
	}),

	rule("Load/only asks", docAsks, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", tumble.Checkpoint{Log: "log-1", Watermark: t0})
		was := p.ask(0, tumble.LoadRequest{})
		p.ask(0, tumble.LoadRequest{})
		is := c.open(minutes).ask(0, tumble.LoadRequest{})
		if !maps.EqualFunc(is.Checkpoints, was.Checkpoints, tumble.Checkpoint.Same) || len(is.Announced) != 0 ||
			!is.Frontier.Equal(was.Frontier) || !slices.EqualFunc(is.Floors, was.Floors, time.Time.Equal) {
			c.failf("a shard that was only asked holds %+v, then %+v", was, is)
		}
		p.stored(0, one("clicks/0", l.at[0]), "Loads that only asked")
	}),

	rule("Load/tells the frontier", docState+" "+docFrontier, func(c *check) {
		p := c.open(keeping)
		is := func(want time.Time, when string) {
			for i := range p.shards {
				if got := p.ask(i, tumble.LoadRequest{}); !got.Frontier.Equal(want) {
					c.failf("%s: shard %d tells the frontier %v, want %v", when, i, got.Frontier, want)
				}
			}
		}
		is(time.Time{}, "nothing is registered")
		for i := range p.shards { // it is that after the call
			if got := p.ask(i, tumble.LoadRequest{Init: one("clicks/0", tumble.Checkpoint{Log: "l", Watermark: minute(1)})}); !got.Frontier.Equal(minute(1)) {
				c.failf("Load of the first partition, at %v, tells the frontier %v", minute(1), got.Frontier)
			}
		}
		l := p.register("clicks/1", tumble.Checkpoint{Log: "l", Watermark: minute(2)})
		is(minute(1), "the second partition is ahead")
		for i := range p.shards {
			p.load(i, one("clicks/2", first()))
		}
		is(minute(1), "a third joined at the frontier")
		for _, id := range []string{"clicks/0", "clicks/2"} {
			m := &lanes{p, id, newWriter(), make([]tumble.Checkpoint, len(p.shards))}
			for i := range p.shards {
				m.at[i] = p.load(i, nil)[id]
			}
			m.add(minute(3).Add(1))
		}
		is(minute(2), "it alone is behind")
		l.add(minute(9).Add(999))
		is(minute(3).Add(1), "it is ahead")
		l.end()
		is(minute(3).Add(1), "it has ended")
	}),

	rule("Load/any names", docLoad, func(c *check) {
		p := c.open(minutes)
		want := make(map[string]tumble.Checkpoint)
		for i, name := range anyStrings() {
			if name != "" {
				want[name] = tumble.Checkpoint{Log: name, Offset: int64(i)}
			}
		}
		p.load(0, maps.Clone(want))
		c.open(minutes).stored(0, want, "Load of partitions and logs with any bytes in their names")
	}),

	rule("Load/own map", docLoad, func(c *check) {
		p := c.open(minutes)
		init := one("clicks/0", first())
		got := p.load(0, init)
		for _, m := range []map[string]tumble.Checkpoint{got, init} {
			m["clicks/0"] = tumble.Checkpoint{Log: "changed"}
			m["clicks/1"] = first()
		}
		p.stored(0, one("clicks/0", first()), "its caller changed the maps it gave and got")
	}),

	losing(rule("Load/writes the definition", docLoadDefine, func(c *check) {
		p := c.open(minutes)
		p.register("clicks/0", first())
		c.ok(c.cfg.Lose(c.ctx, c.name), "Config.Lose")
		_, err := c.sink().Definition(c.ctx)
		c.wraps(err, tumble.ErrNoDefinition, "Definition after Config.Lose")
		for i := range p.shards {
			if got := p.load(i, nil); len(got) != 0 {
				c.failf("after Config.Lose shard %d holds %v", i, got)
			}
		}
		got, err := c.sink().Definition(c.ctx)
		c.ok(err, "Definition after Load wrote it")
		if !got.Same(minutes) {
			c.failf("Definition after Load is %v, want %v", got, minutes)
		}
		other := minutes
		other.Grace = time.Hour
		_, err = c.sink().Open(c.ctx, other)
		c.differs(err, minutes, other, "Open(%v) after Load wrote %v", other, minutes)
	})),

	losing(rule("Load/refuses another definition", docLoadDefine+" "+docTells, func(c *check) {
		p := c.open(minutes)
		p.register("clicks/0", first())
		c.ok(c.cfg.Lose(c.ctx, c.name), "Config.Lose")
		other := minutes
		other.Grace = time.Hour
		q := c.open(other)
		for i := range p.shards {
			_, err := p.shards[i].Load(c.ctx, tumble.LoadRequest{Init: one("clicks/0", first())})
			c.differs(err, other, minutes, "Load, of %v, where %v is stored by now", minutes, other)
			q.stored(i, nil, "a Load that was refused")
		}
	})),

	losing(rule("Apply/refuses another definition", docDefined+" "+docUnknown, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		c.ok(c.cfg.Lose(c.ctx, c.name), "Config.Lose")
		other := minutes
		other.Grace = time.Hour
		q := c.open(other)
		q.register("clicks/0", first())
		for i := range p.shards {
			// Its checkpoint is stored, by who counts something else.
			b := l.batch(i, minute(1), tumble.Delta{Start: t0, Key: p.keyOf(i), N: 1})
			c.differs(p.shards[i].Apply(c.ctx, b), other, minutes, "Apply, of %v, where %v is stored by now", minutes, other)
			q.stored(i, one("clicks/0", first()), "a batch that was refused")
			q.counts(p.keyOf(i), tumble.Delta{Start: t0})
		}
	})),
}
