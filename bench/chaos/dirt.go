package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// dirt writes, besides the producer's orderly clicks, what a topic holds as
// well: late and early clicks, other spellings of JSON, values that are no
// clicks, tombstones, transactions, of which half are aborted. Which ones it
// writes, and whether a broker takes them, is chance: the log alone says.
func (l *lab) dirt(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		if err := l.dirtUntilError(ctx, n); err != nil && ctx.Err() == nil {
			l.log("dirt: %v", err)
			time.Sleep(time.Second) // a broker is away
		}
	}
}

func (l *lab) dirtUntilError(ctx context.Context, n int) error {
	options := []kgo.Opt{
		kgo.SeedBrokers(l.kafka.direct()...), kgo.DefaultProduceTopic(l.kafka.topic), kgo.MetadataMinAge(200 * time.Millisecond),
		kgo.RecordDeliveryTimeout(10 * time.Second), kgo.RetryTimeout(10 * time.Second), kgo.TransactionTimeout(15 * time.Second),
	}
	plain, err := kgo.NewClient(options...)
	if err != nil {
		return err
	}
	defer plain.Close()
	transactional, err := kgo.NewClient(append(options, kgo.TransactionalID(fmt.Sprintf("dirt-%d", n)))...)
	if err != nil {
		return err
	}
	defer transactional.Close()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		bounded, cancel := context.WithTimeout(ctx, 15*time.Second)
		if rand.IntN(10) == 0 {
			err = l.transaction(bounded, transactional, rand.IntN(2) == 0)
		} else {
			err = plain.ProduceSync(bounded, l.dirty(rand.IntN(10))).FirstErr()
		}
		cancel()
		if err != nil {
			return err
		}
	}
}

func (l *lab) transaction(ctx context.Context, client *kgo.Client, commit bool) error {
	if err := client.BeginTransaction(); err != nil {
		return err
	}
	for range 5 {
		if err := client.ProduceSync(ctx, l.dirty(0)).FirstErr(); err != nil {
			return err
		}
	}
	return client.EndTransaction(ctx, kgo.TransactionEndTry(commit))
}

// dirty returns a record.
func (l *lab) dirty(which int) *kgo.Record {
	user := fmt.Sprintf("dirt_%d", rand.IntN(50))
	at := time.Now().Add(rand.N(l.early+l.late) - l.late).UTC().Format(time.RFC3339Nano)
	value := fmt.Sprintf(`{"user_id":%q,"timestamp":%q,"page":"/"}`, user, at)
	switch which {
	case 0, 1:
	case 2:
		value = fmt.Sprintf(` { "page" : {"user_id":"nested"}, "timestamp":%q, "user_id" : "\u00e4 %s" } `, at, user)
	case 3:
		value = fmt.Sprintf(`{"user_id":%q,"timestamp":"yesterday"}`, user)
	case 4:
		value = `{"user_id":"","timestamp":"` + at + `"}`
	case 5:
		value = value[:len(value)/2]
	case 6:
		value = ""
	case 8: // as long a key as there may be
		value = fmt.Sprintf(`{"user_id":%q,"timestamp":%q}`, user+strings.Repeat("x", longestKey-len(user)), at)
	case 9:
		value = fmt.Sprintf(`{"user_id":%q,"timestamp":%q}`, user+strings.Repeat("x", longestKey-len(user)+1), at)
	case 7:
		return &kgo.Record{Key: []byte(user)} // a tombstone
	}
	return &kgo.Record{Key: []byte(user), Value: []byte(value)}
}
