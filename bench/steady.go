package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
)

// steadyWindow is how long the windows are that steady counts in: each partition stores
// a checkpoint in each shard whenever one closes.
const steadyWindow = 10 * time.Second

// A holding is what it took to hold some partitions for a time.
type holding struct {
	partitions int
	began      time.Duration // from the start of the process until something of each partition was stored
	took       time.Duration
	cpu, redis time.Duration // in that time
	resident   int64         // bytes of the process, at its end
}

// steady measures what a process costs that holds many partitions with little on each:
// an event a second and windows of 10 seconds.
func steady(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("steady", flag.ExitOnError)
	list := f.String("partitions", "100,2000", "`numbers` of partitions, separated by commas")
	lasts := f.Duration("for", 30*time.Second, "`time` to measure")
	warm := f.Duration("warm", 15*time.Second, "`time` before that")
	shards := f.Int("shards", 0, "`number` of shards; 0: the default")
	where := declareServers(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	up, err := where.start(ctx)
	if err != nil {
		return err
	}
	defer up.stop()
	var first *holding
	fmt.Printf("An event a second and partition, windows of %v, %v long.\n\n| partitions | counting after | process, cores | Redis, cores | CPU of both a partition, x the first | resident |\n| --- | --- | --- | --- | --- | --- |\n", steadyWindow, *lasts)
	for word := range strings.SplitSeq(*list, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return fmt.Errorf("-partitions: %q is no number of partitions", word)
		}
		h, err := hold(ctx, up, n, *shards, *warm, *lasts)
		if err != nil {
			return fmt.Errorf("%d partitions: %w", n, err)
		}
		if first == nil {
			first = h
		}
		each := func(h *holding) float64 {
			return (h.cpu + h.redis).Seconds() / h.took.Seconds() / float64(h.partitions)
		}
		fmt.Printf("| %d | %.1f s | %.3f | %.3f | %.2f | %d MB |\n", n, h.began.Seconds(), h.cpu.Seconds()/h.took.Seconds(),
			h.redis.Seconds()/h.took.Seconds(), each(h)/each(first), h.resident>>20)
	}
	return nil
}

// A feed writes the records of a topic.
type feed struct {
	client     *kgo.Client
	topic      string
	partitions int
	written    int64 // belongs to who sends
	failed     chan error
}

// newFeed makes a topic and writes a record to each partition.
func newFeed(ctx context.Context, broker string, partitions int) (*feed, error) {
	topic := fmt.Sprintf("steady-%d-%d", partitions, time.Now().UnixNano())
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(20*time.Millisecond))
	if err != nil {
		return nil, err
	}
	f := &feed{client: client, topic: topic, partitions: partitions, failed: make(chan error, 1)}
	if _, err = kadm.NewClient(client).CreateTopic(ctx, int32(partitions), 1, nil, topic); err == nil {
		for i := range partitions {
			f.send(ctx, i, time.Now())
		}
		err = f.flush(ctx)
	}
	if err != nil {
		f.close(ctx)
		return nil, err
	}
	return f, nil
}

func (f *feed) send(ctx context.Context, i int, at time.Time) {
	value := fmt.Appendf(nil, `{"user_id":%q,"timestamp":%q,"page":"/"}`, userName(i), at.UTC().Format(time.RFC3339Nano))
	f.written++
	f.client.Produce(ctx, &kgo.Record{Value: value, Partition: int32(i % f.partitions)}, func(_ *kgo.Record, err error) {
		if err != nil {
			select {
			case f.failed <- err:
			default:
			}
		}
	})
}

// flush waits until all is written, and returns what went wrong.
func (f *feed) flush(ctx context.Context) error {
	err := f.client.Flush(ctx)
	select {
	case failed := <-f.failed:
		err = errors.Join(err, failed)
	default:
	}
	return err
}

