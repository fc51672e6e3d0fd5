package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
)

// A cluster is what a Source is tested on, a fake one or a real one.
type cluster struct {
	brokers []string
	fake    *kfake.Cluster // nil: a real one
}

func fakeCluster(t testing.TB, opts ...kfake.Opt) cluster {
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1), kfake.AllowAutoTopicCreation()}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return cluster{c.ListenAddrs(), c}
}

// client returns a client of another make, which writes what a Source reads.
func (c cluster) client(t testing.TB, opts ...kgo.Opt) *kgo.Client {
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(c.brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
	}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(cl.Close)
	return cl
}

func newTopic() string { return fmt.Sprintf("source-test-%x", rand.Uint64()) }

// create makes a topic of its own; configs are names and values.
func (c cluster) create(t testing.TB, partitions int32, configs ...string) string {
	topic := newTopic()
	c.createAs(t, topic, partitions, configs...)
	return topic
}

func (c cluster) createAs(t testing.TB, topic string, partitions int32, configs ...string) {
	req := kmsg.NewPtrCreateTopicsRequest()
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = topic, partitions, 1
	for kv := range slices.Chunk(configs, 2) {
		rt.Configs = append(rt.Configs, kmsg.CreateTopicsRequestTopicConfig{Name: kv[0], Value: &kv[1]})
	}
	req.Topics = append(req.Topics, rt)
	req.TimeoutMillis = 10000
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	require.Zero(t, res.Topics[0].ErrorCode)
	c.awaitPartitions(t, topic, res.Topics[0].TopicID, int(partitions))
}

func (c cluster) delete(t testing.TB, topic string) {
	req := kmsg.NewPtrDeleteTopicsRequest()
	req.TopicNames = []string{topic}
	req.Topics = []kmsg.DeleteTopicsRequestTopic{{Topic: &topic}}
	req.TimeoutMillis = 10000
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	require.Zero(t, res.Topics[0].ErrorCode)
	c.everywhere(t, topic, func(_ int32, found kmsg.MetadataResponseTopic) bool {
		return found.ErrorCode == codeUnknownTopic
	})
}

// everywhere waits until what each broker says of a topic is as it should be. A
// controller that has created or deleted one answers before the brokers, and
// they before they act on it.
func (c cluster) everywhere(t testing.TB, topic string, settled func(broker int32, found kmsg.MetadataResponseTopic) bool) {
	t.Helper()
	cl := c.client(t)
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
	all, err := req.RequestWith(t.Context(), cl)
	require.NoError(t, err)
	for _, b := range all.Brokers {
		require.Eventually(t, func() bool {
			res, err := cl.Broker(int(b.NodeID)).RetriableRequest(t.Context(), req)
			return err == nil && settled(b.NodeID, res.(*kmsg.MetadataResponse).Topics[0])
		}, 20*time.Second, 10*time.Millisecond, "%s on broker %d", topic, b.NodeID)
	}
}

// awaitPartitions waits until every broker knows the topic by this id, which may
// be zero for any, and with so many partitions, and the leaders of these have a
// log.
func (c cluster) awaitPartitions(t testing.TB, topic string, id topicID, partitions int) {
	t.Helper()
	cl := c.client(t)
	c.everywhere(t, topic, func(broker int32, found kmsg.MetadataResponseTopic) bool {
		if found.ErrorCode != 0 || id != (topicID{}) && found.TopicID != id || len(found.Partitions) != partitions {
			return false
		}
		req := kmsg.NewPtrListOffsetsRequest()
		req.ReplicaID = -1
		rt := kmsg.ListOffsetsRequestTopic{Topic: topic}
		for _, p := range found.Partitions {
			switch p.Leader {
			case -1:
				return false
			case broker:
				rt.Partitions = append(rt.Partitions, kmsg.ListOffsetsRequestTopicPartition{
					Partition: p.Partition, CurrentLeaderEpoch: p.LeaderEpoch, Timestamp: earliest,
				})
			}
		}
		if req.Topics = append(req.Topics, rt); len(rt.Partitions) == 0 {
			return true
		}
		res, err := cl.Broker(int(broker)).RetriableRequest(t.Context(), req)
		return err == nil && !slices.ContainsFunc(res.(*kmsg.ListOffsetsResponse).Topics[0].Partitions,
			func(p kmsg.ListOffsetsResponseTopicPartition) bool { return p.ErrorCode != 0 })
	})
}

// topics returns the names of those that there are.
func (c cluster) topics(t testing.TB) (names []string) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = nil // all
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	for _, topic := range res.Topics {
		names = append(names, *topic.Topic)
	}
	return names
}

