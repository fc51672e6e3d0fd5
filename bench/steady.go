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
	"sync/atomic"
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
	events     int64         // in all, each of them stored
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

// hold counts a topic of n partitions in one process, and compares the counts with what
// was written.
func hold(ctx context.Context, up *servers, n, shards int, warm, lasts time.Duration) (*holding, error) {
	if _, err := flush(ctx, up.db); err != nil {
		return nil, err
	}
	topic := fmt.Sprintf("steady-%d-%d", n, time.Now().UnixNano())
	client, err := kgo.NewClient(kgo.SeedBrokers(up.kafka), kgo.DefaultProduceTopic(topic), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(20*time.Millisecond))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	if _, err := admin.CreateTopic(ctx, int32(n), 1, nil, topic); err != nil {
		return nil, err
	}
	defer func() { _, _ = admin.DeleteTopic(context.WithoutCancel(ctx), topic) }()
	var written atomic.Int64
	failed := make(chan error, 1)
	send := func(i int, at time.Time) {
		value := fmt.Appendf(nil, `{"user_id":%q,"timestamp":%q,"page":"/"}`, userName(i), at.UTC().Format(time.RFC3339Nano))
		client.Produce(ctx, &kgo.Record{Value: value, Partition: int32(i % n)}, func(_ *kgo.Record, err error) {
			written.Add(1)
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	for i := range n {
		send(i, time.Now())
	}
	if err := client.Flush(ctx); err != nil {
		return nil, err
	}

	child, err := self(ctx, "contend", "-kafka", up.kafka, "-redis", up.redis, "-topic", topic, "-group", topic, "-follow", "-window", steadyWindow.String(), "-shards", strconv.Itoa(shards), "tumble")
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
	if err := stored(ctx, reader, n, int64(n)); err != nil {
		return nil, err
	}
	h := &holding{partitions: n, began: time.Since(start)}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := schedule{start: time.Now(), rate: n, total: int(float64(n) * (warm + lasts).Seconds())}
	var feeding error
	var wg sync.WaitGroup
	wg.Go(func() {
		feeding = s.run(ctx, func(i int) error { send(i, s.due(i)); return nil })
	})
	err = h.watch(ctx, up, child, warm, lasts)
	if err != nil {
		stop()
	}
	wg.Wait()
	if err = errors.Join(err, feeding); err != nil {
		return nil, err
	}
	if err := client.Flush(ctx); err != nil {
		return nil, err
	}
	select {
	case err := <-failed:
		return nil, err
	default:
	}
	h.events = written.Load()
	if err := stored(ctx, reader, n, h.events); err != nil {
		return nil, err
	}
	totals, err := reader.Windows(ctx, start.Add(-time.Hour), time.Now().Add(time.Hour))
	if err != nil {
		return nil, err
	}
	for _, t := range totals {
		h.events -= t.N
	}
	if h.events != 0 {
		return nil, fmt.Errorf("the counts are %d short of what was written", h.events)
	}
	return h, nil
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
