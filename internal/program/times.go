package program

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

// MinuteLayout is the short form of a time that is a whole minute, in UTC.
const MinuteLayout = "2006-01-02T15:04"

var (
	firstTime = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Instant parses an instant: the short form, in UTC, RFC 3339, or "now".
func Instant(s string, now time.Time) (time.Time, error) {
	if s == "now" {
		return now, nil
	}
	t, err := Time(s)
	if err != nil {
		t, err = time.Parse(MinuteLayout, s)
		// Parse takes more than it formats, such as an hour of one digit.
		if err != nil || t.Format(MinuteLayout) != s {
			return t, fmt.Errorf("must be like %s (UTC), RFC 3339 or now", MinuteLayout)
		}
	}
	if t.Before(firstTime) || !t.Before(lastTime) {
		return t, errors.New("must be from the year 1700 to 2199")
	}
	return t, nil
}

// ShortMinute formats the start of a window: the short form for a whole minute,
// otherwise RFC 3339.
func ShortMinute(t time.Time) string {
	t = t.UTC()
	if t.Truncate(time.Minute).Equal(t) {
		return t.Format(MinuteLayout)
	}
	return t.Format(time.RFC3339Nano)
}

// Retention parses a duration of which the first part may be in days of 24 hours:
// "31d", "1d12h", "90m".
func Retention(s string) (time.Duration, error) {
	bad := errors.New(`must be a duration such as "36h", "7d" or "1d12h"`)
	days, rest, ok := strings.Cut(s, "d")
	if !ok {
		days, rest = "0", s
	} else if rest == "" {
		rest = "0s"
	}
	n, err := strconv.ParseUint(days, 10, 31)
	if err != nil {
		return 0, bad
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || n > 1<<15 {
		return 0, bad
	}
	return time.Duration(n)*24*time.Hour + d, nil
}

// Level parses the window of a level; nil, for an empty text, is the finest that is counted.
func Level(s string) (*tumble.Window, error) {
	if s == "" {
		return nil, nil
	}
	w, err := tumble.ParseWindow(s)
	return &w, err
}

// OrNull returns an instant in UTC, which is null in JSON if there is none.
func OrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
