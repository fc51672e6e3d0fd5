package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/kafka"
)

const tumbleName = "clickstream"

// told is a Source that tells when its first events come.
type told struct {
	tumble.Source
	first func()
}

func (t told) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return t.Source.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		return consume(ctx, &toldPartition{p.(committer), t.first})
	})
}

// committer is what source/kafka's partitions are.
type committer interface {
	tumble.Partition
	tumble.Committer
}

type toldPartition struct {
	committer
	first func() // nil: told
}

func (p *toldPartition) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	c, err := p.committer.Fetch(ctx, from)
	if p.first != nil && len(c.Events) > 0 {
		p.first()
		p.first = nil
	}
	return c, err
}

// contendTumble is what examples/clickstream/consumer does.
func contendTumble(ctx context.Context, t task) error {
	var tell teller
	source, err := kafka.New(kafka.Config{
		Brokers:  []string{t.kafka},
		Topic:    t.topic,
		Group:    t.group,
		Decode:   kafka.JSON("user_id", "timestamp"),
		UntilEnd: !t.follow,
	})
	if err != nil {
		return err
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: strings.Split(t.redis, ",")})
	if err != nil {
		return err
	}
	defer client.Close()
	sink, err := redis.New(redis.Config{Client: client, Name: tumbleName, Shards: t.shards})
	if err != nil {
		return err
	}
	pipeline, err := tumble.New(tumble.Config{
		Source:        told{source, sync.OnceFunc(tell.first)},
		Sink:          sink,
		Window:        tumble.Window{Size: t.window},
		Grace:         t.grace,
		FlushInterval: t.flush,
	})
	if err != nil {
		return err
	}
	if err := pipeline.Run(ctx); err != nil {
		return err
	}
	stats := pipeline.Stats()
	// What is pending was of partitions that went to another process, which reads it again.
	if stats.Counted+stats.Replayed+stats.Pending != stats.Read {
		return fmt.Errorf("not all that was read was counted: %+v", stats)
	}
	if t.follow {
		return nil
	}
	return tell.done(int(stats.Counted))
}

// readerOf returns a Reader of tumble's counts in Redis, and what closes it.
func readerOf(addresses string) (tumble.Reader, func(), error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: strings.Split(addresses, ",")})
	if err != nil {
		return nil, nil, err
	}
	reader, err := redis.New(redis.Config{Client: client, Name: tumbleName})
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return reader, client.Close, nil
}

// countsOfTumble reads them as an API would, page by page.
func countsOfTumble(ctx context.Context, s *servers, got *tally) error {
	return countsAt(ctx, s.redis, got)
}

func countsAt(ctx context.Context, addresses string, got *tally) error {
	reader, closeReader, err := readerOf(addresses)
	if err != nil {
		return err
	}
	defer closeReader()
	for m := range minutes {
		cursor := ""
		for {
			page, err := reader.Scan(ctx, epoch.Add(time.Duration(m)*time.Minute), cursor, 5000)
			if err != nil {
				return err
			}
			for _, c := range page.Counts {
				if err := got.add(c.Key, c.Start, c.N); err != nil {
					return err
				}
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
	}
	return nil
}
