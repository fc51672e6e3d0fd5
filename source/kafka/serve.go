package kafka

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble"
)

// held is what this process was last assigned.
type held struct{ atomic.Pointer[assignment] }

// followed returns the partitions of each of the shares, nil while this process is no
// member, and keeps the last one.
func (h *held) followed(ctx context.Context, shares <-chan assignment) <-chan []int32 {
	lists := make(chan []int32)
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case a := <-shares:
				h.Store(&a)
				var list []int32
				if a.memberID != "" {
					list = append([]int32{}, a.partitions...)
				}
				select {
				case <-ctx.Done():
					return
				case lists <- list:
				}
			}
		}
	}()
	return lists
}

// A reader is a partition that was given to a consumer.
type reader struct {
	*partition
	stop    context.CancelFunc
	wanted  bool // it is in the last list
	stopped bool // because it was not in one
	again   bool // start afresh once it has ended
	over    bool // consume has returned, of its own accord
	left    time.Time
}

// serve consumes the partitions of the last list that came, until ctx ends. One that
// is not in it any more is given up, unless grow says that lists only add to each
// other. It returns consume's first error, errExhausted if all partitions of a list
// were read to their ends, nil once ctx ended.
func (s *Source) serve(ctx context.Context, f *fetcher, lists <-chan []int32, grow bool, consume func(context.Context, tumble.Partition) error) error {
	served, cancel := context.WithCancel(ctx)
	defer cancel()
	type end struct {
		n   int32
		err error
	}
	var (
		readers = map[int32]*reader{}
		ended   = make(chan end)
		live    int
		named   bool
		first   error
	)
	start := func(n int32) {
		own, stop := context.WithCancel(served)
		r := &reader{partition: f.add(n), stop: stop, wanted: true}
		r.served = own
		readers[n] = r
		live++
		go func() {
			err := errExited
			defer func() {
				defer stop()
				r.endTelling()
				f.remove(r.partition)
				ended <- end{n, err}
			}()
			err = consume(own, r.partition)
		}()
	}
	// look gives up and starts what the last list asks for, and tries again what was
	// given up for another process.
	look := func() {
		for n, r := range readers {
			switch {
			case !r.wanted && r.over:
				delete(readers, n)
			case !r.wanted && !r.stopped:
				r.stopped = true
				r.stop()
			case r.wanted && r.stopped:
				r.again = true
			case r.wanted && r.over && r.yielded.Load() && (!f.unsure() || time.Since(r.left) >= yieldPatience):
				start(n)
			}
		}
	}
	done := func() bool {
		if !s.cfg.UntilEnd || !named || live > 0 {
			return false
		}
		for _, r := range readers {
			if r.yielded.Load() {
				return false
			}
		}
		return true
	}
	again := time.NewTicker(yieldPatience / 4)
	defer again.Stop()
	stopping := served.Done()
	for stopping != nil && !done() || live > 0 {
		select {
		case <-stopping:
			stopping = nil
		case <-again.C:
			look()
		case list := <-lists:
			if stopping == nil {
				break
			}
			named = list != nil
			for _, r := range readers {
				r.wanted = grow
			}
			for _, n := range list {
				if r := readers[n]; r != nil {
					r.wanted = true
				} else {
					start(n)
				}
			}
			look()
		case e := <-ended:
			live--
			r := readers[e.n]
			r.over, r.left = true, time.Now()
			if e.err != nil {
				if first == nil {
					first = e.err
				}
				cancel()
			}
			switch {
			case served.Err() != nil || !r.stopped:
			case r.wanted && r.again:
				start(e.n)
			default:
				delete(readers, e.n)
			}
			if stopping != nil {
				look()
			}
		}
	}
	switch {
	case first != nil:
		return first
	case stopping == nil:
		return nil
	}
	return errExhausted
}

// yieldPatience is how long a partition rests that was given up for another process,
// if no assignment says sooner whose it is. That other one may have been a batch of
// this process, whose answer was lost.
const yieldPatience = 500 * time.Millisecond
