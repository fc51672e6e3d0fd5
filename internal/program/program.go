// Package program is what the programs share beside the flag package and
// net/http: flags that are checked while they are parsed, exit codes, signals, the
// closing books, metrics as text, and an HTTP server that stops cleanly.
package program

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/tumblestream/tumble"
)

// Main parses the command line, runs work and exits: 0 if all went well, 1 after an
// error and 2 if a flag is wrong. The first SIGINT or SIGTERM ends work's context, a
// second one kills the process.
func Main(name, about string, work func(context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, name, about, os.Args[1:], os.Stdout, os.Stderr, work))
}

func run(ctx context.Context, name, about string, args []string, stdout, stderr io.Writer, work func(context.Context) error) int {
	flag.CommandLine.Init(name, flag.ContinueOnError)
	flag.CommandLine.SetOutput(io.Discard) // errors are printed below, without the usage
	err := flag.CommandLine.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		usage(stdout, name, about)
		return 0
	case err == nil && flag.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q: values belong to flags", flag.Arg(0))
		fallthrough
	case err != nil:
		err = flagError{fmt.Errorf("%w (-h lists the flags)", err)}
	default:
		err = work(ctx)
	}
	if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) { // stopped while it started
		return 0
	}
	fmt.Fprintf(stderr, "%s: %s\n", name, Line(err.Error()))
	if errors.As(err, new(flagError)) {
		return 2
	}
	return 1
}

// A flagError is an error of the command line.
type flagError struct{ error }

func (e flagError) Unwrap() error { return e.error }

// FlagError is for a flag whose value proves to be wrong while the program starts.
func FlagError(name string, err error) error { return flagError{fmt.Errorf("flag -%s: %w", name, err)} }

// Line returns s as one line of printable text.
func Line(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.TrimSpace(s))
}

// WriteBooks writes the closing books as one line of JSON.
func WriteBooks(w io.Writer, s tumble.Stats) error {
	_, err := fmt.Fprintf(w, `{"read":%d,"counted":%d,"dropped_late":%d,"expired":%d,"rejected":%d,"skipped":%d,"replayed":%d,"pending":%d,"late":%d,"ahead":%d,"lost":%d}`+"\n",
		s.Read, s.Counted, s.DroppedLate, s.Expired, s.Rejected, s.Skipped, s.Replayed, s.Pending, s.Late, s.Ahead, s.Lost)
	return err
}
