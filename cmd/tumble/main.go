// Command tumble looks at counts in Redis, and administers them.
//
//	tumble -redis localhost:6379 COMMAND [flags] [arguments]
//	tumble help COMMAND
//
// It exits with 0, 1 after an error, 2 if the command line is wrong, and 3 if a check
// found something.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	_ "time/tzdata" // in a container there may be none

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/internal/redisdial"
	"github.com/tumblestream/tumble/sink/redis"
)

// A command is one word of the command line. define declares its flags and returns
// the work, which gets exactly the arguments that args names.
type command struct {
	name, args string
	about      string // one line
	help       string // more of it
	define     func(*flag.FlagSet) func(context.Context, *tool, []string) error
}

var commands = []command{
	namesCommand, showCommand, getCommand, topCommand, rangeCommand, watchCommand, dropCommand, endCommand, retentionCommand, checkCommand, auditCommand,
}

// A tool is what commands work with.
type tool struct {
	client rueidis.Client
	in     io.Reader
	out    io.Writer
	json   bool
}

// A wrongUsage is an error of the command line.
type wrongUsage struct{ error }

func (e wrongUsage) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return wrongUsage{fmt.Errorf(format, args...)} }

// errFound ends a command that has written what is wrong.
var errFound = errors.New("differences were found")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	err := do(ctx, args, in, out)
	if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return 0
	}
	if errors.Is(err, errFound) {
		return 3
	}
	fmt.Fprintf(errs, "tumble: %s\n", program.Line(strings.TrimPrefix(err.Error(), "tumble: ")))
	if errors.As(err, new(wrongUsage)) {
		return 2
	}
	return 1
}

func do(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	top := flag.NewFlagSet("tumble", flag.ContinueOnError)
	top.SetOutput(io.Discard) // errors are printed by run, without the usage
	server, _ := redisdial.Parse(redisdial.Default)
	top.Func("redis", redisdial.Usage, func(s string) (err error) {
		server, err = redisdial.Parse(s)
		return err
	})
	if err := top.Parse(args); errors.Is(err, flag.ErrHelp) {
		overview(out)
		return nil
	} else if err != nil {
		return usagef("%w (tumble help lists the commands)", err)
	}
	if top.NArg() == 0 {
		overview(out)
		return usagef("no command is given")
	}
	word, rest := top.Arg(0), top.Args()[1:]
	if word == "help" {
		return help(out, rest)
	}
	c, err := find(word)
	if err != nil {
		return err
	}
	t := &tool{in: in, out: out}
	fs, work := c.flags(t)
	fs.SetOutput(io.Discard)
	values, err := interspersed(fs, rest)
	if errors.Is(err, flag.ErrHelp) {
		return help(out, []string{c.name})
	} else if err != nil {
		return usagef("%s: %w (tumble help %s explains the flags)", c.name, err, c.name)
	}
	if want := strings.Fields(c.args); len(values) != len(want) {
		return usagef("%s: wants %s, got %d arguments (tumble help %s)", c.name, orNothing(c.args), len(values), c.name)
	}
	if t.client, err = redisdial.Connect(ctx, server); err != nil {
		return err
	}
	defer t.client.Close()
	return work(ctx, t, values)
}

// flags returns the command's flags, which are read into t, and its work.
func (c command) flags(t *tool) (*flag.FlagSet, func(context.Context, *tool, []string) error) {
	fs := flag.NewFlagSet(c.name, flag.ContinueOnError)
	fs.BoolVar(&t.json, "json", false, "print JSON")
	return fs, c.define(fs)
}

// interspersed parses flags that may stand before, between and after arguments.
func interspersed(fs *flag.FlagSet, args []string) (values []string, err error) {
	for {
		if err := fs.Parse(args); err != nil {
			return nil, err
		}
		if fs.NArg() == 0 {
			return values, nil
		}
		values, args = append(values, fs.Arg(0)), fs.Args()[1:]
	}
}

func find(word string) (command, error) {
	for _, c := range commands {
		if c.name == word {
			return c, nil
		}
	}
	return command{}, usagef("%q is no command (tumble help lists them)", word)
}

func orNothing(args string) string {
	if args == "" {
		return "no arguments"
	}
	return args
}

func overview(out io.Writer) {
	fmt.Fprint(out, "tumble looks at counts in Redis, and administers them.\n\n  tumble [-redis ADDRESSES] COMMAND [flags] [arguments]\n\nCommands:\n")
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, c := range commands {
		fmt.Fprintf(w, "  %s %s\t%s\n", c.name, c.args, c.about)
	}
	fmt.Fprintf(w, "  help COMMAND\t%s\n", "explains one of them")
	_ = w.Flush()
	fmt.Fprintf(out, "\nFlags:\n  -redis addresses\n    \t%s (default %s)\n", strings.ReplaceAll(redisdial.Usage, "`", ""), redisdial.Default)
}

func help(out io.Writer, words []string) error {
	if len(words) == 0 {
		overview(out)
		return nil
	}
	c, err := find(words[0])
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "tumble %s %s\n\n%s %s.\n%s\nFlags:\n", c.name, c.args, c.name, c.about, c.help)
	fs, _ := c.flags(&tool{})
	fs.SetOutput(out)
	fs.PrintDefaults()
	return nil
}

// sink returns the counts under a name.
func (t *tool) sink(name string) (*redis.Sink, error) {
	sink, err := redis.New(redis.Config{Client: t.client, Name: name})
	if err != nil {
		return nil, wrongUsage{err}
	}
	return sink, nil
}

// windowFlag declares the flag that names one of the windows that are counted; nil is
// the finest.
func windowFlag(fs *flag.FlagSet) **tumble.Window {
	w := new(*tumble.Window)
	fs.Func("window", "`length` of the windows, such as 1h, one of those that are counted; empty: the finest", func(s string) (err error) {
		*w, err = program.Level(s)
		return err
	})
	return w
}

// reader returns the counts under a name in windows of one level, see windowFlag.
func (t *tool) reader(name string, window *tumble.Window) (tumble.Reader, error) {
	sink, err := t.sink(name)
	if err != nil || window == nil {
		return sink, err
	}
	r, err := sink.Rollup(*window)
	if err != nil {
		return nil, wrongUsage{err}
	}
	return r, nil
}

// stored returns the sink of a name under which something is counted, and its definition.
func (t *tool) stored(ctx context.Context, name string) (*redis.Sink, tumble.Definition, error) {
	sink, err := t.sink(name)
	if err != nil {
		return nil, tumble.Definition{}, err
	}
	def, err := sink.Definition(ctx)
	return sink, def, err
}

// print writes v as JSON, or else what text writes into columns.
func (t *tool) print(v any, text func(w io.Writer)) error {
	if t.json {
		return json.NewEncoder(t.out).Encode(v)
	}
	w := tabwriter.NewWriter(t.out, 0, 0, 2, ' ', 0)
	text(w)
	return w.Flush()
}
