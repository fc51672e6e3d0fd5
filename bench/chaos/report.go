package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

func (l *lab) write(path, text string) {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		l.log("%v", err)
	}
}

// report prints what was done and what was seen.
func (l *lab) report() {
	fmt.Printf("\n%d processes were killed with -9 within %v; seed %d.\n\n", l.kills, time.Since(l.began).Round(time.Second), l.seed)
	fmt.Printf("How long a partition stood still that had something to count, at most; seen every %v,\nand not told if less than %v. Healed: from the fault's end until all had caught up.\n\n", look, tooShort)
	fmt.Printf("%-36s %-8s %5s %7s %7s %7s   %s\n", "fault", "group", "times", "alone", "healed", "storm", "what it is")
	for _, line := range l.table() {
		fmt.Println(line)
	}
	fmt.Println()
	for _, f := range l.fleets {
		longest := still{}
		for _, s := range f.watch.stills {
			if s.to.Sub(s.from) > longest.to.Sub(longest.from) {
				longest = s
			}
		}
		if longest.partition != "" {
			fmt.Printf("%s: the longest of all: %s for %.1f s from %.1f s on.\n", f.name, longest.partition, longest.to.Sub(longest.from).Seconds(), longest.from.Sub(l.began).Seconds())
		}
		b, _ := json.Marshal(f.books)
		fmt.Printf("%s: the books of %d consumers that ended in order, summed; %d were killed with theirs; %d starts found no server:\n  %s\n", f.name, f.ended, f.killed, f.refused, b)
	}
	fmt.Println()
	for _, f := range l.fleets {
		l.resources(f)
	}
	fmt.Printf("Under way: %d comparisons, of %d counts.\n", l.checks, l.compared)
	for _, line := range l.final {
		fmt.Println(line)
	}
}

// table returns a line for each fault that took place, and group.
func (l *lab) table() (lines []string) {
	type row struct {
		times                int
		alone, healed, storm time.Duration
	}
	described := map[string]string{}
	var order []string
	for _, b := range l.breakers() {
		for _, f := range b.faults {
			if _, known := described[f.name]; !known {
				order = append(order, f.name)
			}
			described[f.name] = f.what
		}
	}
	rows := map[[2]string]*row{}
	for _, b := range l.broken {
		for _, f := range b.fleets {
			r := rows[[2]string{b.fault, f.name}]
			if r == nil {
				r = &row{}
				rows[[2]string{b.fault, f.name}] = r
			}
			r.times++
			switch {
			case b.alone && !b.healed.IsZero():
				r.alone = max(r.alone, f.watch.within(b.from, b.healed))
				r.healed = max(r.healed, b.healed.Sub(b.to))
			case !b.alone:
				r.storm = max(r.storm, f.watch.within(b.from, b.to))
			}
		}
	}
	for _, name := range order {
		for _, f := range l.fleets {
			if r := rows[[2]string{name, f.name}]; r != nil {
				lines = append(lines, fmt.Sprintf("%-36s %-8s %5d %7s %7s %7s   %s", name, f.name, r.times, seconds(r.alone), seconds(r.healed), seconds(r.storm), described[name]))
			}
		}
	}
	return lines
}

func seconds(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// resources prints some of a fleet's samples.
func (l *lab) resources(f *fleet) {
	all := slices.Clone(f.watch.samples)
	slices.SortFunc(all, func(a, b *sample) int { return cmp.Compare(a.at, b.at) })
	fmt.Printf("%s: what the spared consumer and the store use\n", f.name)
	fmt.Printf("  %8s %10s %6s %8s %10s %10s %10s %12s\n", "at", "goroutines", "fds", "threads", "heap MB", "RSS MB", "increments", "Redis MB")
	step := max(1, len(all)/12)
	for i, s := range all {
		if i%step != 0 && (!s.calm || l.soak > 0) {
			continue
		}
		redis := "away"
		if s.redis >= 0 {
			redis = fmt.Sprintf("%.1f", float64(s.redis)/1e6)
		}
		fmt.Printf("  %7.0fs %10d %6d %8d %10.1f %10.1f %10d %12s%s\n", s.at.Seconds(), s.goroutines, s.fds, s.threads,
			float64(s.heap)/1e6, float64(s.rss)/1e6, s.increments, redis, strings.Repeat("  calm", map[bool]int{true: 1}[s.calm]))
	}
	fmt.Println()
}
