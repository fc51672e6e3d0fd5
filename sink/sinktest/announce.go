package sinktest

import (
	"fmt"
	"maps"

	"github.com/tumblestream/tumble"
)

const (
	docAnnounce  = "Announce holds, by partition, the tokens of those that somebody is about to end without reading them."
	docAnother   = "A token replaces the partition's earlier one and the objections to it."
	docObject    = "Object holds tokens, by partition, that this process objects to because its source has the partition."
	docNothing   = "A token that is not the announced one means nothing."
	docAnnounced = "tokens by partition, without those that somebody objected to."
	docToken     = "Token, if not 0, is that of the announcement under which To.Ended is set by somebody who does not read the partition, see EndPartition."
	docObjected  = "A batch with a Token that is not announced, or that somebody has objected to, changes nothing and wraps ErrObjected."
)

type tokens = map[string]uint64

func (p *process) announce(t tokens) {
	for i := range p.shards {
		p.ask(i, tumble.LoadRequest{Announce: t})
	}
}

func (p *process) object(t tokens) {
	for i := range p.shards {
		p.ask(i, tumble.LoadRequest{Object: t})
	}
}

// announced ends the check if a shard does not tell these tokens.
func (p *process) announced(want tokens, after string) {
	for i := range p.shards {
		if got := p.ask(i, tumble.LoadRequest{}).Announced; !maps.Equal(got, want) {
			p.c.failf("after %s shard %d tells the announcements %v, want %v", after, i, got, want)
		}
	}
}

// ending returns the batch by which somebody ends the partition under a token.
func (l *lanes) ending(shard int, token uint64) tumble.Batch {
	to := l.at[shard]
	to.Ended = true
	b := l.move(shard, to)
	b.Writer, b.Token = newWriter(), token
	return b
}

