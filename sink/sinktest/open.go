package sinktest

import (
	"maps"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docOpen   = "Open checks def against what is stored under this sink's name (an error that wraps ErrDefinition is fatal), stores it if nothing is, and returns the shards, 1 to 65,535."
	docHash   = "Key k belongs to shard Hash(k) % len(shards)."
	docNumber = "Their number never changes for one name."
	docSink   = "A Sink stores counts together with the checkpoints they reach to."
)

// definitions differ in one field each.
func definitions() []tumble.Definition {
	base := tumble.Definition{Window: tumble.Window{Size: time.Hour}, Grace: time.Minute, Retention: 24 * time.Hour}
	size, offset, calendar, grace, retention, drop := base, base, base, base, base, base
	size.Window.Size = 2 * time.Hour
	offset.Window.Offset = 15 * time.Minute
	calendar.Window = tumble.Window{Calendar: tumble.Day}
	grace.Grace = 0
	retention.Retention = 0
	drop.DropLate = true
	return []tumble.Definition{base, size, offset, calendar, grace, retention, drop}
}

var openRules = []Rule{
	rule("Open/refuses another definition", docOpen, func(c *check) {
		defs := definitions()
		p := c.open(defs[0])
		l := p.register("clicks/0", first())
		for _, other := range defs[1:] {
			_, err := c.sink().Open(c.ctx, other)
			c.wraps(err, tumble.ErrDefinition, "Open(%v) where %v is stored", other, defs[0])
		}
		c.open(defs[0]).stored(0, one("clicks/0", l.at[0]), "Opens that were refused")
	}),

	losing(rule("Open/a refused one changes nothing", docOpen, func(c *check) {
		p := c.open(minutes)
		p.register("clicks/0", first())
		c.ok(c.cfg.Lose(c.ctx, c.name), "Config.Lose")
		last := len(p.shards) - 1
		p.load(last, one("clicks/0", first())) // it alone knows the definition again
		c.settle()
		other := minutes
		other.Grace = time.Hour
		_, err := c.sink().Open(c.ctx, other)
		c.wraps(err, tumble.ErrDefinition, "Open(%v) where shard %d holds %v", other, last, minutes)
		for i := range p.shards {
			p.load(i, one("clicks/0", first()))
		}
		c.open(minutes).stored(last, one("clicks/0", first()), "an Open that was refused")
	})),

	rule("Open/stores the definition", docOpen, func(c *check) {
		for i, def := range definitions() {
			c := c.under(i)
			c.open(def)
			got, err := c.sink().Definition(c.ctx)
			c.ok(err, "Definition after Open(%v)", def)
			if !got.Same(def) || got.Window.String() != def.Window.String() || got.Grace != def.Grace || got.Retention != def.Retention || got.DropLate != def.DropLate {
				c.failf("Definition after Open(%v) is %v", def, got)
			}
		}
	}),

	rule("Open/always as many shards", docNumber, func(c *check) {
		n := len(c.open(minutes).shards)
		for range 3 {
			if m := len(c.open(minutes).shards); m != n {
				c.failf("Open returned %d shards, then %d", n, m)
			}
		}
	}),

	rule("Open/keys by hash", docHash, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		for i := range p.shards {
			l.apply(i, l.batch(i, time.Time{}, tumble.Delta{Window: t0, Key: p.keyOf(i), N: int64(i + 1)}))
		}
		for i := range p.shards {
			p.counts(p.keyOf(i), tumble.Delta{Window: t0, N: int64(i + 1)})
		}
	}),

	rule("Sink/outlives the process", docSink, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		l.add(minute(1), tumble.Delta{Window: t0, Key: "a", N: 3}, tumble.Delta{Window: t0, Key: "b", N: 4})
		p = c.open(minutes)
		p.counts("a", tumble.Delta{Window: t0, N: 3})
		p.counts("b", tumble.Delta{Window: t0, N: 4})
		for i, at := range l.at {
			p.stored(i, one("clicks/0", at), "another process opened it")
		}
		// The second process goes on where the first stopped.
		next := &lanes{p, "clicks/0", l.at}
		next.add(time.Time{}, tumble.Delta{Window: t0, Key: "a", N: 5})
		c.open(minutes).counts("a", tumble.Delta{Window: t0, N: 8})
	}),

	rule("Sink/names are apart", docSink, func(c *check) {
		p := c.open(minutes)
		p.register("clicks/0", first()).add(minute(1), tumble.Delta{Window: t0, Key: "a", N: 3})
		q := c.under(1).open(tumble.Definition{Window: tumble.Window{Size: time.Hour}})
		if got := q.load(0, nil); len(got) != 0 {
			c.failf("under a new name shard 0 holds %v", got)
		}
		q.register("clicks/0", first()).add(minute(1), tumble.Delta{Window: t0, Key: "a", N: 7})
		q.counts("a", tumble.Delta{Window: t0, N: 7})
		c.open(minutes).counts("a", tumble.Delta{Window: t0, N: 3})
	}),
}

