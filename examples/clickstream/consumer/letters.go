package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/tumblestream/tumble/examples/clickstream/internal/kafkadial"
	"github.com/tumblestream/tumble/examples/clickstream/internal/program"
	"github.com/tumblestream/tumble/source/kafka"
)

// letters is the topic of dead letters.
type letters struct {
	*kafka.DeadLetters
	close   func()
	created int // partitions, if the topic is new
}

// openLetters finds or creates the topic, and makes sure that it may be written
// to, so that a wrong one is noticed now and not at the first rejected record.
func openLetters(ctx context.Context, brokers []string, name, read string, log *slog.Logger) (l letters, err error) {
	if name == read {
		return l, program.FlagError("dead-letters", errors.New("must not be the topic that is counted: what is rejected would be rejected again for ever"))
	}
	topic := kafkadial.New(brokers, name)
	defer func() {
		if err != nil {
			topic.Close()
		}
	}()
	l.close = topic.Close
	l.DeadLetters, err = kafka.NewDeadLetters(kafka.DeadLettersConfig{Brokers: topic.Brokers, Transport: topic.Transport, Topic: name, Logger: log})
	if err != nil {
		return l, program.FlagError("dead-letters", err)
	}
	n, err := topic.Partitions(ctx)
	if err == nil && n == 0 {
		l.created, err = topic.Create(ctx)
	}
	if err == nil {
		err = l.Check(ctx)
	}
	return l, err
}
