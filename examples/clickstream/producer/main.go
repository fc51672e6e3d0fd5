// Command producer writes made-up clicks to a Kafka topic, keyed by their user,
// and reports each delivery. Records carry the time at which they were written
// as their own timestamp and the event's time in their value, so that clicks of
// long ago are not deleted by the topic's retention at once.
package main

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/tumblestream/tumble/examples/clickstream/internal/kafkadial"
	"github.com/tumblestream/tumble/examples/clickstream/internal/program"
	"github.com/tumblestream/tumble/examples/clickstream/internal/simulate"
)

func main() {
	program.Main("producer", "writes made-up clicks to a Kafka topic.", func(f *program.Flags) func(context.Context) error {
		brokers := f.Addresses("brokers", "localhost:9092", "`addresses` of Kafka brokers, separated by commas")
		topic := f.Text("topic", "clickstream", "`name` of the topic; one that is missing is created")
		users := f.Int("users", 3, 1, math.MaxInt32, "how many users click: user_1 to user_`N`")
		rate := f.Rate("rate", "1", "`clicks` per second; 0: as fast as possible")
		count := f.Int("count", 0, 0, math.MaxInt64, "stop after `N` clicks; 0: never")
		start := f.Time("start", "event `time` of the first click, RFC 3339 (default now)")
		step := program.Declare(f, "step", "", "event `time` between clicks, such as 50ms (default real time)", parseStep)
		seed := f.Int("seed", 0, math.MinInt64, math.MaxInt64, "0: other clicks each time; else the same seed `N`, start and step write the same records")
		quiet := f.Bool("quiet", "no report per click")
		return func(ctx context.Context) error {
			p := &producer{topic: *topic, quiet: *quiet, count: *count, fast: *rate == 0 || *rate > 20_000, out: bufio.NewWriter(os.Stdout)}
			p.clicks = simulate.New(simulate.Config{Users: int(*users), Seed: *seed, Start: *start, Step: *step, Rate: *rate})
			return p.run(ctx, kafkadial.New(*brokers, *topic))
		}
	})
}

func parseStep(s string) (*time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil {
		return nil, fmt.Errorf("must be a duration such as %q", "50ms")
	}
	return &d, program.NotNegative(d)
}

const (
	// maxInFlight bounds the records that wait for the brokers; beyond it
	// making up clicks waits.
	maxInFlight = 100_000
	// chunk is how many records are handed over at once when there is no rate
	// to keep.
	chunk = 500
	// closing bounds how long the last records may take.
	closing = 10 * time.Second
)

type producer struct {
	clicks *simulate.Clicker
	topic  string
	count  int64 // 0: no end
	fast   bool
	quiet  bool

	mu        sync.Mutex
	room      sync.Cond // there is room in flight; its L is mu
	inFlight  int
	delivered int64
	out       *bufio.Writer // reports of deliveries
}

func (p *producer) run(ctx context.Context, topic *kafkadial.Topic) error {
	defer topic.Close()
	p.room.L = &p.mu
	n, err := topic.Partitions(ctx)
	if err == nil && n == 0 {
		if n, err = topic.Create(ctx); err == nil {
			fmt.Fprintf(os.Stderr, "producer: created topic %s with the broker's defaults (partitions: %d)\n", topic.Name, n)
		}
	}
	if err != nil {
		return err
	}
	writer := &kafka.Writer{
		Addr:         kafka.TCP(topic.Brokers...),
		Topic:        topic.Name,
		Balancer:     &kafka.Hash{},
		RequiredAcks: kafka.RequireAll,
		BatchTimeout: 2 * time.Millisecond,
		BatchSize:    100,
		Async:        true, // Completion reports
		Completion:   p.report,
		Transport:    topic.Transport,
	}
	if p.fast {
		writer.BatchSize, writer.BatchTimeout = 5000, 20*time.Millisecond
	}
	made, err := p.write(ctx, writer)

	closed := make(chan error, 1)
	go func() { closed <- writer.Close() }()
	select {
	case <-closed: // every record is reported, the writer gives up by itself
	case <-ctx.Done(): // asked to stop, perhaps because the brokers are away
		select {
		case <-closed:
		case <-time.After(closing):
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(os.Stderr, "producer: %d clicks delivered, %d failed\n", p.delivered, made-p.delivered)
	if lost := made - p.delivered; err == nil && lost > 0 {
		return fmt.Errorf("%d of %d clicks were not delivered to %s", lost, made, topic.Name)
	}
	return err
}

// write hands clicks to w until there are enough of them or ctx ends, and
// returns how many it handed over.
func (p *producer) write(ctx context.Context, w *kafka.Writer) (made int64, err error) {
	batch := make([]kafka.Message, 0, chunk)
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.room.Broadcast()
	})()
	flush := func() error {
		p.mu.Lock()
		for p.inFlight >= maxInFlight && ctx.Err() == nil {
			p.room.Wait() // every record is reported, delivered or not
		}
		p.inFlight += len(batch)
		p.mu.Unlock()
		// Not ctx: what was made up is written.
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), closing)
		defer cancel()
		if err := w.WriteMessages(bounded, batch...); err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.inFlight -= len(batch)
			return fmt.Errorf("topic %s: %w", w.Topic, err)
		}
		made += int64(len(batch))
		batch = batch[:0]
		return nil
	}
	for n := int64(0); p.count == 0 || n < p.count; n++ {
		click, err := p.clicks.Next(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			return made, err
		}
		batch = append(batch, kafka.Message{Key: []byte(click.User), Value: click.AppendJSON(nil)})
		if !p.fast || len(batch) == chunk {
			if err := flush(); err != nil {
				return made, err
			}
		}
	}
	if len(batch) == 0 {
		return made, nil
	}
	err = flush()
	return made, err
}

// report is told by the writer what became of records of one partition.
func (p *producer) report(records []kafka.Message, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight -= len(records)
	p.room.Signal()
	if err != nil {
		for _, m := range records {
			fmt.Fprintf(os.Stderr, "producer: not delivered to %s: %s: %s\n", p.topic, m.Value, program.Line(err.Error()))
		}
		return
	}
	p.delivered += int64(len(records))
	if p.quiet {
		return
	}
	var line []byte
	for i := range records {
		m := &records[i]
		line = append(line[:0], "delivered to "...)
		line = append(line, m.Topic...)
		line = append(line, " ["...)
		line = strconv.AppendInt(line, int64(m.Partition), 10)
		line = append(line, "] @"...)
		line = strconv.AppendInt(line, m.Offset, 10)
		line = append(line, '\n')
		p.out.Write(line)
	}
	p.out.Flush()
}
