package recipes

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble/source/kafka"
)

// Replay reads rejected records from the topic of a kafka.DeadLetters, has them mended,
// and produces what mend returns to a topic: each of them once, as what was read and what
// was produced are committed together. mend gets the letter with all its headers, and
// returns the mended value, or nil for what cannot be mended; of a letter with the header
// kafka.HeaderSize the value was cut off. What is produced has the record's key, headers
// and timestamp, as pipelines may count by any of them. Replay
// returns once there was nothing to read for a while, with how many it has produced.
// Consumers must read committed records alone, which package kafka does.
func Replay(ctx context.Context, brokers []string, letters, topic, group string, mend func(*kgo.Record) []byte) (n int, err error) {
	s, err := kgo.NewGroupTransactSession(kgo.SeedBrokers(brokers...), kgo.TransactionalID(group), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumerGroup(group), kgo.ConsumeTopics(letters), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return 0, err
	}
	defer s.Close()
	for quiet := false; ; {
		within, cancel := context.WithTimeout(ctx, 3*time.Second)
		fetches := s.PollFetches(within)
		cancel()
		if err := fetches.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return n, err
		}
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
		if fetches.NumRecords() == 0 {
			if quiet {
				return n, nil
			}
			quiet = true // the first time it may just have joined
			continue
		}
		quiet = false
		if err := s.Begin(); err != nil {
			return n, err
		}
		var mended []*kgo.Record
		fetches.EachRecord(func(r *kgo.Record) {
			if value := mend(r); value != nil {
				headers, at := original(r)
				mended = append(mended, &kgo.Record{Topic: topic, Key: r.Key, Value: value, Headers: headers, Timestamp: at})
			}
		})
		failed := s.ProduceSync(ctx, mended...).FirstErr()
		committed, err := s.End(ctx, failed == nil)
		if err := errors.Join(failed, err); err != nil {
			return n, err
		}
		if committed {
			n += len(mended)
		} // else the group has changed, and it is read again
	}
}

// original returns the headers and the timestamp that the record of a letter had. The
// timestamp is zero if it had none: it gets that of its replay. What is no letter of
// kafka.DeadLetters stays as it is.
func original(letter *kgo.Record) ([]kgo.RecordHeader, time.Time) {
	// The letter's own headers follow those of the record, which may have some of the same
	// name if it was a letter itself.
	own := -1
	for i, h := range letter.Headers {
		if h.Key == kafka.HeaderTopic {
			own = i
		}
	}
	if own < 0 {
		return letter.Headers, letter.Timestamp
	}
	headers, at := slices.Clone(letter.Headers[:own]), time.Time{}
	for _, h := range letter.Headers[own:] {
		switch h.Key {
		case kafka.HeaderTopic, kafka.HeaderPartition, kafka.HeaderOffset, kafka.HeaderCause, kafka.HeaderSize, kafka.HeaderDropped:
		case kafka.HeaderTime:
			at, _ = time.Parse(time.RFC3339Nano, string(h.Value)) // zero, should somebody have changed it
		default:
			headers = append(headers, h) // something between here and there has added it
		}
	}
	return headers, at
}
