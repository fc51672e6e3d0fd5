// Command kafka-redis counts a topic's records per user and minute into Redis,
// each exactly once. Start as many as the topic has partitions, and kill them as
// you like.
//
//	go run ./examples/kafka-redis -brokers localhost:9092 -topic clicks -redis localhost:6379
//
// A record is like {"user_id":"user_1","timestamp":"2023-10-01T12:34:56Z"}.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/kafka"
)

func main() {
	brokers := flag.String("brokers", "localhost:9092", "`addresses` of Kafka brokers, separated by commas")
	topic := flag.String("topic", "clicks", "`name` of the topic")
	group := flag.String("group", "clicks", "`name` of the consumer group that shares out the partitions")
	servers := flag.String("redis", "localhost:6379", "`addresses` of a Redis server or of some of a cluster's nodes, separated by commas")
	name := flag.String("name", "clicks", "`name` of the counts in Redis; another one counts from the beginning, and needs another -group")
	flag.Parse()
	log.SetFlags(0)
	log.SetPrefix("kafka-redis: ")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	fmt.Printf(`To read a count, from another terminal:
  go run github.com/tumblestream/tumble/examples/clickstream/api -redis %s -name %s
  curl "http://localhost:8000/clicks/user_1/$(date -u +%%Y-%%m-%%dT%%H:%%M)"
`, *servers, *name)

	source, err := kafka.New(kafka.Config{
		Brokers: strings.Split(*brokers, ","),
		Topic:   *topic,
		Group:   *group,
		Decode:  kafka.JSON("user_id", "timestamp"),
	})
	check(err)
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: strings.Split(*servers, ","),
		Dialer:      net.Dialer{Timeout: 2 * time.Second},
		DialCtxFn:   redis.Dial, // dials again if the master moves
	})
	if err != nil {
		log.Fatalf("redis %s: %v", *servers, err)
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: *name})
	check(err)
	pipeline, err := tumble.New(tumble.Config{
		Source:    source,
		Sink:      counts,
		Window:    tumble.Window{Size: time.Minute},
		Retention: 7 * 24 * time.Hour, // of event time; then Redis forgets a minute
	})
	check(err)

	check(pipeline.Run(ctx))
	s := pipeline.Stats()
	log.Printf("read %d records, counted %d, rejected %d", s.Read, s.Counted, s.Rejected)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
