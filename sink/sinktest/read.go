package sinktest

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docNoDefinition = "Of a name under which nothing is stored, Definition returns ErrNoDefinition."
	docNeedsIt      = "Every other method but Rollup needs the definition too, and wraps ErrNoDefinition when there is none."
	docTimes        = "A time whose window holds none of the years 1700 to 2199 is an error, see [Window.Find]; the bounds of Range and Windows may be any."
	docDefinition   = "Definition returns what the counts mean."
	docCount        = "A Reader reads what a sink holds. Count returns the count of key in the window that holds at."
	docRange        = "Range returns the counts of key, those above 0, in the windows whose start is in [from, to), ascending. A window that it leaves out held no count when it was read."
	docTop          = `Top returns the n highest counts in the window that holds at, descending, equal ones by ascending Key. Its Cursor is "".`
	docScan         = `Scan returns about limit of the counts in the window that holds at, in no order, beginning at cursor, which is "" for the first page and then the Cursor of the page before.`
	docOnce         = "Over the pages of a window that does not change every key comes exactly once."
	docCursor       = "An error wraps ErrCursor if cursor is not one that Scan returned."
)

// some adds counts of 40 keys to minute 0 and returns them.
func (l *lanes) some() map[string]int64 {
	want := make(map[string]int64)
	var deltas []tumble.Delta
	for i := range 40 {
		key, n := fmt.Sprintf("user%02d", (i*17)%40), int64(i/4*10+1) // four of each count
		want[key] = n
		deltas = append(deltas, tumble.Delta{Start: t0, Key: key, N: n}, tumble.Delta{Start: minute(1), Key: key, N: 1000 * n})
	}
	l.add(time.Time{}, deltas...)
	return want
}

// reads are the methods of a Reader that read counts.
func reads(c *check, r tumble.Reader) map[string]func(at time.Time) error {
	return map[string]func(time.Time) error{
		"Count":             func(at time.Time) error { _, err := r.Count(c.ctx, "a", at); return err },
		"Range":             func(at time.Time) error { _, err := r.Range(c.ctx, "a", at, at.Add(time.Hour)); return err },
		"Top":               func(at time.Time) error { _, err := r.Top(c.ctx, at, 3); return err },
		"Scan":              func(at time.Time) error { _, err := r.Scan(c.ctx, at, "", 3); return err },
		"Counts":            func(at time.Time) error { _, err := r.Counts(c.ctx, at, "a", "b"); return err },
		"Counts of no keys": func(at time.Time) error { _, err := r.Counts(c.ctx, at); return err },
		"Windows":           func(at time.Time) error { _, err := r.Windows(c.ctx, at, at.Add(time.Hour)); return err },
	}
}

