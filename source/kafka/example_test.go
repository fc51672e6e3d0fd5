package kafka_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/kafka"
)

// A topic is counted into memory, by one process that reads all partitions. With
// a Group several processes share them, and count into Redis.
func Example() {
	source, err := kafka.New(kafka.Config{
		Brokers: []string{"localhost:9092"},
		Topic:   "clicks",
		Decode:  kafka.JSON("user_id", "timestamp"),
	})
	if err != nil {
		log.Fatal(err)
	}
	counts := memory.New(memory.Config{})
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: counts, Window: tumble.Window{Size: time.Minute}})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	if err := pipeline.Run(ctx); err != nil { // until ctx ends
		log.Fatal(err)
	}
	c, err := counts.Count(context.Background(), "user_1", time.Now())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.N, c.State)
}

// A Decode of your own makes events of any record: here one for each item of an
// order, at the time of the record. An order without items is skipped, and what
// is no order is rejected.
func ExampleDecode() {
	var decode kafka.Decode = func(dst []tumble.Event, m kafka.Message) ([]tumble.Event, error) {
		var order struct {
			Items []struct{ SKU string }
		}
		if err := json.Unmarshal(m.Value, &order); err != nil {
			return dst, err
		}
		for _, item := range order.Items {
			if item.SKU == "" {
				return dst, errors.New("an item without a SKU")
			}
			dst = append(dst, tumble.Event{Key: item.SKU, Time: m.Time})
		}
		return dst, nil
	}

	at := time.Date(2023, 10, 1, 12, 34, 56, 0, time.UTC)
	for _, value := range []string{`{"items":[{"sku":"pen"},{"sku":"ink"}]}`, `{"items":[]}`, `{"items":[{}]}`, `order`} {
		events, err := decode(nil, kafka.Message{Topic: "orders", Time: at, Value: []byte(value)})
		if err != nil {
			fmt.Println("rejected:", err)
			continue
		}
		fmt.Println(len(events), "events")
		for _, e := range events {
			fmt.Println("-", e.Key, e.Time.Format(time.TimeOnly))
		}
	}
	// Output:
	// 2 events
	// - pen 12:34:56
	// - ink 12:34:56
	// 0 events
	// rejected: an item without a SKU
	// rejected: invalid character 'o' looking for beginning of value
}

// A Decode can filter, too: records that it makes no event of are skipped.
func ExampleDecode_filter() {
	clicks := kafka.JSON("user_id", "timestamp")
	var decode kafka.Decode = func(dst []tumble.Event, m kafka.Message) ([]tumble.Event, error) {
		if !bytes.HasPrefix(m.Key, []byte("eu-")) {
			return dst, nil
		}
		return clicks(dst, m)
	}

	value := []byte(`{"user_id":"user_1","timestamp":"2023-10-01T12:34:56Z"}`)
	for _, key := range []string{"eu-7", "us-1"} {
		events, err := decode(nil, kafka.Message{Key: []byte(key), Value: value})
		fmt.Println(key, len(events), err)
	}
	// Output:
	// eu-7 1 <nil>
	// us-1 0 <nil>
}

// Rejected records go to a topic of their own, with the place where they were
// read and the cause in their headers. A record is passed once its letter is
// written.
func ExampleDeadLetters() {
	ctx := context.Background()
	brokers := []string{"localhost:9092"}
	letters, err := kafka.NewDeadLetters(kafka.DeadLettersConfig{Brokers: brokers, Topic: "clicks-rejected"})
	if err != nil {
		log.Fatal(err)
	}
	defer letters.Close()
	if err := letters.Check(ctx); err != nil { // at the start, not at the first bad record
		log.Fatal(err)
	}
	source, err := kafka.New(kafka.Config{
		Brokers:  brokers,
		Topic:    "clicks",
		Decode:   kafka.JSON("user_id", "timestamp"),
		OnReject: letters.Write,
	})
	if err != nil {
		log.Fatal(err)
	}
	pipeline, err := tumble.New(tumble.Config{
		Source: source,
		Sink:   memory.New(memory.Config{}),
		Window: tumble.Window{Size: time.Minute},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := pipeline.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// Where nothing may be left out, the first rejected record stops the pipeline,
// which does not pass it: the next run begins with it.
func ExampleConfig_failOnReject() {
	source, err := kafka.New(kafka.Config{
		Brokers:      []string{"localhost:9092"},
		Topic:        "payments",
		Decode:       kafka.JSON("account", "paid_at"),
		FailOnReject: true,
		OnReject: func(_ context.Context, r kafka.Rejected) error {
			fmt.Printf("%s/%d@%d: %v: %s\n", r.Topic, r.Partition, r.Offset, r.Cause, r.Message.Value)
			return nil
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	pipeline, err := tumble.New(tumble.Config{
		Source: source,
		Sink:   memory.New(memory.Config{}),
		Window: tumble.Window{Calendar: tumble.Day},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := pipeline.Run(context.Background()); err != nil {
		log.Fatal(err) // names topic, partition, offset and cause
	}
}
