// Command consumer counts the clicks in a Kafka topic, per user and window, into
// Redis, exactly once. Several of them in one group share the work.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // in a container there may be none

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/kafkadial"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/internal/redisdial"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/kafka"
)

var (
	brokers     = program.Flag("brokers", "localhost:9092", "`addresses` of Kafka brokers, separated by commas", program.Addresses)
	topicName   = program.Flag("topic", "clickstream", "`name` of the topic", program.Text)
	group       = program.Flag("group", "clickstream-group", "`name` of the consumer group that shares out the partitions", program.Text)
	instance    = flag.String("instance", "", "`id` of this process in the group, which keeps its partitions over a restart; empty: none")
	session     = program.Flag("session", "10s", "after how long a silence, a `time`, the group gives the partitions of this process to others", program.Duration("from 1ms to 24h", sessionOK))
	server      = redisdial.Flag()
	name        = program.Flag("name", "clickstream", "`name` of the counts in Redis; how far the topic is counted belongs to it", program.Text)
	key         = program.Flag("key", "user_id", "JSON `field` to count by; dots lead into objects, as in customer.id", program.Text)
	timeField   = program.Flag("time", "timestamp", "JSON `field` of the event time; dots lead into objects", program.Text)
	timeUnit    = program.Flag("time-unit", "rfc3339", "how the time is written, a `unit`: rfc3339; s, ms, us or ns since the epoch, a number; or record, for the record's own timestamp", kafkadial.Unit)
	sum         = flag.String("sum", "", "JSON `field` to add up, a whole number; dots lead into objects; empty: each record counts 1")
	window      = program.Flag("window", "1m", "`length` of a window, such as 1m, 1h+15m or \"day Europe/Berlin\"", tumble.ParseWindow)
	rollups     = rollupFlag("rollup", "`window[:retention]` to count as well, such as 1h:25h or \"day Europe/Berlin:31d\", from the same read; may be repeated (default none)")
	grace       = program.Flag("grace", "0s", "how long after its end a window waits for events that are out of order, in event `time`", program.Duration("in whole milliseconds, not negative", graceOK))
	retention   = program.Flag("retention", "0", "for how long a window is kept after that, in event `time`, such as 36h or 7d; 0: for ever; it may differ between processes: the longest that one asked for within the last minute is in force", parseRetention)
	dropLate    = flag.Bool("drop-late", false, "do not count events of windows that are closed: then closed windows are final")
	start       = program.Flag("start", "earliest", "where counting under a new name begins: earliest or latest `offset`", parseStart)
	idle        = program.Flag("idle", "10s", "after what `time` without events a partition follows the clock; negative: never", program.Duration("not 0", idleOK))
	flush       = program.Flag("flush", "100ms", "how often counts are written, a `time`", program.Duration("at least 1ms", flushOK))
	maxKey      = program.Flag("max-key", "1024", "longest user id in `bytes`; a record with a longer one is rejected", program.Int(1, tumble.MostMaxKey))
	eviction    = flag.Bool("allow-eviction", false, "start on a Redis that may evict keys, or does not tell its policy")
	noCache     = redisdial.NoCache()
	deadLetters = flag.String("dead-letters", "", "`name` of a topic to write rejected records to, which is created if it is missing; empty: none")
	metricsAddr = program.Flag("metrics", "", "`address` to serve /metrics, /healthz and /readyz on; empty: none", addressOrNone)
	untilEnd    = flag.Bool("until-end", false, "stop once every partition is counted to the end that it had at the start")
)

func sessionOK(d time.Duration) bool { return d >= time.Millisecond && d <= 24*time.Hour }
func idleOK(d time.Duration) bool    { return d != 0 }
func flushOK(d time.Duration) bool   { return d >= time.Millisecond }

func graceOK(d time.Duration) bool {
	return tumble.Definition{Window: tumble.Window{Size: time.Minute}, Grace: d}.Validate() == nil
}

func parseRetention(s string) (time.Duration, error) {
	d, err := program.Retention(s)
	if err != nil {
		return 0, err
	}
	return d, tumble.Definition{Window: tumble.Window{Size: time.Minute}, Retention: d}.Validate()
}

// rollupFlag declares a flag that may come several times.
func rollupFlag(name, usage string) *[]tumble.Rollup {
	var all []tumble.Rollup
	flag.Func(name, usage, func(s string) error {
		window, kept, bounded := strings.Cut(s, ":")
		w, err := tumble.ParseWindow(window)
		if err != nil {
			return err
		}
		r := tumble.Rollup{Window: w}
		if bounded {
			if r.Retention, err = parseRetention(kept); err != nil {
				return err
			}
		}
		all = append(all, r)
		return nil
	})
	return &all
}

// checkWindows returns an error that names a flag unless the retention goes with the
// grace, and the roll-ups with the window and its retention.
func checkWindows() error {
	def := tumble.Definition{Window: *window, Grace: *grace, Retention: *retention}
	if err := def.Validate(); err != nil {
		return program.FlagError("retention", err)
	}
	def.Rollups = *rollups
	for _, r := range *rollups {
		if err := r.Window.Nests(*window); err != nil {
			return program.FlagError("rollup", err)
		}
	}
	if err := def.Validate(); err != nil {
		return program.FlagError("rollup", err)
	}
	return nil
}

