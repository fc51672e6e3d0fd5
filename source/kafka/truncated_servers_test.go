//go:build servers

package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/sourcetest"
)

// startBroker starts a cluster of one broker.
func startBroker(t testing.TB) (cluster, *broker) {
	controller, dir := freeAddr(t), t.TempDir()
	b := &broker{id: 1, addr: freeAddr(t), properties: filepath.Join(dir, "server.properties")}
	lines := []string{
		"process.roles=broker,controller", "node.id=1", "controller.quorum.voters=1@" + controller,
		"listeners=PLAINTEXT://" + b.addr + ",CONTROLLER://" + controller, "advertised.listeners=PLAINTEXT://" + b.addr,
		"controller.listener.names=CONTROLLER", "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"log.dirs=" + filepath.Join(dir, "log"), "log.retention.ms=-1", "group.initial.rebalance.delay.ms=0",
		"broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500",
	}
	require.NoError(t, os.WriteFile(b.properties, []byte(strings.Join(lines, "\n")), 0o600))
	var err error
	b.log, err = os.Create(filepath.Join(dir, "output"))
	require.NoError(t, err)
	t.Cleanup(func() {
		b.kill()
		if t.Failed() {
			text, _ := os.ReadFile(b.log.Name())
			t.Logf("broker:\n%s", text[max(0, len(text)-600):])
		}
		b.log.Close()
	})
	format := exec.CommandContext(t.Context(), "java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", jars(t),
		"kafka.tools.StorageTool", "format", "-t", "dHVtYmxlLXRlc3RzLTAwMw", "-c", b.properties)
	format.Stdout, format.Stderr = b.log, b.log
	require.NoError(t, format.Run())
	c := cluster{brokers: []string{b.addr}}
	b.up(t, c, 0)
	return c, b
}

// up starts the broker, and waits until it leads the partitions of topics, so
// many each.
func (b *broker) up(t testing.TB, c cluster, partitions int, topics ...string) {
	require.NoError(t, b.start(jars(t)))
	cl := c.client(t)
	require.Eventually(t, func() bool { return cl.Ping(t.Context()) == nil }, patience, 50*time.Millisecond)
	for _, topic := range topics {
		c.awaitPartitions(t, topic, topicID{}, partitions)
	}
}

// cut is what a power loss does to a log whose end was not on the disk yet: the
// broker, which has been killed, loses the batch at an offset and what follows.
func (b *broker) cut(t testing.TB, topic string, offset int64) {
	dir := filepath.Join(filepath.Dir(b.properties), "log", topic+"-0")
	name := filepath.Join(dir, fmt.Sprintf("%020d.log", 0))
	raw, err := os.ReadFile(name)
	require.NoError(t, err)
	at := 0
	for at < len(raw) && int64(binary.BigEndian.Uint64(raw[at:])) != offset {
		size, ok := batchSize(raw[at:])
		require.True(t, ok)
		at += size
	}
	require.Less(t, at, len(raw), "%s has no batch at offset %d", name, offset)
	require.NoError(t, os.Truncate(name, int64(at)))
	for _, ext := range []string{"index", "timeindex", "snapshot"} {
		stale, err := filepath.Glob(filepath.Join(dir, "*."+ext))
		require.NoError(t, err)
		for _, f := range stale {
			require.NoError(t, os.Remove(f))
		}
	}
}

// batches writes n batches of ten records each.
func batches(t testing.TB, cl *kgo.Client, topic, prefix string, n int) {
	for i := range n {
		produce(t, cl, topic, 0, numbered(fmt.Sprintf("%s%d.", prefix, i), 10)...)
	}
}

