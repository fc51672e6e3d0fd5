package redis

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

var errSyntax = errors.New("not what this package writes")

// Event times are of the years 1700 to 2199; int64 holds the nanoseconds of
// 1678 to 2261, which leaves room for what frontiers add.
var (
	minEvent = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC)
	maxEvent = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
	minNanos = time.Unix(0, -1<<63)
	maxNanos = time.Unix(0, 1<<63-1)
)

// state returns a checkpoint as it is stored, without its marks: offset,
// origin, watermark in nanoseconds or "-", "live" or "ended", log.
func state(c tumble.Checkpoint) (string, error) {
	mark := "-"
	if !c.Watermark.IsZero() {
		if c.Watermark.Before(minNanos) || c.Watermark.After(maxNanos) {
			return "", fmt.Errorf("watermark %v is not within the years 1678 to 2261", c.Watermark)
		}
		mark = strconv.FormatInt(c.Watermark.UnixNano(), 10)
	}
	ended := "live"
	if c.Ended {
		ended = "ended"
	}
	return strconv.FormatInt(c.Offset, 10) + " " + strconv.FormatInt(c.Origin, 10) + " " + mark + " " + ended + " " + c.Log, nil
}

// record returns a checkpoint as it is stored, with the marks before it.
func record(def tumble.Definition, c tumble.Checkpoint) (string, error) {
	s, err := state(c)
	if err != nil {
		return "", err
	}
	return marks(def, c) + " " + s, nil
}

// marks says what a shard whose frontier came from c alone would have closed:
// windows that start before the first mark are final, before the second past
// retention. Both are milliseconds since the epoch, or "-". A smaller watermark
// never has a larger mark, so a frontier's marks are the smallest there are,
// and a script needs no calendar to find them.
func marks(def tumble.Definition, c tumble.Checkpoint) string {
	frontier := c.Watermark
	if c.Ended {
		frontier = def.EndMark(frontier)
	}
	return frontierMarks(def, frontier)
}

func frontierMarks(def tumble.Definition, frontier time.Time) string {
	if frontier.IsZero() {
		return "- -"
	}
	// The first window that has not passed is the one that holds this instant.
	mark := func(age time.Duration) string {
		at := frontier.Add(-age)
		if at.Before(minEvent) {
			at = minEvent // no window before has an event
		}
		start, _ := def.Window.Bounds(at)
		return strconv.FormatInt(start.UnixMilli(), 10)
	}
	if def.Retention == 0 {
		return mark(def.Grace) + " -"
	}
	return mark(def.Grace) + " " + mark(def.Grace+def.Retention)
}

// parseRecord reads what record writes.
func parseRecord(s string) (tumble.Checkpoint, error) {
	var c tumble.Checkpoint
	f := strings.SplitN(s, " ", 7)
	if len(f) != 7 {
		return c, errSyntax
	}
	var err error
	if c.Offset, err = strconv.ParseInt(f[2], 10, 64); err != nil {
		return c, err
	}
	if c.Origin, err = strconv.ParseInt(f[3], 10, 64); err != nil {
		return c, err
	}
	if f[4] != "-" {
		ns, err := strconv.ParseInt(f[4], 10, 64)
		if err != nil {
			return c, err
		}
		c.Watermark = time.Unix(0, ns).UTC()
	}
	switch f[5] {
	case "live":
	case "ended":
		c.Ended = true
	default:
		return c, errSyntax
	}
	c.Log = f[6]
	return c, nil
}

// closed is what a shard's finality key holds: windows that start before final
// are final, those before expired are past retention.
type closed struct {
	final, expired int64 // milliseconds since the epoch; noMark: none
	shards         int
	id             string
}

const noMark = -1 << 63

// parseClosed reads a finality key. "" is one that does not exist.
func parseClosed(s string) (closed, error) {
	c := closed{final: noMark, expired: noMark}
	if s == "" {
		return c, nil
	}
	var err error
	final, rest, _ := strings.Cut(s, " ")
	expired, rest, _ := strings.Cut(rest, " ")
	shards, id, _ := strings.Cut(rest, " ")
	if final != "-" {
		if c.final, err = strconv.ParseInt(final, 10, 64); err != nil {
			return c, fmt.Errorf("finality %q: %w", s, errSyntax)
		}
	}
	if expired != "-" {
		if c.expired, err = strconv.ParseInt(expired, 10, 64); err != nil {
			return c, fmt.Errorf("finality %q: %w", s, errSyntax)
		}
	}
	if c.shards, err = strconv.Atoi(shards); err != nil || id == "" {
		return c, fmt.Errorf("finality %q: %w", s, errSyntax)
	}
	c.id = id
	return c, nil
}
