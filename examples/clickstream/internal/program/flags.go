package program

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

// Flags declares flags whose values are checked while the command line is
// read. Each method returns where the value will be.
type Flags struct{ set *flag.FlagSet }

func newFlags(name string) *Flags {
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.SetOutput(io.Discard) // what it says is an error as well, and is printed once
	set.Usage = func() {}
	return &Flags{set}
}

func (f *Flags) read(args []string) error {
	if err := f.set.Parse(args); err != nil {
		return err
	}
	if rest := f.set.Args(); len(rest) > 0 {
		return fmt.Errorf("unexpected argument %q: values belong to flags", rest[0])
	}
	return nil
}

// usage explains every flag with its default, also where that is a zero, which
// the flag package would leave out.
func (f *Flags) usage(w io.Writer, about string) {
	fmt.Fprintf(w, "%s %s\n\nFlags:\n", f.set.Name(), about)
	f.set.VisitAll(func(one *flag.Flag) {
		kind, text := flag.UnquoteUsage(one)
		if kind != "" {
			kind = " " + kind
		}
		fmt.Fprintf(w, "  -%s%s\n    \t%s", one.Name, kind, text)
		if !strings.Contains(text, "default") {
			value := one.DefValue
			if value == "" {
				value = `""`
			}
			fmt.Fprintf(w, " (default %s)", value)
		}
		fmt.Fprintln(w)
	})
}

// value is a flag of any type: its text as it is shown, and how it is read.
type value struct {
	text string
	read func(string) error
}

func (v *value) String() string { return v.text }

func (v *value) Set(s string) error {
	if err := v.read(s); err != nil {
		return err
	}
	v.text = s
	return nil
}

// Declare declares a flag of type T whose default is the text def; "" leaves
// the zero value, and the usage text says what that means.
func Declare[T any](f *Flags, name, def, usage string, parse func(string) (T, error)) *T {
	at := new(T)
	v := &value{read: func(s string) error {
		x, err := parse(s)
		if err != nil {
			return err
		}
		*at = x
		return nil
	}}
	if def != "" {
		if err := v.Set(def); err != nil {
			panic(fmt.Sprintf("default of -%s: %v", name, err))
		}
	}
	f.set.Var(v, name, usage)
	return at
}

// Bool declares a flag that is off unless it is named.
func (f *Flags) Bool(name, usage string) *bool { return f.set.Bool(name, false, usage) }

// Text declares a flag that must not be empty.
func (f *Flags) Text(name, def, usage string) *string {
	return Declare(f, name, def, usage, func(s string) (string, error) {
		if s == "" {
			return "", errors.New("must not be empty")
		}
		return s, nil
	})
}

// Choice declares a flag that takes one of the words in choices; the first is
// the default.
func (f *Flags) Choice(name, usage string, choices ...string) *string {
	return Declare(f, name, choices[0], usage, func(s string) (string, error) {
		for _, c := range choices {
			if s == c {
				return s, nil
			}
		}
		return "", fmt.Errorf("must be %s", strings.Join(choices, " or "))
	})
}

// Address declares a flag that takes host:port. With the default "" it may be
// left out.
func (f *Flags) Address(name, def, usage string) *string {
	return Declare(f, name, def, usage, func(s string) (string, error) {
		if s == "" && def == "" {
			return "", nil
		}
		return s, CheckAddress(s)
	})
}

// Addresses declares a flag that takes one or more host:port, separated by
// commas.
func (f *Flags) Addresses(name, def, usage string) *[]string {
	return Declare(f, name, def, usage, ParseAddresses)
}

// ParseAddresses reads one or more host:port, separated by commas.
func ParseAddresses(s string) ([]string, error) {
	list := strings.Split(s, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
		if err := CheckAddress(list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// CheckAddress returns an error that names s unless it is host:port.
func CheckAddress(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not host:port", s)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%q: unknown port %q", s, port)
	}
	return nil
}

// Int declares a flag that takes a whole number from low to high.
func (f *Flags) Int(name string, def, low, high int64, usage string) *int64 {
	return Declare(f, name, strconv.FormatInt(def, 10), usage, func(s string) (int64, error) {
		n, err := strconv.ParseInt(s, 10, 64)
		switch {
		case err != nil && high == math.MaxInt64:
			return 0, errors.New("must be a whole number")
		case err != nil || n < low || n > high:
			if high == math.MaxInt64 {
				return 0, fmt.Errorf("must be at least %d", low)
			}
			return 0, fmt.Errorf("must be a whole number from %d to %d", low, high)
		}
		return n, nil
	})
}

// Rate declares a flag that takes a number per second, 0 for no limit.
func (f *Flags) Rate(name, def, usage string) *float64 {
	return Declare(f, name, def, usage, func(s string) (float64, error) {
		x, err := strconv.ParseFloat(s, 64)
		if err != nil || !(x == 0 || x >= 1e-6) || x > 1e9 {
			return 0, errors.New("must be a number from 0.000001 to 1e9, or 0 for as fast as possible")
		}
		return x, nil
	})
}

// Duration declares a flag that takes a duration such as 1m30s for which check
// returns nil.
func (f *Flags) Duration(name, def, usage string, check func(time.Duration) error) *time.Duration {
	return Declare(f, name, def, usage, func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil {
			return 0, errors.New(`must be a duration such as "100ms" or "1h30m"`)
		}
		return d, check(d)
	})
}

// NotNegative is a check for Duration.
func NotNegative(d time.Duration) error {
	if d < 0 {
		return errors.New("must not be negative")
	}
	return nil
}

// Time declares a flag that takes an RFC 3339 time; left out it is zero.
func (f *Flags) Time(name, usage string) *time.Time {
	return Declare(f, name, "", usage, ParseTime)
}

var rfc3339 = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// ParseTime reads an RFC 3339 time. It is stricter than time.Parse, which takes
// an hour of one digit, a comma, and a zone of 99 hours.
func ParseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || !rfc3339.MatchString(s) {
		return time.Time{}, errors.New(`must be an RFC 3339 time such as "2023-10-01T12:34:56Z"`)
	}
	return t, nil
}

// Window declares a flag that takes what [tumble.ParseWindow] reads.
func (f *Flags) Window(name, def, usage string) *tumble.Window {
	return Declare(f, name, def, usage, tumble.ParseWindow)
}
