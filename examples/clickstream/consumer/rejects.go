package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/tumblestream/tumble/internal/kafkadial"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/source/kafka"
)

// rejectLines bounds the rejected records that are shown in a second.
const rejectLines = 5

// rejects shows some of the rejected records, and the number of the rest. It is safe
// for concurrent use.
type rejects struct {
	out     io.Writer
	letters func(context.Context, kafka.Rejected) error // writes a dead letter. nil if nobody does

	mu    sync.Mutex
	shown int   // in this second
	rest  int64 // not shown in this second
}

// openLetters returns a function that writes dead letters to topic. It creates a
// missing topic, and checks now that it may write, not at the first rejected record.
func openLetters(ctx context.Context, topic *kafkadial.Topic, out io.Writer, log *slog.Logger) (func(context.Context, kafka.Rejected) error, error) {
	if topic.Name == *topicName {
		return nil, program.FlagError("dead-letters", errors.New("must not be the topic that is counted: rejected records would be rejected again for ever"))
	}
	letters, err := kafka.NewDeadLetters(kafka.DeadLettersConfig{Brokers: topic.Brokers, Transport: topic.Transport, Topic: topic.Name, Logger: log})
	if err != nil {
		return nil, program.FlagError("dead-letters", err)
	}
	created, err := topic.Find(ctx, true)
	if err != nil {
		return nil, err
	}
	if created > 0 {
		fmt.Fprintf(out, "consumer: created topic %s with the broker's defaults (partitions: %d)\n", topic.Name, created)
	}
	return letters.Write, letters.Check(ctx)
}

// add shows a record once its dead letter is written. After an error it is called
// again with the same record.
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
	if r.shown == 0 {
		time.AfterFunc(time.Second, r.next)
	}
	r.shown++
	fmt.Fprintf(r.out, "consumer: rejected %s/%d@%d: %s\n", rejected.Topic, rejected.Partition, rejected.Offset, program.Line(rejected.Cause.Error()))
}

// next begins another second.
func (r *rejects) next() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.rest > 0 {
		fmt.Fprintf(r.out, "consumer: rejected %d more\n", r.rest)
	}
	r.shown, r.rest = 0, 0
}
