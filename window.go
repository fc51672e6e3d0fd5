package tumble

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync/atomic"
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
	Size   time.Duration // at least 1 ms and at most 10 years, whole milliseconds; 0 with a Calendar
	Offset time.Duration // shifts the starts of fixed windows from the epoch; in [0, Size), whole milliseconds

	Calendar Calendar
	Zone     *time.Location // of the Calendar, by its IANA name; nil: UTC
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
			return fmt.Errorf("Window.Zone is %q, must be an IANA name that this machine knows", name)
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
				return bad(err)
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

// Validate returns an error that names the field that makes d unusable.
func (d Definition) Validate() error {
	if err := d.Window.Validate(); err != nil {
		return err
	}
	if d.Grace < 0 || d.Grace > maxKeep || d.Grace%time.Millisecond != 0 {
		return fmt.Errorf("Definition.Grace is %v, must be whole milliseconds from 0 to 50 years", d.Grace)
	}
	if d.Retention < 0 || d.Retention > maxKeep-d.Grace || d.Retention%time.Millisecond != 0 {
		return fmt.Errorf("Definition.Retention is %v, must be whole milliseconds from 0 (for ever), with Grace at most 50 years", d.Retention)
	}
	return nil
}

// Same reports whether d and e mean the same counts.
func (d Definition) Same(e Definition) bool { return d.String() == e.String() }

// String returns a line that names every part; equal ones mean the same.
func (d Definition) String() string {
	return fmt.Sprintf("window %v, grace %v, retention %v, drop late %v", d.Window, d.Grace, d.Retention, d.DropLate)
}

// Frontier returns the frontier of a shard that holds these checkpoints: the
// smallest watermark of its partitions that have not Ended, none (the zero
// time) if one of them has none. If all have ended it is EndMark of the largest
// watermark. Of no checkpoints there is none.
//
// It serves finality, retention and the start of a partition that joins.
func (d Definition) Frontier(checkpoints map[string]Checkpoint) time.Time {
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
	return d.EndMark(high)
}

// EndMark returns the end plus Grace of the window that holds watermark: the
// frontier of a shard whose partitions have all ended with watermark as their
// largest. It is none (the zero time) for none.
func (d Definition) EndMark(watermark time.Time) time.Time {
	if watermark.IsZero() {
		return time.Time{}
	}
	_, end := d.Window.Bounds(watermark)
	return end.Add(d.Grace)
}

// Finality says what a frontier means for the window that ends at end: it is
// final once the frontier is Grace past it, and expired, then no longer final,
// once it is Grace + Retention past it.
func (d Definition) Finality(frontier, end time.Time) (final, expired bool) {
	if frontier.IsZero() || frontier.Before(end.Add(d.Grace)) {
		return false, false
	}
	if d.Retention > 0 && !frontier.Before(end.Add(d.Grace+d.Retention)) {
		return false, true
	}
	return true, false
}

// A mark is a watermark in the pipeline: nanoseconds since the Unix epoch, or
// none, which is a case of its own and not a very early time.
type mark struct {
	ns int64
	ok bool
}

func markOf(t time.Time) mark {
	if t.IsZero() {
		return mark{}
	}
	return mark{t.UnixNano(), true}
}

func (m mark) time() time.Time {
	if !m.ok {
		return time.Time{}
	}
	return time.Unix(0, m.ns).UTC()
}

// passed reports whether m has reached ns.
func (m mark) passed(ns int64) bool { return m.ok && m.ns >= ns }

func later(a, b mark) mark {
	if b.ok && (!a.ok || b.ns > a.ns) {
		return b
	}
	return a
}

func earlier(a, b mark) mark {
	if !a.ok || !b.ok {
		return mark{}
	}
	return mark{min(a.ns, b.ns), true}
}

// Event times are in [minTime, maxTime), in seconds, so that no arithmetic on
// nanoseconds overflows; the zero time is outside.
var (
	minTime = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	maxTime = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
)

// nanos returns t in nanoseconds, or false if it is no usable event time.
func nanos(t time.Time) (int64, bool) {
	s := t.Unix()
	return s*1e9 + int64(t.Nanosecond()), s >= minTime && s < maxTime
}

// A span is a window and what its end means, in nanoseconds.
type span struct {
	start, end int64
	final      int64 // a watermark that reaches it makes the window final
	expired    int64 // ... and past retention; the maximum: never
}

// spans finds the window of an event. It remembers the last two windows,
// because event times of one partition hover about the end of one and the start
// of the next (BenchmarkPipeline/keys=10000).
type spans struct {
	def        Definition
	last, prev span
}

func (s *spans) of(ns int64) *span {
	if ns >= s.last.start && ns < s.last.end {
		return &s.last
	}
	s.last, s.prev = s.prev, s.last
	if ns < s.last.start || ns >= s.last.end {
		s.last = s.find(ns)
	}
	return &s.last
}

