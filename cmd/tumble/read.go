package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/sink/redis"
)

const timeHelp = "A TIME is like 2006-01-02T15:04 (UTC), RFC 3339, or now, and means the window that holds it.\n"

var namesCommand = command{
	name: "names", about: "lists the names under which something is counted",
	define: func(*flag.FlagSet) func(context.Context, *tool, []string) error {
		return func(ctx context.Context, t *tool, _ []string) error {
			names, err := redis.Names(ctx, t.client)
			if err != nil {
				return err
			}
			return t.print(slices.Concat([]string{}, names), func(w io.Writer) {
				for _, name := range names {
					fmt.Fprintln(w, name)
				}
			})
		}
	},
}

var getCommand = command{
	name: "get", args: "NAME KEY TIME", about: "prints the count of a key in a window", help: timeHelp,
	define: func(fs *flag.FlagSet) func(context.Context, *tool, []string) error {
		window := windowFlag(fs)
		return func(ctx context.Context, t *tool, args []string) error {
			r, err := t.reader(args[0], *window)
			if err != nil {
				return err
			}
			at, err := instant("TIME", args[2])
			if err != nil {
				return err
			}
			c, err := r.Count(ctx, args[1], at)
			if err != nil {
				return err
			}
			return t.print(countOf(c), func(w io.Writer) { line(w, c) })
		}
	},
}

var topCommand = command{
	name: "top", args: "NAME TIME", about: "prints the highest counts of a window", help: timeHelp,
	define: func(fs *flag.FlagSet) func(context.Context, *tool, []string) error {
		window := windowFlag(fs)
		n := fs.Int("n", 10, "how many")
		return func(ctx context.Context, t *tool, args []string) error {
			if *n < 1 {
				return usagef("top: -n is %d, must be positive", *n)
			}
			r, err := t.reader(args[0], *window)
			if err != nil {
				return err
			}
			at, err := instant("TIME", args[1])
			if err != nil {
				return err
			}
			page, err := r.Top(ctx, at, *n)
			if err != nil {
				return err
			}
			return t.print(map[string]any{"start": page.Start, "end": page.End, "state": page.State, "top": countsOf(page.Counts)}, func(w io.Writer) {
				for _, c := range page.Counts {
					line(w, c)
				}
			})
		}
	},
}

var rangeCommand = command{
	name: "range", args: "NAME KEY FROM TO", about: "prints the counts of a key in the windows that start in [FROM, TO)", help: timeHelp,
	define: func(fs *flag.FlagSet) func(context.Context, *tool, []string) error {
		window := windowFlag(fs)
		return func(ctx context.Context, t *tool, args []string) error {
			r, err := t.reader(args[0], *window)
			if err != nil {
				return err
			}
			from, err := instant("FROM", args[2])
			if err != nil {
				return err
			}
			to, err := instant("TO", args[3])
			if err != nil {
				return err
			}
			counts, err := r.Range(ctx, args[1], from, to)
			if err != nil {
				return err
			}
			return t.print(countsOf(counts), func(w io.Writer) {
				for _, c := range counts {
					line(w, c)
				}
			})
		}
	},
}

var watchCommand = command{
	name: "watch", args: "NAME", about: "shows the newest window, again and again: its total and its highest counts",
	help: "The newest window is the one that holds the highest watermark. While the store is away it says so and\ngoes on. With -json it prints a line for each look. It ends with Ctrl-C.\n",
	define: func(fs *flag.FlagSet) func(context.Context, *tool, []string) error {
		every := fs.Duration("every", time.Second, "how long between two looks")
		window := windowFlag(fs)
		n := fs.Int("n", 10, "how many keys")
		return func(ctx context.Context, t *tool, args []string) error {
			if *every <= 0 || *n < 1 {
				return usagef("watch: -every and -n must be positive")
			}
			r, err := t.reader(args[0], *window)
			if err != nil {
				return err
			}
			tick := time.NewTicker(*every)
			defer tick.Stop()
			for seen := false; ; {
				page, total, err := newest(ctx, r, *n)
				if ctx.Err() != nil {
					return nil
				}
				if err != nil && !seen {
					return err // what it never could read is a wrong name, or a wrong address
				}
				seen = true
				if !t.json {
					fmt.Fprint(t.out, "\x1b[H\x1b[2J") // home, and clear
				}
				shown := map[string]any{"start": page.Start, "end": page.End, "state": page.State, "keys": total.Keys, "n": total.N, "top": countsOf(page.Counts)}
				if err != nil {
					shown = map[string]any{"error": program.Line(err.Error())}
				}
				if err := t.print(shown, func(w io.Writer) {
					if err != nil {
						fmt.Fprintf(w, "%s\tcannot be read now: %s\n", args[0], program.Line(err.Error()))
						return
					}
					fmt.Fprintf(w, "%s\t%s, %s\t%d in %d keys\n\n", args[0], program.ShortMinute(page.Start), page.State, total.N, total.Keys)
					for _, c := range page.Counts {
						fmt.Fprintf(w, "%s\t%d\t%s\n", program.Line(c.Key), c.N, strings.Repeat("█", int(1+39*c.N/page.Counts[0].N)))
					}
				}); err != nil {
					return err
				}
				select {
				case <-ctx.Done():
					return nil
				case <-tick.C:
				}
			}
		}
	},
}

// newest reads the window that holds the highest watermark, or the clock's if there is
// none: the events need not be of now.
func newest(ctx context.Context, r tumble.Reader, n int) (page tumble.Page, total tumble.Total, err error) {
	p, err := r.Progress(ctx)
	if err != nil {
		return page, total, err
	}
	var at time.Time
	for _, part := range p.Partitions {
		if part.Watermark.After(at) {
			at = part.Watermark
		}
	}
	if at.IsZero() {
		at = time.Now()
	}
	if page, err = r.Top(ctx, at, n); err != nil {
		return page, total, err
	}
	totals, err := r.Windows(ctx, page.Start, page.End)
	if len(totals) > 0 {
		total = totals[0]
	}
	return page, total, err
}

// instant parses a time on the command line.
func instant(name, s string) (time.Time, error) {
	at, err := program.Instant(s, time.Now())
	if err != nil {
		return at, usagef("%s is %q, %w", name, s, err)
	}
	return at, nil
}

// A count is a tumble.Count in JSON.
type count struct {
	Key   string       `json:"key"`
	Start time.Time    `json:"start"`
	End   time.Time    `json:"end"`
	N     int64        `json:"n"`
	State tumble.State `json:"state"`
}

func countOf(c tumble.Count) count { return count{c.Key, c.Start, c.End, c.N, c.State} }

func countsOf(all []tumble.Count) []count {
	counts := make([]count, len(all))
	for i, c := range all {
		counts[i] = countOf(c)
	}
	return counts
}

func line(w io.Writer, c tumble.Count) {
	fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", program.Line(c.Key), program.ShortMinute(c.Start), c.N, c.State)
}
