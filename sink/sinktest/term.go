package sinktest

import (
	"fmt"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docThree   = "A shard keeps three things for its readers. The closed mark is [Definition.ClosedAt] of its frontier."
	docTerm    = "The term is a random number that is another one after a loss: see Apply."
	docLeaves  = "It leaves the term as it is."
	docWriter  = "Each checkpoint is stored with the Writer of the batch that moved it there, which is no part of Same."
	docDraws   = "A batch whose Writer is not the stored one sets a flag in the shard. The next batch that moves the closed mark on, perhaps this very one, draws a new term and clears the flag."
	docSoTwo   = "So two reads that find a window closed under the same term found the counts of the same history."
	docAnyPage = "of all shards that were read: another one if that of one of them is."
	docOwnTerm = "each with the page's State and its own shard's Term."

	docCountTerm = "Two reads of one key and window that are both Final under the same Term are equal; under another Term a Final count may differ from what was lost."
)

// dropping counts per minute and drops late events, so that windows become
// final.
var dropping = tumble.Definition{Window: tumble.Window{Size: time.Minute}, DropLate: true}

// term returns the term of minute 0, which must be closed, in a shard.
func (p *process) term(shard int) uint64 {
	p.c.settle()
	got, err := p.Count(p.c.ctx, p.keyOf(shard), t0)
	p.c.ok(err, "Count")
	if got.State == tumble.Open {
		p.c.failf("minute 0, which is closed, is %v", got.State)
	}
	return got.Term
}

// same ends the check if the term of a shard is not was.
func (p *process) same(shard int, was uint64, after string) {
	if is := p.term(shard); is != was {
		p.c.failf("after %s shard %d has the term %x, want %x as before", after, shard, is, was)
	}
}

// another ends the check if the term of a shard is was, and returns it.
func (p *process) another(shard int, was uint64, after string) (is uint64) {
	if is = p.term(shard); is == was {
		p.c.failf("after %s shard %d still has the term %x", after, shard, is)
	}
	return is
}

// eachTerm runs f for every shard, with the lanes of a writer that has closed
// minute 0, and the shard's term.
func eachTerm(c *check, f func(l *lanes, shard int, term uint64)) {
	p := c.open(minutes)
	l := p.register("clicks/0", first())
	l.add(minute(1), tumble.Delta{Start: t0, Key: "a", N: 1})
	for i := range p.shards {
		f(l, i, p.term(i))
	}
}

