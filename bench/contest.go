package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// entry is a contender on one kind of topic: a row of the table.
type entry struct {
	contender
	kind    string
	missing string // why it did not run
	usages  []usage
	err     error // it failed, or counted wrongly; it does not run again
}

// contest prints the table.
func contest(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("contest", flag.ExitOnError)
	n := f.Int("n", 4_000_000, "`number` of clicks")
	users := f.Int("users", 10_000, "`number` of users")
	seed := f.Uint64("seed", 1, "of the clicks")
	rounds := f.Int("rounds", 3, "`times` that each contender runs, in turns")
	only := f.String("only", "", "`names` of the contenders to run, separated by commas; default: all")
	topics := f.String("topics", strings.Join(kinds, ","), "`kinds` of topics to read: plain, zstd, small (batches of about 10 records)")
	profiles := f.String("profiles", "", "`folder` for CPU profiles of the contenders that are in Go")
	where := declareServers(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	chosen, err := checkKinds(*topics)
	if err != nil {
		return err
	}
	entries, err := choose(*only, chosen)
	if err != nil {
		return err
	}
	up, err := where.start(ctx)
	if err != nil {
		return err
	}
	defer up.stop()

	stream := clicks{*n, *users, *seed}
	truths := map[int]*tally{}
	for _, e := range entries {
		t := topic{e.kind, stream, *n / e.share, partitions}
		if err := t.write(ctx, up.kafka); err != nil {
			return err
		}
		if truths[t.n] == nil {
			truths[t.n] = stream.truth(t.n)
		}
	}
	for round := range *rounds {
		for i := range entries {
			// Another order each round, so that nobody always comes after the same.
			e := entries[(i*2+round)%len(entries)]
			if len(entries)%2 == 0 {
				e = entries[(i+round)%len(entries)]
			}
			if e.missing != "" || e.err != nil {
				continue
			}
			t := topic{e.kind, stream, *n / e.share, partitions}
			j := job{kafka: up.kafka, redis: up.redis, topic: t,
				group: fmt.Sprintf("%s-%s-%d", e.name, e.kind, time.Now().UnixNano())}
			if *profiles != "" {
				j.profile = filepath.Join(*profiles, fmt.Sprintf("%s-%s-%d.prof", e.name, e.kind, round))
			}
			u, err := measure(ctx, e.contender, j, up, truths[t.n])
			if ctx.Err() != nil {
				printTable(os.Stdout, stream, entries) // what there is so far
				return ctx.Err()
			}
			if err != nil {
				e.err = err
				fmt.Fprintf(os.Stderr, "bench: %s, %s: %v\n", e.name, e.kind, err)
				continue
			}
			e.usages = append(e.usages, u)
			fmt.Fprintf(os.Stderr, "bench: round %d: %s, %s: %.3f s, %.3f us of CPU an event\n",
				round+1, e.name, e.kind, u.took.Seconds(), perEvent(u.cpu, u))
		}
	}
	printTable(os.Stdout, stream, entries)
	for _, e := range entries {
		if e.err != nil {
			return fmt.Errorf("%s, %s: %w", e.name, e.kind, e.err)
		}
	}
	return nil
}

// choose returns the rows of the table, by kind of topic.
func choose(only string, chosen []string) ([]*entry, error) {
	all := contenders()
	var names []string
	if only != "" {
		names = strings.Split(only, ",")
		for _, name := range names {
			if !slices.ContainsFunc(all, func(c contender) bool { return c.name == name }) {
				known := make([]string, len(all))
				for i, c := range all {
					known[i] = c.name
				}
				return nil, fmt.Errorf("-only: %q is none of %s", name, strings.Join(known, ", "))
			}
		}
	}
	var entries []*entry
	for _, kind := range chosen {
		for _, c := range all {
			if len(names) > 0 && !slices.Contains(names, c.name) || !slices.Contains(c.kinds, kind) {
				continue
			}
			e := &entry{contender: c, kind: kind}
			if c.missing != nil {
				e.missing = c.missing()
			}
			entries = append(entries, e)
		}
	}
	return entries, nil
}
