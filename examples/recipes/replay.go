package recipes

import (
	"context"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Replay reads rejected records from the topic of a kafka.DeadLetters, has them mended,
// and produces what mend returns to a topic: each of them once, as what was read and what
// was produced are committed together. mend returns nil for what cannot be mended. Replay
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
				mended = append(mended, &kgo.Record{Topic: topic, Key: r.Key, Value: value})
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
