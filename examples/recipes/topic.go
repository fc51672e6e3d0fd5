package recipes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
)

// A Topic takes windows into a topic of Kafka: a record for each count, and the cursor into
// a compacted topic beside it, in one transaction. Consumers that read committed records
// alone see every count once. Of several Topics with one name the newest goes on; the
// others are fenced off by the broker and get an error.
type Topic struct {
	name, cursors string
	client        *kgo.Client
}

// A Row is the value of a record. Its key is Key.
type Row struct {
	Key   string    `json:"key"`
	Start time.Time `json:"start"`
	N     int64     `json:"n"`
}

// OpenTopic opens the topic, which must be there. name is the transactional id: that of
// the counts, usually. Close it when you are done.
func OpenTopic(ctx context.Context, brokers []string, topic, name string) (*Topic, error) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.DefaultProduceTopic(topic),
		kgo.TransactionalID(name), kgo.TransactionTimeout(30*time.Second))
	if err != nil {
		return nil, err
	}
	t := &Topic{name, topic + "-cursors", client}
	if err := t.begin(ctx); err != nil {
		client.Close()
		return nil, fmt.Errorf("topic %s: %w", topic, err)
	}
	return t, nil
}

func (t *Topic) begin(ctx context.Context) error {
	compacted := "compact"
	_, err := kadm.NewClient(t.client).CreateTopic(ctx, 1, -1, map[string]*string{"cleanup.policy": &compacted}, t.cursors)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return err
	}
	// This fences off who had the name before, and ends its transaction: only then is what
	// is committed the last word.
	_, _, err = t.client.ProducerID(ctx)
	return err
}

// Close lets go of the brokers.
func (t *Topic) Close() { t.client.Close() }

// Cursor reads the last one that was committed.
func (t *Topic) Cursor(ctx context.Context) (cursor string, err error) {
	// Of the end that committed records have: behind it there is nothing to wait for.
	ends, err := kadm.NewClient(t.client).ListCommittedOffsets(ctx, t.cursors)
	if err != nil {
		return "", err
	}
	end, ok := ends.Lookup(t.cursors, 0)
	if !ok || end.Err != nil {
		return "", fmt.Errorf("topic %s: no end: %w", t.cursors, end.Err)
	}
	if end.Offset == 0 {
		return "", nil
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(t.client.OptValue(kgo.SeedBrokers).([]string)...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // the last offset is that of one
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{t.cursors: {0: kgo.NewOffset().AtStart()}}))
	if err != nil {
		return "", err
	}
	defer reader.Close()
	for at := int64(0); at < end.Offset; {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return "", err
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if at = r.Offset + 1; !r.Attrs.IsControl() && string(r.Key) == t.name {
				cursor = string(r.Value)
			}
		})
	}
	return cursor, nil
}

// Write commits the counts and the cursor, or neither.
func (t *Topic) Write(ctx context.Context, w tumble.Total, counts []tumble.Count) error {
	records := make([]*kgo.Record, 0, len(counts)+1)
	for _, c := range counts {
		value, err := json.Marshal(Row{c.Key, c.Start.UTC(), c.N})
		if err != nil {
			return err
		}
		records = append(records, &kgo.Record{Key: []byte(c.Key), Value: value, Timestamp: w.End})
	}
	return t.commit(ctx, append(records, t.record(w.Cursor)))
}

// Move commits a cursor alone.
func (t *Topic) Move(ctx context.Context, cursor string) error {
	return t.commit(ctx, []*kgo.Record{t.record(cursor)})
}

func (t *Topic) record(cursor string) *kgo.Record {
	return &kgo.Record{Topic: t.cursors, Key: []byte(t.name), Value: []byte(cursor)}
}

func (t *Topic) commit(ctx context.Context, records []*kgo.Record) error {
	if err := t.client.BeginTransaction(); err != nil {
		return err
	}
	if err := t.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return errors.Join(err, t.client.AbortBufferedRecords(context.WithoutCancel(ctx)), t.client.EndTransaction(context.WithoutCancel(ctx), kgo.TryAbort))
	}
	return t.client.EndTransaction(ctx, kgo.TryCommit)
}