// deleteBefore is what retention does.
func (c cluster) deleteBefore(t testing.TB, topic string, partition int32, offset int64) {
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 10000
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Partition: partition, Offset: offset}}}}
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	require.Zero(t, res.Topics[0].Partitions[0].ErrorCode)
}

func (c cluster) grow(t testing.TB, topic string, partitions int32) {
	req := kmsg.NewPtrCreatePartitionsRequest()
	req.Topics = []kmsg.CreatePartitionsRequestTopic{{Topic: topic, Count: partitions}}
	req.TimeoutMillis = 10000
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	require.Zero(t, res.Topics[0].ErrorCode)
	c.awaitPartitions(t, topic, topicID{}, int(partitions))
}

// produce writes one batch and returns the offset of its first record.
func produce(t testing.TB, cl *kgo.Client, topic string, partition int32, values ...string) int64 {
	var records []*kgo.Record
	for _, v := range values {
		r := &kgo.Record{Topic: topic, Partition: partition, Value: []byte(v)}
		if v == "" {
			r.Value = nil
		}
		records = append(records, r)
	}
	require.NoError(t, cl.ProduceSync(t.Context(), records...).FirstErr())
	return records[0].Offset
}

func numbered(prefix string, n int) (values []string) {
	for i := range n {
		values = append(values, fmt.Sprintf("%s%d", prefix, i))
	}
	return values
}

// lengths counts records by how long they are, for those that are no keys.
func lengths(dst []tumble.Event, m Message) ([]tumble.Event, error) {
	return append(dst, tumble.Event{Key: fmt.Sprint(len(m.Value)), Time: m.Time}), nil
}

// plainDecode makes an event of each value: its key, at the record's time. "bad..."
// is rejected; "n*..." gives as many events as n has bytes; "none" gives none.
func plainDecode(dst []tumble.Event, m Message) ([]tumble.Event, error) {
	v := string(m.Value)
	times, rest, many := strings.Cut(v, "*")
	switch {
	case strings.HasPrefix(v, "bad"):
		return append(dst, tumble.Event{Key: "never seen"}), errors.New("bad value")
	case v == "none":
		return dst, nil
	case many:
		for range times {
			dst = append(dst, tumble.Event{Key: rest, Time: m.Time})
		}
		return dst, nil
	}
	return append(dst, tumble.Event{Key: v, Time: m.Time}), nil
}

// config reads the partitions listed, all if none is, with plainDecode.
func (c cluster) config(topic string, partitions ...int32) Config {
	return Config{Brokers: c.brokers, Topic: topic, Partitions: partitions, Decode: plainDecode, Logger: slog.New(slog.DiscardHandler)}
}

// unplaced is the position of an offset of which the epoch is not known.
func unplaced(offset int64) tumble.Position { return tumble.Position{Offset: offset, Epoch: -1} }

// A seen event does not borrow.
type seen struct {
	id     string
	offset int64
	key    string
	at     int64
}

// A tail is what a Source gave to a plain consumer.
type tail struct {
	mu                sync.Mutex
	events            []seen
	rejected, skipped int64
	next              map[string]int64
	caught            map[string]bool
	waits             map[string]string // as the last Chunk said
	err               error             // the last transient one

	cancel context.CancelFunc
	done   chan error
}

// follow runs a Source as a pipeline does that flushes in no time: positions of
// the start come from stored, others from Partitions.
func follow(t testing.TB, cfg Config, stored map[string]tumble.Checkpoint) *tail {
	s, err := New(cfg)
	require.NoError(t, err)
	return followSource(t, s, stored)
}

func followSource(t testing.TB, s *Source, stored map[string]tumble.Checkpoint) *tail {
	ctx, cancel := context.WithCancel(t.Context())
	tl := &tail{next: map[string]int64{}, caught: map[string]bool{}, waits: map[string]string{}, cancel: cancel, done: make(chan error, 1)}
	start, err := s.Partitions(ctx, stored)
	require.NoError(t, err)
	for id, c := range stored {
		start[id] = c
	}
	go func() {
		tl.done <- s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
			tl.mu.Lock()
			from, ok := start[p.ID()]
			tl.mu.Unlock()
			if !ok { // one that was added
				more, err := s.Partitions(ctx, stored)
				if err != nil {
					return err
				}
				from = more[p.ID()]
			}
			return tl.consume(ctx, p, from)
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-tl.done:
		case <-time.After(10 * time.Second):
			t.Error("Run does not return")
		}
		// An answer that nobody waits for is given back when it has come.
		deadline := time.Now().Add(10 * time.Second)
		for s.pool.used.Load() != 0 && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		if u := s.pool.used.Load(); u != 0 {
			t.Errorf("%d bytes of buffers were not given back", u)
		}
	})
	return tl
}