// askEpochs asks the broker directly: for the end of an epoch, and for records at
// an offset after it.
func askEpochs(t testing.TB, c cluster, topic string, current, epoch int32, offset int64) (kmsg.OffsetForLeaderEpochResponseTopicPartition, kmsg.FetchResponseTopicPartition) {
	cl := c.client(t)
	ends := kmsg.NewPtrOffsetForLeaderEpochRequest()
	ends.ReplicaID = -1
	ends.Topics = []kmsg.OffsetForLeaderEpochRequestTopic{{Topic: topic, Partitions: []kmsg.OffsetForLeaderEpochRequestTopicPartition{{CurrentLeaderEpoch: current, LeaderEpoch: epoch}}}}
	end, err := cl.Broker(1).RetriableRequest(t.Context(), ends)
	require.NoError(t, err)
	fetch := kmsg.NewPtrFetchRequest()
	fetch.ReplicaID, fetch.MaxBytes, fetch.SessionEpoch = -1, 1<<20, -1
	part := kmsg.NewFetchRequestTopicPartition()
	part.CurrentLeaderEpoch, part.FetchOffset, part.LastFetchedEpoch, part.PartitionMaxBytes = current, offset, epoch, 1<<20
	_, id := c.leaderEpoch(t, topic)
	fetch.Topics = []kmsg.FetchRequestTopic{{Topic: topic, TopicID: id, Partitions: []kmsg.FetchRequestTopicPartition{part}}}
	got, err := cl.Broker(1).RetriableRequest(t.Context(), fetch)
	require.NoError(t, err)
	return end.(*kmsg.OffsetForLeaderEpochResponse).Topics[0].Partitions[0], got.(*kmsg.FetchResponse).Topics[0].Partitions[0]
}

func (c cluster) leaderEpoch(t testing.TB, topic string) (int32, topicID) {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	return res.Topics[0].Partitions[0].LeaderEpoch, res.Topics[0].TopicID
}

// reading runs a Source and calls f with its partition 0.
func reading(t testing.TB, cfg Config, f func(ctx context.Context, p tumble.Partition)) {
	s, err := New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		defer cancel()
		f(ctx, p)
		return nil
	}))
}

// awaitRejected waits until n records were rejected.
func (tl *tail) awaitRejected(t testing.TB, n int64) {
	require.Eventually(t, func() bool {
		tl.mu.Lock()
		defer tl.mu.Unlock()
		return tl.rejected >= n
	}, 10*time.Second, 5*time.Millisecond)
}

// A cutLog is a topic whose log is truncated.
type cutLog struct {
	topic string
	at    int64 // where
	begin tumble.Checkpoint
	old   []seen // before
	now   []seen // after, and after more was written
}

// stored is a checkpoint of its partition.
func (l *cutLog) stored(offset int64, epoch int32) tumble.Checkpoint {
	at := l.begin
	at.Offset, at.Epoch, at.Watermark = offset, epoch, time.Unix(1_700_000_000, 0).UTC()
	return at
}

// epochOf is the epoch of the record before an offset, of old.
func epochOf(offset int64, second int32) int32 {
	if offset <= 50 {
		return 0
	}
	return second
}

