// Package program is what the example programs have in common: flags that are
// checked while they are read, exit codes, signals, the closing books, metrics
// and an HTTP server that starts and stops cleanly.
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
)

// Exit codes.
const (
	exitOK    = 0
	exitError = 1 // a server, a topic, a login, an address
	exitUsage = 2 // the command line
)

// Setup declares a program's flags and returns what runs once they are read.
// The context it is given ends with the first SIGINT or SIGTERM; a second one
// kills the process.
type Setup func(f *Flags) func(ctx context.Context) error

// Main is the whole of a program's main function. It does not return.
func Main(name, about string, setup Setup) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, name, about, os.Args[1:], os.Stdout, os.Stderr, setup))
}

func run(ctx context.Context, name, about string, args []string, stdout, stderr io.Writer, setup Setup) int {
	flags := newFlags(name)
	work := setup(flags)
	switch err := flags.read(args); {
	case errors.Is(err, flag.ErrHelp):
		flags.usage(stdout, about)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "%s: %s (-h lists the flags)\n", name, line(err))
		return exitUsage
	}
	err := work(ctx)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return exitOK // asked to stop, before there was anything to end
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s: %s\n", name, line(err))
		if errors.As(err, new(flagError)) {
			return exitUsage
		}
		return exitError
	}
	return exitOK
}

// A flagError is an error of the command line that shows only once the program
// runs.
type flagError struct {
	name string
	err  error
}

// FlagError says that the flag of that name has a value that cannot be used:
// the program ends as for any bad flag.
func FlagError(name string, err error) error { return flagError{name, err} }

func (e flagError) Error() string { return fmt.Sprintf("flag -%s: %v", e.name, e.err) }
func (e flagError) Unwrap() error { return e.err }

// line is err on one line, whatever a server put into its text.
func line(err error) string { return Line(err.Error()) }

// IsTerminal reports whether f is a terminal, or another device that nobody
// reads from.
func IsTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

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
