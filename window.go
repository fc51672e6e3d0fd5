package tumble

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Calendar is a kind of window whose length the calendar of a time zone
// decides.
type Calendar int

// Calendars. A week begins on Monday, as in ISO 8601.
const (
	NoCalendar Calendar = iota // windows of a fixed Size
	Day
	Week
	Month
)

var calendars = [...]string{Day: "day", Week: "week", Month: "month"}

// A Window says how event time is cut into tumbling windows: half-open
// intervals [start, end) that neither overlap nor leave a gap. It is either of
// a fixed Size, aligned to the Unix epoch as in Kafka Streams and Flink, or one
// of a Calendar in a time zone, where a day may have 23 or 25 hours.
//
//	tumble.Window{Size: time.Minute}
//	tumble.Window{Size: 7 * 24 * time.Hour, Offset: 4 * 24 * time.Hour} // from Mondays, UTC
//	tumble.Window{Calendar: tumble.Day, Zone: berlin}
type Window struct {
	// Size of fixed windows: whole milliseconds, at most 10 years. It is 0 if
	// there is a Calendar.
	Size time.Duration
	// Offset shifts the starts of fixed windows from the Unix epoch: whole
	// milliseconds in [0, Size).
	Offset time.Duration

	// Calendar decides the length of the windows, unless it is NoCalendar.
	Calendar Calendar
	// Zone is the time zone of the Calendar. Sinks store its IANA name. It
	// defaults to UTC.
	Zone *time.Location
}

const (
	maxSize = 10 * 366 * 24 * time.Hour
	// Grace + Retention keep finality's arithmetic on nanoseconds within int64:
	// event times end in 2200, int64 in 2262, windows last 10 years at most.
	maxKeep = 50 * 365 * 24 * time.Hour
)

// Validate returns an error that names the field that makes w unusable.
func (w Window) Validate() error {
	switch {
	case w.Calendar < NoCalendar || w.Calendar > Month:
		return fmt.Errorf("Window.Calendar is %d, must be Day, Week, Month or NoCalendar", w.Calendar)
	case w.Calendar != NoCalendar && (w.Size != 0 || w.Offset != 0):
		return errors.New("Window.Size and Window.Offset do not go with a Window.Calendar")
	case w.Calendar != NoCalendar:
		// Another process finds the zone by its name alone.
		if name := w.zone().String(); name == "Local" {
			return errors.New("Window.Zone is Local, which differs between machines: use time.LoadLocation with an IANA name")
		} else if _, err := time.LoadLocation(name); err != nil || strings.ContainsAny(name, " \t\n") {
			return fmt.Errorf("Window.Zone is %q, must be an IANA name that this machine knows%s", name, zonesMissing())
		}
		return nil
	case w.Zone != nil:
		return errors.New("Window.Zone goes with a Window.Calendar only")
	case w.Size <= 0:
		return fmt.Errorf("Window.Size is %v, must be positive", w.Size)
	case w.Size%time.Millisecond != 0 || w.Size > maxSize:
		return fmt.Errorf("Window.Size is %v, must be whole milliseconds and at most 10 years", w.Size)
	case w.Offset < 0 || w.Offset >= w.Size || w.Offset%time.Millisecond != 0:
		return fmt.Errorf("Window.Offset is %v, must be whole milliseconds in [0, Size)", w.Offset)
	}
	return nil
}

// zonesMissing says what to do on a machine that knows no zones, as in many containers.
func zonesMissing() string {
	if _, err := time.LoadLocation("Europe/Berlin"); err == nil {
		return ""
	}
	return `: it knows none; install tzdata, or import _ "time/tzdata"`
}

func (w Window) zone() *time.Location {
	if w.Zone == nil {
		return time.UTC
	}
	return w.Zone
}

// String returns the form that sinks store and ParseWindow reads: "1m0s",
// "1h0m0s+15m0s", "day Europe/Berlin".
func (w Window) String() string {
	switch {
	case w.Calendar > NoCalendar && w.Calendar <= Month:
		return calendars[w.Calendar] + " " + w.zone().String()
	case w.Offset != 0:
		return w.Size.String() + "+" + w.Offset.String()
	}
	return w.Size.String()
}

