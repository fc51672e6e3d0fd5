package tumble

import (
	"context"
	"math/rand/v2"
	"time"
)

// The waits between tries: the first, and the longest.
const (
	firstWait = 50 * time.Millisecond
	maxWait   = 5 * time.Second
)

// A backoff spaces retries: 50 ms doubling to 5 s, less up to half at random.
type backoff struct {
	wait    time.Duration
	hurried bool
}

func (b *backoff) first() bool { return b.wait == 0 }

func (b *backoff) next() time.Duration {
	b.wait = min(max(2*b.wait, firstWait), maxWait)
	return b.wait - rand.N(b.wait/2)
}

// sleep waits for the next try, and returns false when ctx ends. It waits at least as long
// as the failed call took: the server may still be at work on it, and gets no second one
// meanwhile. Closing hurry cuts one wait short; after that waits begin at the shortest
// again, and hurry does nothing.
func (b *backoff) sleep(ctx context.Context, took time.Duration, hurry <-chan struct{}) bool {
	if b.hurried {
		hurry = nil
	}
	t := time.NewTimer(max(b.next(), took))
	defer t.Stop()
	select {
	case <-t.C:
	case <-hurry:
		*b = backoff{hurried: true}
	case <-ctx.Done():
		return false
	}
	return true
}
