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
	define: func(*flag.FlagSet) func(context.Context, *tool, []string) error {
		return func(ctx context.Context, t *tool, args []string) error {
			sink, err := t.sink(args[0])
			if err != nil {
				return err
			}
			at, err := instant("TIME", args[2])
			if err != nil {
				return err
			}
			c, err := sink.Count(ctx, args[1], at)
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
		n := fs.Int("n", 10, "how many")
		return func(ctx context.Context, t *tool, args []string) error {
			if *n < 1 {
				return usagef("top: -n is %d, must be positive", *n)
			}
			sink, err := t.sink(args[0])
			if err != nil {
				return err
			}
			at, err := instant("TIME", args[1])
			if err != nil {
				return err
			}
			page, err := sink.Top(ctx, at, *n)
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
	define: func(*flag.FlagSet) func(context.Context, *tool, []string) error {
		return func(ctx context.Context, t *tool, args []string) error {
			sink, err := t.sink(args[0])
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
			counts, err := sink.Range(ctx, args[1], from, to)
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
	name: "watch", args: "NAME", about: "shows the highest counts of the current window, again and again",
	help: "With -json it prints a line for each look. It ends with Ctrl-C.\n",
	define: func(fs *flag.FlagSet) func(context.Context, *tool, []string) error {
		every := fs.Duration("every", time.Second, "how long between two looks")
		n := fs.Int("n", 10, "how many keys")
		return func(ctx context.Context, t *tool, args []string) error {
			if *every <= 0 || *n < 1 {
				return usagef("watch: -every and -n must be positive")
			}
			sink, err := t.sink(args[0])
			if err != nil {
				return err
			}
			tick := time.NewTicker(*every)
			defer tick.Stop()
			for {
				page, err := sink.Top(ctx, time.Now(), *n)
				if err != nil {
					return err
				}
				if !t.json {
					fmt.Fprint(t.out, "\x1b[H\x1b[2J") // home, and clear
				}
				err = t.print(map[string]any{"start": page.Start, "end": page.End, "state": page.State, "top": countsOf(page.Counts)}, func(w io.Writer) {
					fmt.Fprintf(w, "%s\t%s\t%s\n", args[0], program.ShortMinute(page.Start), page.State)
					for _, c := range page.Counts {
						fmt.Fprintf(w, "%s\t%d\t%s\n", program.Line(c.Key), c.N, strings.Repeat("█", int(1+39*c.N/page.Counts[0].N)))
					}
				})
				if err != nil {
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
