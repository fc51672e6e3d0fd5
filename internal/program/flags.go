package program

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Flag declares a flag whose values parse reads. The text def is the default; ""
// leaves the zero value.
func Flag[T any](name, def, usage string, parse func(string) (T, error)) *T {
	v := &value[T]{parse: parse}
	if def != "" {
		if err := v.Set(def); err != nil {
			panic(fmt.Sprintf("default of -%s: %v", name, err))
		}
	}
	flag.Var(v, name, usage)
	return &v.to
}

// value is a [flag.Value] of any type.
type value[T any] struct {
	to    T
	text  string
	parse func(string) (T, error)
}

func (v *value[T]) String() string { return v.text }

func (v *value[T]) Set(s string) error {
	to, err := v.parse(s)
	if err == nil {
		v.to, v.text = to, s
	}
	return err
}

// usage explains every flag. flag.PrintDefaults would leave out defaults that are
// zero.
func usage(w io.Writer, name, about string) {
	fmt.Fprintf(w, "%s %s\n\nFlags:\n", name, about)
	flag.VisitAll(func(f *flag.Flag) {
		kind, text := flag.UnquoteUsage(f)
		if kind != "" {
			kind = " " + kind
		}
		def := f.DefValue
		if def == "" {
			def = `""`
		}
		if !strings.Contains(text, "default") {
			text += " (default " + def + ")"
		}
		fmt.Fprintf(w, "  -%s%s\n    \t%s\n", f.Name, kind, text)
	})
}

// Text parses text that is not empty.
func Text(s string) (string, error) {
	if s == "" {
		return "", errors.New("must not be empty")
	}
	return s, nil
}

// Address parses host:port.
func Address(s string) (string, error) {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("%q is not host:port", s)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return "", fmt.Errorf("%q: unknown port %q", s, port)
	}
	return s, nil
}

// Addresses parses host:port, one or more, separated by commas.
func Addresses(s string) ([]string, error) {
	list := strings.Split(s, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
		if _, err := Address(list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// Int returns a parser of whole numbers from low to high.
func Int(low, high int64) func(string) (int64, error) {
	return func(s string) (int64, error) {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < low || n > high {
			return 0, fmt.Errorf("must be a whole number from %d to %d", low, high)
		}
		return n, nil
	}
}

// Rate parses a number per second, 0 for no limit.
func Rate(s string) (float64, error) {
	x, err := strconv.ParseFloat(s, 64)
	if err != nil || !(x == 0 || x >= 1e-6) || x > 1e9 {
		return 0, errors.New("must be a number from 0.000001 to 1e9, or 0 for as fast as possible")
	}
	return x, nil
}

// Duration returns a parser of durations that are ok. must says which are.
func Duration(must string, ok func(time.Duration) bool) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		if err != nil || !ok(d) {
			return 0, fmt.Errorf(`must be a duration such as "100ms" or "1h30m", %s`, must)
		}
		return d, nil
	}
}

var rfc3339 = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// Time parses an RFC 3339 time. It is stricter than time.Parse, which takes an hour
// of one digit, a comma, and a zone of 99 hours.
func Time(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil || !rfc3339.MatchString(s) {
		return time.Time{}, errors.New(`must be an RFC 3339 time such as "2023-10-01T12:34:56Z"`)
	}
	return t, nil
}
