// Command producer writes made-up clicks to a Kafka topic, keyed by their user, and
// reports each delivery. A record's own timestamp is the time of writing, and its
// value holds the event time, so that the topic's retention does not delete clicks of
// long ago at once.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/tumblestream/tumble/examples/clickstream/internal/simulate"
	"github.com/tumblestream/tumble/internal/kafkadial"
	"github.com/tumblestream/tumble/internal/program"
)

var (
	brokers   = program.Flag("brokers", "localhost:9092", "`addresses` of Kafka brokers, separated by commas", program.Addresses)
	topicName = program.Flag("topic", "clickstream", "`name` of the topic; one that is missing is created", program.Text)
	users     = program.Flag("users", "3", "how many users click: user_1 to user_`N`", program.Int(1, math.MaxInt32))
	rate      = program.Flag("rate", "1", "`clicks` per second; 0: as fast as possible", program.Rate)
	count     = program.Flag("count", "0", "stop after `N` clicks; 0: never", program.Int(0, math.MaxInt64))
	start     = program.Flag("start", "", "event `time` of the first click, RFC 3339 (default now)", program.Time)
	step      = program.Flag("step", "", "event `time` between clicks, such as 50ms (default real time)", parseStep)
	seed      = flag.Int64("seed", 0, "0: other clicks each time; else the same seed `N`, start and step write the same records")
	quiet     = flag.Bool("quiet", false, "no report per click")
)

func parseStep(s string) (*time.Duration, error) {
	d, err := program.Duration("not negative", func(d time.Duration) bool { return d >= 0 })(s)
	return &d, err
}

func main() { program.Main("producer", "writes made-up clicks to a Kafka topic.", run) }

const (
	// chunk is the number of clicks that are written at once, if so many are waiting.
	chunk = 5000
	// closing bounds the writing of the last clicks.
	closing = 10 * time.Second
)

func run(ctx context.Context) error {
	topic := kafkadial.New(*brokers, *topicName)
	defer topic.Close()
	created, err := topic.Find(ctx, true)
	if err != nil {
		return err
	}
	if created > 0 {
		fmt.Fprintf(os.Stderr, "producer: created topic %s with the broker's defaults (partitions: %d)\n", topic.Name, created)
	}
	reports := &reports{out: bufio.NewWriter(os.Stdout)}
	writer := &kafka.Writer{
		Addr:         kafka.TCP(topic.Brokers...),
		Topic:        topic.Name,
		Balancer:     &kafka.Hash{},
		RequiredAcks: kafka.RequireAll,
		BatchTimeout: 2 * time.Millisecond,
		BatchSize:    chunk,
		Completion:   reports.add, // called before WriteMessages returns
		Transport:    topic.Transport,
	}
	making, stop := context.WithCancel(ctx)
	defer stop()
	clicks := make(chan kafka.Message, chunk)
	made := make(chan error, 1)
	go func() {
		defer close(clicks)
		made <- click(making, clicks)
	}()
	n, err := write(ctx, writer, clicks)
	stop()
	return errors.Join(<-made, err, reports.close(n))
}

// click makes up clicks until there are enough or ctx ends.
func click(ctx context.Context, clicks chan<- kafka.Message) error {
	clicker := simulate.New(simulate.Config{Users: int(*users), Seed: *seed, Start: *start, Step: *step, Rate: *rate})
	for n := int64(0); *count == 0 || n < *count; n++ {
		c, err := clicker.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case clicks <- kafka.Message{Key: []byte(c.User), Value: c.AppendJSON(nil)}:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// write writes clicks, all that are waiting at a time, until there are no more. It
// returns the number that it tried to write.
func write(ctx context.Context, w *kafka.Writer, clicks <-chan kafka.Message) (n int64, err error) {
	bounded, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the last clicks are written too
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(closing, cancel) })()
	for first := range clicks {
		batch := append(make([]kafka.Message, 0, len(clicks)+1), first)
		for range cap(batch) - 1 {
			batch = append(batch, <-clicks)
		}
		n += int64(len(batch))
		err := w.WriteMessages(bounded, batch...)
		if bounded.Err() != nil {
			break // the rest is told as not delivered
		}
		if err != nil && !errors.As(err, new(kafka.WriteErrors)) { // those were reported
			return n, fmt.Errorf("topic %s: %w", w.Topic, err)
		}
	}
	return n, nil
}

// reports prints what became of each click. It is safe for concurrent use.
type reports struct {
	mu        sync.Mutex
	out       *bufio.Writer // of deliveries
	delivered int64
}

// add reports records of one partition.
func (r *reports) add(records []kafka.Message, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		for _, m := range records {
			fmt.Fprintf(os.Stderr, "producer: not delivered to %s: %s: %s\n", *topicName, m.Value, program.Line(err.Error()))
		}
		return
	}
	r.delivered += int64(len(records))
	if *quiet {
		return
	}
	for _, m := range records {
		fmt.Fprintf(r.out, "delivered to %s [%d] @%d\n", m.Topic, m.Partition, m.Offset)
	}
	r.out.Flush()
}

// close reports the sum, and returns an error unless all n clicks were delivered.
func (r *reports) close(n int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	lost := n - r.delivered
	fmt.Fprintf(os.Stderr, "producer: %d clicks delivered, %d failed\n", r.delivered, lost)
	if lost > 0 {
		return fmt.Errorf("%d of %d clicks were not delivered to %s", lost, n, *topicName)
	}
	return nil
}