// A broker that crashes and loses the end of its logs, which grow past where
// they ended: each is written in two epochs, cut, and written in a third one.
func TestTruncatedOnRealBroker(t *testing.T) {
	c, b := startBroker(t)
	logs := map[string]*cutLog{
		"inside an epoch":     {at: 80},
		"between two epochs":  {at: 50},
		"inside the first":    {at: 30},
		"at its beginning":    {at: 0},
		"recreated before":    {at: 80},
		"read, fails":         {at: 70},
		"read, goes on":       {at: 70},
		"read ahead":          {at: 70},
		"read ahead too far":  {at: 20},
		"two lanes":           {at: 60},
		"two lanes, fails":    {at: 60},
		"counted, fails":      {at: 70},
		"counted, goes on":    {at: 70},
		"not cut, two epochs": {at: 100},
	}
	var topics []string
	for name, l := range logs {
		l.topic = c.create(t, 1)
		if name == "recreated before" {
			batches(t, c.client(t), l.topic, "gone", 1)
			l.begin = whole0(t, c.config(l.topic, 0))
			c.delete(t, l.topic)
			c.createAs(t, l.topic, 1)
		}
		topics = append(topics, l.topic)
	}
	first := c.client(t)
	for _, l := range logs {
		batches(t, first, l.topic, "a", 5)
	}
	b.kill()
	b.up(t, c, 1, topics...)
	again := c.client(t)
	for name, l := range logs {
		batches(t, again, l.topic, "b", 5)
		l.old = whole(t, c.config(l.topic, 0)).snapshot()
		require.Len(t, l.old, 100)
		rebased := l.begin
		l.begin = whole0(t, c.config(l.topic, 0))
		if name == "recreated before" {
			cfg := c.config(l.topic, 0)
			cfg.OnRecreated = GoOn
			reading(t, cfg, func(ctx context.Context, p tumble.Partition) {
				to, err := p.Resume(ctx, rebased)
				require.NoError(t, err)
				require.Equal(t, l.begin, to)
			})
		}
	}
	second, _ := c.leaderEpoch(t, logs["two lanes"].topic)

	// Nothing but records that are rejected: each is told of once.
	rejects := c.create(t, 1)
	batches(t, again, rejects, "bad", 10)
	cfg := c.config(rejects, 0)
	cfg.OnTruncated = GoOn
	rejecting := follow(t, cfg, nil)
	// A log that does not grow again, to be read up to the end that it had.
	ends := c.create(t, 1)
	batches(t, again, ends, "a", 10)
	cfg = c.config(ends, 0)
	cfg.UntilEnd = true
	untilEnd, err := New(cfg)
	require.NoError(t, err)
	_, err = untilEnd.Partitions(t.Context(), nil)
	require.NoError(t, err)
	topics = append(topics, rejects, ends)

	fails := follow(t, c.config(logs["read, fails"].topic, 0), nil)
	cfg = c.config(logs["read, goes on"].topic, 0)
	cfg.OnTruncated = GoOn
	goesOn := follow(t, cfg, nil)
	fails.await(t, 100)
	goesOn.await(t, 100)
	rejecting.awaitRejected(t, 100)
	begin := tumble.Checkpoint{}
	countedFails := startLanes(t, c, logs["counted, fails"], func(cfg *Config) {}, begin, begin)
	countedGoesOn := startLanes(t, c, logs["counted, goes on"], func(cfg *Config) { cfg.OnTruncated = GoOn }, begin, begin)
	countedFails.await(t, 100)
	countedGoesOn.await(t, 100)
	ahead := readAhead(t, c, logs["read ahead"])
	tooFar := readAhead(t, c, logs["read ahead too far"])

	b.kill()
	for _, l := range logs {
		if l.at < 100 {
			b.cut(t, l.topic, l.at)
		}
	}
	b.cut(t, rejects, 40)
	b.cut(t, ends, 40)
	b.up(t, c, 1, topics...)
	third := c.client(t)
	batches(t, third, rejects, "bad", 9)
	for _, l := range logs {
		batches(t, third, l.topic, "c", 9)
		l.now = whole(t, c.config(l.topic, 0)).snapshot()
		require.Len(t, l.now, int(l.at)+90)
		require.Equal(t, l.old[:l.at], l.now[:l.at])
	}

	t.Run("what the broker says", func(t *testing.T) { brokerSays(t, c, logs["inside the first"], second) })
	t.Run("everywhere", func(t *testing.T) {
		for _, name := range []string{"inside an epoch", "between two epochs", "inside the first", "at its beginning", "recreated before", "not cut, two epochs"} {
			for _, policy := range []Policy{Fail, GoOn} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					logs[name].everywhere(t, c, second, policy)
				})
			}
		}
	})
	t.Run("read, fails", func(t *testing.T) {
		l := logs["read, fails"]
		err := fails.result(t)
		require.ErrorContains(t, err, fmt.Sprintf("kafka: %s/0@100: the log was truncated at offset 70, where epoch %d ends now", l.topic, second))
		require.Equal(t, l.old, fails.snapshot())
	})
	t.Run("read, goes on", func(t *testing.T) {
		l := logs["read, goes on"]
		goesOn.await(t, 190)
		want := append(slices.Clone(l.old), l.now[70:]...)
		slices.SortStableFunc(want, func(a, b seen) int { return int(a.offset - b.offset) })
		require.Equal(t, want, goesOn.snapshot())
		goesOn.stop(t)
	})
	t.Run("rejected", func(t *testing.T) {
		rejecting.awaitRejected(t, 190)
		rejecting.stop(t)
		require.EqualValues(t, 190, rejecting.rejected)
	})
	t.Run("until the end", func(t *testing.T) {
		require.Eventually(t, func() bool { // its connections are those to the broker before
			_, err := untilEnd.Partitions(t.Context(), nil)
			return err == nil
		}, patience, 10*time.Millisecond)
		tl := followSource(t, untilEnd, nil)
		tl.end(t)
		require.Len(t, tl.keys(), 40)
	})
	t.Run("read ahead", func(t *testing.T) {
		got, truncated := ahead()
		require.False(t, truncated)
		require.Equal(t, logs["read ahead"].now[50:], got)
	})
	t.Run("read ahead too far", func(t *testing.T) {
		got, truncated := tooFar()
		require.True(t, truncated, "%v", got)
		require.Empty(t, got)
	})
	t.Run("counted, fails", func(t *testing.T) {
		require.ErrorContains(t, countedFails.result(t), logs["counted, fails"].topic+"/0@100: the log was truncated at offset 70")
		countedFails.requireCounts(t, logs["counted, fails"].old, nil)
	})
	t.Run("counted, goes on", func(t *testing.T) {
		l := logs["counted, goes on"]
		countedGoesOn.await(t, 160)
		countedGoesOn.cancel()
		require.NoError(t, countedGoesOn.result(t))
		countedGoesOn.requireCounts(t, append(slices.Clone(l.old), l.now[70:]...), nil)
		require.EqualValues(t, 30, countedGoesOn.p.Stats().Lost)
	})
	t.Run("two lanes", func(t *testing.T) { twoLanes(t, c, logs["two lanes"], second) })
	t.Run("two lanes, fails", func(t *testing.T) {
		l := logs["two lanes, fails"]
		ln := startLanes(t, c, l, func(cfg *Config) { cfg.UntilEnd = true }, l.stored(40, 0), l.stored(90, second))
		require.ErrorContains(t, ln.result(t), l.topic+"/0@90: the log was truncated at offset 60")
	})
	t.Run("rule", func(t *testing.T) { truncationRule(t, c, b) })
}

