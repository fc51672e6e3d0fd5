package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
)

var dropCommand = command{
	name: "drop", args: "NAME", about: "deletes all that is counted under a name",
	help: "It is refused while a process counts under the name, and for some seconds after.\nIf it is cut off, nobody can count under the name until it has been called again.\n",
	define: func(fs *flag.FlagSet) func(context.Context, *tool, []string) error {
		yes := fs.Bool("yes", false, "do not ask")
		return func(ctx context.Context, t *tool, args []string) error {
			sink, err := t.sink(args[0])
			if err != nil {
				return err
			}
			if !*yes {
				fmt.Fprintf(t.out, "All counts and positions of %s will be deleted. Type the name to go on: ", args[0])
				answer, err := bufio.NewReader(t.in).ReadString('\n')
				if err != nil && !errors.Is(err, io.EOF) {
					return err
				}
				if strings.TrimSpace(answer) != args[0] {
					return errors.New("nothing was deleted")
				}
			}
			if err := sink.Drop(ctx); err != nil {
				return err
			}
			return t.print(map[string]string{"dropped": args[0]}, func(w io.Writer) { fmt.Fprintf(w, "%s is deleted\n", args[0]) })
		}
	},
}

var endCommand = command{
	name: "end", args: "NAME PARTITION", about: "marks a partition as one that nobody will ever read again",
	help: "Windows do not wait for it any more. It takes 15 seconds, in which every process that has the partition objects.\n",
	define: func(*flag.FlagSet) func(context.Context, *tool, []string) error {
		return func(ctx context.Context, t *tool, args []string) error {
			sink, err := t.sink(args[0])
			if err != nil {
				return err
			}
			if err := tumble.EndPartition(ctx, sink, args[1]); err != nil {
				return err
			}
			return t.print(map[string]string{"ended": args[1]}, func(w io.Writer) { fmt.Fprintf(w, "%s has ended\n", args[1]) })
		}
	},
}

var retentionCommand = command{
	name: "retention", args: "NAME DURATION", about: "sets how long the counts of a closed window are kept",
	help: "DURATION is like 36h or 7d, and 0 keeps them for ever. In force is the longest that a process asked for within\n" +
		"the last minute, so a shorter one takes that long. A process that counts asks for its own, again and again.\n",
	define: func(*flag.FlagSet) func(context.Context, *tool, []string) error {
		return func(ctx context.Context, t *tool, args []string) error {
			keep, err := program.Retention(args[1])
			if err != nil {
				return usagef("DURATION %w", err)
			}
			sink, err := t.sink(args[0])
			if err != nil {
				return err
			}
			def, err := sink.Definition(ctx)
			if err != nil {
				return err
			}
			was := def.Retention
			def.Retention = keep
			if err := def.Validate(); err != nil {
				return usagef("%w", err)
			}
			// The notes of others count for a minute and ten seconds.
			for until := time.Now().Add(80 * time.Second); ; {
				if _, err := sink.Open(ctx, def); err != nil {
					return err
				}
				stored, err := sink.Definition(ctx)
				if err != nil {
					return err
				}
				if stored.Retention == keep {
					return t.print(map[string]string{"was": was.String(), "is": keep.String()}, func(w io.Writer) {
						fmt.Fprintf(w, "counts of %s are kept for %v, before for %v\n", args[0], words(keep), words(was))
					})
				}
				if time.Now().After(until) {
					return fmt.Errorf("in force stays %v: a process that counts under %s asks for it. Start it with the new one", words(stored.Retention), args[0])
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(2 * time.Second):
				}
			}
		}
	},
}

func words(keep time.Duration) string {
	if keep == 0 {
		return "ever"
	}
	return keep.String()
}
