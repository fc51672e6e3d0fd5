// Package rarely bounds the lines of one kind that go into a log, where data or
// another program's trouble could otherwise cause any number of them.
package rarely

import (
	"sync"
	"time"
)

// Interval is how long after a line the next one of its kind may come.
const Interval = 10 * time.Second

// A Line is one kind of line. The zero value is ready to use, by several goroutines
// at once.
type Line struct {
	mu      sync.Mutex
	last    time.Time
	silence int64 // cases since
}

// Now reports whether a case is worth a line, and how many cases since the last line
// were not.
func (l *Line) Now() (silence int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.last) < Interval {
		l.silence++
		return 0, false
	}
	silence, l.last, l.silence = l.silence, now, 0
	return silence, true
}
