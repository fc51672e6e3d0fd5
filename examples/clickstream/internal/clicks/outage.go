package clicks

import (
	"log/slog"
	"sync"
	"time"
)

// quiet is the time in which an outage is logged once at most, however often the
// store fails and answers by turns.
const quiet = 10 * time.Second

// An outage logs when the store can no longer be read, and when it can again. It
// is safe for concurrent use.
type outage struct {
	log *slog.Logger

	mu    sync.Mutex
	since time.Time // when it began and was logged; zero: there is none
	calls int64     // that have failed since
	until time.Time // before which another is not logged
}

func (o *outage) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := time.Now(); o.since.IsZero() && !now.Before(o.until) {
		o.since, o.until, o.calls = now, now.Add(quiet), 0
		o.log.Error("store cannot be read", "error", err)
	}
	o.calls++
}

func (o *outage) over() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		o.log.Info("store can be read again", "after", time.Since(o.since), "requests", o.calls)
		o.since = time.Time{}
	}
}
