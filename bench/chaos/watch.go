package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	look     = 200 * time.Millisecond // how often checkpoints are read
	tooShort = 600 * time.Millisecond // what is no standing still: a flush and two looks
	closeBy  = time.Second            // who is no further behind has caught up
)

// A watch sees how far each partition of a fleet is counted, from the
// checkpoints in Redis, and when one stands still that has something to count.
type watch struct {
	fleet *fleet

	mu         sync.Mutex
	partitions map[string]*progress
	log        []past    // the end of the log, of the last seconds
	stills     []still   // that are over
	samples    []*sample // of resources
}

type progress struct {
	offset   int64     // counted in every shard
	since    time.Time // when it last moved, or had nothing more to count
	caughtUp time.Time // when it was last close to the end
}

type past struct {
	at   time.Time
	ends map[int32]int64
}

// A still is a time in which a partition had something to count, and no
// checkpoint moved.
type still struct {
	partition string
	from, to  time.Time
}

// run looks until ctx ends.
func (w *watch) run(ctx context.Context) {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-tick.C:
			w.look(ctx)
		}
	}
}

func (w *watch) look(ctx context.Context) {
	ends := w.fleet.lab.truth.ends() // before: what is counted beyond it is no lag
	offsets, _ := w.fleet.store.offsets(ctx, w.fleet.name)
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.log = append(w.log, past{now, ends})
	for len(w.log) > 1 && now.Sub(w.log[1].at) >= closeBy {
		w.log = w.log[1:]
	}
	before := w.log[0].ends
	for number, end := range ends {
		id := fmt.Sprintf("%s/%d", w.fleet.lab.kafka.topic, number)
		p := w.partitions[id]
		if p == nil {
			p = &progress{since: now}
			w.partitions[id] = p
		}
		offset, known := offsets[id]
		forward := known && offset > p.offset
		if known {
			p.offset = offset
		}
		if known && offset >= before[number] {
			p.caughtUp = now
		}
		if forward || known && offset >= end {
			if now.Sub(p.since) > tooShort {
				w.stills = append(w.stills, still{id, p.since, now})
			}
			p.since = now
		}
	}
}

// caughtUpSince reports whether every partition has been close to the end of the
// log at some time after t.
func (w *watch) caughtUpSince(t time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.partitions {
		if p.caughtUp.Before(t) {
			return false
		}
	}
	return len(w.partitions) > 0
}

// behind says which partitions have not been since t.
func (w *watch) behind(t time.Time) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for id, p := range w.partitions {
		if p.caughtUp.Before(t) {
			list = append(list, fmt.Sprintf("%s at %d, last moved %v ago", id, p.offset, time.Since(p.since).Round(time.Second)))
		}
	}
	return strings.Join(list, "; ")
}

// within returns the longest time that a partition stood still which began or
// went on between two times.
func (w *watch) within(from, to time.Time) (longest time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.stills {
		if s.to.After(from) && s.from.Before(to) {
			longest = max(longest, s.to.Sub(s.from))
		}
	}
	return longest
}

// A sample is what a fleet's spared consumer and its store use at one time.
type sample struct {
	at                   time.Duration // since the beginning
	calm                 bool          // it had caught up, and nothing was broken for it
	goroutines, heap     int64
	fds, threads, rss    int64
	redis                int64
	increments, replayed int64
}

// sample asks once.
func (w *watch) sample(ctx context.Context, calm bool) (*sample, error) {
	s := &sample{at: time.Since(w.fleet.lab.began), calm: calm}
	var c *consumer
	for _, one := range w.fleet.all() {
		if one.spared {
			c = one
		}
	}
	p := c.running()
	if p == nil {
		return nil, fmt.Errorf("%s is not running", c)
	}
	text, err := ask(ctx, c.inspect, "/resources")
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Sscan(text, &s.goroutines, &s.heap); err != nil {
		return nil, err
	}
	u, err := p.usage()
	if err != nil {
		return nil, err
	}
	s.fds, s.threads, s.rss = u.fds, u.threads, u.rss
	text, err = ask(ctx, c.metrics, "/metrics")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch name {
		case "tumble_increments":
			s.increments = n
		case "tumble_replayed_total":
			s.replayed = n
		}
	}
	bounded, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if s.redis, err = w.fleet.store.memory(bounded); err != nil {
		s.redis = -1 // it is away
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.samples = append(w.samples, s)
	return s, nil
}
