//go:build servers

package redis_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// A pipeline writes to a sink as here by hand. Another process, with a sink and
// a client of its own, reads.
func Example() {
	ctx := context.Background()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: single})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	name := fmt.Sprintf("example-%d", time.Now().UnixNano())
	defer lose(ctx, client, name)

	sink, err := redis.New(redis.Config{Client: client, Name: name, Shards: 1})
	if err != nil {
		log.Fatal(err)
	}
	shards, err := sink.Open(ctx, tumble.Definition{Window: tumble.Window{Size: time.Minute}})
	if err != nil {
		log.Fatal(err)
	}
	start := tumble.Checkpoint{Log: "log-1"}
	if _, err := shards[0].Load(ctx, map[string]tumble.Checkpoint{"clicks/0": start}); err != nil {
		log.Fatal(err)
	}
	noon := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	err = shards[0].Apply(ctx, tumble.Batch{
		Partition: "clicks/0",
		From:      start,
		To:        tumble.Checkpoint{Log: "log-1", Offset: 4, Watermark: noon.Add(90 * time.Second)},
		Deltas:    []tumble.Delta{{Window: noon, Key: "alice", N: 3}, {Window: noon, Key: "bob", N: 1}},
	})
	if err != nil {
		log.Fatal(err)
	}

	reader, err := redis.New(redis.Config{Client: client, Name: name})
	if err != nil {
		log.Fatal(err)
	}
	c, err := reader.Count(ctx, "alice", noon.Add(30*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Key, c.Window.Format(time.TimeOnly), c.N, c.Final)
	page, err := reader.Top(ctx, noon, 10)
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range page.Counts {
		fmt.Println(c.Key, c.N)
	}
	// Output:
	// alice 12:00:00 3 true
	// alice 3
	// bob 1
}
