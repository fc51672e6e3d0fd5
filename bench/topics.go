package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A topic holds the first clicks of a stream.
type topic struct {
	kind   string // plain, zstd, small
	clicks clicks
	n      int // how many of them
	parts  int // partitions
}

func (t topic) name() string {
	return fmt.Sprintf("clicks-%d-of-%d-by-%d-seed-%d-%s-%d", t.n, t.clicks.n, t.clicks.users, t.clicks.seed, t.kind, t.parts)
}

// write writes t unless it is there.
func (t topic) write(ctx context.Context, broker string) error {
	codec, batch := kgo.NoCompression(), int32(16<<10)
	switch t.kind {
	case "zstd":
		codec = kgo.ZstdCompression()
	case "small":
		batch = 1150 // about ten records
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(broker), kgo.DefaultProduceTopic(t.name()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchCompression(codec),
		kgo.ProducerBatchMaxBytes(batch), kgo.ProducerLinger(50*time.Millisecond), kgo.MaxBufferedRecords(40_000))
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	found, err := t.length(ctx, admin)
	if err != nil || found == t.n {
		return err
	}
	if found > 0 { // a run was stopped while it wrote
		if err := t.remove(ctx, admin); err != nil {
			return err
		}
	}
	if _, err := admin.CreateTopic(ctx, int32(t.parts), 1, nil, t.name()); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create topic %s: %w", t.name(), err)
	}
	fmt.Fprintf(os.Stderr, "bench: writing %s\n", t.name())
	failed := make(chan error, 1)
	promise := func(_ *kgo.Record, err error) {
		if err != nil {
			select {
			case failed <- err:
			default:
			}
		}
	}
	for i, k := range t.clicks.all() {
		if i == t.n {
			break
		}
		name := userName(k.user)
		client.Produce(ctx, &kgo.Record{
			Key:       []byte(name),
			Value:     k.appendJSON(make([]byte, 0, 96)),
			Partition: int32(k.user % t.parts),
			Timestamp: k.at,
		}, promise)
	}
	if err := client.Flush(ctx); err != nil {
		return err
	}
	select {
	case err := <-failed:
		return fmt.Errorf("write %s: %w", t.name(), err)
	default:
	}
	if found, err = t.length(ctx, admin); err == nil && found != t.n {
		err = fmt.Errorf("topic %s holds %d records, not %d", t.name(), found, t.n)
	}
	return err
}

// writeLines writes the values of t to a file, a line each.
func (t topic) writeLines(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	out, line := bufio.NewWriterSize(file, 1<<20), []byte(nil)
	for i, k := range t.clicks.all() {
		if i == t.n {
			break
		}
		line = append(k.appendJSON(line[:0]), '\n')
		_, _ = out.Write(line) // Flush tells
	}
	return errors.Join(out.Flush(), file.Close())
}

// remake writes t afresh: it may hold what is not of t.
func (t topic) remake(ctx context.Context, broker string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	found, err := t.length(ctx, admin)
	if err == nil && found > 0 {
		err = t.remove(ctx, admin)
	}
	if err != nil {
		return err
	}
	return t.write(ctx, broker)
}

// remove deletes the topic, and waits until it is gone.
func (t topic) remove(ctx context.Context, admin *kadm.Client) error {
	if _, err := admin.DeleteTopic(ctx, t.name()); err != nil {
		return fmt.Errorf("delete topic %s: %w", t.name(), err)
	}
	for {
		if found, err := t.length(ctx, admin); err != nil || found == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// length is how many records the topic holds, 0 if there is none.
func (t topic) length(ctx context.Context, admin *kadm.Client) (int, error) {
	offsets, err := admin.ListEndOffsets(ctx, t.name())
	if err != nil {
		return 0, err
	}
	n := 0
	for _, p := range offsets[t.name()] {
		if errors.Is(p.Err, kerr.UnknownTopicOrPartition) {
			return 0, nil
		}
		if p.Err != nil {
			return 0, p.Err
		}
		n += int(p.Offset)
	}
	return n, nil
}

// kinds of topics, and what they are called in the table.
var kinds = []string{"plain", "zstd", "small"}

func checkKinds(list string) ([]string, error) {
	chosen := strings.Split(list, ",")
	for _, k := range chosen {
		if k != "plain" && k != "zstd" && k != "small" {
			return nil, fmt.Errorf("-topics: %q is none of %s", k, strings.Join(kinds, ", "))
		}
	}
	return chosen, nil
}
