package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

func perEvent(d time.Duration, u usage) float64 {
	return float64(d) / float64(time.Microsecond) / float64(u.events)
}

// figures are one column of an entry, a value for each round.
func (e *entry) figures(of func(usage) float64) []float64 {
	values := make([]float64, len(e.usages))
	for i, u := range e.usages {
		values[i] = of(u)
	}
	return sorted(values)
}

func sorted(values []float64) []float64 {
	slices.Sort(values)
	return values
}

func median(sorted []float64) float64 {
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[n/2] + sorted[(n-1)/2]) / 2
}

// short writes v with three digits that count.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2fM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.0fk", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// spread writes a median with the least and the greatest value.
func spread(sorted []float64) string {
	if len(sorted) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%s-%s)", short(median(sorted)), short(sorted[0]), short(sorted[len(sorted)-1]))
}

func cpu(u usage) float64 { return perEvent(u.cpu, u) }

// printTable writes Markdown.
func printTable(w io.Writer, stream clicks, entries []*entry) {
	fmt.Fprintf(w, "%d clicks of %d users in %d minutes, %d partitions; %d processors, %s; %s.\n",
		stream.n, stream.users, minutes, partitions, runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format(time.DateOnly))
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Fprintf(w, "Load average at the end: %s.\n", strings.Join(strings.Fields(string(load))[:3], " "))
	}
	fmt.Fprintln(w, "Medians (least-greatest). CPU is user and system time of the contender's process until its last count was stored.")
	base := map[string]float64{} // by kind
	for _, e := range entries {
		if e.name == "tumble" {
			base[e.kind] = median(e.figures(cpu))
		}
	}
	out := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	row := func(cells ...string) { fmt.Fprintf(out, "| %s |\n", strings.Join(cells, "\t| ")) }
	kind := ""
	for _, e := range entries {
		if e.kind != kind {
			if kind = e.kind; out.Flush() != nil {
				return
			}
			fmt.Fprintf(w, "\n### %s\n\n", map[string]string{"plain": "Uncompressed", "zstd": "zstd", "small": "Uncompressed, batches of about 10 records"}[kind])
			row("contender", "records", "rounds", "events/s", "client CPU us/event", "since its first record", "x tumble", "Redis CPU us/event", "Redis CPU us/count", "to Redis bytes/event", "Redis bytes/count", "counts")
			row("---", "---", "---", "---", "---", "---", "---", "---", "---", "---", "---", "---")
		}
		verdict := "right"
		switch {
		case e.missing != "":
			verdict = "did not run: " + e.missing
		case e.err != nil:
			verdict = "FAILED: " + firstLine(e.err)
		case e.counts == nil && !e.own:
			verdict = "none"
		}
		if len(e.usages) == 0 {
			row(e.name, "-", "0", "-", "-", "-", "-", "-", "-", "-", "-", verdict)
			continue
		}
		running, redis, each, sent, bytes, ratio := "-", "-", "-", "-", "-", "-"
		if !e.dots {
			running = spread(e.figures(func(u usage) float64 { return perEvent(u.running, u) }))
		}
		if e.counts != nil {
			redis = spread(e.figures(func(u usage) float64 { return perEvent(u.redisCPU, u) }))
			each = spread(e.figures(func(u usage) float64 { return float64(u.redisCPU.Microseconds()) / float64(u.stored) }))
			sent = spread(e.figures(func(u usage) float64 { return float64(u.sent) / float64(u.events) }))
			bytes = spread(e.figures(func(u usage) float64 { return float64(u.bytes) / float64(u.stored) }))
		}
		if base[kind] > 0 {
			ratio = short(median(e.figures(cpu)) / base[kind])
		}
		row(e.name, fmt.Sprint(e.usages[0].events), fmt.Sprint(len(e.usages)),
			spread(e.figures(func(u usage) float64 { return float64(u.events) / u.took.Seconds() })),
			spread(e.figures(cpu)), running, ratio, redis, each, sent, bytes, verdict)
	}
	if out.Flush() != nil {
		return
	}
	fmt.Fprintln(w)
	for _, c := range contenders() {
		if slices.ContainsFunc(entries, func(e *entry) bool { return e.name == c.name }) {
			fmt.Fprintf(w, "- %s: %s\n", c.name, c.about)
		}
	}
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
