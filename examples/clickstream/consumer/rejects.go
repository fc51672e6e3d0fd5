package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/tumblestream/tumble/examples/clickstream/internal/program"
	"github.com/tumblestream/tumble/source/kafka"
)

// rejectLines is how many rejected records are shown in a second.
const rejectLines = 5

// rejects shows some of the records that could not be understood, and the sum
// of the rest. It is safe for concurrent use.
type rejects struct {
	out     io.Writer
	letters func(context.Context, kafka.Rejected) error // writes them to a topic; nil: nobody does

	mu    sync.Mutex
	shown int   // in this second
	rest  int64 // not shown in this second
}

// add is told again of a record whose letter could not be written.
func (r *rejects) add(ctx context.Context, rejected kafka.Rejected) error {
	if r.letters != nil {
		if err := r.letters(ctx, rejected); err != nil {
			return err
		}
	}
	r.show(rejected)
	return nil
}

func (r *rejects) show(rejected kafka.Rejected) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shown == rejectLines {
		r.rest++
		return
	}
	r.shown++
	fmt.Fprintf(r.out, "consumer: rejected %s/%d@%d: %s\n", rejected.Topic, rejected.Partition, rejected.Offset, program.Line(rejected.Cause.Error()))
}

// run begins a new second again and again until ctx ends, and then tells the
// rest.
func (r *rejects) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			r.next()
			return
		case <-tick.C:
			r.next()
		}
	}
}

func (r *rejects) next() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rest > 0 {
		fmt.Fprintf(r.out, "consumer: rejected %d more\n", r.rest)
	}
	r.shown, r.rest = 0, 0
}