const (
	docShard      = "A Shard holds a part of the counts and, for every partition, the checkpoint that they reach to."
	docAlone      = "It commits alone."
	docLoad       = "Load stores, in one step, those of init that are missing, their Watermark raised to the shard's frontier (see [Definition.Frontier]) as it was before the call, and returns all checkpoints by partition."
	docLoadEnded  = "A stored checkpoint that has Ended under another Log than init's counts as missing."
	docDefined    = "Counts of different definitions must not be added up, so a sink stores it and refuses another."
	docLoadDefine = "It also writes the definition where it is missing and wraps ErrDefinition where it differs."
	docFrontier   = "Frontier returns the frontier of a shard that holds these checkpoints: the smallest watermark of its partitions that have not Ended, none (the zero time) if one of them has none. If all have ended it is EndMark of the largest watermark. Of no checkpoints there is none."
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

	rule("Load/keeps what is stored", docLoad, func(c *check) {
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
		def := minutes
		def.Grace = 10 * time.Second
		p := c.open(def)
		p.load(0, map[string]tumble.Checkpoint{
			"clicks/0": {Log: "l", Watermark: minute(7).Add(1), Ended: true},
			"clicks/1": {Log: "l", Watermark: minute(3), Ended: true},
			"clicks/2": {Log: "l", Ended: true},
		})
		want := minute(8).Add(10 * time.Second)
		got := p.load(0, one("clicks/3", first()))
		if at := got["clicks/3"].Watermark; !at.Equal(want) {
			c.failf("a partition joined ended ones at watermark %v, want %v, the end of the last window and Grace", at, want)
		}
	}),

	rule("Load/frontier of ended days", docLoad+" "+docFrontier, func(c *check) {
		zone, err := time.LoadLocation("Europe/Berlin")
		c.ok(err, "time.LoadLocation")
		def := tumble.Definition{Window: tumble.Window{Calendar: tumble.Day, Zone: zone}, Grace: time.Hour}
		p := c.open(def)
		p.load(0, one("clicks/0", tumble.Checkpoint{Log: "l", Watermark: time.Date(2024, 3, 31, 1, 0, 0, 0, zone), Ended: true}))
		want := time.Date(2024, 4, 1, 1, 0, 0, 0, zone) // a day of 23 hours
		got := p.load(0, one("clicks/1", first()))
		if at := got["clicks/1"].Watermark; !at.Equal(want) {
			c.failf("a partition joined an ended day at watermark %v, want %v", at, want)
		}
	}),

	rule("Load/ended under another log", docLoadEnded, func(c *check) {
		p := c.open(minutes)
		p.load(0, one("clicks/0", tumble.Checkpoint{Log: "log-1", Origin: 3, Offset: 9, Watermark: t0.Add(1), Ended: true}))
		want := tumble.Checkpoint{Log: "log-2", Origin: 1, Offset: 2, Watermark: minute(1)}
		got := p.load(0, one("clicks/0", tumble.Checkpoint{Log: "log-2", Origin: 1, Offset: 2}))
		if !got["clicks/0"].Same(want) {
			c.failf("Load of log-2 where log-1 has ended returned %v, want %v", got, want)
		}
		c.open(minutes).stored(0, one("clicks/0", want), "Load of log-2 where log-1 had ended")
	}),

	rule("Load/ended under the same log", docLoadEnded, func(c *check) {
		p := c.open(minutes)
		want := map[string]tumble.Checkpoint{
			"clicks/0": {Log: "log-1", Origin: 3, Offset: 9, Watermark: t0, Ended: true},
			"clicks/1": {Log: "log-1", Offset: 9, Watermark: t0},
		}
		p.load(0, maps.Clone(want))
		got := p.load(0, map[string]tumble.Checkpoint{"clicks/0": first(), "clicks/1": {Log: "log-2"}})
		if !maps.EqualFunc(got, want, tumble.Checkpoint.Same) {
			c.failf("Load returned %v, want %v: one has ended under the same log, one has not ended", got, want)
		}
		p.stored(0, want, "Load of one that has ended under the same log and one that has not ended")
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
		c.wraps(err, tumble.ErrDefinition, "Open(%v) after Load wrote %v", other, minutes)
	})),

	losing(rule("Load/refuses another definition", docLoadDefine, func(c *check) {
		p := c.open(minutes)
		p.register("clicks/0", first())
		c.ok(c.cfg.Lose(c.ctx, c.name), "Config.Lose")
		other := minutes
		other.Grace = time.Hour
		q := c.open(other)
		for i := range p.shards {
			_, err := p.shards[i].Load(c.ctx, one("clicks/0", first()))
			c.wraps(err, tumble.ErrDefinition, "Load(%v) where %v is stored by now", minutes, other)
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
			b := l.batch(i, minute(1), tumble.Delta{Window: t0, Key: p.keyOf(i), N: 1})
			c.wraps(p.shards[i].Apply(c.ctx, b), tumble.ErrDefinition, "Apply, of %v, where %v is stored by now", minutes, other)
			q.stored(i, one("clicks/0", first()), "a batch that was refused")
			q.counts(p.keyOf(i), tumble.Delta{Window: t0})
		}
	})),
}

// anyStrings returns strings that a store might mistake for something else.
func anyStrings() []string {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	return []string{
		"", " ", "a", "A", "a ", "\x00", "a\x00", "a\x00b", "\n", "a\nb", "\xff\xfe", "é", "e\u0301", "日本", "0", "-1", "1e3", "01",
		"a:b", "a/b", "a|b", "a.b", "a,b", "{a}", "{a", "a}b", "%s", "%00", "*", "?", "[a]", `"a"`, `\`, `\x00`, "nil", "false", string(every),
	}
}