// ParseWindow reads what String writes, and the shorter forms of
// time.ParseDuration ("1m") with it. The zone of a calendar may be left out:
// "day" is a day in UTC.
func ParseWindow(s string) (Window, error) {
	bad := func(why error) (Window, error) {
		return Window{}, fmt.Errorf("window %q: %w (want \"1m\", \"1h+15m\", or \"day\", \"week\", \"month\" and a zone: \"day Europe/Berlin\")", s, why)
	}
	var w Window
	var err error
	word, rest, _ := strings.Cut(s, " ")
	for c := Day; c <= Month; c++ {
		if word != calendars[c] {
			continue
		}
		w.Calendar = c
		if rest != "" && rest != "UTC" {
			if w.Zone, err = time.LoadLocation(rest); err != nil {
				return bad(fmt.Errorf("%w%s", err, zonesMissing()))
			}
		}
		if err := w.Validate(); err != nil {
			return bad(err)
		}
		return w, nil
	}
	size, offset, shifted := strings.Cut(s, "+")
	if w.Size, err = time.ParseDuration(size); err != nil {
		return bad(err)
	}
	if shifted {
		if w.Offset, err = time.ParseDuration(offset); err != nil {
			return bad(err)
		}
	}
	if err := w.Validate(); err != nil {
		return bad(err)
	}
	return w, nil
}

// Find is [Window.Bounds] for a Reader, which may be asked for any time. It returns an
// error if the window that holds t holds none of the years 1700 to 2199.
func (w Window) Find(t time.Time) (start, end time.Time, err error) {
	const reach = int64(maxSize / time.Second) // of a window beyond these years
	if s := t.Unix(); s >= minTime-reach && s < maxTime+reach {
		if start, end = w.Bounds(t); end.Unix() > minTime && start.Unix() < maxTime {
			return start, end, nil
		}
	}
	return time.Time{}, time.Time{}, fmt.Errorf("no window holds %v: counted are the years 1700 to 2199", t)
}

// Bounds returns the window that holds t: start <= t < end. t must be in
// [1700, 2200) for fixed windows.
func (w Window) Bounds(t time.Time) (start, end time.Time) {
	if w.Calendar == NoCalendar {
		// Not t.Truncate, which aligns to year 1: weekly windows would differ.
		ns, size := t.UnixNano()-int64(w.Offset), int64(w.Size)
		floor := ns - ns%size
		if ns%size < 0 {
			floor -= size
		}
		floor += int64(w.Offset)
		return time.Unix(0, floor).UTC(), time.Unix(0, floor+size).UTC()
	}
	zone := w.zone()
	y, m, d := t.In(zone).Date()
	switch w.Calendar {
	case Week:
		monday := time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
		d -= (int(monday.Weekday()) + 6) % 7
	case Month:
		d = 1
	}
	next := func() {
		switch w.Calendar {
		case Day:
			d++
		case Week:
			d += 7
		case Month:
			m++
		}
	}
	start = dayStart(y, m, d, zone)
	for next(); ; next() {
		end = dayStart(y, m, d, zone)
		if t.Before(end) {
			return start, end
		}
		// The clock went back over midnight: t's local date comes a second
		// time, after the next one has begun.
		start = end
	}
}

// dayStart returns the first instant whose local date is y-m-d or later. It is
// not time.Date's midnight, which need not exist, or may exist twice.
func dayStart(y int, m time.Month, d int, zone *time.Location) time.Time {
	midnight := time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
	// No zone is further than a day and a bit from UTC, so the date is still
	// an earlier one here.
	from := midnight.Add(-48 * time.Hour).In(zone)
	for {
		_, offset := from.Zone()
		_, until := from.ZoneBounds()
		if !until.IsZero() && !until.After(from) {
			// Far in the future ZoneBounds gives leap years 365 days, and takes
			// their last day for a change that came before it.
			until = from.Add(24 * time.Hour)
		}
		at := midnight.Add(-time.Duration(offset) * time.Second)
		if at.Before(from) {
			at = from
		}
		if until.IsZero() || at.Before(until) {
			return at.UTC()
		}
		from = until
	}
}