var announceRules = []Rule{
	rule("Load/announcements", docAnnounce+" "+docAnnounced, func(c *check) {
		p, q := c.open(minutes), c.open(minutes)
		want := make(map[string]tumble.Checkpoint)
		for i := range 3 {
			id := fmt.Sprint("clicks/", i)
			want[id] = p.register(id, first()).at[0]
		}
		q.announced(tokens{}, "nothing")
		// Tokens that a float would not tell apart.
		all := tokens{"clicks/0": 1<<63 + 1, "clicks/1": 1<<63 + 2}
		for i := range p.shards {
			if got := p.ask(i, tumble.LoadRequest{Announce: all}).Announced; !maps.Equal(got, all) {
				c.failf("Load that announces %v tells the announcements %v", all, got)
			}
		}
		q.announced(all, "Load that announces them")
		p.announce(tokens{"clicks/2": 1<<64 - 1})
		all["clicks/2"] = 1<<64 - 1
		q.announced(all, "Load that announces one more")
		for i := range p.shards {
			p.stored(i, want, "announcements")
		}
	}),

	rule("Load/an announcement in one shard", docAnnounce+" "+docAlone, func(c *check) {
		p := c.open(minutes)
		p.register("clicks/0", first())
		last := len(p.shards) - 1
		p.ask(last, tumble.LoadRequest{Announce: tokens{"clicks/0": 7}})
		for i := range p.shards {
			want := tokens{}
			if i == last {
				want["clicks/0"] = 7
			}
			if got := p.ask(i, tumble.LoadRequest{}).Announced; !maps.Equal(got, want) {
				c.failf("shard %d, where only shard %d has an announcement, tells %v", i, last, got)
			}
		}
	}),

	rule("Load/objections", docObject+" "+docAnnounced+" "+docNothing, func(c *check) {
		p, q := c.open(minutes), c.open(minutes)
		p.register("clicks/0", first())
		p.register("clicks/1", first())
		q.object(tokens{"clicks/0": 1<<53 + 1}) // nothing is announced yet
		all := tokens{"clicks/0": 1<<53 + 1, "clicks/1": 5}
		p.announce(all)
		p.announced(all, "an objection to what was announced later")
		q.object(tokens{"clicks/0": 1 << 53, "clicks/1": 6, "clicks/2": 5})
		p.announced(all, "objections to other tokens")
		for i := range p.shards {
			if got := q.ask(i, tumble.LoadRequest{Object: tokens{"clicks/0": 1<<53 + 1}}).Announced; !maps.Equal(got, tokens{"clicks/1": 5}) {
				c.failf("Load that objects to one of %v tells the announcements %v", all, got)
			}
		}
		p.announced(tokens{"clicks/1": 5}, "an objection to the other")
	}),

	rule("Load/another announcement", docAnother, func(c *check) {
		p, q := c.open(minutes), c.open(minutes)
		l := p.register("clicks/0", first())
		p.announce(tokens{"clicks/0": 6})
		p.announce(tokens{"clicks/0": 7})
		p.announced(tokens{"clicks/0": 7}, "two announcements")
		q.object(tokens{"clicks/0": 7})
		p.announced(tokens{}, "an objection")
		p.announce(tokens{"clicks/0": 8})
		q.announced(tokens{"clicks/0": 8}, "another announcement after an objection")
		q.object(tokens{"clicks/0": 7}) // too late
		p.announced(tokens{"clicks/0": 8}, "an objection to a token that was replaced")
		for i := range p.shards {
			l.refused(i, l.ending(i, 7), tumble.ErrObjected)
		}
		q.object(tokens{"clicks/0": 8})
		p.announce(tokens{"clicks/0": 9})
		for i := range p.shards {
			l.refused(i, l.ending(i, 8), tumble.ErrObjected)
			l.apply(i, l.ending(i, 9))
		}
	}),

	rule("Apply/a token that is announced", docToken+" "+docObjected, func(c *check) {
		p, q := c.open(minutes), c.open(minutes)
		l := p.register("clicks/0", tumble.Checkpoint{Log: "log-1", Offset: 5})
		other := p.register("clicks/1", tumble.Checkpoint{Log: "log-1", Watermark: minute(3)})
		p.announce(tokens{"clicks/0": 1<<63 + 5, "clicks/1": 6})
		q.object(tokens{"clicks/1": 6})
		for i := range p.shards {
			l.apply(i, l.ending(i, 1<<63+5))
			p.stored(i, map[string]tumble.Checkpoint{
				"clicks/0": {Log: "log-1", Offset: 5, Ended: true}, "clicks/1": other.at[i],
			}, "somebody ended a partition")
			if got := p.ask(i, tumble.LoadRequest{}).Frontier; !got.Equal(minute(3)) {
				c.failf("after the partition behind was ended, shard %d tells the frontier %v, want %v", i, got, minute(3))
			}
		}
	}),

	rule("Apply/a token that is not announced", docObjected, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		p.register("clicks/1", first())
		for i := range p.shards {
			l.refused(i, l.ending(i, 7), tumble.ErrObjected)
		}
		p.announce(tokens{"clicks/0": 1<<63 + 1, "clicks/1": 7})
		for i := range p.shards {
			for _, token := range []uint64{7, 1<<63 + 2, 1 << 63, 1} {
				l.refused(i, l.ending(i, token), tumble.ErrObjected)
			}
			l.apply(i, l.ending(i, 1<<63+1))
		}
	}),

	rule("Apply/a token that was objected to", docObject+" "+docObjected, func(c *check) {
		p, q := c.open(minutes), c.open(minutes)
		l := p.register("clicks/0", first())
		p.announce(tokens{"clicks/0": 7})
		q.object(tokens{"clicks/0": 7})
		for i := range p.shards {
			l.refused(i, l.ending(i, 7), tumble.ErrObjected)
			// Who reads the partition needs no token, to end it or to go on.
			l.apply(i, l.batch(i, minute(1)))
			l.apply(i, l.ending(i, 0))
		}
	}),

	rule("Apply/an objection in one shard", docObjected+" "+docAlone, func(c *check) {
		for one := range c.open(minutes).shards {
			p := c.under(one).open(minutes)
			l := p.register("clicks/0", first())
			p.announce(tokens{"clicks/0": 7})
			p.ask(one, tumble.LoadRequest{Object: tokens{"clicks/0": 7}})
			for i := range p.shards {
				if i == one {
					l.refused(i, l.ending(i, 7), tumble.ErrObjected)
				} else {
					l.apply(i, l.ending(i, 7))
				}
			}
		}
	}),
}