// What the decisions are built on: a broker compares the last epoch of a consumer
// too, and more strictly than by the end of the epoch.
func brokerSays(t *testing.T, c cluster, l *cutLog, second int32) {
	leader, _ := c.leaderEpoch(t, l.topic)
	require.Greater(t, leader, second, "a restart must begin an epoch")
	for name, q := range map[string]struct {
		current, epoch int32
		offset         int64
		endOf          int32 // -1: unknown
		end            int64
		code           int16
		diverging      int64 // -1: not
		records        bool
	}{
		"the epoch is not compared":          {leader, -1, 60, -1, -1, 0, -1, true},
		"it is fine":                         {leader, 0, 20, 0, 30, 0, -1, true},
		"it is fine at its end":              {leader, 0, 30, 0, 30, 0, -1, true},
		"it was cut":                         {leader, 0, 50, 0, 30, 0, 30, false},
		"it is gone":                         {leader, second, 100, 0, 30, 0, 30, false},
		"gone, though the end is far enough": {leader, second, 20, 0, 30, 0, 30, false},
		"the leader's own":                   {leader, leader, 60, leader, 120, 0, -1, true},
		"it is to come":                      {leader, leader + 1, 20, -1, -1, codeOffsetOutOfRange, -1, false},
		"another leader":                     {leader - 1, 0, 20, -1, -1, 74, -1, false},
		"a leader to come":                   {leader + 1, 0, 20, -1, -1, 75, -1, false},
	} {
		end, got := askEpochs(t, c, l.topic, q.current, q.epoch, q.offset)
		if q.code != 74 && q.code != 75 {
			require.Zero(t, end.ErrorCode, name)
		} else {
			require.Equal(t, q.code, end.ErrorCode, name)
		}
		require.Equal(t, q.endOf, end.LeaderEpoch, name)
		require.Equal(t, q.end, end.EndOffset, name)
		require.Equal(t, q.code, got.ErrorCode, name)
		require.Equal(t, q.diverging, got.DivergingEpoch.EndOffset, name)
		require.Equal(t, q.records, len(got.RecordBatches) > 0, name)
	}
}