func (s *spans) find(ns int64) span {
	start, end := s.def.Window.Bounds(time.Unix(0, ns).UTC())
	sp := span{start: start.UnixNano(), end: end.UnixNano(), expired: math.MaxInt64}
	sp.final = sp.end + int64(s.def.Grace)
	if s.def.Retention > 0 {
		sp.expired = sp.final + int64(s.def.Retention)
	}
	return sp
}

const (
	sealAt     = 1000            // increments of a batch; scripts gain nothing above it
	sealBusy   = 3 * sealAt      // ... while the lane's last one is outstanding
	lagLimit   = 10_000          // offsets that a quiet lane's checkpoint may lag
	quietEvery = 5 * time.Second // a quiet lane writes its checkpoint at least so often
)

// A tally is what became of the events of one batch; it is booked with it.
type tally struct{ counted, late, ahead, dropped, expired, rejected int64 }

func (t tally) events() int64 { return t.counted + t.dropped + t.expired + t.rejected }

func (t tally) book(s *Stats) {
	s.Counted += t.counted
	s.Late += t.late
	s.Ahead += t.ahead
	s.DroppedLate += t.dropped
	s.Expired += t.expired
	s.Rejected += t.rejected
}

// A parcel is a sealed batch: frozen, so that it can be sent again after an
// unknown outcome.
type parcel struct {
	Batch
	tally tally
}

// A lane carries the increments of one partition to one shard. At most one of
// its parcels, the first of the queue, is outstanding.
type lane struct {
	shard  Shard
	index  int
	stored Checkpoint // in the shard, as far as is known
	sealed Checkpoint // To of the newest parcel; stored if there is none
	wrote  time.Time  // when the newest parcel was sealed

	// A lane that is ahead has seen the events up to next already, when reading
	// went back for another lane; mark is the watermark there. Any other lane
	// stands where reading stands.
	ahead bool
	next  int64
	mark  mark

	open  *open
	tally tally // of the open batch
	queue []*parcel

	busy   bool          // a call is under way: a parcel's delivery or a Load
	due    bool          // a flush came while busy
	reload bool          // Load once empty, then settle
	found  *found        // what is stored instead; the lane waits to be settled
	rival  bool          // found by a conflict
	lost   bool          // found while draining: what the lane holds is not sent
	epoch  atomic.Uint64 // counts calls, so that the poll can tell whether one came in between
}

// found is what a lane's shard holds, as Load saw it.
type found struct {
	stored   Checkpoint // of the lane's partition
	frontier time.Time  // of the shard
}

// empty reports whether the lane holds nothing that was not sent.
func (ln *lane) empty() bool { return !ln.busy && len(ln.queue) == 0 && len(ln.open.counters) == 0 }

// seal freezes the open batch into a parcel that moves the checkpoint to to;
// deltas is an empty slice to use.
func (ln *lane) seal(partition string, t *table, to Checkpoint, deltas []Delta) {
	deltas = slices.Grow(deltas, len(ln.open.counters))
	var window time.Time
	for i := range ln.open.counters {
		c := &ln.open.counters[i]
		if i == 0 || c.window != ln.open.counters[i-1].window {
			window = time.Unix(0, c.window).UTC()
		}
		deltas = append(deltas, Delta{Window: window, Key: c.key, N: c.n})
	}
	t.reset(ln.open)
	ln.queue = append(ln.queue, &parcel{Batch{partition, ln.sealed, to, deltas}, ln.tally})
	ln.sealed = to
	ln.tally = tally{}
	ln.due = false
	ln.wrote = time.Now()
}

// drop empties the lane and returns how much it held.
func (ln *lane) drop(t *table) (events int64, increments int) {
	events, increments = ln.tally.events(), len(ln.open.counters)
	t.reset(ln.open)
	ln.tally = tally{}
	for _, b := range ln.queue {
		events += b.tally.events()
		increments += len(b.Deltas)
	}
	ln.queue = nil
	return events, increments
}

// An aggregator counts the events of one partition into lanes, one for each
// shard. It does no I/O and has no goroutine: the partition's feeds it Chunks
// and takes parcels from its lanes.
type aggregator struct {
	id    string // of the partition
	def   Definition
	lanes []*lane
	table table
	spans spans

	pos   int64   // the next offset: all before it are in some lane
	wm    mark    // what events at pos are judged by
	ahead []*lane // those that have seen pos, by next
	limit mark    // smallest of their marks: no event's time moves wm beyond it
	calm  calm
	ended bool // there is nothing beyond pos, and never will be

	stale    bool    // some checkpoint is older than what was read
	full     []*lane // perhaps to be sealed at the end of the record
	free     [][]Delta
	closings spans // like spans, for watermarks

	onLate   func(Late)   // may be nil
	onReject func(*Event) // an event whose time is not usable
}