var termRules = []Rule{
	rule("Apply/writer is no part of Same", docWriter, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		for n, mark := range []time.Time{t0, t0, minute(1), minute(1), minute(4)} {
			l = l.settled(c.open(minutes))
			l.add(mark, tumble.Delta{Start: t0, Key: "a", N: 1})
			p.counts("a", tumble.Delta{Start: t0, N: int64(n + 1)})
		}
		for i := range p.shards {
			p.stored(i, one("clicks/0", l.at[i]), "batches of five writers")
		}
	}),

	rule("Apply/one writer, one term", docDraws+" "+docThree, func(c *check) {
		eachTerm(c, func(l *lanes, i int, term uint64) {
			for _, mark := range []time.Time{{}, minute(1).Add(time.Second), minute(2), minute(2), minute(30)} {
				l.apply(i, l.batch(i, mark, tumble.Delta{Start: minute(9), Key: l.keyOf(i), N: 1}))
				l.same(i, term, "a batch of the same writer")
			}
		})
	}),

	rule("Apply/another writer, another term", docDraws+" "+docThree+" "+docTerm, func(c *check) {
		eachTerm(c, func(l *lanes, i int, term uint64) {
			for round := 1; round < 4; round++ {
				l = l.settled(l.process)
				// Minute 1 stays open for a while.
				l.apply(i, l.batch(i, time.Time{}, tumble.Delta{Start: minute(9), Key: l.keyOf(i), N: 1}))
				l.apply(i, l.batch(i, minute(round+1).Add(-1)))
				l.same(i, term, "batches of another writer that do not close a window")
				l.apply(i, l.batch(i, minute(round+1)))
				term = l.another(i, term, "the first batch of another writer that closes a window")
				l.apply(i, l.batch(i, minute(round+1).Add(time.Second)))
				l.same(i, term, "a batch of the same writer")
			}
			l.apply(i, l.batch(i, minute(30)))
			l.same(i, term, "a batch of the same writer that closes windows")
		})
	}),

	rule("Apply/another writer closes at once", docDraws+" "+docThree, func(c *check) {
		eachTerm(c, func(l *lanes, i int, term uint64) {
			for round := 1; round < 4; round++ {
				l = l.settled(l.process)
				l.apply(i, l.batch(i, minute(2*round)))
				term = l.another(i, term, "a batch of another writer that closes a window")
				l.apply(i, l.batch(i, minute(2*round+1)))
				l.same(i, term, "the next batch, of the same writer, that closes a window")
			}
		})
	}),

	rule("Apply/writers are 64 bits", docWriter+" "+docDraws, func(c *check) {
		eachTerm(c, func(l *lanes, i int, term uint64) {
			mark := minute(1)
			for _, writer := range []uint64{1 << 63, 1<<63 + 1, 1<<53 + 1, 1 << 53, 1<<64 - 1, 1<<64 - 2, 1<<32 + 5, 5} {
				mark = mark.Add(time.Minute)
				l.writer = writer
				l.apply(i, l.batch(i, mark))
				term = l.another(i, term, fmt.Sprintf("a batch of the writer %d, that closes a window,", writer))
			}
		})
	}),

	rule("Apply/terms by any partition", docDraws+" "+docThree, func(c *check) {
		p := c.open(minutes)
		a, b := p.register("clicks/0", first()), p.register("clicks/1", first())
		a.add(minute(1))
		b.add(minute(1))
		for i := range p.shards {
			term := p.term(i)
			a.apply(i, a.batch(i, minute(2)))
			b.apply(i, b.batch(i, minute(2)))
			p.same(i, term, "batches of the same two writers")
			n := a.settled(p)
			n.apply(i, n.batch(i, minute(3)))
			p.same(i, term, "a batch of another writer while a partition is behind")
			b.apply(i, b.batch(i, minute(3)))
			term = p.another(i, term, "the other partition has closed a window")
			n.apply(i, n.batch(i, minute(4)))
			b.apply(i, b.batch(i, minute(4)))
			p.same(i, term, "batches of the same two writers")

			// An end closes, too.
			n = n.settled(p)
			n.apply(i, n.batch(i, minute(9)))
			p.same(i, term, "a batch of another writer while a partition is behind")
			to := b.at[i]
			to.Ended = true
			b.apply(i, b.move(i, to))
			p.another(i, term, "the other partition has ended")
		}
	}),

	rule("Apply/refused batches draw no term", docConflict+" "+docDraws, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		gone := p.register("clicks/1", tumble.Checkpoint{Log: "log-1", Ended: true})
		l.add(minute(1))
		for i := range p.shards {
			term := p.term(i)
			mark := minute(2)
			for doing, refused := range map[string]func(n *lanes) error{
				"a batch that was applied, again by another writer": func(n *lanes) error {
					b := l.batch(i, time.Time{})
					l.apply(i, b)
					b.Writer = n.writer
					return n.shards[i].Apply(c.ctx, b)
				},
				"a conflict": func(n *lanes) error {
					n.at[i].Offset += 70
					return n.shards[i].Apply(c.ctx, n.batch(i, minute(20)))
				},
				"a revival that was refused": func(n *lanes) error {
					g := gone.settled(p)
					return g.shards[i].Apply(c.ctx, g.move(i, revived(g.at[i], time.Time{})))
				},
				"an end that was refused": func(n *lanes) error {
					return n.shards[i].Apply(c.ctx, n.ending(i, 7))
				},
			} {
				if refused(l.settled(p)) == nil {
					c.failf("%s was applied", doing)
				}
				mark = mark.Add(time.Minute)
				l.apply(i, l.batch(i, mark))
				p.same(i, term, doing)
			}
		}
	}),

	rule("Load/leaves the term", docLeaves, func(c *check) {
		eachTerm(c, func(l *lanes, i int, term uint64) {
			p := c.open(minutes)
			for round := range 3 {
				p.ask(i, tumble.LoadRequest{
					Init:     one(fmt.Sprint("new/", round), first()),
					Announce: tokens{"clicks/0": uint64(round + 1)}, Object: tokens{"clicks/0": 1},
				})
				p.same(i, term, "Load")
				// Those that joined are as far and hold nobody up.
				n := &lanes{p, fmt.Sprint("new/", round), newWriter(), make([]tumble.Checkpoint, len(p.shards))}
				n.at[i] = p.load(i, nil)[n.partition]
				to := n.at[i]
				to.Ended = true
				n.apply(i, n.move(i, to))
				p.same(i, term, "Load and a batch that closes no window")
				l.apply(i, l.batch(i, minute(round+2)))
				term = p.another(i, term, "a batch of another writer and one that closes a window")
				p.loadAll()
				l.apply(i, l.batch(i, minute(round+2).Add(1)))
				p.loadAll()
				p.same(i, term, "Loads")
			}
			p.loadAll()
			l.apply(i, l.batch(i, minute(30)))
			p.same(i, term, "Loads and a batch of the same writer that closes windows")
		})
	}),

	rule("Reader/terms of a page", docAnyPage+" "+docOwnTerm, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		want := l.some()
		l.add(minute(1))
		read := map[string]func() (tumble.Page, error){
			"Top":             func() (tumble.Page, error) { return p.Top(c.ctx, t0, 100) },
			"Top of 1":        func() (tumble.Page, error) { return p.Top(c.ctx, t0, 1) },
			"Scan":            func() (tumble.Page, error) { return p.Scan(c.ctx, t0, "", 100) },
			"Scan of 1":       func() (tumble.Page, error) { return p.Scan(c.ctx, t0, "", 1) },
			"Scan of nothing": func() (tumble.Page, error) { return p.Scan(c.ctx, t0.Add(-time.Minute), "", 100) },
		}
		terms := make(map[string]uint64)
		look := func(name string) uint64 {
			page, err := read[name]()
			c.ok(err, "%s", name)
			for _, n := range page.Counts {
				if term := p.term(p.shardOf(n.Key)); n.Term != term || n.N != want[n.Key] {
					c.failf("%s gave %d of %s under the term %x, want %d under %x", name, n.N, n.Key, n.Term, want[n.Key], term)
				}
			}
			return page.Term
		}
		c.settle()
		for name := range read {
			terms[name] = look(name)
			if again := look(name); again != terms[name] {
				c.failf("%s gave the term %x, then %x", name, terms[name], again)
			}
		}
		for i := range p.shards {
			l = l.settled(p)
			l.apply(i, l.batch(i, minute(2)))
			p.term(i)
			for name := range read {
				is := look(name)
				if whole := name == "Top" || name == "Scan"; whole && is == terms[name] {
					c.failf("%s gave the term %x before and after that of shard %d changed", name, is, i)
				}
				terms[name] = is
			}
		}
	}),

	rule("Reader/terms of a range", docCountTerm, func(c *check) {
		eachTerm(c, func(l *lanes, i int, term uint64) {
			key := l.keyOf(i)
			l = l.settled(l.process)
			l.apply(i, l.batch(i, minute(3), tumble.Delta{Start: t0, Key: key, N: 1}, tumble.Delta{Start: minute(1), Key: key, N: 1}))
			term = l.another(i, term, "a batch of another writer that closes a window")
			got, err := l.Range(c.ctx, key, t0, minute(5))
			c.ok(err, "Range")
			if len(got) != 2 || got[0].Term != term || got[1].Term != term {
				c.failf("Range is %+v, want 2 counts under the term %x", got, term)
			}
		})
	}),
}
