// Package kafkadial finds a topic on a Kafka cluster for the example programs,
// or says in one line why it cannot.
package kafkadial

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// answerTime is how long a cluster may take to answer: who waits for a program
// to start wants to know within 5 seconds.
const answerTime = 4 * time.Second

// A Topic is where a topic is found. Its methods are safe for concurrent use.
type Topic struct {
	Name      string
	Brokers   []string
	Transport *kafka.Transport // closed by Close
}

// New returns the topic without asking for it.
func New(brokers []string, topic string) *Topic {
	return &Topic{Name: topic, Brokers: brokers, Transport: &kafka.Transport{
		DialTimeout:    answerTime,
		ClientID:       "clickstream",
		MetadataTopics: []string{topic}, // otherwise it asks for every topic
		MetadataTTL:    2 * time.Second,
	}}
}

// Close closes the connections.
func (t *Topic) Close() { t.Transport.CloseIdleConnections() }

func (t *Topic) client() *kafka.Client {
	return &kafka.Client{Addr: kafka.TCP(t.Brokers...), Transport: t.Transport}
}

// explain names the brokers in err.
func (t *Topic) explain(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %v", answerTime)
	}
	return fmt.Errorf("kafka %s: %w", strings.Join(t.Brokers, ","), err)
}

// Partitions returns how many partitions the topic has, 0 if there is no such
// topic. It does not create it.
func (t *Topic) Partitions(ctx context.Context) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	for {
		answer, err := t.client().Metadata(ctx, &kafka.MetadataRequest{Topics: []string{t.Name}})
		if err != nil {
			return 0, t.explain(err)
		}
		for _, found := range answer.Topics {
			switch {
			case found.Name != t.Name:
			case errors.Is(found.Error, kafka.UnknownTopicOrPartition):
				return 0, nil
			case found.Error == nil && len(found.Partitions) > 0:
				return len(found.Partitions), nil
			case found.Error != nil && !errors.Is(found.Error, kafka.LeaderNotAvailable):
				return 0, t.explain(fmt.Errorf("topic %q: %w", t.Name, found.Error))
			}
		}
		// The topic is only just being created.
		select {
		case <-ctx.Done():
			return 0, t.explain(fmt.Errorf("topic %q: %w", t.Name, ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Missing is the error that there is no such topic.
func (t *Topic) Missing() error {
	return t.explain(fmt.Errorf("topic %q does not exist", t.Name))
}

// Create creates the topic with the broker's defaults and returns how many
// partitions it has. It is no error if another was faster.
func (t *Topic) Create(ctx context.Context) (int, error) {
	bounded, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	answer, err := t.client().CreateTopics(bounded, &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: t.Name, NumPartitions: -1, ReplicationFactor: -1}},
	})
	if err == nil {
		err = answer.Errors[t.Name]
	}
	if err != nil && !errors.Is(err, kafka.TopicAlreadyExists) {
		return 0, t.explain(fmt.Errorf("creating topic %q: %w", t.Name, err))
	}
	// The Transport answers from what it knows until it asks again, and what
	// it knows is that there is no such topic.
	t.Transport.CloseIdleConnections()
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		if n, err := t.Partitions(bounded); n > 0 || err != nil {
			return n, err
		}
		select {
		case <-bounded.Done():
			return 0, t.explain(fmt.Errorf("topic %q was created, but the brokers do not show it", t.Name))
		case <-time.After(wait):
		}
		t.Transport.CloseIdleConnections()
	}
}