// calm is a row of Chunks that bring no event and find the partition caught up.
type calm struct {
	since time.Time // AsOf of the first; zero: no row
	wm    mark      // as the row began
}

func newAggregator(id string, def Definition, shards []Shard) aggregator {
	a := aggregator{id: id, def: def, table: newTable(len(shards)), spans: spans{def: def}, closings: spans{def: def}}
	for i, shard := range shards {
		a.lanes = append(a.lanes, &lane{shard: shard, index: i, open: &a.table.open[i], reload: true})
	}
	return a
}

type reading struct{ replayed, increments int64 } // what a chunk adds to the books

// place puts a lane where the source says to go on from what is stored. What lies
// between from, in the log of to, and to is lost to it.
func (a *aggregator) place(ln *lane, found *found, to Checkpoint) (from int64, err error) {
	stored := found.stored
	ln.stored, ln.sealed, ln.wrote = stored, stored, time.Now()
	ln.mark = later(markOf(stored.Watermark), markOf(to.Watermark))
	from = stored.Offset
	switch {
	case to.Log != stored.Log:
		from = to.Origin
		to.Watermark, to.Ended = ln.mark.time(), false
		ln.seal(a.id, &a.table, to, nil)
	case to.Origin != stored.Origin || to.Offset < from:
		return 0, fmt.Errorf("tumble: resume %s@%v: the source answered %v, which is not after it", a.id, stored, to)
	case stored.Ended:
		// Nobody waited for it: its windows may be final.
		ln.mark = later(ln.mark, markOf(found.frontier))
	}
	ln.ahead, ln.next = true, to.Offset
	ln.epoch.Add(1)
	return from, nil
}

// rewind goes back to the lane that is furthest behind. What reading remembered
// of event times is forgotten: the marks of the lanes it passes tell.
func (a *aggregator) rewind() {
	a.ahead = slices.Clone(a.lanes)
	slices.SortFunc(a.ahead, func(a, b *lane) int { return cmp.Compare(a.next, b.next) })
	a.wm = mark{}
	a.calm = calm{}
	a.stale = true
	a.pos = a.ahead[0].next
	a.pass()
}

// pass joins the lanes that pos has reached to reading.
func (a *aggregator) pass() {
	for len(a.ahead) > 0 && a.ahead[0].next <= a.pos {
		a.wm = later(a.wm, a.ahead[0].mark)
		a.ahead[0].ahead = false
		a.ahead = a.ahead[1:]
	}
	for i, ln := range a.ahead {
		if i == 0 {
			a.limit = ln.mark
		} else {
			a.limit = earlier(a.limit, ln.mark)
		}
	}
}

// count adds a chunk's events to their lanes. Times beyond soonest do not move
// the watermark. An error is the source's fault.
func (a *aggregator) count(ch Chunk, soonest int64) (r reading, err error) {
	pos, wm := a.pos, a.wm
	at := int64(-1)
	for i := range ch.Events {
		if i%atOnce == 0 {
			a.table.prepare(ch.Events[i:min(i+atOnce, len(ch.Events))])
		}
		ev := &ch.Events[i]
		if ev.Offset != at {
			if at = ev.Offset; at < a.pos || at >= ch.Next {
				return r, fmt.Errorf("tumble: fetch %s@%d: the source returned offset %d in a chunk from %d to %d", a.id, pos, at, a.pos, ch.Next)
			}
			a.pos = at
			if len(a.full) > 0 {
				a.sealFull()
			}
			if len(a.ahead) > 0 {
				a.pass()
			}
		}
		ns, ok := nanos(ev.Time)
		if !ok {
			ln := a.lanes[Hash(ev.Key)%uint64(len(a.lanes))]
			if ln.ahead {
				r.replayed++
			} else {
				ln.tally.rejected++
				a.onReject(ev)
			}
			continue
		}
		sp := a.spans.of(ns)
		e := a.table.find(a.table.hashes[i%atOnce], ev.Key)
		ln := a.lanes[e.lane]
		if ln.ahead {
			r.replayed++
		} else if !a.wm.passed(sp.final) || a.late(ln, ev, sp) {
			if ln.open.add(e, sp.start) {
				r.increments++
				if n := len(ln.open.counters); n == sealAt || n >= sealBusy {
					a.full = append(a.full, ln)
				}
			}
			ln.tally.counted++
			if ns > soonest {
				ln.tally.ahead++
			}
		}
		// While lanes are ahead, a time beyond their marks does not count: it
		// did not when it was read first.
		if (!a.wm.ok || ns > a.wm.ns) && ns <= soonest && (len(a.ahead) == 0 || a.limit.passed(ns)) {
			a.wm = mark{ns, true}
		}
	}
	if ch.Next < a.pos {
		return r, fmt.Errorf("tumble: fetch %s@%d: the source returned a chunk that ends at %d", a.id, pos, ch.Next)
	}
	a.pos = ch.Next
	a.sealFull()
	a.pass()
	a.table.shrink()
	if a.pos != pos || a.wm != wm {
		a.stale = true
	}
	return r, nil
}

