package sinktest

import (
	"errors"
	"fmt"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docOpen   = "Open checks def against the definition that is stored under this sink's name (an error that wraps ErrDefinition is fatal), stores it if there is none, and returns the shards, 1 to 65,535."
	docHash   = "Key k belongs to shard Hash(k) % len(shards)."
	docNumber = "Their number never changes for one name."
	docSink   = "A Sink stores counts together with the checkpoints they reach to."
	docTells  = "A DefinitionError is an [ErrDefinition] that tells both definitions."
	docKept   = "Retention alone may differ: it does not say what a count means, but how long it is kept."
)

// definitions differ in one field each. Only the last means the same counts as
// the first.
func definitions() []tumble.Definition {
	base := tumble.Definition{Window: tumble.Window{Size: time.Hour}, Grace: time.Minute, Retention: 24 * time.Hour}
	size, offset, calendar, grace, retention, drop, sums, keys, rolled := base, base, base, base, base, base, base, base, base
	size.Window.Size = 2 * time.Hour
	offset.Window.Offset = 15 * time.Minute
	calendar.Window = tumble.Window{Calendar: tumble.Day}
	grace.Grace = 0
	retention.Retention = 0
	drop.DropLate = true
	sums.Sum = true
	keys.MaxKey = 100
	rolled.Rollups = []tumble.Rollup{{Window: tumble.Window{Calendar: tumble.Day}, Retention: 48 * time.Hour}, {Window: tumble.Window{Size: 2 * time.Hour}}}
	return []tumble.Definition{base, size, offset, calendar, grace, drop, sums, keys, rolled, retention}
}

// differs ends the check if err is not that of a store which holds other counts.
func (c *check) differs(err error, stored, wanted tumble.Definition, doing string, args ...any) {
	c.wraps(err, tumble.ErrDefinition, doing, args...)
	var e *tumble.DefinitionError
	if !errors.As(err, &e) {
		c.failf("%s: got error %v, want a DefinitionError", fmt.Sprintf(doing, args...), err)
	}
	if !e.Stored.Same(stored) || !e.Wanted.Same(wanted) {
		c.failf("%s: the error tells that %v is stored and %v wanted", fmt.Sprintf(doing, args...), e.Stored, e.Wanted)
	}
}

var openRules = []Rule{
	rule("Open/refuses another definition", docOpen+" "+docTells, func(c *check) {
		defs := definitions()
		p := c.open(defs[0])
		l := p.register("clicks/0", first())
		for _, other := range defs[1 : len(defs)-1] {
			_, err := c.sink().Open(c.ctx, other)
			c.differs(err, defs[0], other, "Open(%v) where %v is stored", other, defs[0])
		}
		c.open(defs[0]).stored(0, one("clicks/0", l.at[0]), "Opens that were refused")
	}),

	rule("Open/takes another retention", docOpen+" "+docKept, func(c *check) {
		defs := definitions()
		want := c.open(defs[0]).register("clicks/0", first())
		p := c.open(defs[len(defs)-1])
		for i := range p.shards {
			p.stored(i, one("clicks/0", want.at[i]), "an Open with another retention")
		}
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
		c.differs(err, minutes, other, "Open(%v) where shard %d holds %v", other, last, minutes)
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
			l.apply(i, l.batch(i, time.Time{}, tumble.Delta{Start: t0, Key: p.keyOf(i), N: int64(i + 1)}))
		}
		for i := range p.shards {
			p.counts(p.keyOf(i), tumble.Delta{Start: t0, N: int64(i + 1)})
		}
	}),

	rule("Sink/outlives the process", docSink, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		l.add(minute(1), tumble.Delta{Start: t0, Key: "a", N: 3}, tumble.Delta{Start: t0, Key: "b", N: 4})
		p = c.open(minutes)
		p.counts("a", tumble.Delta{Start: t0, N: 3})
		p.counts("b", tumble.Delta{Start: t0, N: 4})
		for i, at := range l.at {
			p.stored(i, one("clicks/0", at), "another process opened it")
		}
		// The second process goes on where the first stopped.
		next := l.settled(p)
		next.add(time.Time{}, tumble.Delta{Start: t0, Key: "a", N: 5})
		c.open(minutes).counts("a", tumble.Delta{Start: t0, N: 8})
	}),

	rule("Sink/names are apart", docSink, func(c *check) {
		p := c.open(minutes)
		p.register("clicks/0", first()).add(minute(1), tumble.Delta{Start: t0, Key: "a", N: 3})
		q := c.under(1).open(tumble.Definition{Window: tumble.Window{Size: time.Hour}})
		if got := q.load(0, nil); len(got) != 0 {
			c.failf("under a new name shard 0 holds %v", got)
		}
		q.register("clicks/0", first()).add(minute(1), tumble.Delta{Start: t0, Key: "a", N: 7})
		q.counts("a", tumble.Delta{Start: t0, N: 7})
		c.open(minutes).counts("a", tumble.Delta{Start: t0, N: 3})
	}),
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
