package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/redis/rueidis"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/channel"
)

// A schedule says when each event is due, whether or not those before it were
// handled in time: an open loop.
type schedule struct {
	start       time.Time
	rate, keys  int
	shards      int // of the store; 0: its default
	every       int // one event in every is a probe
	total, warm int // events; the first warm of them are not measured
}

func (s schedule) due(i int) time.Time {
	return s.start.Add(time.Duration(float64(i) / float64(s.rate) * float64(time.Second)))
}

// key is one of keys, or of a probe, of its own.
func (s schedule) key(i int) string {
	if i%s.every == 0 {
		return "probe_" + strconv.Itoa(i)
	}
	return userName(int(uint64(i) * 2654435761 % uint64(s.keys)))
}

// run calls emit for every event as soon as it is due.
func (s schedule) run(ctx context.Context, emit func(i int) error) error {
	for i := 0; i < s.total; {
		for now := time.Now(); i < s.total && !s.due(i).After(now); i++ {
			if err := emit(i); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(200*time.Microsecond+time.Until(s.due(i))/2, time.Second)):
		}
	}
	return nil
}

// schedules as flags, which a child understands as well.
func declareSchedule(f *flag.FlagSet) func() (schedule, time.Duration) {
	rate := f.Int("rate", 100_000, "`events` a second")
	keys := f.Int("keys", 100_000, "`number` of keys")
	probes := f.Int("probes", 200, "how many of the events to watch, a `second`")
	lasts := f.Duration("for", 20*time.Second, "`time` to measure")
	warm := f.Duration("warm", 5*time.Second, "`time` before that")
	shards := f.Int("shards", 0, "`number` of shards; 0: the default")
	flush := f.Duration("flush", 10*time.Millisecond, "FlushInterval, a `time`")
	return func() (schedule, time.Duration) {
		return schedule{
			rate: *rate, keys: *keys, shards: *shards, every: max(1, *rate / *probes),
			total: int(float64(*rate) * (*lasts + *warm).Seconds()), warm: int(float64(*rate) * warm.Seconds()),
		}, *flush
	}
}

// latency measures from when an event is due to when a Reader shows it. The
// pipeline runs in a process of its own.
func latency(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("latency", flag.ExitOnError)
	plan := declareSchedule(f)
	source := f.String("source", "kafka", "where events come from: kafka or `channel`")
	linger := f.Duration("linger", 0, "`time` that the producer waits for more to send; Kafka's own wait 5ms")
	where := declareServers(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	s, flushEvery := plan()
	up, err := where.start(ctx)
	if err != nil {
		return err
	}
	defer up.stop()
	if _, err := flush(ctx, up.db); err != nil {
		return err
	}
	reader, closeReader, err := readerOf(up.redis)
	if err != nil {
		return err
	}
	defer closeReader()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var fed feeder
	switch *source {
	case "kafka":
		fed, err = feedKafka(ctx, up, &s, flushEvery, *linger)
	case "channel":
		fed, err = feedChannel(ctx, up, &s, args)
	default:
		return fmt.Errorf("-source: %q is neither kafka nor channel", *source)
	}
	if err != nil {
		return err
	}
	defer func() {
		cancel()
		_ = fed.child.Wait() // cancel has killed it
		fed.close()
	}()

	before, err := info(ctx, up.db)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var feeding, watching error
	wg.Go(func() {
		if feeding = fed.feed(); feeding != nil {
			cancel()
		}
	})
	var took []time.Duration
	wg.Go(func() { took, watching = watch(ctx, reader, s) })
	wg.Wait()
	if feeding != nil {
		return feeding
	}
	if watching != nil {
		return watching
	}
	after, err := info(ctx, up.db)
	if err != nil {
		return err
	}
	used, err := cpuOf(fed.child.Process.Pid)
	if err != nil {
		return err
	}
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(len(took)-1, int(q*float64(len(took))))].Microseconds()) / 1000
	}
	fmt.Printf("%s, %d events/s, %d keys, flush %v: due -> readable: p50 %.1f ms, p99 %.1f ms, p99.9 %.1f ms, most %.1f ms (%d probes); CPU: client %.2f, Redis %.2f us/event\n",
		*source, s.rate, s.keys, flushEvery, at(0.5), at(0.99), at(0.999), at(1), len(took),
		float64(used.Microseconds())/float64(s.total), float64((after.cpu-before.cpu).Microseconds())/float64(s.total))
	return nil
}

// A feeder is where the events come from.
type feeder struct {
	child *exec.Cmd    // runs the pipeline
	feed  func() error // returns when all events were sent
	close func()       // after child has ended
}