func parseStart(s string) (kafka.Start, error) {
	switch s {
	case "earliest":
		return kafka.Earliest, nil
	case "latest":
		return kafka.Latest, nil
	}
	return 0, errors.New("must be earliest or latest")
}

func addressOrNone(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	return program.Address(s)
}

func main() {
	program.Main("consumer", "counts the clicks in a Kafka topic, per user and window, into Redis, exactly once.", run)
}

// run counts, and prints the books unless it never began.
func run(ctx context.Context) error {
	books, began, err := count(ctx)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // stopped while it started
	}
	if err != nil && !began {
		return err
	}
	return errors.Join(err, program.WriteBooks(os.Stdout, books))
}

func count(ctx context.Context) (books tumble.Stats, began bool, err error) {
	if err := checkWindows(); err != nil {
		return books, false, err
	}
	screen := newScreen(os.Stderr)
	log := slog.New(slog.NewTextHandler(screen, &slog.HandlerOptions{ReplaceAttr: shortTime}))
	slog.SetDefault(log)

	var listener net.Listener
	if *metricsAddr != "" {
		if listener, err = program.Listen(*metricsAddr); err != nil {
			return books, false, err
		}
		defer listener.Close()
		fmt.Fprintf(screen, "consumer: metrics on %s/metrics\n", program.URL(listener, *metricsAddr))
	}
	topic := kafkadial.New(*brokers, *topicName)
	defer topic.Close()
	rejects := &rejects{out: screen}
	source, err := kafka.New(kafka.Config{
		Brokers:    topic.Brokers,
		Transport:  topic.Transport,
		Topic:      topic.Name,
		Group:      *group,
		InstanceID: *instance,
		Decode:     kafka.Fields{Key: *key, Time: *timeField, Unit: *timeUnit, N: *sum}.Decode(),
		MaxKey:     int(*maxKey),
		OnReject:   rejects.add,
		Start:      *start,
		UntilEnd:   *untilEnd,
		Logger:     log,
		// A killed consumer holds up the others for this long. A slow one loses its
		// partitions, and no counts.
		SessionTimeout: *session,
	})
	if err != nil {
		return books, false, program.FlagError("topic", err) // the other fields are valid
	}
	if _, err := topic.Find(ctx, false); err != nil {
		return books, false, err
	}
	if *deadLetters != "" {
		letters := kafkadial.New(*brokers, *deadLetters)
		defer letters.Close()
		if rejects.letters, err = openLetters(ctx, letters, screen, log); err != nil {
			return books, false, err
		}
	}
	server.DisableCache = *noCache
	client, err := redisdial.Connect(ctx, *server)
	if err != nil {
		return books, false, err
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: *name, AllowEviction: *eviction})
	if err != nil {
		return books, false, program.FlagError("name", err)
	}
	pipeline, err := tumble.New(tumble.Config{
		Source:        source,
		Sink:          counts,
		Window:        *window,
		Rollups:       *rollups,
		Grace:         *grace,
		Retention:     *retention,
		DropLate:      *dropLate,
		Sum:           *sum != "",
		MaxKey:        int(*maxKey),
		Idle:          *idle,
		FlushInterval: *flush,
		Logger:        log,
	})
	if err != nil {
		return books, false, err
	}

	var beside sync.WaitGroup
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // also while it drains
	if listener != nil {
		beside.Go(func() {
			if err := program.Serve(running, listener, handler(pipeline.Stats)); err != nil {
				fmt.Fprintf(screen, "consumer: %s\n", program.Line(err.Error()))
			}
		})
	}
	if screen.terminal {
		beside.Go(func() { screen.progress(running, pipeline.Stats) })
	}
	err = pipeline.Run(ctx)
	if errors.Is(err, tumble.ErrDefinition) {
		err = fmt.Errorf("group %s, name %s: %w", *group, *name, err)
	}
	stop()
	beside.Wait()
	rejects.next()
	return pipeline.Stats(), true, err
}

// shortTime shortens the time of a log line to milliseconds in UTC.
func shortTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		a.Value = slog.StringValue(a.Value.Time().UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	return a
}

// handler serves the books as metrics, and whether all is well.
func handler(stats func() tumble.Stats) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		var m program.Metrics
		m.Pipeline(stats())
		m.ServeHTTP(w, r)
	})
	for path, check := range map[string]func(tumble.Stats) error{"/healthz": healthy, "/readyz": ready} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			if err := check(stats()); err != nil {
				program.WriteError(w, http.StatusServiceUnavailable, err)
				return
			}
			_ = program.WriteJSON(w, http.StatusOK, program.Healthy) // it has a form
		})
	}
	return mux
}

// healthy returns an error while a partition is in trouble.
func healthy(s tumble.Stats) error {
	for _, p := range s.Partitions {
		if p.Err != nil {
			return fmt.Errorf("partition %s is in trouble: the log says why", p.ID) // to anybody, so without addresses
		}
	}
	return nil
}

// ready returns an error until a partition is registered and has been read. A
// consumer to whom the group gave no partition is not ready.
func ready(s tumble.Stats) error {
	for _, p := range s.Partitions {
		if p.Offset >= 0 {
			return nil
		}
	}
	return errors.New("no partition is being read yet")
}