var readerRules = []Rule{
	rule("Reader/no definition", docNoDefinition, func(c *check) {
		_, err := c.sink().Definition(c.ctx)
		c.wraps(err, tumble.ErrNoDefinition, "Definition of a new name")
	}),

	rule("Reader/no definition, no counts", docNeedsIt, func(c *check) {
		s := c.sink()
		for name, read := range reads(c, s) {
			c.wraps(read(t0), tumble.ErrNoDefinition, "%s of a new name", name)
		}
		_, err := s.Progress(c.ctx)
		c.wraps(err, tumble.ErrNoDefinition, "Progress of a new name")
	}),

	rule("Reader/times that are none", docTimes, func(c *check) {
		p := c.open(minutes)
		for name, read := range reads(c, p) {
			for _, at := range []time.Time{{}, time.Date(1699, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)} {
				if err := read(at); (err == nil) != (name == "Range" || name == "Windows") {
					c.failf("%s at %v: error %v", name, at, err)
				}
			}
		}
	}),

	rule("Reader/windows that begin before all times", docTimes+" "+docCount, func(c *check) {
		begin := time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC)
		def := tumble.Definition{Window: tumble.Window{Calendar: tumble.Week}}
		start, _ := def.Window.Bounds(begin)
		p := c.open(def)
		p.register("clicks/0", first()).add(begin, tumble.Delta{Start: start, Key: "a", N: 3})
		for _, at := range []time.Time{start, begin} {
			c.soon(func() error {
				got, err := p.Count(c.ctx, "a", at)
				if err == nil && (got.N != 3 || !got.Start.Equal(start)) {
					err = fmt.Errorf("%v is in %v, which holds %d, want 3 in %v", at, got.Start, got.N, start)
				}
				return err
			})
		}
		if _, err := p.Count(c.ctx, "a", start.Add(-1)); err == nil {
			c.failf("Count at %v: no error", start.Add(-1))
		}
	}),

	rule("Reader/the definition", docDefinition, func(c *check) {
		p := c.open(keeping)
		got, err := p.Definition(c.ctx)
		c.ok(err, "Definition")
		if !got.Same(keeping) || got.Retention != keeping.Retention {
			c.failf("Definition is %v, want %v", got, keeping)
		}
	}),

	rule("Reader/count", docCount, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		l.fill(3)
		key := p.keyOf(0)
		for w := range 3 {
			for _, at := range []time.Time{minute(w), minute(w).Add(1), minute(w + 1).Add(-1), minute(w).In(time.FixedZone("there", 3600))} {
				got, err := p.Count(c.ctx, key, at)
				c.ok(err, "Count(%q, %v)", key, at)
				if got.N != int64(w+1) || got.Key != key || !got.Start.Equal(minute(w)) || !got.End.Equal(minute(w+1)) {
					c.failf("Count(%q, %v) is %+v, want %d in %v", key, at, got, w+1, minute(w))
				}
			}
		}
	}),

	rule("Reader/range", docRange, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		for _, w := range []int{5, 1, 3, 9, 7} {
			l.add(time.Time{}, tumble.Delta{Start: minute(w), Key: "a", N: int64(w)}, tumble.Delta{Start: minute(w + 1), Key: "b", N: 1})
		}
		l.add(minute(6)) // minutes 0 to 5 are closed
		for _, r := range []struct {
			from, to time.Time
			want     []int
		}{
			{minute(0), minute(10), []int{1, 3, 5, 7, 9}},
			{minute(1), minute(9), []int{1, 3, 5, 7}},
			{minute(1).Add(1), minute(9).Add(1), []int{3, 5, 7, 9}},
			{minute(3), minute(3).Add(1), []int{3}},
			{minute(3).Add(-1), minute(3), nil},
			{minute(3), minute(3), nil},
			{minute(9), minute(1), nil},
			{minute(20), minute(30), nil},
		} {
			p.c.soon(func() error {
				got, err := p.Range(c.ctx, "a", r.from, r.to)
				if err != nil {
					return fmt.Errorf("Range(a, %v, %v): %w", r.from, r.to, err)
				}
				if !slices.EqualFunc(got, r.want, func(got tumble.Count, w int) bool {
					closed := map[bool]tumble.State{true: tumble.Closed, false: tumble.Open}[w <= 5]
					return got.Key == "a" && got.N == int64(w) && got.Start.Equal(minute(w)) && got.End.Equal(minute(w+1)) && got.State == closed
				}) {
					return fmt.Errorf("Range(a, %v, %v) is %+v, want minutes %v", r.from, r.to, got, r.want)
				}
				return nil
			})
		}
	}),

	rule("Reader/top", docTop, func(c *check) {
		p := c.open(minutes)
		want := make([]tumble.Count, 0, 40)
		for key, n := range p.register("clicks/0", first()).some() {
			want = append(want, tumble.Count{Key: key, N: n})
		}
		slices.SortFunc(want, func(a, b tumble.Count) int { return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Key, b.Key)) })
		for _, n := range []int{1, 2, 3, 10, 39, 40, 41, 1000} {
			p.c.soon(func() error {
				page, err := p.Top(c.ctx, t0.Add(time.Second), n)
				if err != nil {
					return fmt.Errorf("the top %d: %w", n, err)
				}
				if page.Cursor != "" {
					return fmt.Errorf("the top %d have the cursor %q", n, page.Cursor)
				}
				if !slices.EqualFunc(page.Counts, want[:min(n, 40)], func(a, b tumble.Count) bool {
					return a.Key == b.Key && a.N == b.N && a.Start.Equal(t0) && a.End.Equal(minute(1))
				}) {
					return fmt.Errorf("the top %d are %v, want %v", n, page.Counts, want[:min(n, 40)])
				}
				return nil
			})
		}
		page, err := p.Top(c.ctx, minute(5), 3)
		c.ok(err, "Top of a window without counts")
		if len(page.Counts) != 0 {
			c.failf("Top of a window without counts is %v", page.Counts)
		}
	}),

	rule("Reader/scan", docScan+" "+docOnce, func(c *check) {
		p := c.open(minutes)
		l := p.register("clicks/0", first())
		l.some()
		want := make(map[string]int64)
		var deltas []tumble.Delta
		for i := range 700 {
			key := fmt.Sprint("user", i)
			want[key] = int64(i + 1)
			deltas = append(deltas, tumble.Delta{Start: minute(2), Key: key, N: int64(i + 1)})
		}
		l.add(time.Time{}, deltas...)
		p.all(minute(2), want)
		for _, limit := range []int{1, 7, 100, 699, 700, 701, 5000} {
			got := make(map[string]int64)
			pages := 0
			for cursor := ""; ; {
				page, err := p.Scan(c.ctx, minute(2).Add(time.Second), cursor, limit)
				c.ok(err, "Scan from %q", cursor)
				for _, n := range page.Counts {
					if _, twice := got[n.Key]; twice {
						c.failf("Scan by %d gave %q twice", limit, n.Key)
					}
					if !n.Start.Equal(minute(2)) || !n.End.Equal(minute(3)) {
						c.failf("Scan of minute 2 gave %+v", n)
					}
					got[n.Key] = n.N
				}
				if cursor = page.Cursor; cursor == "" {
					break
				}
				if pages++; pages > 10*len(want) {
					c.failf("Scan by %d has not ended after %d pages", limit, pages)
				}
			}
			for key, n := range want {
				if got[key] != n {
					c.failf("Scan by %d gave %d of %q, want %d", limit, got[key], key, n)
				}
			}
			if len(got) != len(want) {
				c.failf("Scan by %d gave %d keys, want %d", limit, len(got), len(want))
			}
			if limit == 1 && pages < 7 {
				c.failf("Scan by 1 gave 700 keys on %d pages", pages+1)
			}
		}
		p.all(minute(5), nil)
	}),

	rule("Reader/scan from a wrong cursor", docCursor, func(c *check) {
		p := c.open(minutes)
		p.register("clicks/0", first()).some()
		page, err := p.Scan(c.ctx, t0, "", 1)
		c.ok(err, "Scan")
		wrong := []string{" ", "x", "-1", "\x00", "999999999999999999999999", "1:2:3:4:5:6:7:8:9", "日本"}
		if page.Cursor != "" {
			wrong = append(wrong, page.Cursor+"x", "x"+page.Cursor, page.Cursor+page.Cursor)
		}
		for _, cursor := range wrong {
			_, err := p.Scan(c.ctx, t0, cursor, 10)
			c.wraps(err, tumble.ErrCursor, "Scan from the cursor %q", cursor)
		}
	}),
}
