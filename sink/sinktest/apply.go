package sinktest

import (
	"fmt"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docDeltas = "Deltas holds at most one increment per window and key, in no order; any number of them, none included."
	docBorrow = "The sink may read them until Apply returns."
	docBatch  = "Within a Log, To is not before From, unless the log was truncated: then there are no Deltas. Equal offsets carry a later Watermark (a promise) or Ended. Another Log is a rebase, without Deltas."
	docBounds = "Bounds returns the window that holds t: start <= t < end."
)

var applyRules = []Rule{
	rule("Apply/adds", docApply, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		l.add(time.Time{},
			tumble.Delta{Start: minute(1), Key: "b", N: 10},
			tumble.Delta{Start: minute(0), Key: "a", N: 1},
			tumble.Delta{Start: minute(1), Key: "a", N: 2},
			tumble.Delta{Start: minute(0), Key: "b", N: 1 << 52})
		l.add(minute(0),
			tumble.Delta{Start: minute(0), Key: "a", N: 100},
			tumble.Delta{Start: minute(2), Key: "a", N: 4})
		for _, p := range []*process{p, c.open(minutes)} {
			p.counts("a", tumble.Delta{Start: minute(0), N: 101}, tumble.Delta{Start: minute(1), N: 2}, tumble.Delta{Start: minute(2), N: 4}, tumble.Delta{Start: minute(3)})
			p.counts("b", tumble.Delta{Start: minute(0), N: 1 << 52}, tumble.Delta{Start: minute(1), N: 10}, tumble.Delta{Start: minute(2)})
			p.counts("c", tumble.Delta{Start: minute(0)})
			p.all(minute(1), map[string]int64{"a": 2, "b": 10})
		}
	}),

	rule("Apply/partitions add up", docShard, func(c *check) {
		p := c.open(minutes)
		a := p.register("clicks/0", first())
		b := p.register("clicks/1", tumble.Checkpoint{Log: "log-1", Offset: 70})
		a.add(time.Time{}, tumble.Delta{Start: t0, Key: "a", N: 1})
		b.add(minute(1), tumble.Delta{Start: t0, Key: "a", N: 2})
		a.add(minute(2), tumble.Delta{Start: t0, Key: "a", N: 4})
		p.counts("a", tumble.Delta{Start: t0, N: 7})
		for i := range p.shards {
			p.stored(i, map[string]tumble.Checkpoint{"clicks/0": a.at[i], "clicks/1": b.at[i]}, "Apply for two partitions")
		}
	}),

	rule("Apply/one shard alone", docAlone, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		for i := range p.shards {
			l.apply(i, l.batch(i, minute(i), tumble.Delta{Start: t0, Key: p.keyOf(i), N: 1}))
			for j := range p.shards {
				p.stored(j, one("clicks/0", l.at[j]), fmt.Sprintf("Apply to shard %d", i))
			}
		}
	}),

	rule("Apply/keys of any bytes", docApply, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		want := make(map[string]int64)
		keys := append(anyStrings(), strings.Repeat("\x00", 1<<20))
		for _, n := range []int{1 << 5, 1 << 7, 1 << 8, 1 << 16} { // where formats write lengths in another way
			keys = append(keys, strings.Repeat("k", n-1), strings.Repeat("k", n))
		}
		var deltas []tumble.Delta
		for i, key := range keys {
			want[key] = int64(i + 1)
			deltas = append(deltas, tumble.Delta{Start: t0, Key: key, N: int64(i + 1)})
		}
		l.add(time.Time{}, deltas...)
		for _, d := range deltas {
			p.counts(d.Key, d)
		}
		p.all(t0, want)
		l.add(time.Time{}, deltas...)
		for _, d := range deltas {
			p.counts(d.Key, tumble.Delta{Start: t0, N: 2 * d.N})
		}
	}),

	rule("Apply/many deltas", docDeltas, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		// So many for one shard, in two windows.
		const n = 5000
		want := make(map[string]int64)
		var deltas []tumble.Delta
		for i := 0; len(want) < n/2; i++ {
			if key := fmt.Sprint("user", i); p.shardOf(key) == 0 {
				want[key] = int64(i + 1)
				deltas = append(deltas,
					tumble.Delta{Start: minute(i % 2), Key: key, N: int64(i + 1)},
					tumble.Delta{Start: minute(2), Key: key, N: int64(i + 1)})
			}
		}
		l.apply(0, l.batch(0, time.Time{}, deltas...))
		p.all(minute(2), want)
		for _, d := range []tumble.Delta{deltas[0], deltas[n/2], deltas[n-1]} {
			p.counts(d.Key, d)
		}
		p.stored(0, one("clicks/0", l.at[0]), "a batch of 5,000 deltas")
	}),

	rule("Apply/no deltas", docDeltas+" "+docBatch, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		for i := range p.shards {
			to := l.at[i]
			to.Offset = 10_000
			l.apply(i, l.move(i, to))
			to.Watermark = t0.Add(1)
			l.apply(i, l.move(i, to, []tumble.Delta{}...))
			to.Ended = true
			l.apply(i, l.move(i, to))
			p.stored(i, one("clicks/0", to), "batches without deltas")
		}
	}),

	rule("Apply/rebase", docBatch, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", tumble.Checkpoint{Log: "log-1", Offset: 50})
		l.add(minute(1), tumble.Delta{Start: t0, Key: "a", N: 3})
		for i := range p.shards {
			l.apply(i, l.move(i, tumble.Checkpoint{Log: "log-2", Origin: 2, Offset: 2, Epoch: 1, Watermark: minute(1)}))
			p.stored(i, one("clicks/0", l.at[i]), "a rebase")
		}
		l.add(minute(1), tumble.Delta{Start: t0, Key: "a", N: 4})
		p.counts("a", tumble.Delta{Start: t0, N: 7})
	}),

	rule("Apply/truncation", docBatch, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", tumble.Checkpoint{Log: "log-1", Origin: 20, Offset: 50})
		l.add(minute(1), tumble.Delta{Start: t0, Key: "a", N: 3})
		for _, to := range []tumble.Checkpoint{
			{Log: "log-1", Origin: 20, Offset: 30, Epoch: 4, Watermark: minute(1)},
			{Log: "log-1", Origin: 10, Offset: 10, Epoch: 5, Watermark: minute(1)},
		} {
			for i := range p.shards {
				l.apply(i, l.move(i, to))
				p.stored(i, one("clicks/0", to), "a step back")
			}
		}
		l.add(minute(1), tumble.Delta{Start: t0, Key: "a", N: 4})
		p.counts("a", tumble.Delta{Start: t0, N: 7})
	}),

	rule("Apply/deltas are borrowed", docBorrow, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		deltas := make([]tumble.Delta, 1)
		for round := range 20 {
			for i := range p.shards {
				deltas[0] = tumble.Delta{Start: minute(round), Key: p.keyOf(i), N: int64(round + 1)}
				l.apply(i, l.batch(i, time.Time{}, deltas...))
				deltas[0] = tumble.Delta{Start: minute(100), Key: "wrong", N: 1000}
			}
		}
		c.settle()
		for i := range p.shards {
			for round := range 20 {
				p.counts(p.keyOf(i), tumble.Delta{Start: minute(round), N: int64(round + 1)})
			}
		}
		p.all(minute(100), nil)
	}),

	rule("Apply/windows before 1970", docBounds, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		old := []time.Time{
			time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1969, 12, 31, 23, 58, 0, 0, time.UTC), time.Date(1969, 12, 31, 23, 59, 0, 0, time.UTC),
			time.Unix(0, 0), time.Unix(60, 0), time.Date(2199, 12, 31, 23, 59, 0, 0, time.UTC),
		}
		for i, start := range old {
			l.add(time.Time{}, tumble.Delta{Start: start, Key: "a", N: int64(i + 1)})
		}
		for i, start := range old {
			for _, at := range []time.Time{start, start.Add(1), start.Add(time.Minute - 1)} {
				got, err := p.Count(c.ctx, "a", at)
				c.ok(err, "Count(a, %v)", at)
				if got.N != int64(i+1) || !got.Start.Equal(start) {
					c.failf("Count(a, %v) is %d in %v, want %d in %v", at, got.N, got.Start, i+1, start)
				}
			}
		}
	}),

	rule("Apply/calendar windows", docBounds, func(c *check) {
		zone, err := time.LoadLocation("Europe/Berlin")
		c.ok(err, "time.LoadLocation")
		p := c.open(tumble.Definition{Window: tumble.Window{Calendar: tumble.Day, Zone: zone}})
		l := p.register("clicks/0", first())
		for d := 29; d <= 33; d++ { // over the change to summer time
			l.add(time.Time{}, tumble.Delta{Start: time.Date(2024, 3, d, 0, 0, 0, 0, zone), Key: "a", N: int64(d)})
		}
		for d := 29; d <= 33; d++ {
			start, last := time.Date(2024, 3, d, 0, 0, 0, 0, zone), time.Date(2024, 3, d, 23, 59, 59, 0, zone)
			for _, at := range []time.Time{start, last} {
				got, err := p.Count(c.ctx, "a", at)
				c.ok(err, "Count(a, %v)", at)
				if got.N != int64(d) || !got.Start.Equal(start) {
					c.failf("Count(a, %v) is %d in %v, want %d in %v", at, got.N, got.Start, d, start)
				}
			}
		}
	}),
}
