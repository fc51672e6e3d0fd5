package kafka

import (
	"context"
	"math/rand/v2"
	"time"
)

// A backoff hands out the waits between retries, which double from first to most,
// give or take a quarter.
type backoff struct {
	first, most time.Duration
	tries       int // since the last success
}

func (b *backoff) next() time.Duration {
	d := min(b.first<<min(b.tries, 10), b.most)
	b.tries++
	return d*3/4 + rand.N(d/2)
}

// pause reports whether ctx is still alive after d.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// A signal wakes whoever receives from it. One that is pending is enough.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) send() {
	select {
	case s <- struct{}{}:
	default:
	}
}
