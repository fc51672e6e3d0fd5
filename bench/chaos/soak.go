package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"
)

// A soak is a long run with few faults, to see whether what is used stays as it
// is. Each fault comes alone, and is healed before the calm is looked at.

// warm is how long it takes until as many windows are deleted as come.
func (l *lab) warm() time.Duration { return l.retention + 4*l.window }

// span is how long nothing breaks at the beginning and at the end, which are
// compared.
func (l *lab) span() time.Duration { return min(time.Minute, l.soak/4) }

// pause is the calm between one fault and the next.
func (l *lab) pause() time.Duration { return min(max(l.soak/30, 3*second), 20*second) }

var soakFaults = map[kind][]fault{
	consumers: {named("consumer killed", consumerFaults), named("consumer leaves", consumerFaults)},
	stores: {
		{"Redis restarted", "SHUTDOWN SAVE, started again with all that it held", 1, func(ctx context.Context, b *breaker) error {
			n := b.fleet.store.nodes[0]
			_, _ = n.do(ctx, "SHUTDOWN", "SAVE") // no answer: it is gone
			select {
			case <-n.child.done:
			case <-time.After(20 * second):
				return errors.New("the server does not shut down")
			}
			defer n.forget()
			return b.restarted(ctx, n)
		}},
		named("Redis connections cut", singleFaults),
	},
	brokers: {
		named("broker restarted", kafkaFaults), named("Kafka connections cut", kafkaFaults),
		{"consumers throttled", "a quota of 2,000 bytes a second, for 15 s", 1, func(ctx context.Context, b *breaker) error {
			if err := b.lab.kafka.limit(ctx, 2000); err != nil {
				return err
			}
			time.Sleep(15 * second)
			return b.lab.kafka.limit(ctx, 0)
		}},
	},
}

func named(name string, faults []fault) fault {
	i := slices.IndexFunc(faults, func(f fault) bool { return f.name == name })
	return faults[i]
}

// calmly lets few faults happen, each as often as any other, and judges what is
// used in the calm.
func (l *lab) calmly(ctx context.Context) error {
	type one struct {
		b *breaker
		f fault
	}
	var all []one
	for _, b := range l.breakers() {
		for _, f := range b.faults {
			all = append(all, one{b, f})
		}
	}
	l.log("warming up for %v", l.warm())
	if err := l.rest(ctx, l.warm()); err != nil {
		return err
	}
	l.log("nothing breaks for %v", l.span())
	first := time.Since(l.began)
	if err := l.rest(ctx, l.span()); err != nil {
		return err
	}
	faults := l.soak - 2*l.span()
	l.log("few faults for %v", faults)
	order := rand.New(rand.NewPCG(l.seed, 99))
	began := time.Since(l.began)
	for round := []one(nil); time.Since(l.began) < began+faults; round = round[1:] {
		if len(round) == 0 {
			round = slices.Clone(all)
			order.Shuffle(len(round), func(i, j int) { round[i], round[j] = round[j], round[i] })
		}
		now := round[0]
		done := now.b.strike(context.WithoutCancel(ctx), now.f, true)
		if done.err != nil {
			return done.err
		}
		for _, f := range done.fleets {
			if err := f.heal(ctx, done.to); err != nil {
				return fmt.Errorf("after %q: %w", now.f.name, err)
			}
		}
		done.healed = time.Now()
		if err := l.rest(ctx, l.pause()); err != nil {
			return err
		}
	}
	l.log("nothing breaks for %v", l.span())
	last := time.Since(l.began)
	if err := l.rest(ctx, l.span()); err != nil {
		return err
	}
	var errs []error
	for _, f := range l.fleets {
		lines, err := steady(f.watch.between(first, first+l.span()), f.watch.between(last, time.Since(l.began)))
		for _, line := range lines {
			l.final = append(l.final, f.name+": "+line)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.name, err))
		}
		for _, c := range f.all() {
			lines, err := linesOf(c.path("err"))
			if err == nil && lines > mostLines {
				err = fmt.Errorf("%d lines in the log, may be %d", lines, mostLines)
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", c, err))
			}
			l.final = append(l.final, fmt.Sprintf("%s: %d lines in its log, beside rejected records", c, lines))
		}
	}
	return errors.Join(errs...)
}

// mostLines is how many lines a consumer may leave in its log over a soak.
const mostLines = 200

// linesOf counts the lines of a consumer's log, but for the rejected records that it is
// to show.
func linesOf(path string) (lines int, err error) {
	text, err := os.ReadFile(path)
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "consumer: rejected ") && !strings.Contains(line, "rejected records") {
			lines++
		}
	}
	return lines, err
}

// rest looks at what is used while nothing is broken.
func (l *lab) rest(ctx context.Context, d time.Duration) error {
	for end := time.Now().Add(d); time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(l.span() / 20): // up to 3 seconds
		}
		for _, f := range l.fleets {
			if s, err := f.watch.sample(ctx, true); err != nil {
				return err
			} else if s.redis < 0 {
				return fmt.Errorf("%s: Redis does not tell what it uses", f.name)
			}
		}
	}
	return nil
}

// between returns the samples that were taken between two times.
func (w *watch) between(from, to time.Duration) (some []*sample) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.samples {
		if from <= s.at && s.at <= to {
			some = append(some, s)
		}
	}
	return some
}

// Growth is what may come on top of what was there in the first span: a share,
// and an amount for what is small. A window of the soak holds about 0.2 MB in Redis.
var growth = []struct {
	what  string
	unit  float64
	share float64
	plus  float64
	of    func(s *sample) int64
}{
	{"goroutines", 1, 0.10, 5, func(s *sample) int64 { return s.goroutines }},
	{"file descriptors", 1, 0.10, 3, func(s *sample) int64 { return s.fds }},
	{"live heap, MB", 1e6, 0.20, 1, func(s *sample) int64 { return s.heap }},
	{"Redis, MB", 1e6, 0.10, 0.3, func(s *sample) int64 { return s.redis }},
}

// fewest is how many samples are needed to judge.
const fewest = 4

// steady compares the samples of the beginning with those of the end, by the
// least of each: what is kept is there in all of them, and a call that is under
// way is not. An error names what has grown beyond its bound.
func steady(first, last []*sample) (lines []string, err error) {
	lines = append(lines, fmt.Sprintf("what is used: the least of %d samples of the beginning, and of %d of the end", len(first), len(last)))
	if len(first) < fewest || len(last) < fewest {
		return lines, fmt.Errorf("%d samples of the beginning and %d of the end are too few to judge", len(first), len(last))
	}
	var errs []error
	for _, g := range growth {
		from, to := least(first, g.of)/g.unit, least(last, g.of)/g.unit
		limit := from*(1+g.share) + g.plus
		verdict := "flat"
		if to > limit {
			verdict = "GROWS"
			errs = append(errs, fmt.Errorf("%s: %.1f at the beginning, %.1f at the end, may be %.1f", g.what, from, to, limit))
		}
		lines = append(lines, fmt.Sprintf("  %-18s %8.1f %8.1f   at most %8.1f   %s", g.what, from, to, limit, verdict))
	}
	return lines, errors.Join(errs...)
}

func least(samples []*sample, of func(s *sample) int64) float64 {
	n := of(samples[0])
	for _, s := range samples {
		n = min(n, of(s))
	}
	return float64(n)
}