// feedKafka starts a consumer, and produces the events itself.
func feedKafka(ctx context.Context, up *servers, s *schedule, flushEvery, linger time.Duration) (feeder, error) {
	topic := fmt.Sprintf("latency-%d", time.Now().UnixNano())
	client, err := kgo.NewClient(kgo.SeedBrokers(up.kafka), kgo.DefaultProduceTopic(topic), kgo.ProducerLinger(linger),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	if err != nil {
		return feeder{}, err
	}
	admin := kadm.NewClient(client)
	closeAll := func() {
		_, _ = admin.DeleteTopic(context.WithoutCancel(ctx), topic) // it goes with the servers anyway
		client.Close()
	}
	if _, err := admin.CreateTopic(ctx, partitions, 1, nil, topic); err != nil {
		closeAll()
		return feeder{}, err
	}
	child, err := self(ctx, "contend", "-kafka", up.kafka, "-redis", up.redis, "-topic", topic, "-group", topic,
		"-flush", flushEvery.String(), "-shards", strconv.Itoa(s.shards), "-follow", "tumble")
	if err != nil {
		closeAll()
		return feeder{}, err
	}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		closeAll()
		return feeder{}, err
	}
	s.start = time.Now().Add(time.Second)
	feed := func() error {
		failed := make(chan error, 1)
		promise := func(_ *kgo.Record, err error) {
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		}
		err := s.run(ctx, func(i int) error {
			due := s.due(i)
			value := append(append([]byte(`{"user_id":"`), s.key(i)...), `","timestamp":"`...)
			value = append(due.UTC().AppendFormat(value, time.RFC3339Nano), `","page":"/home"}`...)
			client.Produce(ctx, &kgo.Record{Value: value, Partition: int32(i % partitions), Timestamp: due}, promise)
			return nil
		})
		if err != nil {
			return err
		}
		if err := client.Flush(ctx); err != nil {
			return err
		}
		select {
		case err := <-failed:
			return err
		default:
			return nil
		}
	}
	return feeder{child, feed, closeAll}, nil
}

// feedChannel starts a process that makes the events itself.
func feedChannel(ctx context.Context, up *servers, s *schedule, args []string) (feeder, error) {
	child, err := self(ctx, append([]string{"latency-channel", "-at", up.redis}, args...)...)
	if err != nil {
		return feeder{}, err
	}
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		return feeder{}, err
	}
	if err := child.Start(); err != nil {
		return feeder{}, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return feeder{}, err
	}
	start, err := strconv.ParseInt(line[:len(line)-1], 10, 64)
	if err != nil {
		return feeder{}, err
	}
	s.start = time.Unix(0, start)
	return feeder{child, func() error { return nil }, func() {}}, nil
}

// latencyChannel is the process that feedChannel starts. It goes on until it is
// killed.
func latencyChannel(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("latency-channel", flag.ExitOnError)
	plan := declareSchedule(f)
	at := f.String("at", "", "`address` of Redis")
	f.String("source", "", "its own")
	f.Duration("linger", 0, "of Kafka")
	declareServers(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	s, flushEvery := plan()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{*at}})
	if err != nil {
		return err
	}
	defer client.Close()
	sink, err := redis.New(redis.Config{Client: client, Name: tumbleName, Shards: s.shards})
	if err != nil {
		return err
	}
	events := make(chan tumble.Event, 4096)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	if err != nil {
		return err
	}
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: sink, Window: tumble.Window{Size: time.Minute}, FlushInterval: flushEvery})
	if err != nil {
		return err
	}
	s.start = time.Now().Add(time.Second)
	fmt.Println(s.start.UnixNano())
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() {
		failed = s.run(ctx, func(i int) error {
			select {
			case events <- tumble.Event{Key: s.key(i), Time: s.due(i)}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	err = pipeline.Run(ctx)
	wg.Wait()
	if err == nil {
		err = failed
	}
	return err
}

// watch asks for each probe, from when it is due until it is there.
func watch(ctx context.Context, reader tumble.Reader, s schedule) ([]time.Duration, error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var took []time.Duration
	var failed error
	for i := (s.warm + s.every - 1) / s.every * s.every; i < s.total && ctx.Err() == nil; i += s.every {
		due := s.due(i)
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(due)):
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				c, err := reader.Count(ctx, s.key(i), due)
				t := time.Since(due)
				if err == nil && c.N == 0 && t < 10*time.Second {
					time.Sleep(200 * time.Microsecond)
					continue
				}
				if err == nil && c.N != 1 {
					err = fmt.Errorf("%s: count %d after %v, must be 1", s.key(i), c.N, t)
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					failed = err
				} else {
					took = append(took, t)
				}
				return
			}
		})
	}
	wg.Wait()
	if failed == nil && len(took) == 0 {
		failed = fmt.Errorf("no probe was seen")
	}
	return took, failed
}
