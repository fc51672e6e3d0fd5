package kafka

import (
	"sync"
	"time"
)

// A lease is the time for which this process may take itself for a member without an
// answer of the coordinator. Once it is over, over is called, and it begins anew with
// the next assignment.
type lease struct {
	session time.Duration
	over    func()

	mu    sync.Mutex
	timer *time.Timer // nil while the time stands still
	until time.Time   // zero: nothing is held
}

// renew says that a request which was sent then has proved membership. It reports
// whether the lease was still running.
func (l *lease) renew(sent time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.until.IsZero() {
		return false
	}
	l.set(sent.Add(l.session))
	return true
}

// begin is renew for a new assignment.
func (l *lease) begin(sent time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.set(sent.Add(l.session))
}

// pause stops the time while a request to join is under way, which takes as long as
// the other members do.
func (l *lease) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stop()
}

func (l *lease) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.until.IsZero() {
		l.set(l.until)
	}
}

// end says that nothing is to be held, and reports whether something was.
func (l *lease) end() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	held := !l.until.IsZero()
	l.stop()
	l.until = time.Time{}
	return held
}

func (l *lease) stop() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

func (l *lease) set(until time.Time) {
	l.stop()
	l.until = until
	var timer *time.Timer
	timer = time.AfterFunc(time.Until(until), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.timer == timer {
			l.timer, l.until = nil, time.Time{}
			l.over()
		}
	})
	l.timer = timer
}
