package sinktest

import (
	"fmt"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docOverflow = "If a count, or the total of a window in the shard, would pass MaxCount, it changes nothing and wraps ErrOverflow."
	docCounts   = "Counts returns the counts of keys in the window that holds at, one for each, in the order of keys."
	docWindows  = "Windows returns the totals of the windows whose start is in [from, to) and that hold a count, ascending."
	docProgress = "Progress returns how far the partitions are counted."
	docCounted  = "What it says is counted is in what this Reader reads later."
)

var totalRules = []Rule{
	rule("Apply/overflow", docOverflow, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		key, other := p.keyOf(0), ""
		for i := 0; other == ""; i++ {
			if k := fmt.Sprint("other", i); p.shardOf(k) == 0 {
				other = k
			}
		}
		of := func(i int, key string, n int64) tumble.Delta { return tumble.Delta{Start: minute(i), Key: key, N: n} }
		l.apply(0, l.batch(0, time.Time{}, of(0, key, tumble.MaxCount-5), of(1, key, 1)))
		for _, deltas := range [][]tumble.Delta{
			{of(0, key, 6)},
			{of(0, other, 6)}, // the window's total
			{of(2, other, 1), of(0, other, 3), of(1, key, 1), of(0, key, 3)},
			{of(3, key, tumble.MaxCount), of(3, other, 1)},
			{of(1, key, tumble.MaxCount)},
		} {
			l.refused(0, l.batch(0, time.Time{}, deltas...), tumble.ErrOverflow)
			p.all(minute(0), map[string]int64{key: tumble.MaxCount - 5})
			p.all(minute(1), map[string]int64{key: 1})
			p.all(minute(2), nil)
			p.all(minute(3), nil)
		}
		l.apply(0, l.batch(0, time.Time{}, of(0, other, 2), of(0, key, 3), of(2, key, tumble.MaxCount)))
		p.all(minute(0), map[string]int64{key: tumble.MaxCount - 2, other: 2})
		p.all(minute(2), map[string]int64{key: tumble.MaxCount})
	}),

	rule("Apply/overflow of what has expired", docOverflow+" Deltas of such windows are not counted.", func(c *check) {
		p := c.open(keeping)
		l := p.register("clicks/0", first())
		key := p.keyOf(0)
		l.apply(0, l.batch(0, minute(100), tumble.Delta{Start: minute(99), Key: key, N: 1}))
		l.apply(0, l.batch(0, time.Time{},
			tumble.Delta{Start: minute(0), Key: key, N: tumble.MaxCount},
			tumble.Delta{Start: minute(0), Key: key + "x", N: tumble.MaxCount}))
		p.all(minute(99), map[string]int64{key: 1})
	}),

	rule("Reader/counts", docCounts, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		want := l.some()
		keys := []string{"nobody"}
		for key := range want {
			keys = append(keys, key)
		}
		keys = append(keys, "", keys[1], keys[5])
		l.add(minute(1)) // minute 0 is closed
		for i := range 2 {
			p.c.soon(func() error {
				got, err := p.Counts(c.ctx, minute(i).Add(7), keys...)
				if err != nil || len(got) != len(keys) {
					return fmt.Errorf("Counts(%v) gave %d counts of %d keys, error %v", minute(i), len(got), len(keys), err)
				}
				for n, key := range keys {
					single, err := p.Count(c.ctx, key, minute(i))
					if err != nil {
						return fmt.Errorf("Count(%q, %v): %w", key, minute(i), err)
					}
					if got[n] != single {
						return fmt.Errorf("Counts(%v) gave %+v for %q, Count gives %+v", minute(i), got[n], key, single)
					}
				}
				return nil
			})
		}
		got, err := p.Counts(c.ctx, t0)
		if c.ok(err, "Counts of no keys"); len(got) > 0 {
			c.failf("Counts of no keys are %v", got)
		}
	}),

	rule("Reader/windows", docWindows, func(c *check) {
		p := c.open(minutes)
		a := p.register("clicks/0", first())
		b := p.register("clicks/1", first())
		want := a.some()
		b.add(time.Time{}, tumble.Delta{Start: minute(7), Key: "a", N: 5}, tumble.Delta{Start: minute(0), Key: "user00", N: 1})
		a.add(minute(1), tumble.Delta{Start: minute(7), Key: "a", N: 2}, tumble.Delta{Start: minute(7), Key: "b", N: 1})
		b.add(minute(5))
		want["user00"]++
		p.all(t0, want)
		for _, r := range []struct {
			from, to time.Time
			want     []int
		}{
			{minute(0), minute(8), []int{0, 1, 7}},
			{minute(0).Add(-1), minute(7), []int{0, 1}},
			{minute(0).Add(1), minute(7).Add(1), []int{1, 7}},
			{minute(2), minute(7), nil},
			{minute(8), minute(0), nil},
			{time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC), []int{0, 1, 7}},
		} {
			p.c.soon(func() error {
				totals, err := p.Windows(c.ctx, r.from, r.to)
				if err != nil {
					return fmt.Errorf("Windows(%v, %v): %w", r.from, r.to, err)
				}
				var got []int
				for _, t := range totals {
					got = append(got, int(t.Start.Sub(t0)/time.Minute))
				}
				if !slices.Equal(got, r.want) {
					return fmt.Errorf("Windows(%v, %v) are %v, want those from minutes %v", r.from, r.to, totals, r.want)
				}
				for _, t := range totals {
					keys, n := map[int]int64{0: 40, 1: 40, 7: 2}, map[int]int64{1: 1000 * (sumOf(want) - 1), 0: sumOf(want), 7: 8}
					i := int(t.Start.Sub(t0) / time.Minute)
					state := map[bool]tumble.State{true: tumble.Closed, false: tumble.Open}[i == 0]
					if t.Keys != keys[i] || t.N != n[i] || t.State != state || !t.End.Equal(minute(i+1)) {
						return fmt.Errorf("minute %d has the total %+v, want %d keys, a sum of %d, %v", i, t, keys[i], n[i], state)
					}
				}
				return nil
			})
		}
	}),

	rule("Reader/progress", docProgress+" "+docCounted, func(c *check) {
		p := c.open(minutes)
		a := p.register("clicks/0", first())
		b := p.register("clicks/1", tumble.Checkpoint{Log: "log-1", Offset: 70, Watermark: minute(3)})
		last := len(p.shards) - 1
		for i := range p.shards {
			a.apply(i, a.batch(i, minute(i+1), tumble.Delta{Start: t0, Key: p.keyOf(i), N: 1}))
			if i == last {
				break
			}
			if got := c.progressOf(p, "clicks/0"); got.Offset != 0 || got.Log != "log-1" || !got.Watermark.IsZero() || got.Ended {
				c.failf("Progress is %+v after %d of %d shards were told of offset 1", got, i+1, len(p.shards))
			}
		}
		got := c.progressOf(p, "clicks/0")
		if got.Offset != 1 || !got.Watermark.Equal(minute(1)) {
			c.failf("Progress is %+v once every shard was told of offset 1 and of watermarks from %v on", got, minute(1))
		}
		for i := range p.shards {
			n, err := p.Count(c.ctx, p.keyOf(i), t0)
			if c.ok(err, "Count"); n.N != 1 {
				c.failf("Progress says that offset 0 is counted, and Count then gives %d of %q", n.N, p.keyOf(i))
			}
		}
		all, err := p.Progress(c.ctx)
		if c.ok(err, "Progress"); len(all.Partitions) != 2 || all.Partitions[0].ID != "clicks/0" || all.Partitions[1].Offset != 70 || !all.Frontier.Equal(minute(1)) {
			c.failf("Progress is %+v, want two partitions and the frontier %v", all, minute(1))
		}
		a.end()
		if !c.progressOf(p, "clicks/0").Ended {
			c.failf("Progress does not say that the partition has ended")
		}
		b.apply(last, b.move(last, tumble.Checkpoint{Log: "log-2"}))
		if got := c.progressOf(p, "clicks/1"); (got.Log == "") != (last > 0) {
			c.failf("Progress is %+v while the partition is in another log in one of %d shards", got, len(p.shards))
		}
	}),
}

// progressOf returns that of one partition.
func (c *check) progressOf(p *process, id string) tumble.PartitionProgress {
	all, err := p.Progress(c.ctx)
	c.ok(err, "Progress")
	for _, part := range all.Partitions {
		if part.ID == id {
			return part
		}
	}
	c.failf("Progress has no partition %s: %+v", id, all)
	return tumble.PartitionProgress{}
}

func sumOf(counts map[string]int64) (n int64) {
	for _, count := range counts {
		n += count
	}
	return n
}