// everywhere resumes at positions all over the log, on both sides of the cut.
func (l *cutLog) everywhere(t *testing.T, c cluster, second int32, policy Policy) {
	cfg := c.config(l.topic, 0)
	cfg.OnTruncated = policy
	reading(t, cfg, func(ctx context.Context, p tumble.Partition) {
		for _, offset := range []int64{0, 25, 30, 45, 50, 55, 80, 85, 100} {
			stored := l.stored(offset, epochOf(offset, second))
			to, err := p.Resume(ctx, stored)
			switch {
			case offset <= l.at:
				require.NoError(t, err)
				require.Equal(t, stored, to)
			case policy == Fail:
				require.ErrorContains(t, err, fmt.Sprintf("kafka: %s/0@%d: the log was truncated at offset %d, where epoch %d ends now", l.topic, offset, l.at, stored.Epoch))
				require.NotErrorIs(t, err, tumble.ErrUnavailable)
				for err = nil; err == nil; {
					var chunk tumble.Chunk
					chunk, err = p.Fetch(ctx, tumble.Position{Offset: offset, Epoch: stored.Epoch})
					require.Equal(t, err == nil, chunk.Next == offset)
				}
				require.ErrorIs(t, err, tumble.ErrTruncated)
				continue
			default:
				require.NoError(t, err)
				epoch := epochOf(l.at, second)
				if l.at == 0 { // before it there is no record
					epoch = stored.Epoch
				}
				require.Equal(t, l.stored(l.at, epoch), to)
			}
			// From there on every record of the log comes, in one epoch a
			// Chunk, and Resume and Fetch agree.
			at := tumble.Position{Offset: to.Offset, Epoch: to.Epoch}
			var got []seen
			for at.Offset < l.at+90 {
				chunk, err := p.Fetch(ctx, at)
				require.NoError(t, err)
				for _, e := range chunk.Events {
					got = append(got, seen{p.ID(), e.Offset, strings.Clone(e.Key), e.Time.UnixMilli()})
				}
				if chunk.Next > at.Offset {
					require.True(t, chunk.Epoch >= at.Epoch && (chunk.Epoch == 0) == (at.Offset < min(50, l.at)), "%v: %v", at, chunk)
					at = tumble.Position{Offset: chunk.Next, Epoch: chunk.Epoch}
				}
			}
			require.Equal(t, l.now[to.Offset:], got)
		}
	})
}

// readAhead fetches the first epoch of a log, while the second is read ahead, and
// returns how to go on once that was found to be gone. Then it reads on to the end
// of the log or until Fetch says that it was truncated.
func readAhead(t *testing.T, c cluster, l *cutLog) (goOn func() (got []seen, truncated bool)) {
	waits, read := make(chan struct{}), make(chan struct{})
	var got []seen
	truncated := false
	done := make(chan struct{})
	go func() {
		defer close(done)
		reading(t, c.config(l.topic, 0), func(ctx context.Context, p tumble.Partition) {
			chunk, err := p.Fetch(ctx, tumble.Position{})
			require.NoError(t, err)
			require.EqualValues(t, 50, chunk.Next)
			require.EqualValues(t, 0, chunk.Epoch)
			at := tumble.Position{Offset: chunk.Next, Epoch: chunk.Epoch}
			require.NotNil(t, p.(*partition).reader.seg)
			close(read)
			<-waits
			require.Eventually(t, p.(*partition).feed.cut.Load, patience, 10*time.Millisecond)
			for at.Offset < l.at+90 && !truncated {
				chunk, err := p.Fetch(ctx, at)
				if truncated = errors.Is(err, tumble.ErrTruncated); err != nil {
					require.NotErrorIs(t, err, tumble.ErrOffsetOutOfRange)
					time.Sleep(10 * time.Millisecond) // connections are those to the broker before
					continue
				}
				for _, e := range chunk.Events {
					got = append(got, seen{p.ID(), e.Offset, strings.Clone(e.Key), e.Time.UnixMilli()})
				}
				at = tumble.Position{Offset: chunk.Next, Epoch: chunk.Epoch}
			}
		})
	}()
	<-read
	return func() ([]seen, bool) {
		close(waits)
		<-done
		return got, truncated
	}
}

// Lanes are a pipeline that counts a log into shards.
type lanes struct {
	p      *tumble.Pipeline
	counts *memory.Sink
	shards []tumble.Shard
	cancel context.CancelFunc
	done   chan error
}

var lanesWindow = tumble.Window{Size: 24 * time.Hour}

