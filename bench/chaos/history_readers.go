package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// A reader reads as a program of its own would: with its own client, through its
// cache or without one, over a quick line or a slow one.
type reader struct {
	trial  *trial
	name   string
	cached bool
	counts tumble.Reader
}

const (
	atOnce    = 8 // calls of one reader that are under way
	rangeOf   = 12
	topOf     = 10
	scanPage  = 40
	callsLast = 5 * time.Second
)

// newReader returns a reader, and what closes it. Of four in a row one has each
// kind of cache and line.
func newReader(t *trial, number int) (*reader, func(), error) {
	r := &reader{trial: t, cached: number%2 == 0}
	var line time.Duration
	kind := "asks the server"
	if r.cached {
		kind = "cache"
	}
	if number/2%2 == 1 {
		line = slowest
		kind += ", slow"
	}
	r.name = fmt.Sprintf("%d (%s)", number, kind)
	client, err := rueidis.NewClient(t.option(r.cached, line))
	if err != nil {
		return nil, nil, err
	}
	sink, err := redis.New(redis.Config{Client: client, Name: t.name})
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	r.counts = sink
	return r, client.Close, nil
}

// run reads until ctx ends.
func (r *reader) run(ctx context.Context, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 13))
	for ctx.Err() == nil {
		if err := r.read(ctx, rng); err != nil && ctx.Err() == nil {
			r.trial.judge.failed()
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// pick returns the start of a window to read: mostly one that closed a moment
// ago, or is about to, or is about to expire, and if a fault is near, one that it
// will find half counted.
func (r *reader) pick(rng *rand.Rand) time.Time {
	t := r.trial
	size := t.def.Window.Size
	if aim := t.aim.Load(); aim != 0 && rng.IntN(2) == 0 {
		n := rng.IntN(6) - 2
		if t.fall.late {
			n = rng.IntN(10) - 8 // one that will have fewer keys
		}
		return time.UnixMilli(aim).Add(time.Duration(n) * size)
	}
	edge := time.UnixMilli(t.edge.Load())
	first := t.began.Truncate(size)
	if t.def.Retention > 0 && rng.IntN(3) == 0 {
		return edge.Add(-t.def.Retention + time.Duration(rng.IntN(12)-4)*size)
	}
	if all := int(edge.Sub(first) / size); all > 30 && rng.IntN(4) == 0 {
		return first.Add(time.Duration(all-rng.IntN(min(all, 600))) * size)
	}
	return edge.Add(time.Duration(3-rng.IntN(25)) * size)
}

// read makes one call and has it judged.
func (r *reader) read(ctx context.Context, rng *rand.Rand) error {
	ctx, cancel := context.WithTimeout(ctx, callsLast)
	defer cancel()
	u := rng.Float64()
	if rng.IntN(2) == 0 {
		u *= u // those that come often
	}
	at, key := r.pick(rng), int32(u*float64(len(r.trial.tape.keys)))
	switch n := rng.IntN(100); {
	case n < 45:
		return r.count(ctx, key, at)
	case n < 75:
		return r.span(ctx, key, at)
	case n < 87:
		return r.top(ctx, at)
	}
	return r.scan(ctx, at)
}

func (r *reader) reading(c tumble.Count, key int32, from time.Duration, by string) reading {
	return reading{cell{c.Start.UnixMilli(), key}, c.N, c.State, c.Term, from, r.trial.since(), r.name + " " + by}
}

// line returns the line of the reader's Counts and Ranges. That of calls which
// ask the server is everybody's.
func (r *reader) line() string {
	if r.cached {
		return r.name
	}
	return asked
}

// asked is the line of what was asked of the server.
const asked = "the server"

func (r *reader) count(ctx context.Context, key int32, at time.Time) error {
	from := r.trial.since()
	c, err := r.counts.Count(ctx, r.trial.tape.keys[key], at)
	if err != nil {
		return err
	}
	r.trial.judge.see(r.line(), []reading{r.reading(c, key, from, "Count")})
	return nil
}

// span reads a Range. A window that it leaves out between two final ones is
// final too, and held nothing.
func (r *reader) span(ctx context.Context, key int32, at time.Time) error {
	size := r.trial.def.Window.Size
	from := r.trial.since()
	counts, err := r.counts.Range(ctx, r.trial.tape.keys[key], at, at.Add(rangeOf*size))
	if err != nil {
		return err
	}
	var list []reading
	for i, c := range counts {
		if i > 0 && c.State == tumble.Final && counts[i-1].State == tumble.Final {
			for start := counts[i-1].End; start.Before(c.Start); start = start.Add(size) {
				left := tumble.Count{Start: start, State: tumble.Final, Term: c.Term}
				list = append(list, r.reading(left, key, from, "Range without it"))
			}
		}
		list = append(list, r.reading(c, key, from, "Range"))
	}
	r.trial.judge.see(r.line(), list)
	return nil
}

// top reads the highest counts. Their State is that of the whole window, so along
// a line of counts they say nothing of it.
func (r *reader) top(ctx context.Context, at time.Time) error {
	from := r.trial.since()
	page, err := r.counts.Top(ctx, at, topOf)
	if err != nil {
		return err
	}
	r.page(page.Counts, page, from, "Top")
	return nil
}

// scan reads a whole window, page by page.
func (r *reader) scan(ctx context.Context, at time.Time) error {
	from := r.trial.since()
	var all []tumble.Count
	var last tumble.Page
	one := true
	for cursor := ""; ; {
		page, err := r.counts.Scan(ctx, at, cursor, scanPage)
		if err != nil {
			return err
		}
		one = one && (cursor == "" || page.State == last.State && page.Term == last.Term)
		all, last = append(all, page.Counts...), page
		if cursor = page.Cursor; cursor == "" {
			break
		}
	}
	if one {
		slices.SortFunc(all, func(a, b tumble.Count) int { return int(r.trial.index[a.Key]) - int(r.trial.index[b.Key]) })
		r.page(all, last, from, "Scan")
		return nil
	}
	// Its pages are of several moments: each count stands for itself.
	var list []reading
	for _, c := range all {
		list = append(list, r.reading(c, r.trial.index[c.Key], from, "Scan"))
	}
	r.trial.judge.see("", list)
	return nil
}

// page judges a window that was read as a whole: each count, and all together.
func (r *reader) page(counts []tumble.Count, p tumble.Page, from time.Duration, how string) {
	sum := fnv.New64a()
	var list []reading
	for _, c := range counts {
		list = append(list, r.reading(c, r.trial.index[c.Key], from, how))
		fmt.Fprintf(sum, "%s %d\n", c.Key, c.N)
	}
	r.trial.judge.see("", list)
	whole := reading{cell{p.Start.UnixMilli(), -1}, int64(sum.Sum64() >> 1), p.State, p.Term, from, r.trial.since(), r.name + " " + how}
	along := ""
	if how == "Top" {
		along = "whole windows"
	}
	r.trial.judge.whole(along, how, whole)
}
