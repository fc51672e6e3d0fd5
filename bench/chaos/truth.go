package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// A truth is what a plain loop over the topic finds. It reads with another
// client and decodes with another parser than the library does.
type truth struct {
	window time.Duration

	mu         sync.Mutex
	names      []string // of keys
	index      map[string]int32
	shard      []uint8           // of keys
	partitions map[int32][]event // by offset
	next       map[int32]int64   // beyond the last record
	records    int64
	rejected   int64 // records that are no events
	skipped    int64 // tombstones
}

// longestKey is the length of the longest key that counts, in bytes.
const longestKey = 1024

type event struct {
	offset int64
	start  int64 // of its window, in milliseconds
	key    int32
}

// A count is named by its window and key.
type count struct {
	start int64
	key   string
}

func newTruth(window time.Duration) *truth {
	return &truth{window: window, index: map[string]int32{}, partitions: map[int32][]event{}, next: map[int32]int64{}}
}

// read reads the topic from its start until ctx ends or, if ends are given, up
// to these.
func (t *truth) read(ctx context.Context, brokers []string, topic string, ends map[int32]int64) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(brokers...),
		kgo.ConsumeTopics(topic),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // to see the end of what they end
		kgo.MetadataMaxAge(time.Second),
		kgo.MetadataMinAge(200*time.Millisecond),
		kgo.FetchMaxWait(200*time.Millisecond),
	)
	if err != nil {
		return err
	}
	defer client.Close()
	for ctx.Err() == nil && (ends == nil || !t.reached(ends)) {
		fetched := client.PollFetches(ctx)
		t.mu.Lock()
		fetched.EachRecord(t.add)
		t.mu.Unlock()
	}
	return ctx.Err()
}

func (t *truth) add(r *kgo.Record) {
	if r.Offset < t.next[r.Partition] {
		panic(fmt.Sprintf("partition %d: offset %d after %d", r.Partition, r.Offset, t.next[r.Partition]))
	}
	t.next[r.Partition] = r.Offset + 1
	if r.Attrs.IsControl() {
		return
	}
	t.records++
	if r.Value == nil {
		t.skipped++
		return
	}
	var click struct {
		User *string `json:"user_id"`
		Time *string `json:"timestamp"`
	}
	if json.Unmarshal(r.Value, &click) != nil || click.User == nil || *click.User == "" || len(*click.User) > longestKey || click.Time == nil {
		t.rejected++
		return
	}
	at, err := time.Parse(time.RFC3339, *click.Time)
	if err != nil {
		t.rejected++
		return
	}
	key, known := t.index[*click.User]
	if !known {
		key = int32(len(t.names))
		t.index[*click.User] = key
		t.names = append(t.names, *click.User)
		t.shard = append(t.shard, uint8(shardAmong(*click.User, shards)))
	}
	start := at.UnixMilli()
	start -= start % t.window.Milliseconds()
	t.partitions[r.Partition] = append(t.partitions[r.Partition], event{r.Offset, start, key})
}

// reached reports whether all up to these offsets was read.
func (t *truth) reached(ends map[int32]int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for partition, end := range ends {
		if t.next[partition] < end {
			return false
		}
	}
	return true
}

// ends returns how far it has come.
func (t *truth) ends() map[int32]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	ends := make(map[int32]int64, len(t.next))
	for partition, next := range t.next {
		ends[partition] = next
	}
	return ends
}

// counts returns what each shard must hold whose counts reach up to the given
// offsets, by partition.
func (t *truth) counts(upTo []map[int32]int64) []map[count]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	type cell struct {
		start int64
		key   int32
	}
	// The number of shards divides the largest one.
	shard := func(key int32) int { return int(t.shard[key]) % len(upTo) }
	cells := map[cell]int64{}
	for partition, events := range t.partitions {
		for _, e := range events {
			if e.offset < upTo[shard(e.key)][partition] {
				cells[cell{e.start, e.key}]++
			}
		}
	}
	all := make([]map[count]int64, len(upTo))
	for i := range all {
		all[i] = map[count]int64{}
	}
	for c, n := range cells {
		all[shard(c.key)][count{c.start, t.names[c.key]}] = n
	}
	return all
}
