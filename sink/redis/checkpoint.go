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

// Event times are of the years 1700 to 2199. An int64 holds the nanoseconds of
// 1678 to 2261, which leaves room for frontiers beyond them.
var (
	minEvent = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC)
	maxEvent = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
	minNanos = time.Unix(0, -1<<63)
	maxNanos = time.Unix(0, 1<<63-1)
)

// stored is a checkpoint in the forms in which a shard keeps it.
type stored struct {
	state  string // offset, origin, epoch, watermark in nanoseconds or "-", "live" or "ended", log
	closed string // the closed mark of its watermark
	set    string // "live" or "ended"
	mark   string // the watermark as the sorted sets hold it
}

// storedForm returns the forms of a checkpoint. The closed mark is stored with
// it because a script has no calendar to find it.
func storedForm(def tumble.Definition, c tumble.Checkpoint) (stored, error) {
	s := stored{closed: millis(def.ClosedAt(c.Watermark)), set: "live", mark: "-"}
	ns := "-"
	if !c.Watermark.IsZero() {
		if c.Watermark.Before(minNanos) || c.Watermark.After(maxNanos) {
			return s, fmt.Errorf("watermark %v is not within the years 1678 to 2261", c.Watermark)
		}
		ns, s.mark = strconv.FormatInt(c.Watermark.UnixNano(), 10), sortable(c.Watermark.UnixNano())
	}
	if c.Ended {
		s.set = "ended"
	}
	s.state = strconv.FormatInt(c.Offset, 10) + " " + strconv.FormatInt(c.Origin, 10) + " " + strconv.Itoa(int(c.Epoch)) +
		" " + ns + " " + s.set + " " + c.Log
	return s, nil
}

// record returns the entry of the checkpoints' hash, with its writer.
func (s stored) record(writer uint64) string {
	return s.closed + " " + strconv.FormatUint(writer, 16) + " " + s.state
}

// member returns the partition's member of its sorted set.
func (s stored) member(partition string) string { return s.mark + " " + partition }

// sortable writes nanoseconds so that strings are in the order of the numbers.
func sortable(ns int64) string { return fmt.Sprintf("%016x", uint64(ns)+1<<63) }

// parseSortable is the inverse of sortable. It reads "-" as the zero time.
func parseSortable(s string) (time.Time, error) {
	if s == "-" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(0, int64(n-1<<63)).UTC(), nil
}

// millis writes a mark, "-" for none.
func millis(mark time.Time) string {
	if mark.IsZero() {
		return "-"
	}
	return strconv.FormatInt(mark.UnixMilli(), 10)
}

// parseNanos reads nanoseconds, "-" as the zero time.
func parseNanos(s string) (time.Time, error) {
	if s == "-" {
		return time.Time{}, nil
	}
	ns, err := strconv.ParseInt(s, 10, 64)
	return time.Unix(0, ns).UTC(), err
}

// parseMillis reads a mark, "-" as the zero time.
func parseMillis(s string) (time.Time, error) {
	if s == "-" {
		return time.Time{}, nil
	}
	ms, err := strconv.ParseInt(s, 10, 64)
	return time.UnixMilli(ms).UTC(), err
}

// parseRecord reads a checkpoint from an entry of the checkpoints' hash.
func parseRecord(s string) (c tumble.Checkpoint, err error) {
	f := strings.SplitN(s, " ", 8)
	if len(f) != 8 {
		return c, errSyntax
	}
	if c.Offset, err = strconv.ParseInt(f[2], 10, 64); err != nil {
		return c, err
	}
	if c.Origin, err = strconv.ParseInt(f[3], 10, 64); err != nil {
		return c, err
	}
	epoch, err := strconv.ParseInt(f[4], 10, 32)
	if err != nil {
		return c, err
	}
	c.Epoch = int32(epoch)
	if c.Watermark, err = parseNanos(f[5]); err != nil {
		return c, err
	}
	switch f[6] {
	case "live":
	case "ended":
		c.Ended = true
	default:
		return c, errSyntax
	}
	c.Log = f[7]
	return c, nil
}
