package redis_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/channel"
)

// A pipeline counts into Redis, under a name. It goes on where the counts are,
// however the process before it ended.
func Example() {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"localhost:6379"}}) // or nodes of a cluster
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: "clicks"})
	if err != nil {
		log.Fatal(err)
	}

	events := make(chan tumble.Event, 1024)
	source, err := channel.New(channel.Config{ID: "pod-0", Events: events}) // or kafka.New
	if err != nil {
		log.Fatal(err)
	}
	pipeline, err := tumble.New(tumble.Config{
		Source:    source,
		Sink:      counts,
		Window:    tumble.Window{Size: time.Minute},
		Retention: 7 * 24 * time.Hour, // of event time; then Redis forgets a minute
	})
	if err != nil {
		log.Fatal(err)
	}
	events <- tumble.Event{Key: "user_1", Time: time.Now()}
	close(events)
	if err := pipeline.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// A program that only reads, such as an API, needs the name and a client of its
// own. What the counts mean it learns from Redis.
func ExampleSink() {
	ctx := context.Background()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"localhost:6379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: "clicks"})
	if err != nil {
		log.Fatal(err)
	}

	c, err := counts.Count(ctx, "user_1", time.Now())
	if errors.Is(err, tumble.ErrNoDefinition) {
		fmt.Println("nothing was counted under this name yet")
		return
	} else if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s in [%v, %v): %d, %v\n", c.Key, c.Start, c.End, c.N, c.State)

	page, err := counts.Top(ctx, time.Now(), 10)
	if err != nil {
		log.Fatal(err)
	}
	for i, c := range page.Counts {
		fmt.Println(i+1, c.Key, c.N)
	}
}