// Nests returns an error unless every window of fine lies within one of w, so
// that the counts of w are sums of those of fine.
//
// Fixed windows nest fixed ones if fine's Size divides their Size and the
// difference of the Offsets. A week or a month nests the days of its own zone. A
// calendar's windows nest fixed ones if every boundary from 1970 to 2199 is one
// of fine's, too: hours do not nest in the days of Kolkata, which begin at half
// past, and "1h+30m" does. Nothing fixed nests a calendar's windows.
func (w Window) Nests(fine Window) error {
	switch {
	case fine.String() == w.String():
		return fmt.Errorf("window %v is the finest one itself", w)
	case w.Calendar == NoCalendar && fine.Calendar != NoCalendar:
		return fmt.Errorf("window %v does not nest %v: no fixed Size holds whole windows of a calendar", w, fine)
	case w.Calendar == NoCalendar:
		if w.Size%fine.Size != 0 || (w.Offset-fine.Offset)%fine.Size != 0 {
			return fmt.Errorf("window %v does not nest %v: its Size, and the difference of the Offsets, must be multiples of %v", w, fine, fine.Size)
		}
		return nil
	case fine.Calendar == NoCalendar:
		return w.cutBy(fine)
	case w.zone().String() != fine.zone().String():
		return fmt.Errorf("window %v does not nest %v: they are of two zones", w, fine)
	case fine.Calendar != Day:
		return fmt.Errorf("window %v does not nest %v: of calendars a week and a month nest days, and nothing else", w, fine)
	}
	return nil
}

// cuts holds what cutBy found, by the two windows: a look at all days of a zone
// takes some 35 ms.
var cuts sync.Map

// cutBy returns an error unless the boundaries of w, a calendar's, are among
// those of fixed windows.
func (w Window) cutBy(fine Window) error {
	type pair struct{ coarse, fine string }
	type result struct{ err error } // a sync.Map holds no nil
	id := pair{w.String(), fine.String()}
	if found, ok := cuts.Load(id); ok {
		return found.(result).err
	}
	first, last := time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
	var err error
	for at := first; at.Before(last); {
		_, end := w.Bounds(at)
		if start, _ := fine.Bounds(end); !start.Equal(end) {
			err = fmt.Errorf("window %v does not nest %v: its window that ends at %s ends in the midst of one", w, fine, end.Format(time.RFC3339))
			break
		}
		at = end
	}
	cuts.Store(id, result{err})
	return err
}

// A Definition is what the counts under one name mean. Counts of different
// definitions must not be added up, so a sink stores it and refuses another.
// A Retention alone may differ: it does not say what a count means, but how long
// it is kept.
type Definition struct {
	Window    Window
	Grace     time.Duration // a window closes once the frontier is Grace past its end
	Retention time.Duration // in event time, after the window has closed. 0 keeps counts for ever
	DropLate  bool          // events of closed windows are not counted
	Sum       bool          // a count is the sum of its events' N, not their number
	MaxKey    int           // in bytes; events with a longer key are not counted. 0 means DefaultMaxKey
	Rollups   []Rollup      // coarser windows that are counted, too, in any order
}

// A Rollup is a coarser Window that is counted from the same read, in the same step:
// in the store a count of it always equals the sum of its finest windows' counts, as
// long as these are kept.
type Rollup struct {
	Window    Window        // which must nest the finest one, see Window.Nests
	Retention time.Duration // as that of a Definition, and no shorter than its own
}

// MaxRollups is how many roll-ups a Definition may have.
const MaxRollups = 8

// Levels returns the windows that are counted: the finest one, which is level 0, then
// the roll-ups, shorter ones first.
func (d Definition) Levels() []Rollup {
	levels := slices.Clone(d.Rollups)
	slices.SortFunc(levels, func(a, b Rollup) int {
		return cmp.Or(cmp.Compare(a.Window.length(), b.Window.length()), cmp.Compare(a.Window.String(), b.Window.String()))
	})
	return slices.Insert(levels, 0, Rollup{d.Window, d.Retention})
}

