package main

import (
	"bufio"
	"context"
	"errors"
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

var dropCommand = command{
	name: "drop", args: "NAME", about: "deletes all that is counted under a name",
	help: "It is refused while a process counts under the name, and for 10 seconds after.\nIf it is cut off, nobody can count under the name until it has been called again.\n",
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
			if err := sink.Drop(ctx); errors.Is(err, tumble.ErrNoDefinition) {
				return fmt.Errorf("%w: tumble names lists those under which there is something", err)
			} else if err != nil {
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
	help: "DURATION is like 36h or 7d, and 0 keeps them for ever. A roll-up, for which -window stands, cannot be kept\n" +
		"shorter than the finest windows. In force is the longest that a process asked for within the last minute, so\n" +
		"a shorter one takes that long. A process that counts asks for its own, again and again.\n",
	define: func(fs *flag.FlagSet) func(context.Context, *tool, []string) error {
		window := windowFlag(fs)
		return func(ctx context.Context, t *tool, args []string) error {
			keep, err := program.Retention(args[1])
			if err != nil {
				return usagef("DURATION %w", err)
			}
			sink, def, err := t.stored(ctx, args[0])
			if err != nil {
				return err
			}
			level := 0
			if *window != nil {
				if level, err = def.LevelOf(**window); err != nil {
					return usagef("-window: %w", err)
				}
			}
			of := &def.Retention
			if level > 0 {
				def.Rollups = slices.Clone(def.Rollups)
				of = &def.Rollups[level-1].Retention
			}
			was := *of
			*of = keep
			if err := def.Validate(); err != nil {
				return usagef("%w (-window stands for a roll-up)", err)
			}
			if err := ask(ctx, sink, def, level); err != nil {
				return err
			}
			return t.print(map[string]string{"was": was.String(), "is": keep.String()}, func(w io.Writer) {
				fmt.Fprintf(w, "counts of %s per %v are kept for %v, before for %v\n", args[0], def.Level(level).Window, words(keep), words(was))
			})
		}
	},
}

// ask asks for the retentions of a definition until that of a level is in force: what
// others asked for counts for a minute and ten seconds more.
func ask(ctx context.Context, sink *redis.Sink, def tumble.Definition, level int) error {
	for until := time.Now().Add(80 * time.Second); ; {
		if _, err := sink.Open(ctx, def); err != nil {
			return err
		}
		stored, err := sink.Definition(ctx)
		if err != nil {
			return err
		}
		is := stored.Level(level).Retention
		if is == def.Level(level).Retention {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("in force stays %v: a process that counts asks for it. Start it with the new one", words(is))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Second):
		}
	}
}

func words(keep time.Duration) string {
	if keep == 0 {
		return "ever"
	}
	return keep.String()
}
