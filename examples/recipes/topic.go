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
// others are fenced off by the broker, and get an error from then on: open another. After
// any other error call Cursor, and go on from there: [Follow] does. A Topic is for one
// goroutine at a time.
type Topic struct {
	brokers              []string
	topic, name, cursors string
	client               *kgo.Client
	patience             time.Duration // how long a transaction may take to end, also when the caller's context has ended

	broken error  // why the client is of no use any more, or what became of a commit is not known
	known  bool   // cursor is the last one that was committed
	cursor string // kept here, as the broker answers a commit before it shows it to readers
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
	t := &Topic{brokers: brokers, topic: topic, name: name, cursors: topic + "-cursors", patience: 10 * time.Second}
	if err := t.begin(ctx); err != nil {
		return nil, fmt.Errorf("topic %s: %w", topic, err)
	}
	return t, nil
}

// begin takes a new client in the place of the one before.
func (t *Topic) begin(ctx context.Context) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(t.brokers...), kgo.DefaultProduceTopic(t.topic),
		kgo.TransactionalID(t.name), kgo.TransactionTimeout(30*time.Second))
	if err != nil {
		return err
	}
	compacted := "compact"
	_, err = kadm.NewClient(client).CreateTopic(ctx, 1, -1, map[string]*string{"cleanup.policy": &compacted}, t.cursors)
	if err == nil || errors.Is(err, kerr.TopicAlreadyExists) {
		// This fences off who had the name before, and ends its transaction: only then is
		// what is committed the last word.
		_, _, err = client.ProducerID(ctx)
	}
	if err != nil {
		client.Close()
		return err
	}
	if t.client != nil {
		t.client.Close()
	}
	t.client, t.broken, t.known = client, nil, false
	return nil
}

// Close lets go of the brokers.
func (t *Topic) Close() { t.client.Close() }

// Cursor returns the last one that was committed.
func (t *Topic) Cursor(ctx context.Context) (string, error) {
	if t.broken != nil {
		if errors.Is(t.broken, kerr.ProducerFenced) || errors.Is(t.broken, kerr.InvalidProducerEpoch) {
			return "", t.broken // the newest is to go on, so we do not fence it off in turn
		}
		if err := t.begin(ctx); err != nil {
			return "", fmt.Errorf("topic %s: %w", t.topic, err)
		}
	}
	if !t.known {
		cursor, err := t.read(ctx)
		if err != nil {
			return "", err
		}
		t.cursor, t.known = cursor, true
	}
	return t.cursor, nil
}

// read reads the last cursor from the broker. It is for after begin: then no transaction of
// this name is on its way.
func (t *Topic) read(ctx context.Context) (cursor string, err error) {
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
	reader, err := kgo.NewClient(kgo.SeedBrokers(t.brokers...), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
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
	return t.commit(ctx, w.Cursor, records)
}

// Move commits a cursor alone.
func (t *Topic) Move(ctx context.Context, cursor string) error { return t.commit(ctx, cursor, nil) }

func (t *Topic) commit(ctx context.Context, cursor string, records []*kgo.Record) error {
	if t.broken != nil {
		return fmt.Errorf("topic %s: Cursor must be called first, as the call before failed: %w", t.topic, t.broken)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	records = append(records, &kgo.Record{Topic: t.cursors, Key: []byte(t.name), Value: []byte(cursor)})
	if t.broken = t.client.BeginTransaction(); t.broken != nil {
		return t.broken
	}
	produced := t.client.ProduceSync(ctx, records...).FirstErr()
	// A transaction is ended also when ctx has been: nobody could go on else.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), t.patience)
	defer cancel()
	if produced != nil {
		if err := errors.Join(t.client.AbortBufferedRecords(ctx), t.client.EndTransaction(ctx, kgo.TryAbort)); err != nil {
			t.broken = errors.Join(produced, err)
			return t.broken
		}
		return produced
	}
	if t.broken = t.client.EndTransaction(ctx, kgo.TryCommit); t.broken != nil {
		return t.broken
	}
	t.cursor, t.known = cursor, true
	return nil
}