// length is about how long a window is.
func (w Window) length() time.Duration {
	const day = 24 * time.Hour
	return map[Calendar]time.Duration{NoCalendar: w.Size, Day: day, Week: 7 * day, Month: 30 * day}[w.Calendar]
}

// Level returns the definition of a level alone, as if it were the only one that is
// counted. See Levels.
func (d Definition) Level(i int) Definition {
	level := d.Levels()[i]
	d.Window, d.Retention, d.Rollups = level.Window, level.Retention, nil
	return d
}

// LevelOf returns the level that counts a window, or an error that wraps ErrNoRollup
// and names those that are counted.
func (d Definition) LevelOf(w Window) (int, error) {
	var names []string
	for i, level := range d.Levels() {
		if level.Window.String() == w.String() {
			return i, nil
		}
		names = append(names, level.Window.String())
	}
	return 0, fmt.Errorf("%w: %v, counted are %s", ErrNoRollup, w, strings.Join(names, ", "))
}

// ErrNoRollup is wrapped by a Reader of a window that is not counted.
var ErrNoRollup = errors.New("no such window is counted")

const (
	// DefaultMaxKey is the length of the longest key, in bytes, unless MaxKey says
	// otherwise.
	DefaultMaxKey = 1 << 10
	// MostMaxKey is the largest MaxKey, in bytes: a store must be done with one batch
	// in little time.
	MostMaxKey = 64 << 10
)

// Longest returns the length of the longest key in bytes.
func (d Definition) Longest() int { return cmp.Or(d.MaxKey, DefaultMaxKey) }

// Validate returns an error that names the field that makes d unusable.
func (d Definition) Validate() error {
	if err := d.Window.Validate(); err != nil {
		return err
	}
	if d.Grace < 0 || d.Grace > maxKeep || d.Grace%time.Millisecond != 0 {
		//lint:ignore ST1005 the text begins with the name of the field
		return fmt.Errorf("Grace is %v, must be whole milliseconds from 0 to 50 years", d.Grace)
	}
	if d.Retention < 0 || d.Retention > maxKeep-d.Grace || d.Retention%time.Millisecond != 0 {
		//lint:ignore ST1005 the text begins with the name of the field
		return fmt.Errorf("Retention is %v, must be whole milliseconds from 0 (for ever), with Grace at most 50 years", d.Retention)
	}
	if d.MaxKey < 0 || d.MaxKey > MostMaxKey {
		return fmt.Errorf("MaxKey is %d, must be from 1 to %d bytes, or 0 for %d", d.MaxKey, MostMaxKey, DefaultMaxKey)
	}
	if err := d.validateRollups(); err != nil {
		//lint:ignore ST1005 the text begins with the name of the field
		return fmt.Errorf("Rollups: %w", err)
	}
	return nil
}

// validateRollups does not check that they nest the finest window: rules of time zones
// change, and what is stored must be readable all the same.
func (d Definition) validateRollups() error {
	if len(d.Rollups) > MaxRollups {
		return fmt.Errorf("they are %d, must be at most %d", len(d.Rollups), MaxRollups)
	}
	seen := map[string]bool{d.Window.String(): true}
	for _, r := range d.Rollups {
		if err := r.Window.Validate(); err != nil {
			return err
		}
		if name := r.Window.String(); seen[name] {
			return fmt.Errorf("window %s comes twice", name)
		} else {
			seen[name] = true
		}
		level := Definition{Window: r.Window, Grace: d.Grace, Retention: r.Retention}
		if err := level.Validate(); err != nil {
			return fmt.Errorf("%v: %w", r.Window, err)
		}
		if r.Retention != 0 && (d.Retention == 0 || r.Retention < d.Retention) {
			return fmt.Errorf("%v: Retention is %v, must be 0 (for ever) or no shorter than that of the finest window, %v", r.Window, r.Retention, d.Retention)
		}
	}
	return nil
}

