package web

import (
	"log/slog"
	"sync"
	"time"
)

// quiet is the time in which one outage at most is logged, however often the store
// fails and answers by turns.
const quiet = 10 * time.Second

// An outage logs when reads begin to fail, and when they work again. It is safe for
// concurrent use.
type outage struct {
	log *slog.Logger

	mu    sync.Mutex
	since time.Time // of the logged outage. Zero if there is none
	calls int64     // failed since
	until time.Time // no other outage is logged before
}

func (o *outage) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); o.since.IsZero() && !now.Before(o.until) {
		o.since, o.until, o.calls = now, now.Add(quiet), 0
		o.log.Error("reading the store failed", "error", err)
	}
	o.calls++
}

func (o *outage) over() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		o.log.Info("reading the store works again", "after", time.Since(o.since), "requests", o.calls)
		o.since = time.Time{}
	}
}
