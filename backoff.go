package tumble

import (
	"context"
	"math/rand/v2"
	"time"
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

// sleep waits for the next try, and returns false when ctx ends. It waits no shorter
// than the call took that failed: one that was given up may still be under way, and
// the server gets no more to do. hurry, once it is closed, cuts one wait short: the
// long one that it finds.
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
