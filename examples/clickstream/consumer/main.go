// Command consumer counts the clicks in a Kafka topic, per user and window,
// into Redis, exactly once. Several of them in one group share the work.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/redis/rueidis"
	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/examples/clickstream/internal/kafkadial"
	"github.com/tumblestream/tumble/examples/clickstream/internal/program"
	"github.com/tumblestream/tumble/examples/clickstream/internal/redisdial"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/kafka"
)

func main() {
	program.Main("consumer", "counts the clicks in a Kafka topic, per user and window, into Redis, exactly once.",
		func(f *program.Flags) func(context.Context) error { return declare(f).run })
}

// consumer holds the flags.
type consumer struct {
	brokers          *[]string
	topic, group     *string
	instance         *string
	session          *time.Duration
	redis            *rueidis.ClientOption
	name, key, time  *string
	window           *tumble.Window
	grace, retention *time.Duration
	dropLate         *bool
	start            *string
	idle, flush      *time.Duration
	deadLetters      *string
	metrics          *string
	untilEnd         *bool
}

func declare(f *program.Flags) *consumer {
	return &consumer{
		brokers:     f.Addresses("brokers", "localhost:9092", "`addresses` of Kafka brokers, separated by commas"),
		topic:       f.Text("topic", "clickstream", "`name` of the topic"),
		group:       f.Text("group", "clickstream-group", "`name` of the consumer group that shares out the partitions"),
		instance:    program.Declare(f, "instance", "", "`id` of this process in the group, which keeps its partitions over a restart; empty: none", anyText),
		session:     f.Duration("session", "10s", "after how long a silence, a `time`, the group gives the partitions of this process to others", sessionTime),
		redis:       redisdial.Flag(f),
		name:        f.Text("name", "clickstream", "`name` of the counts in Redis; how far the topic is counted belongs to it"),
		key:         f.Text("key", "user_id", "top-level JSON `field` to count by"),
		time:        f.Text("time", "timestamp", "top-level JSON `field` of the event time, RFC 3339"),
		window:      f.Window("window", "1m", "`length` of a window, such as 1m, 1h+15m or \"day Europe/Berlin\""),
		grace:       f.Duration("grace", "0s", "how long after its end a window waits for events that are out of order, in event `time`", keep),
		retention:   f.Duration("retention", "0", "for how long a window is kept after that, in event `time`; 0: for ever; may differ from what is stored: the newest wins", keepFor),
		dropLate:    f.Bool("drop-late", "do not count events of windows that are closed: then closed windows are final"),
		start:       f.Choice("start", "where counting under a new name begins: earliest or latest `offset`", "earliest", "latest"),
		idle:        f.Duration("idle", "10s", "after what `time` without events a partition follows the clock; negative: never", notZero),
		flush:       f.Duration("flush", "100ms", "how often counts are written, a `time`", atLeastMilli),
		deadLetters: program.Declare(f, "dead-letters", "", "`name` of a topic to write rejected records to, which is created if it is missing; empty: none", anyText),
		metrics:     f.Address("metrics", "", "`address` to serve /metrics and /healthz on; empty: none"),
		untilEnd:    f.Bool("until-end", "stop once every partition is counted to the end that it had at the start"),
	}
}

func keep(d time.Duration) error {
	return tumble.Definition{Window: tumble.Window{Size: time.Minute}, Grace: d}.Validate()
}

func keepFor(d time.Duration) error {
	return tumble.Definition{Window: tumble.Window{Size: time.Minute}, Retention: d}.Validate()
}

func sessionTime(d time.Duration) error {
	if d < time.Millisecond || d > 24*time.Hour {
		return errors.New("must be from 1ms to 24h")
	}
	return nil
}

func anyText(s string) (string, error) { return s, nil }

func notZero(d time.Duration) error {
	if d == 0 {
		return errors.New("must be positive, or negative for never")
	}
	return nil
}

func atLeastMilli(d time.Duration) error {
	if d < time.Millisecond {
		return errors.New("must be at least 1ms")
	}
	return nil
}

