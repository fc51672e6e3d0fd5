package sinktest

import (
	"fmt"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docDeltas  = "At most one per window and key, in no order; any number of them, none included."
	docBorrow  = "The sink may read them until Apply returns."
	docBatch   = "Within a Log, To is not before From. Equal offsets carry a later Watermark (a promise) or Ended. Another Log is a rebase, without Deltas."
	docForget  = "It may forget windows that the shard's frontier has passed by Grace + Retention."
	docBounds  = "Bounds returns the window that holds t: start <= t < end."
	docEndMark = "EndMark returns the end plus Grace of the window that holds watermark: the frontier of a shard whose partitions have all ended with watermark as their largest."
)

var applyRules = []Rule{
	rule("Apply/adds", docApply, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		l.add(time.Time{},
			tumble.Delta{Window: minute(1), Key: "b", N: 10},
			tumble.Delta{Window: minute(0), Key: "a", N: 1},
			tumble.Delta{Window: minute(1), Key: "a", N: 2},
			tumble.Delta{Window: minute(0), Key: "b", N: 1 << 52})
		l.add(minute(0),
			tumble.Delta{Window: minute(0), Key: "a", N: 100},
			tumble.Delta{Window: minute(2), Key: "a", N: 4})
		for _, p := range []*process{p, c.open(minutes)} {
			p.counts("a", tumble.Delta{Window: minute(0), N: 101}, tumble.Delta{Window: minute(1), N: 2}, tumble.Delta{Window: minute(2), N: 4}, tumble.Delta{Window: minute(3)})
			p.counts("b", tumble.Delta{Window: minute(0), N: 1 << 52}, tumble.Delta{Window: minute(1), N: 10}, tumble.Delta{Window: minute(2)})
			p.counts("c", tumble.Delta{Window: minute(0)})
			p.all(minute(1), map[string]int64{"a": 2, "b": 10})
		}
	}),

	rule("Apply/partitions add up", docShard, func(c *check) {
		p := c.open(minutes)
		a := p.register("clicks/0", first())
		b := p.register("clicks/1", tumble.Checkpoint{Log: "log-1", Offset: 70})
		a.add(time.Time{}, tumble.Delta{Window: t0, Key: "a", N: 1})
		b.add(minute(1), tumble.Delta{Window: t0, Key: "a", N: 2})
		a.add(minute(2), tumble.Delta{Window: t0, Key: "a", N: 4})
		p.counts("a", tumble.Delta{Window: t0, N: 7})
		for i := range p.shards {
			p.stored(i, map[string]tumble.Checkpoint{"clicks/0": a.at[i], "clicks/1": b.at[i]}, "Apply for two partitions")
		}
	}),

	rule("Apply/one shard alone", docAlone, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		for i := range p.shards {
			l.apply(i, l.batch(i, minute(i), tumble.Delta{Window: t0, Key: p.keyOf(i), N: 1}))
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
			deltas = append(deltas, tumble.Delta{Window: t0, Key: key, N: int64(i + 1)})
		}
		l.add(time.Time{}, deltas...)
		for _, d := range deltas {
			p.counts(d.Key, d)
		}
		p.all(t0, want)
		l.add(time.Time{}, deltas...)
		for _, d := range deltas {
			p.counts(d.Key, tumble.Delta{Window: t0, N: 2 * d.N})
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
					tumble.Delta{Window: minute(i % 2), Key: key, N: int64(i + 1)},
					tumble.Delta{Window: minute(2), Key: key, N: int64(i + 1)})
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
			l.apply(i, tumble.Batch{Partition: "clicks/0", From: l.at[i], To: to})
			to.Watermark = t0.Add(1)
			l.apply(i, tumble.Batch{Partition: "clicks/0", From: l.at[i], To: to, Deltas: []tumble.Delta{}})
			to.Ended = true
			l.apply(i, tumble.Batch{Partition: "clicks/0", From: l.at[i], To: to})
			p.stored(i, one("clicks/0", to), "batches without deltas")
		}
	}),

	rule("Apply/rebase", docBatch, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", tumble.Checkpoint{Log: "log-1", Offset: 50})
		l.add(minute(1), tumble.Delta{Window: t0, Key: "a", N: 3})
		for i := range p.shards {
			l.apply(i, tumble.Batch{Partition: "clicks/0", From: l.at[i],
				To: tumble.Checkpoint{Log: "log-2", Origin: 2, Offset: 2, Watermark: minute(1)}})
			p.stored(i, one("clicks/0", l.at[i]), "a rebase")
		}
		l.add(minute(1), tumble.Delta{Window: t0, Key: "a", N: 4})
		p.counts("a", tumble.Delta{Window: t0, N: 7})
	}),

	rule("Apply/deltas are borrowed", docBorrow, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		deltas := make([]tumble.Delta, 1)
		for round := range 20 {
			for i := range p.shards {
				deltas[0] = tumble.Delta{Window: minute(round), Key: p.keyOf(i), N: int64(round + 1)}
				l.apply(i, l.batch(i, time.Time{}, deltas...))
				deltas[0] = tumble.Delta{Window: minute(100), Key: "wrong", N: 1000}
			}
		}
		c.settle()
		for i := range p.shards {
			for round := range 20 {
				p.counts(p.keyOf(i), tumble.Delta{Window: minute(round), N: int64(round + 1)})
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
			l.add(time.Time{}, tumble.Delta{Window: start, Key: "a", N: int64(i + 1)})
		}
		for i, start := range old {
			for _, at := range []time.Time{start, start.Add(1), start.Add(time.Minute - 1)} {
				got, err := p.Count(c.ctx, "a", at)
				c.ok(err, "Count(a, %v)", at)
				if got.N != int64(i+1) || !got.Window.Equal(start) {
					c.failf("Count(a, %v) is %d in %v, want %d in %v", at, got.N, got.Window, i+1, start)
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
			l.add(time.Time{}, tumble.Delta{Window: time.Date(2024, 3, d, 0, 0, 0, 0, zone), Key: "a", N: int64(d)})
		}
		for d := 29; d <= 33; d++ {
			start, last := time.Date(2024, 3, d, 0, 0, 0, 0, zone), time.Date(2024, 3, d, 23, 59, 59, 0, zone)
			for _, at := range []time.Time{start, last} {
				got, err := p.Count(c.ctx, "a", at)
				c.ok(err, "Count(a, %v)", at)
				if got.N != int64(d) || !got.Window.Equal(start) {
					c.failf("Count(a, %v) is %d in %v, want %d in %v", at, got.N, got.Window, d, start)
				}
			}
		}
	}),
}

// keeping counts per minute with a grace of 1 minute and a retention of 3.
var keeping = tumble.Definition{Window: tumble.Window{Size: time.Minute}, Grace: time.Minute, Retention: 3 * time.Minute}

// fill adds to each of the first n minutes a count of every shard's key.
func (l *lanes) fill(n int) {
	for w := range n {
		for i := range l.shards {
			l.apply(i, l.batch(i, time.Time{}, tumble.Delta{Window: minute(w), Key: l.keyOf(i), N: int64(w + 1)}))
		}
	}
}

// kept ends the check if the first n minutes are not what frontier, every
// shard's, makes of them. A window past retention may still be counted.
func (p *process) kept(n int, frontier time.Time) {
	p.c.settle()
	for w := range n {
		final, expired := p.def.Finality(frontier, minute(w+1))
		for i := range p.shards {
			key := p.keyOf(i)
			p.c.soon(func() error {
				got, err := p.Count(p.c.ctx, key, minute(w))
				switch {
				case err != nil:
					return fmt.Errorf("Count(%q, minute %d): %w", key, w, err)
				case got.Final != final || got.Expired != expired:
					return fmt.Errorf("with the frontier at %v minute %d is final %v and expired %v, want %v and %v",
						frontier, w, got.Final, got.Expired, final, expired)
				case !expired && got.N != int64(w+1):
					return fmt.Errorf("with the frontier at %v minute %d holds %d, want %d", frontier, w, got.N, w+1)
				}
				return nil
			})
		}
	}
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
		p.counts(p.keyOf(0), tumble.Delta{Window: minute(0), N: 1}, tumble.Delta{Window: minute(2), N: 3})
	}),

	rule("Apply/keeps for ever", "in event time, after Grace; 0: counts are kept for ever", func(c *check) {
		def := keeping
		def.Retention = 0
		p := c.open(def)
		l := p.register("clicks/0", first())
		l.fill(3)
		far := time.Date(2199, 1, 1, 0, 0, 0, 0, time.UTC)
		l.add(far)
		p.kept(3, far)
	}),

	rule("Apply/keeps what ends with the source", docEndMark, func(c *check) {
		def := keeping
		def.Retention = 10 * time.Minute
		p := c.open(def)
		l := p.register("clicks/0", first())
		l.fill(5)
		l.add(minute(4).Add(30 * time.Second))
		p.kept(5, minute(4).Add(30*time.Second))
		l.end()
		p.kept(5, minute(6))
	}),

	rule("Apply/days before 1970 within retention", docForget+" "+docBounds, func(c *check) {
		zone, err := time.LoadLocation("Europe/Berlin")
		c.ok(err, "time.LoadLocation")
		def := tumble.Definition{Window: tumble.Window{Calendar: tumble.Day, Zone: zone}, Retention: 48 * time.Hour}
		day := func(d int) time.Time { return time.Date(1945, 4, d, 0, 0, 0, 0, zone) }
		p := c.open(def)
		l := p.register("clicks/0", first())
		for d := 1; d <= 6; d++ { // clocks went forward on the 2nd
			l.add(time.Time{}, tumble.Delta{Window: day(d), Key: "a", N: int64(d)})
		}
		for d := 2; d <= 7; d++ {
			for _, mark := range []time.Time{day(d).Add(-1), day(d)} {
				l.add(mark)
				c.settle()
				for w := 1; w <= 6; w++ {
					final, expired := def.Finality(mark, day(w+1))
					got, err := p.Count(c.ctx, "a", day(w))
					c.ok(err, "Count(a, %v)", day(w))
					if got.Final != final || got.Expired != expired || !expired && got.N != int64(w) {
						c.failf("with the frontier at %v the day %v is %+v, want %d, final %v, expired %v", mark, day(w), got, w, final, expired)
					}
				}
			}
		}
	}),
}