// startLanes starts a pipeline with a shard for each checkpoint that is stored
// before; without a log it is none.
func startLanes(t *testing.T, c cluster, l *cutLog, change func(*Config), stored ...tumble.Checkpoint) *lanes {
	cfg := c.config(l.topic, 0)
	change(&cfg)
	s, err := New(cfg)
	require.NoError(t, err)
	ln := &lanes{counts: memory.New(memory.Config{Shards: len(stored)}), done: make(chan error, 1)}
	ln.shards, err = ln.counts.Open(t.Context(), tumble.Definition{Window: lanesWindow})
	require.NoError(t, err)
	for i, at := range stored {
		if at.Log == "" {
			continue
		}
		_, err := ln.shards[i].Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{l.topic + "/0": at}})
		require.NoError(t, err)
	}
	ln.p, err = tumble.New(tumble.Config{Source: s, Sink: ln.counts, Window: lanesWindow, Logger: cfg.Logger})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ln.cancel = cancel
	go func() { ln.done <- ln.p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-ln.done
	})
	return ln
}

// await waits until both shards hold the counts up to an offset.
func (ln *lanes) await(t *testing.T, offset int64) {
	require.Eventually(t, func() bool {
		parts := ln.p.Stats().Partitions
		return len(parts) == 1 && parts[0].Committed == offset
	}, patience, 10*time.Millisecond, "%+v", ln.p.Stats())
}

func (ln *lanes) result(t *testing.T) error {
	select {
	case err := <-ln.done:
		ln.done <- err
		return err
	case <-time.After(patience):
		require.FailNow(t, "it settles for ever", "%+v", ln.p.Stats())
		return nil
	}
}

// requireCounts wants each event counted once, if it is not one of not.
func (ln *lanes) requireCounts(t *testing.T, events []seen, not func(seen) bool) {
	for _, e := range events {
		want := int64(1)
		if not != nil && not(e) {
			want = 0
		}
		got, err := ln.counts.Count(t.Context(), e.key, time.UnixMilli(e.at))
		require.NoError(t, err)
		require.Equal(t, want, got.N, "%+v", e)
	}
	stats := ln.p.Stats()
	require.Equal(t, stats.Read, stats.Counted+stats.Replayed+stats.Pending)
}

// Two lanes stand on both sides of the cut.
func twoLanes(t *testing.T, c cluster, l *cutLog, second int32) {
	ln := startLanes(t, c, l, func(cfg *Config) { cfg.OnTruncated, cfg.UntilEnd = GoOn, true }, l.stored(40, 0), l.stored(90, second))
	require.NoError(t, ln.result(t))
	require.EqualValues(t, 30, ln.p.Stats().Lost)
	ln.requireCounts(t, append(slices.Clone(l.old), l.now[60:]...), func(e seen) bool {
		from := []int64{40, 60}[tumble.Hash(e.key)%2]
		return e.offset < from || l.now[e.offset].key != e.key
	})
	for _, shard := range ln.shards {
		state, err := shard.Load(t.Context(), tumble.LoadRequest{})
		require.NoError(t, err)
		at := state.Checkpoints[l.topic+"/0"]
		require.EqualValues(t, 150, at.Offset)
		require.Greater(t, at.Epoch, second)
		require.Equal(t, l.begin.Log, at.Log)
	}
}

// truncationRule checks the contract of a Source whose log is truncated. The
// other rule that truncates would cost another start of the broker, and is much
// like "read ahead".
func truncationRule(t *testing.T, c cluster, b *broker) {
	plain := c.rulesConfig(t, func(cfg *Config) { cfg.OnTruncated = GoOn })
	cfg := sourcetest.Config{Patience: patience, New: func(ctx context.Context) (*sourcetest.Log, error) {
		l, err := plain.New(ctx)
		if err != nil {
			return nil, err
		}
		topic := strings.TrimSuffix(l.Partitions[0], "/0")
		l.Truncate = func(_ context.Context, id string, at int64) error {
			require.Equal(t, l.Partitions[0], id)
			b.kill()
			b.cut(t, topic, at)
			b.up(t, c, len(l.Partitions), topic)
			return nil
		}
		return l, nil
	}}
	rules := sourcetest.Rules()
	i := slices.IndexFunc(rules, func(r sourcetest.Rule) bool { return r.Name == "Resume/truncated" })
	require.NoError(t, rules[i].Check(t.Context(), cfg))
}
