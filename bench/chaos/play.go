package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

const (
	patience   = 120 * time.Second // to catch up with the log when nothing is broken
	checkEvery = 20 * time.Second
	sampled    = 5 * time.Second
)

// heal waits until every partition has caught up with the log since t.
func (f *fleet) heal(ctx context.Context, t time.Time) error {
	end := time.Now().Add(patience)
	for !f.watch.caughtUpSince(t) {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case f.bad():
			return fmt.Errorf("%s: see above", f.name)
		case time.Now().After(end):
			f.stacks()
			return fmt.Errorf("%s: has not caught up within %v: %s", f.name, patience, f.watch.behind(t))
		}
		time.Sleep(50 * time.Millisecond)
	}
	return nil
}

func (f *fleet) bad() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.wrong) > 0
}

// stacks keeps what all its consumers are doing.
func (f *fleet) stacks() {
	for _, c := range f.all() {
		if p := c.running(); p != nil && p.alive() {
			stacks, err := ask(context.Background(), c.inspect, "/stacks")
			metrics, _ := ask(context.Background(), c.metrics, "/metrics")
			f.lab.write(c.path("stacks"), fmt.Sprint(metrics, stacks, err))
		}
	}
}

// play lets everything happen, and compares.
func (l *lab) play(ctx context.Context, o *options) error {
	if err := l.inspectAll(ctx, true); err != nil {
		return err
	}
	breaking, stop := context.WithCancel(ctx)
	defer stop()
	var beside sync.WaitGroup
	beside.Go(func() { l.keepChecking(breaking, stop) })
	var errs []error
	if l.soak > 0 {
		errs = append(errs, l.calmly(breaking))
		stop()
		beside.Wait()
		return errors.Join(append(errs, l.end(ctx))...)
	}
	beside.Go(func() { l.keepSampling(breaking) })
	breakers := l.breakers()
	if o.each {
		l.log("each fault alone")
		for _, b := range breakers {
			if err := b.each(breaking); err != nil && ctx.Err() == nil {
				errs = append(errs, err)
				stop()
			}
		}
		if breaking.Err() == nil {
			if err := l.inspectAll(ctx, true); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if breaking.Err() == nil {
		l.log("faults as they may come")
		storm, calm := context.WithCancel(breaking)
		for _, b := range breakers {
			beside.Go(func() { b.storm(storm, stop) })
		}
		select {
		case <-breaking.Done():
		case <-time.After(o.storm):
			select {
			case <-breaking.Done():
			case <-l.reached:
			}
		}
		l.log("no more faults")
		calm()
	}
	stop()
	beside.Wait()
	l.mu.Lock()
	for _, b := range l.broken {
		if !b.alone {
			errs = append(errs, b.err)
		}
	}
	l.mu.Unlock()
	return errors.Join(append(errs, l.end(ctx))...)
}

// end finishes, and returns all that went wrong.
func (l *lab) end(ctx context.Context) error {
	errs := []error{l.finish(ctx)}
	for _, f := range l.fleets {
		f.mu.Lock()
		for _, wrong := range f.wrong {
			errs = append(errs, fmt.Errorf("%s: %s", f.name, wrong))
		}
		f.mu.Unlock()
	}
	return errors.Join(errs...)
}

// keepChecking compares again and again, and stops all at a difference.
func (l *lab) keepChecking(ctx context.Context, stop func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(checkEvery):
		}
		for _, f := range l.fleets {
			if err := l.compareNow(ctx, f); err != nil {
				f.fail("%v", err)
				stop()
				return
			}
		}
	}
}

// compareNow compares a fleet's counts as they are.
func (l *lab) compareNow(ctx context.Context, f *fleet) error {
	// No slot moves meanwhile.
	f.store.Lock()
	defer f.store.Unlock()
	v, err := l.check(ctx, f)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.checks++
	l.compared += v.counts
	l.mu.Unlock()
	l.log("%s: under way: %v", f.name, v)
	return v.err()
}

// err is the differences, the first of them.
func (v *verdict) err() error {
	if len(v.differences) == 0 {
		return nil
	}
	return fmt.Errorf("%v, among them:\n\t%s", v, strings.Join(v.differences[:min(len(v.differences), 20)], "\n\t"))
}

