// Package kafkadial finds the topic that an example program works on, or says in one
// line why it cannot.
package kafkadial

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
)

// answerTime bounds a look-up. A program promises to fail within 5 seconds.
const answerTime = 4 * time.Second

// A Topic is the address of a topic.
type Topic struct {
	Name      string
	Brokers   []string
	Transport *kafka.Transport // closed by Close
}

// New returns the topic. It connects to nothing.
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

// Ends returns where the partitions end, by the IDs that package kafka gives them.
func (t *Topic) Ends(ctx context.Context) (ends map[string]int64, err error) {
	if _, err := t.Find(ctx, false); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("kafka %s: topic %q: %w", strings.Join(t.Brokers, ","), t.Name, err)
		}
	}()
	client := &kafka.Client{Addr: kafka.TCP(t.Brokers...), Transport: t.Transport}
	meta, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{t.Name}})
	if err != nil {
		return nil, err
	}
	var asks []kafka.OffsetRequest
	for _, p := range meta.Topics[0].Partitions {
		asks = append(asks, kafka.LastOffsetOf(p.ID))
	}
	answer, err := client.ListOffsets(ctx, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{t.Name: asks}})
	if err != nil {
		return nil, err
	}
	ends = map[string]int64{}
	for _, p := range answer.Topics[t.Name] {
		if p.Error != nil {
			return nil, fmt.Errorf("partition %d: %w", p.Partition, p.Error)
		}
		ends[fmt.Sprintf("%s/%d", t.Name, p.Partition)] = p.LastOffset
	}
	return ends, nil
}

// Find returns an error unless the topic exists. It creates a missing one with the
// broker's defaults if create says so, and then returns the number of its partitions,
// otherwise 0.
func (t *Topic) Find(ctx context.Context, create bool) (created int, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	defer func() {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) { // whichever is first
			err = fmt.Errorf("no answer within %v", answerTime)
		}
		if err != nil {
			err = fmt.Errorf("kafka %s: topic %q: %w", strings.Join(t.Brokers, ","), t.Name, err)
		}
	}()
	client := &kafka.Client{Addr: kafka.TCP(t.Brokers...), Transport: t.Transport}
	for asked := false; ; {
		answer, err := client.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{t.Name}})
		if err != nil {
			return 0, err
		}
		var found kafka.Topic
		for _, one := range answer.Topics {
			if one.Name == t.Name {
				found = one
			}
		}
		missing := errors.Is(found.Error, kafka.UnknownTopicOrPartition)
		switch {
		case missing && !create:
			return 0, errors.New("does not exist")
		case missing && !asked:
			asked = true
			if err := t.create(ctx, client); err != nil {
				return 0, fmt.Errorf("cannot be created: %w", err)
			}
		case found.Error == nil && len(found.Partitions) > 0:
			if asked {
				created = len(found.Partitions)
			}
			return created, nil
		case found.Error != nil && !missing && !errors.Is(found.Error, kafka.LeaderNotAvailable):
			return 0, found.Error
		}
		select { // the topic is being created
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// create creates the topic. It is no error that another process was faster.
func (t *Topic) create(ctx context.Context, client *kafka.Client) error {
	answer, err := client.CreateTopics(ctx, &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: t.Name, NumPartitions: -1, ReplicationFactor: -1}},
	})
	if err == nil {
		err = answer.Errors[t.Name]
	}
	if errors.Is(err, kafka.TopicAlreadyExists) {
		return nil
	}
	return err
}
