package sinktest

import (
	"fmt"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docRollup    = "A Rollup is a coarser Window that is counted from the same read, in the same step: in the store a count of it always equals the sum of its finest windows' counts, as long as these are kept."
	docLevel     = "Rollup returns the Reader of a window that is counted beside the finest one, or of that. Its own Definition is that of the level alone."
	docNoRollup  = "It reads nothing: each method of it wraps ErrNoRollup if the definition that is stored does not count the window. An error says that the window is none."
	docRolledUp  = "Rollups holds what Deltas come to in the windows of each roll-up, in the order of [Definition.Levels] from level 1 on, as Deltas does. An N above MaxCount is an overflow."
	docLeastKept = "Retention time.Duration // as that of a Definition, and no shorter than its own"
)

var (
	tens  = tumble.Window{Size: 10 * time.Minute}
	hours = tumble.Window{Size: time.Hour}
	days  = tumble.Window{Calendar: tumble.Day}

	// rolled counts minutes, which are kept for the shortest time, in tens, hours and days.
	rolled = tumble.Definition{
		Window: minutes.Window, Retention: 20 * time.Minute, DropLate: false,
		Rollups: []tumble.Rollup{{Window: days}, {Window: hours, Retention: time.Hour}, {Window: tens, Retention: 20 * time.Minute}},
	}
)

// at returns the process as a reader of a window.
func (p *process) at(w tumble.Window) *process {
	r, err := p.Rollup(w)
	p.c.ok(err, "Rollup(%v)", w)
	level, err := p.def.LevelOf(w)
	p.c.ok(err, "LevelOf(%v)", w)
	return &process{Sink: levelSink{p.Sink, r}, c: p.c, def: p.def.Level(level), shards: p.shards}
}

// A levelSink is a sink whose reads are those of a roll-up.
type levelSink struct {
	tumble.Sink
	tumble.Reader
}