// keepSampling looks at what is used.
func (l *lab) keepSampling(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(sampled):
		}
		for _, f := range l.fleets {
			_, _ = f.watch.sample(ctx, false) // some is away
		}
	}
}

// inspectAll looks at what is used when all is calm.
func (l *lab) inspectAll(ctx context.Context, calm bool) error {
	for _, f := range l.fleets {
		if err := f.heal(ctx, time.Now()); err != nil {
			return err
		}
		if _, err := f.watch.sample(ctx, calm); err != nil {
			return err
		}
	}
	return nil
}

// finish lets the consumers count what is left, and compares everything.
func (l *lab) finish(ctx context.Context) error {
	errs := []error{l.kafka.healthy(ctx)}
	for _, f := range l.fleets {
		errs = append(errs, f.store.healthy(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := l.inspectAll(ctx, true); err != nil {
		errs = append(errs, err)
	}
	l.log("the producer ends")
	l.silence()
	var ends map[int32]int64
	err := eventually(ctx, 60*time.Second, "no ends of the partitions", func(ctx context.Context) (err error) {
		// A transaction that nobody ended is aborted in time.
		if ends, err = l.kafka.ends(ctx); err != nil {
			return err
		}
		whole, err := l.kafka.highWatermarks(ctx)
		if err != nil {
			return err
		}
		for partition, end := range whole {
			if ends[partition] != end {
				return fmt.Errorf("partition %d: a transaction is open at %d of %d", partition, ends[partition], end)
			}
		}
		return nil
	})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, f := range l.fleets {
		errs = append(errs, f.drained(ctx, ends))
	}
	for _, f := range l.fleets {
		var wg sync.WaitGroup
		for _, c := range f.all() {
			wg.Go(c.leave)
		}
		wg.Wait()
	}
	l.log("the whole topic is read once more")
	whole := newTruth(l.window)
	reading, stop := context.WithTimeout(ctx, 3*time.Minute)
	defer stop()
	if err := whole.read(reading, l.kafka.direct(), l.kafka.topic, ends); err != nil {
		return errors.Join(append(errs, fmt.Errorf("reading the topic: %w", err))...)
	}
	l.final = append(l.final, fmt.Sprintf("The topic: %d partitions, %d records, of them %d that are no clicks and %d tombstones; the producer was started %d times.",
		len(ends), whole.records, whole.rejected, whole.skipped, l.produced))
	for _, f := range l.fleets {
		layout, reader, err := l.checkAll(ctx, f, whole, ends)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		l.final = append(l.final, fmt.Sprintf("%s, by the layout: %v.", f.name, layout), fmt.Sprintf("%s, through the Reader: %v.", f.name, reader))
		errs = append(errs, layout.err(), reader.err())
	}
	return errors.Join(append(errs, l.flat())...)
}

// drained waits until every shard has counted up to the ends.
func (f *fleet) drained(ctx context.Context, ends map[int32]int64) error {
	return eventually(ctx, patience, f.name+": not all was counted", func(ctx context.Context) error {
		offsets, ok := f.store.offsets(ctx, f.name)
		if !ok {
			return errors.New("not all shards answer")
		}
		for partition, end := range ends {
			if at := offsets[fmt.Sprintf("%s/%d", f.lab.kafka.topic, partition)]; at != end {
				return fmt.Errorf("partition %d is counted up to %d of %d", partition, at, end)
			}
		}
		return nil
	})
}

// flat judges what the spared consumers use after it all beside what they used
// before it, both times when nothing was broken.
func (l *lab) flat() error {
	var errs []error
	for _, f := range l.fleets {
		var calm []*sample
		for _, s := range f.watch.samples {
			if s.calm {
				calm = append(calm, s)
			}
		}
		first, last := calm[0], calm[len(calm)-1]
		for _, x := range []struct {
			what             string
			from, to, beyond int64
		}{
			// Partitions were added, and a consumer may hold more of them.
			{"goroutines", first.goroutines, last.goroutines, 100},
			{"file descriptors", first.fds, last.fds, 40},
			{"bytes of live heap", first.heap, last.heap, 32 << 20},
		} {
			if x.to > 2*x.from+x.beyond {
				errs = append(errs, fmt.Errorf("%s: %s grew from %d to %d", f.name, x.what, x.from, x.to))
			}
		}
	}
	return errors.Join(errs...)
}