func (tl *tail) consume(ctx context.Context, p tumble.Partition, at tumble.Checkpoint) error {
	var err error
	resume := true
	for {
		if resume {
			if at, err = p.Resume(ctx, at); errors.Is(err, tumble.ErrUnavailable) {
				continue
			} else if ctx.Err() != nil {
				return nil
			} else if err != nil {
				return err
			}
			resume = false
			tl.mu.Lock()
			tl.next[p.ID()] = at.Offset
			tl.mu.Unlock()
		}
		c, err := p.Fetch(ctx, tumble.Position{Offset: at.Offset, Epoch: at.Epoch})
		switch {
		case ctx.Err() != nil:
			return nil
		case err == io.EOF:
			return nil
		case errors.Is(err, tumble.ErrOffsetOutOfRange), errors.Is(err, tumble.ErrTruncated):
			resume = true
			continue
		case err != nil:
			tl.mu.Lock()
			tl.err = err
			tl.mu.Unlock()
			time.Sleep(20 * time.Millisecond)
			continue
		}
		tl.mu.Lock()
		for _, e := range c.Events {
			if e.Offset < at.Offset || e.Offset >= c.Next {
				tl.mu.Unlock()
				return fmt.Errorf("event at offset %d in a chunk from %d to %d", e.Offset, at.Offset, c.Next)
			}
			tl.events = append(tl.events, seen{p.ID(), e.Offset, strings.Clone(e.Key), e.Time.UnixMilli()})
		}
		tl.rejected += c.Rejected
		tl.skipped += c.Skipped
		if c.Next > at.Offset {
			at.Offset, at.Epoch = c.Next, c.Epoch
		}
		tl.next[p.ID()] = c.Next
		tl.caught[p.ID()] = c.End >= 0 && c.Next >= c.End
		tl.waits[p.ID()] = c.Waits
		tl.mu.Unlock()
		p.(tumble.Committer).Committed(c.Next)
	}
}

func (tl *tail) snapshot() []seen {
	tl.mu.Lock()
	defer tl.mu.Unlock()
	all := slices.Clone(tl.events)
	slices.SortStableFunc(all, func(a, b seen) int {
		return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.offset, b.offset))
	})
	return all
}

func (tl *tail) keys() (keys []string) {
	for _, e := range tl.snapshot() {
		keys = append(keys, e.key)
	}
	return keys
}

func (tl *tail) trouble() error {
	tl.mu.Lock()
	defer tl.mu.Unlock()
	return tl.err
}

// await waits for n events.
func (tl *tail) await(t testing.TB, n int) []seen {
	t.Helper()
	require.Eventually(t, func() bool {
		tl.mu.Lock()
		defer tl.mu.Unlock()
		return len(tl.events) >= n
	}, 10*time.Second, time.Millisecond, "%d events", n)
	return tl.snapshot()
}

// awaitWaits waits until partition id says that it waits for something that begins so.
func (tl *tail) awaitWaits(t testing.TB, id, prefix string) {
	t.Helper()
	require.Eventually(t, func() bool {
		tl.mu.Lock()
		defer tl.mu.Unlock()
		return strings.HasPrefix(tl.waits[id], prefix) && (prefix != "") == (tl.waits[id] != "")
	}, 20*time.Second, time.Millisecond, "waits for %q", prefix)
}

func (tl *tail) stop(t testing.TB) {
	t.Helper()
	tl.cancel()
	select {
	case err := <-tl.done:
		require.NoError(t, err)
		tl.done <- nil
	case <-time.After(5 * time.Second):
		t.Fatal("Run does not return")
	}
}

// whole reads the topic to its end.
func whole(t testing.TB, cfg Config) *tail {
	t.Helper()
	cfg.UntilEnd = true
	tl := follow(t, cfg, nil)
	tl.end(t)
	return tl
}

// end waits for Run to return of its own accord.
func (tl *tail) end(t testing.TB) {
	t.Helper()
	err := tl.result(t)
	require.NoError(t, err)
}

func (tl *tail) result(t testing.TB) error {
	t.Helper()
	select {
	case err := <-tl.done:
		tl.done <- err
		return err
	case <-time.After(20 * time.Second):
		require.FailNow(t, "Run does not return", "last error: %v", tl.trouble())
		return nil
	}
}