func (f *feed) close(ctx context.Context) {
	_, _ = kadm.NewClient(f.client).DeleteTopic(context.WithoutCancel(ctx), f.topic) // it goes with the servers anyway
	f.client.Close()
}

// hold counts a topic of n partitions in one process, and compares the counts with what
// was written.
func hold(ctx context.Context, up *servers, n, shards int, warm, lasts time.Duration) (*holding, error) {
	if _, err := flush(ctx, up.db); err != nil {
		return nil, err
	}
	fed, err := newFeed(ctx, up.kafka, n)
	if err != nil {
		return nil, err
	}
	defer fed.close(ctx)
	child, err := self(ctx, "contend", "-kafka", up.kafka, "-redis", up.redis, "-topic", fed.topic, "-group", fed.topic, "-follow",
		"-window", steadyWindow.String(), "-shards", strconv.Itoa(shards), "tumble")
	if err != nil {
		return nil, err
	}
	child.Stderr = os.Stderr
	start := time.Now()
	if err := child.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	}()
	reader, closeReader, err := readerOf(up.redis)
	if err != nil {
		return nil, err
	}
	defer closeReader()
	if err := stored(ctx, reader, n, fed.written); err != nil {
		return nil, err
	}
	h := &holding{partitions: n, began: time.Since(start)}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var feeding error
	var wg sync.WaitGroup
	wg.Go(func() {
		s := schedule{start: time.Now(), rate: n, total: int(float64(n) * (warm + lasts).Seconds())}
		feeding = s.run(ctx, func(i int) error { fed.send(ctx, i, s.due(i)); return nil })
	})
	if err = h.watch(ctx, up, child, warm, lasts); err != nil {
		stop()
	}
	wg.Wait()
	if err = errors.Join(err, feeding); err != nil {
		return nil, err
	}
	if err := fed.flush(ctx); err != nil {
		return nil, err
	}
	return h, complete(ctx, reader, n, fed.written, start)
}

// complete waits until so many records are stored, and returns an error if the counts are
// not as many.
func complete(ctx context.Context, r tumble.Reader, partitions int, written int64, start time.Time) error {
	if err := stored(ctx, r, partitions, written); err != nil {
		return err
	}
	totals, err := r.Windows(ctx, start.Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		return err
	}
	var counted int64
	for _, t := range totals {
		counted += t.N
	}
	if counted != written {
		return fmt.Errorf("%d records were written, and %d counted", written, counted)
	}
	return nil
}

// watch measures for a time.
func (h *holding) watch(ctx context.Context, up *servers, child *exec.Cmd, warm, lasts time.Duration) error {
	var before [2]time.Duration
	for i, wait := range []time.Duration{warm, lasts} {
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		used, err := cpuOf(child.Process.Pid)
		if err != nil {
			return err
		}
		use, err := info(ctx, up.db)
		if err != nil {
			return err
		}
		if i == 0 {
			before = [2]time.Duration{used, use.cpu}
			continue
		}
		h.cpu, h.redis, h.took = used-before[0], use.cpu-before[1], lasts
	}
	var err error
	h.resident, err = residentOf(child.Process.Pid)
	return err
}

// stored waits until the stored positions of n partitions add up to so many records.
func stored(ctx context.Context, r tumble.Reader, n int, records int64) error {
	for until := time.Now().Add(2 * time.Minute); ; {
		p, err := r.Progress(ctx)
		if err != nil && !errors.Is(err, tumble.ErrNoDefinition) {
			return err
		}
		var sum int64
		for _, part := range p.Partitions {
			sum += part.Offset
		}
		if len(p.Partitions) == n && sum == records {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("%d records of %d in %d partitions are stored, after two minutes", sum, records, len(p.Partitions))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// residentOf returns the bytes of a process that are in memory.
func residentOf(pid int) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if words := strings.Fields(line); len(words) == 3 && words[0] == "VmRSS:" {
			n, err := strconv.ParseInt(words[1], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status: tells no VmRSS", pid)
}