// late reports whether an event of a window that is final is counted all the
// same, and tells who wants to know.
func (a *aggregator) late(ln *lane, ev *Event, sp *span) bool {
	expired := a.wm.passed(sp.expired)
	counted := !expired && !a.def.DropLate
	switch {
	case expired:
		ln.tally.expired++
	case counted:
		ln.tally.late++
	default:
		ln.tally.dropped++
	}
	if a.onLate != nil {
		a.onLate(Late{
			Partition: a.id, Event: *ev, Window: time.Unix(0, sp.start).UTC(),
			Watermark: a.wm.time(), Counted: counted, Expired: expired,
		})
	}
	return counted
}

// promise moves the watermark of a partition that is silent and caught up: no
// event will come that is much older than now. top is the largest watermark in
// the sink.
func (a *aggregator) promise(ch Chunk, idle time.Duration, top func() mark) {
	if len(ch.Events) > 0 || ch.End < 0 || ch.Next < ch.End || len(a.ahead) > 0 || ch.AsOf.IsZero() {
		a.calm = calm{}
		return
	}
	if a.calm.since.IsZero() {
		a.calm = calm{ch.AsOf, a.wm}
		return
	}
	q := ch.AsOf.Sub(a.calm.since)
	if idle < 0 || q < idle {
		return
	}
	wm := a.wm
	if w := a.calm.wm; w.ok {
		a.wm = later(a.wm, mark{w.ns + int64(q-idle), true})
	}
	if top := top(); top.ok {
		a.wm = later(a.wm, mark{min(top.ns, ch.AsOf.UnixNano()) - int64(idle), true})
	}
	if a.wm != wm {
		a.stale = true
	}
}

// target is the checkpoint that a lane's open batch leads to.
func (a *aggregator) target(ln *lane) Checkpoint {
	to := ln.sealed
	wm := a.wm
	if to.Offset = a.pos; ln.ahead {
		to.Offset, wm = ln.next, ln.mark
	}
	if to.Offset == ln.sealed.Offset && to.Ended {
		return ln.sealed
	}
	to.Ended = a.ended
	to.Watermark = later(markOf(to.Watermark), wm).time()
	return to
}

func (a *aggregator) seal(ln *lane, to Checkpoint) {
	var deltas []Delta
	if n := len(a.free); n > 0 && len(ln.open.counters) > 0 {
		deltas, a.free = a.free[n-1], a.free[:n-1]
	}
	ln.seal(a.id, &a.table, to, deltas)
}

func (a *aggregator) sealFull() {
	for _, ln := range a.full {
		if n := len(ln.open.counters); n >= sealBusy || n >= sealAt && !ln.busy && len(ln.queue) == 0 {
			a.seal(ln, a.target(ln))
		}
	}
	a.full = a.full[:0]
}

// held is up to where every shard holds the counts of a log; -1: some hold
// another's.
func (a *aggregator) held(log string) int64 {
	low := int64(-1)
	for i, ln := range a.lanes {
		if ln.stored.Log != log {
			return -1
		}
		if i == 0 || ln.stored.Offset < low {
			low = ln.stored.Offset
		}
	}
	return low
}

// flush seals what is open. A lane without increments writes its checkpoint
// when a window closes with it, when it lags, or else now and then.
func (a *aggregator) flush(now time.Time) {
	a.stale = false
	for _, ln := range a.lanes {
		to := a.target(ln)
		switch {
		case ln.found != nil || ln.lost:
		case len(ln.open.counters) > 0 && (ln.busy || len(ln.queue) > 0):
			ln.due = true
		case len(ln.open.counters) > 0:
			a.seal(ln, to)
		case to.Same(ln.sealed):
		case !ln.busy && len(ln.queue) == 0 && (to.Offset-ln.sealed.Offset >= lagLimit || now.Sub(ln.wrote) >= quietEvery || a.closes(ln.sealed, to)):
			a.seal(ln, to)
		default:
			a.stale = true
		}
	}
}

// closes reports whether some window becomes final between two checkpoints.
func (a *aggregator) closes(from, to Checkpoint) bool {
	old, new := markOf(from.Watermark), markOf(to.Watermark)
	if old == new || !new.ok {
		return false
	}
	if !old.ok {
		return true
	}
	before := a.closings.of(old.ns - int64(a.def.Grace)).start
	return a.closings.of(new.ns-int64(a.def.Grace)).start > before
}