// nest returns an error unless every roll-up nests the finest window.
func (d Definition) nest() error {
	for _, r := range d.Rollups {
		if err := r.Window.Nests(d.Window); err != nil {
			//lint:ignore ST1005 the text begins with the name of the field
			return fmt.Errorf("Rollups: %w", err)
		}
	}
	return nil
}

// Same reports whether d and e mean the same counts: all but the Retentions.
func (d Definition) Same(e Definition) bool {
	return d.Window.String() == e.Window.String() && d.Grace == e.Grace && d.DropLate == e.DropLate &&
		d.Sum == e.Sum && d.Longest() == e.Longest() && slices.EqualFunc(d.Levels(), e.Levels(), func(a, b Rollup) bool {
		return a.Window.String() == b.Window.String()
	})
}

// String returns a line that names every part.
func (d Definition) String() string {
	rollups := ""
	for _, r := range d.Levels()[1:] {
		rollups += fmt.Sprintf(", rolled up to %v with retention %v", r.Window, r.Retention)
	}
	return fmt.Sprintf("%s, retention %v%s", strings.Join(d.parts()[:5], ", "), d.Retention, rollups)
}

// parts names what must be the Same.
func (d Definition) parts() []string {
	var rollups []string
	for _, r := range d.Levels()[1:] {
		rollups = append(rollups, "rolled up to "+r.Window.String())
	}
	return []string{
		fmt.Sprintf("window %v", d.Window), fmt.Sprintf("grace %v", d.Grace), fmt.Sprintf("drop late %v", d.DropLate),
		fmt.Sprintf("sum %v", d.Sum), fmt.Sprintf("keys up to %d bytes", d.Longest()), cmp.Or(strings.Join(rollups, ", "), "no roll-ups"),
	}
}

// Frontier returns the frontier of a shard that holds these checkpoints: the
// smallest watermark of its partitions that have not Ended, none (the zero
// time) if one of them has none. If all have ended it is the largest watermark.
// Of no checkpoints there is none.
//
// It decides which windows are closed, which are past retention, and where a
// partition that joins begins.
func Frontier(checkpoints map[string]Checkpoint) time.Time {
	var low, high time.Time
	live := false
	for _, c := range checkpoints {
		if c.Ended {
			if high.IsZero() || c.Watermark.After(high) {
				high = c.Watermark
			}
			continue
		}
		if c.Watermark.IsZero() {
			return time.Time{}
		}
		if !live || c.Watermark.Before(low) {
			low = c.Watermark
		}
		live = true
	}
	if live {
		return low
	}
	return high
}

// EndMark returns the earliest frontier that closes the window that holds
// watermark, its end plus Grace. Of none (the zero time) there is none.
func (d Definition) EndMark(watermark time.Time) time.Time {
	if watermark.IsZero() {
		return time.Time{}
	}
	_, end := d.Window.Bounds(watermark)
	return end.Add(d.Grace)
}

// ClosedAt returns the mark up to which a frontier closes windows, those that
// end at or before it: the start of the window that holds the instant Grace
// before the frontier. It is none (the zero time) if there is no frontier.
func (d Definition) ClosedAt(frontier time.Time) time.Time {
	if frontier.IsZero() {
		return time.Time{}
	}
	at := frontier.Add(-d.Grace)
	if at.Unix() < minTime {
		at = time.Unix(minTime, 0) // no window before that has an event
	}
	start, _ := d.Window.Bounds(at)
	return start
}

// FloorAt returns the mark up to which windows are past retention once those up
// to closed are closed: Retention before it. It is none (the zero time) without
// a Retention or a closed mark, or before the first year of event times.
func (d Definition) FloorAt(closed time.Time) time.Time {
	floor := closed.Add(-d.Retention)
	if d.Retention == 0 || closed.IsZero() || floor.Unix() < minTime {
		return time.Time{}
	}
	return floor
}

// State returns what a shard's closed mark and floor, each perhaps none, mean
// for the window that ends at end.
func (d Definition) State(closed, floor, end time.Time) State {
	switch {
	case !floor.IsZero() && !end.After(floor):
		return Expired
	case closed.IsZero() || end.After(closed):
		return Open
	case d.DropLate:
		return Final
	}
	return Closed
}
