package tumble

import (
	"math"
	"time"
)

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
// nanoseconds overflows. The zero time is not one of them.
var (
	minTime = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	maxTime = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
)

// nanos returns t in nanoseconds, or false if it is no usable event time.
func nanos(t time.Time) (int64, bool) {
	s := t.Unix()
	return s*1e9 + int64(t.Nanosecond()), s >= minTime && s < maxTime
}

// A span is a window with the watermarks that close it, in nanoseconds.
type span struct {
	start, end int64
	closed     int64   // a watermark that reaches it closes the window
	expired    int64   // a watermark that reaches it leaves the windows of all levels past retention. The maximum stands for never
	ends       []int64 // of the roll-ups' windows
}

// spans finds the window of an event. It remembers the last two windows,
// because event times of one partition hover about the end of one and the start
// of the next (BenchmarkPipeline/keys=10000).
type spans struct {
	def        Definition
	levels     []Rollup
	last, prev span
}

func newSpans(def Definition) spans { return spans{def: def, levels: def.Levels()} }

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
	sp := span{start: start.UnixNano(), end: end.UnixNano()}
	sp.closed = sp.end + int64(s.def.Grace)
	for i, level := range s.levels {
		if i > 0 {
			_, end = level.Window.Bounds(start)
			sp.ends = append(sp.ends, end.UnixNano())
		}
		sp.expired = max(sp.expired, s.expired(end, level.Retention))
	}
	return sp
}

// expired returns the watermark that leaves a window which ends at end past retention.
func (s *spans) expired(end time.Time, retention time.Duration) int64 {
	// The closed mark is always the start of a finest window. A window is past retention
	// when that start is Retention or more after its end.
	at := end.Add(retention)
	if retention == 0 || at.Year() >= 2250 {
		return math.MaxInt64
	}
	mark, next := s.def.Window.Bounds(at)
	if mark.Before(at) {
		mark = next
	}
	return mark.UnixNano() + int64(s.def.Grace)
}
