package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kgo"
)

// contendPoll reads the records and does nothing with them.
func contendPoll(ctx context.Context, t task) error {
	var tell teller
	client, err := kgo.NewClient(kgo.SeedBrokers(t.kafka), kgo.ConsumeTopics(t.topic), kgo.ConsumerGroup(t.group),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer client.Close()
	n := 0
	for n < t.n {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		tell.first()
		fetches.EachRecord(func(*kgo.Record) { n++ })
	}
	return tell.done(n)
}

// record is what is read of a click.
type record struct {
	User string    `json:"user_id"`
	Time time.Time `json:"timestamp"`
}

// minuteOf is how the tutorial writes a minute.
const minuteOf = "2006-01-02T15:04"

// userMinute is what contendLoop counts by.
type userMinute struct {
	user   string
	minute int64
}

// contendLoop is what somebody writes who knows both clients well: at least
// once, with counts that lag by 100 ms.
func contendLoop(ctx context.Context, t task) error {
	var tell teller
	client, err := kgo.NewClient(kgo.SeedBrokers(t.kafka), kgo.ConsumeTopics(t.topic), kgo.ConsumerGroup(t.group),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DisableAutoCommit())
	if err != nil {
		return err
	}
	defer client.Close()
	db := redis.NewClient(&redis.Options{Addr: t.redis})
	defer db.Close()

	counts := map[userMinute]int64{}
	flush := func() error {
		pipe := db.Pipeline()
		for k, n := range counts {
			pipe.IncrBy(ctx, "clicks:"+k.user+":"+time.Unix(k.minute*60, 0).UTC().Format(minuteOf), n)
			if pipe.Len() == 1000 {
				if _, err := pipe.Exec(ctx); err != nil {
					return err
				}
			}
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
		clear(counts)
		return client.CommitUncommittedOffsets(ctx)
	}
	n, last := 0, time.Now()
	for n < t.n {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		tell.first()
		for it := fetches.RecordIter(); !it.Done(); n++ {
			var r record
			if err := json.Unmarshal(it.Next().Value, &r); err != nil {
				return err
			}
			counts[userMinute{r.User, r.Time.Unix() / 60}]++
		}
		if time.Since(last) >= 100*time.Millisecond {
			if err := flush(); err != nil {
				return err
			}
			last = time.Now()
		}
	}
	if err := flush(); err != nil {
		return err
	}
	return tell.done(n)
}

// contendReader is the tutorial's loop in Go.
func contendReader(ctx context.Context, t task) error {
	var tell teller
	reader := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{t.kafka}, Topic: t.topic, GroupID: t.group,
		StartOffset: kafka.FirstOffset, CommitInterval: time.Second})
	defer reader.Close()
	db := redis.NewClient(&redis.Options{Addr: t.redis})
	defer db.Close()
	for n := range t.n {
		m, err := reader.ReadMessage(ctx)
		if err != nil {
			return fmt.Errorf("after %d records: %w", n, err)
		}
		tell.first()
		var r record
		if err := json.Unmarshal(m.Value, &r); err != nil {
			return err
		}
		if err := db.Incr(ctx, "clicks:"+r.User+":"+r.Time.Format(minuteOf)).Err(); err != nil {
			return err
		}
	}
	return tell.done(t.n)
}

// countsOfStrings reads counts that are kept as the tutorial does:
// clicks:USER:MINUTE.
func countsOfStrings(ctx context.Context, s *servers, got *tally) error {
	var cursor uint64
	for {
		entry, err := s.db.Do(ctx, s.db.B().Scan().Cursor(cursor).Match("clicks:*").Count(5000).Build()).AsScanEntry()
		if err != nil {
			return err
		}
		if len(entry.Elements) > 0 {
			values, err := rueidis.MGet(s.db, ctx, entry.Elements)
			if err != nil {
				return err
			}
			for key, value := range values {
				user, minute, _ := strings.Cut(strings.TrimPrefix(key, "clicks:"), ":")
				at, err := time.Parse(minuteOf, minute)
				if err != nil {
					return err
				}
				text, err := value.ToString()
				if err != nil {
					return err
				}
				n, err := strconv.ParseInt(text, 10, 64)
				if err != nil {
					return err
				}
				if err := got.set(user, at, n); err != nil {
					return err
				}
			}
		}
		if cursor = entry.Cursor; cursor == 0 {
			return nil
		}
	}
}