// run counts, and prints the books whatever ends it, unless it never began.
func (c *consumer) run(ctx context.Context) error {
	books, err := c.count(ctx)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // asked to stop before it had begun
	}
	if err != nil && books.Read == 0 {
		return err
	}
	return errors.Join(err, program.WriteBooks(os.Stdout, books))
}

func (c *consumer) count(ctx context.Context) (books tumble.Stats, err error) {
	screen := newScreen(os.Stderr)
	log := slog.New(slog.NewTextHandler(screen, &slog.HandlerOptions{ReplaceAttr: shortTime}))
	slog.SetDefault(log)

	var metrics net.Listener
	if *c.metrics != "" {
		if metrics, err = program.Listen(*c.metrics); err != nil {
			return books, err
		}
		defer metrics.Close()
		fmt.Fprintf(screen, "consumer: metrics on %s/metrics\n", program.URL(metrics, *c.metrics))
	}
	topic := kafkadial.New(*c.brokers, *c.topic)
	defer topic.Close()
	rejects := &rejects{out: screen}
	source, err := kafka.New(kafka.Config{
		Brokers:    topic.Brokers,
		Transport:  topic.Transport,
		Topic:      topic.Name,
		Group:      *c.group,
		InstanceID: *c.instance,
		Decode:     kafka.JSON(*c.key, *c.time),
		OnReject:   rejects.add,
		Start:      map[string]kafka.Start{"earliest": kafka.Earliest, "latest": kafka.Latest}[*c.start],
		UntilEnd:   *c.untilEnd,
		Logger:     log,
		// A consumer that was killed holds up the others for as long. One that
		// was only slow loses its partitions, and no counts.
		SessionTimeout: *c.session,
	})
	if err != nil {
		return books, program.FlagError("topic", err) // the rest cannot be wrong
	}
	if n, err := topic.Partitions(ctx); err != nil {
		return books, err
	} else if n == 0 {
		return books, topic.Missing()
	}
	if *c.deadLetters != "" {
		letters, err := openLetters(ctx, *c.brokers, *c.deadLetters, *c.topic, log)
		if err != nil {
			return books, err
		}
		defer letters.close()
		if letters.created > 0 {
			fmt.Fprintf(screen, "consumer: created topic %s with the broker's defaults (partitions: %d)\n", *c.deadLetters, letters.created)
		}
		rejects.letters = letters.Write
	}
	client, err := redisdial.Connect(ctx, *c.redis)
	if err != nil {
		return books, err
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: *c.name})
	if err != nil {
		return books, program.FlagError("name", err)
	}
	pipeline, err := tumble.New(tumble.Config{
		Source:        source,
		Sink:          counts,
		Window:        *c.window,
		Grace:         *c.grace,
		Retention:     *c.retention,
		DropLate:      *c.dropLate,
		Idle:          *c.idle,
		FlushInterval: *c.flush,
		Logger:        log,
	})
	if err != nil {
		return books, err
	}

	var beside sync.WaitGroup
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // also while it drains
	if metrics != nil {
		beside.Go(func() {
			if err := program.Serve(running, metrics, handler(pipeline.Stats)); err != nil {
				fmt.Fprintf(screen, "consumer: %s\n", program.Line(err.Error()))
			}
		})
	}
	beside.Go(func() { rejects.run(running) })
	if screen.terminal {
		beside.Go(func() { screen.progress(running, pipeline.Stats) })
	}
	err = pipeline.Run(ctx)
	stop()
	beside.Wait()

	return pipeline.Stats(), err
}

// shortTime leaves of a log line's time what a reader needs.
func shortTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		a.Value = slog.StringValue(a.Value.Time().UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	return a
}

// handler answers /metrics with the books, and /healthz: with 503 while the last
// call for one of the partitions that are read failed.
func handler(stats func() tumble.Stats) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		program.ServeMetrics(w, program.BookMetrics(stats()))
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		for _, p := range stats().Partitions {
			if p.Err != nil {
				program.WriteError(w, http.StatusServiceUnavailable, fmt.Errorf("%s: %w", p.ID, p.Err))
				return
			}
		}
		_ = program.WriteJSON(w, http.StatusOK, program.Healthy)
	})
	return mux
}