var rollupRules = []Rule{
	rule("Rollup/adds up", docRollup+" "+docLevel, func(c *check) {
		def := rolled
		def.Retention = 0
		def.Rollups = []tumble.Rollup{{Window: days}, {Window: hours}, {Window: tens}}
		p := c.open(def)
		a, b := p.register("clicks/0", first()), p.register("clicks/1", first())
		want := make(map[tumble.Window]map[time.Time]map[string]int64)
		for i := range 40 {
			key := fmt.Sprintf("user%02d", i%7)
			d := tumble.Delta{Start: minute(13 * i), Key: key, N: int64(i + 1)}
			for _, w := range []tumble.Window{def.Window, tens, hours, days} {
				start, _ := w.Bounds(d.Start)
				if want[w] == nil {
					want[w] = make(map[time.Time]map[string]int64)
				}
				if want[w][start] == nil {
					want[w][start] = make(map[string]int64)
				}
				want[w][start][key] += d.N
			}
			if i%3 == 0 {
				a.add(time.Time{}, d)
			} else {
				b.add(time.Time{}, d, tumble.Delta{Start: minute(13 * i), Key: "all", N: 1})
				for _, w := range []tumble.Window{def.Window, tens, hours, days} {
					start, _ := w.Bounds(d.Start)
					want[w][start]["all"]++
				}
			}
		}
		for w, windows := range want {
			for _, p := range []*process{p.at(w), c.open(def).at(w)} {
				for start, counts := range windows {
					p.all(start, counts)
					for key, n := range counts {
						p.counts(key, tumble.Delta{Start: start, Key: key, N: n})
					}
				}
				var sum int64
				ranged, err := p.Range(c.ctx, "all", t0.Add(-24*time.Hour), t0.Add(24*time.Hour))
				c.ok(err, "Range of %v", w)
				for _, n := range ranged {
					if start, end := w.Bounds(n.Start); !start.Equal(n.Start) || !end.Equal(n.End) || n.N != windows[n.Start]["all"] {
						c.failf("Range of %v has %+v, want %d", w, n, windows[n.Start]["all"])
					}
					sum += n.N
				}
				if sum != 26 {
					c.failf("Range of %v adds up to %d, want 26", w, sum)
				}
				totals, err := p.Windows(c.ctx, t0.Add(-24*time.Hour), t0.Add(24*time.Hour))
				if c.ok(err, "Windows of %v", w); len(totals) != len(windows) {
					c.failf("Windows of %v are %d, want %d", w, len(totals), len(windows))
				}
				start, _ := w.Bounds(t0)
				top, err := p.Top(c.ctx, t0, 1)
				if c.ok(err, "Top of %v", w); !top.Start.Equal(start) || len(top.Counts) != 1 {
					c.failf("Top of %v is %+v", w, top)
				}
				several, err := p.Counts(c.ctx, t0, "user00", "nobody")
				if c.ok(err, "Counts of %v", w); len(several) != 2 || several[0].N != windows[start]["user00"] || several[1].N != 0 {
					c.failf("Counts of %v are %+v", w, several)
				}
				got, err := p.Definition(c.ctx)
				if c.ok(err, "Definition of %v", w); got.Window.String() != w.String() || len(got.Rollups) != 0 {
					c.failf("Definition of %v is %v", w, got)
				}
			}
		}
	}),

	rule("Rollup/a refused batch", docRolledUp+" "+docOverflow, func(c *check) {
		def := rolled
		def.Retention = 0
		def.Rollups = []tumble.Rollup{{Window: hours}}
		p := c.open(def)
		l := p.register("clicks/0", first())
		key := p.keyOf(0)
		const half = tumble.MaxCount/2 + 1
		l.apply(0, l.batch(0, time.Time{}, tumble.Delta{Start: minute(0), Key: key, N: 5}))
		l.refused(0, l.batch(0, time.Time{}, tumble.Delta{Start: minute(1), Key: key, N: half}, tumble.Delta{Start: minute(2), Key: key, N: half}), tumble.ErrOverflow)
		stale := l.batch(0, time.Time{}, tumble.Delta{Start: minute(0), Key: key, N: 7})
		stale.From.Offset += 100
		l.refused(0, stale, tumble.ErrConflict)
		p.all(t0, map[string]int64{key: 5})
		p.all(minute(1), nil)
		p.at(hours).all(t0, map[string]int64{key: 5})
		// An hour's total, of two batches.
		l.apply(0, l.batch(0, time.Time{}, tumble.Delta{Start: minute(1), Key: key, N: half}))
		l.refused(0, l.batch(0, time.Time{}, tumble.Delta{Start: minute(2), Key: key, N: half}), tumble.ErrOverflow)
		p.all(minute(2), nil)
		p.at(hours).all(t0, map[string]int64{key: half + 5})
	}),

	rule("Rollup/states", docThree, func(c *check) {
		def := rolled
		def.Retention, def.DropLate = 0, true
		def.Rollups = []tumble.Rollup{{Window: hours}, {Window: tens}}
		p := c.open(def)
		l := p.register("clicks/0", first())
		l.add(minute(0), tumble.Delta{Start: t0, Key: "a", N: 1})
		for _, step := range []struct {
			mark time.Time
			want [3]tumble.State
		}{
			{minute(0), [3]tumble.State{tumble.Open, tumble.Open, tumble.Open}},
			{minute(1), [3]tumble.State{tumble.Final, tumble.Open, tumble.Open}},
			{minute(10).Add(-1), [3]tumble.State{tumble.Final, tumble.Open, tumble.Open}},
			{minute(10), [3]tumble.State{tumble.Final, tumble.Final, tumble.Open}},
			{minute(60), [3]tumble.State{tumble.Final, tumble.Final, tumble.Final}},
		} {
			l.add(step.mark)
			for i, w := range []tumble.Window{def.Window, tens, hours} {
				c.soon(func() error {
					got, err := p.at(w).Count(c.ctx, "a", t0)
					if err != nil || got.State != step.want[i] || got.N != 1 {
						return fmt.Errorf("with watermark %v the count of %v is %+v, %v, want %v", step.mark, w, got, err, step.want[i])
					}
					return nil
				})
			}
		}
	}),

	rule("Rollup/retention", docFloor+" "+docForget+" "+docGone, func(c *check) {
		p := c.open(rolled)
		l := p.register("clicks/0", first())
		one := func(i int, n int64) tumble.Delta { return tumble.Delta{Start: minute(i), Key: "a", N: n} }
		l.add(minute(0), one(0, 1), one(5, 2), one(9, 4))
		l.add(minute(21)) // minute 0 is past retention, the ten minutes are not
		p.floors("minute 20 is closed", minute(1), minute(1), minute(-39), time.Time{})
		l.add(time.Time{}, one(0, 8), one(9, 16))
		p.at(tens).all(t0, map[string]int64{"a": 31})
		p.at(hours).all(t0, map[string]int64{"a": 31})
		p.at(days).all(t0, map[string]int64{"a": 31})
		p.all(minute(9), map[string]int64{"a": 20})
		p.state("a", t0, tumble.Expired)
		l.add(minute(30)) // so are they
		l.add(time.Time{}, one(9, 32))
		p.at(hours).all(t0, map[string]int64{"a": 63})
		p.at(tens).state("a", t0, tumble.Expired)
		l.add(minute(119))
		p.at(hours).state("a", t0, tumble.Closed)
		l.add(time.Time{}, one(9, 128)) // all minutes of the hour are past retention, it is not
		p.at(hours).all(t0, map[string]int64{"a": 191})
		l.add(minute(120)) // and the hour
		l.add(time.Time{}, one(9, 64))
		p.at(hours).state("a", t0, tumble.Expired)
		p.at(days).all(t0, map[string]int64{"a": 255})
		p.floors("minute 119 is closed", minute(100), minute(100), minute(60), time.Time{})
	}),

	rule("Rollup/its retention in force", docAsked+" "+docLately, func(c *check) {
		c.open(rolled).tellsRetentions("one process asked", 20*time.Minute, 20*time.Minute, time.Hour, 0)
		other := rolled
		other.Rollups = []tumble.Rollup{{Window: tens, Retention: 40 * time.Minute}, {Window: hours, Retention: 30 * time.Minute}, {Window: days, Retention: 48 * time.Hour}}
		p := c.open(other)
		p.tellsRetentions("two processes asked", 20*time.Minute, 40*time.Minute, time.Hour, 0)
		for w, want := range map[tumble.Window]time.Duration{minutes.Window: 20 * time.Minute, tens: 40 * time.Minute, hours: time.Hour, days: 0} {
			p.at(w).inForce(want, fmt.Sprintf("two processes asked for %v", w))
		}
		got, err := p.Definition(c.ctx)
		if c.ok(err, "Definition"); !got.Same(rolled) || got.String() != c.inForceOf(rolled, 20, 40, 60, 0).String() {
			c.failf("Definition is %v", got)
		}
	}),

	rule("Rollup/windows that are not counted", docNoRollup+" "+docNeedsIt, func(c *check) {
		s := c.sink()
		r, err := s.Rollup(hours)
		c.ok(err, "Rollup of a new name")
		for name, read := range reads(c, r) {
			c.wraps(read(t0), tumble.ErrNoDefinition, "%s of a roll-up of a new name", name)
		}
		if _, err := s.Rollup(tumble.Window{}); err == nil {
			c.failf("Rollup of no window gives no error")
		}
		p := c.open(minutes)
		for name, read := range reads(c, r) {
			c.wraps(read(t0), tumble.ErrNoRollup, "%s of a window that is not counted", name)
		}
		_, err = r.Definition(c.ctx)
		c.wraps(err, tumble.ErrNoRollup, "Definition of a window that is not counted")
		_, err = r.Progress(c.ctx)
		c.wraps(err, tumble.ErrNoRollup, "Progress of a window that is not counted")
		p.at(minutes.Window).all(t0, nil)
	}),

	rule("Rollup/another set of windows", docOpen, func(c *check) {
		c.open(rolled)
		for _, change := range []func(d *tumble.Definition){
			func(d *tumble.Definition) { d.Rollups = d.Rollups[:2] },
			func(d *tumble.Definition) {
				d.Rollups = append(d.Rollups[:2:2], tumble.Rollup{Window: tumble.Window{Size: 5 * time.Minute}})
			},
			func(d *tumble.Definition) { d.Rollups = nil },
		} {
			other := rolled
			change(&other)
			_, err := c.sink().Open(c.ctx, other)
			c.differs(err, rolled, other, "Open(%v) where %v is stored", other, rolled)
		}
		order := rolled
		order.Rollups = []tumble.Rollup{rolled.Rollups[2], rolled.Rollups[0], rolled.Rollups[1]}
		c.open(order)
	}),

	rule("Rollup/cursors", docCursor, func(c *check) {
		p := c.open(rolled)
		l := p.register("clicks/0", first())
		l.some()
		page, err := p.Scan(c.ctx, t0, "", 1)
		c.ok(err, "Scan")
		if page.Cursor != "" {
			_, err = p.at(hours).Scan(c.ctx, t0, page.Cursor, 1)
			c.wraps(err, tumble.ErrCursor, "Scan of an hour with a cursor of its first minute")
		}
	}),
}

// state ends the check if the count of key is in another state.
func (p *process) state(key string, at time.Time, want tumble.State) {
	p.c.soon(func() error {
		got, err := p.Count(p.c.ctx, key, at)
		if err != nil || got.State != want {
			return fmt.Errorf("Count(%q, %v) is %+v, %v, want %v", key, at, got, err, want)
		}
		return nil
	})
}

// inForceOf returns def with other retentions, in minutes by level.
func (c *check) inForceOf(def tumble.Definition, kept ...int) tumble.Definition {
	levels := def.Levels()
	for i := range levels {
		levels[i].Retention = time.Duration(kept[i]) * time.Minute
	}
	def.Retention, def.Rollups = levels[0].Retention, levels[1:]
	return def
}
