package kafka

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
)

// runSourceScenarios runs what a Source must do on any cluster, each with a
// topic of its own.
func runSourceScenarios(t *testing.T, c cluster) {
	for name, scenario := range map[string]func(t *testing.T, c cluster){
		"Codecs":         sourceCodecs,
		"Transactions":   sourceTransactions,
		"OpenTxn":        sourceOpenTransaction,
		"AnyOffset":      sourceAnyOffset,
		"Trickle":        sourceTrickle,
		"Quiet":          sourceQuiet,
		"LargeRecords":   sourceLargeRecords,
		"SmallBuffer":    sourceSmallBuffer,
		"Missing":        sourceMissing,
		"Recreated":      sourceRecreated,
		"RecreatedAway":  sourceRecreatedAway,
		"RecreatedIdle":  sourceRecreatedIdle,
		"Gap":            sourceGap,
		"Truncated":      sourceTruncated,
		"GrewSince":      sourceGrewSince,
		"LostToPipeline": sourceLostToPipeline,
		"Latest":         sourceLatest,
		"Growth":         sourceGrowth,
		"Group":          sourceGroup,
		"UntilEnd":       sourceUntilEnd,
		"Rejects":        sourceRejects,
		"Compacted":      sourceCompacted,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scenario(t, c)
		})
	}
}

var franzCodecs = map[string]kgo.CompressionCodec{
	"none": kgo.NoCompression(), "gzip": kgo.GzipCompression(), "snappy": kgo.SnappyCompression(),
	"lz4": kgo.Lz4Compression(), "zstd": kgo.ZstdCompression(),
}

// Every codec of another client, several batches of each, keys, headers and
// timestamps of all kinds.
func sourceCodecs(t *testing.T, c cluster) {
	topic := c.create(t, 1, "retention.ms", "-1") // the records are old
	var want []seen
	for _, name := range codecs {
		cl := c.client(t, kgo.ProducerBatchCompression(franzCodecs[name]))
		for round := range 3 {
			var records []*kgo.Record
			for i := range 200 {
				at := time.UnixMilli(1_700_000_000_000 + rand.Int64N(1e9) - 5e8)
				r := &kgo.Record{Topic: topic, Key: []byte("k"), Timestamp: at,
					Value: fmt.Appendf(nil, "%s-%d-%d-%s", name, round, i, strings.Repeat("x", rand.IntN(300)))}
				if i%3 == 0 {
					r.Key = nil
					r.Headers = []kgo.RecordHeader{{Key: "h", Value: []byte(strings.Repeat("v", rand.IntN(200)))}, {Key: "", Value: nil}}
				}
				records = append(records, r)
			}
			require.NoError(t, cl.ProduceSync(t.Context(), records...).FirstErr())
			for _, r := range records {
				want = append(want, seen{topic + "/0", r.Offset, string(r.Value), r.Timestamp.UnixMilli()})
			}
		}
	}
	requireSame(t, want, whole(t, c.config(topic, 0)).snapshot())
}

// requireSame is require.Equal with a message that can be read.
func requireSame(t *testing.T, want, got []seen) {
	t.Helper()
	for i := range min(len(want), len(got)) {
		require.Equal(t, want[i], got[i], "event %d", i)
	}
	require.Equal(t, len(want), len(got))
}

// Two transactional producers and one without transactions write by turns; what
// is aborted is never seen, what comes after it is.
func sourceTransactions(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	a := c.client(t, kgo.TransactionalID(newTopic()), kgo.ProducerBatchCompression(kgo.Lz4Compression()))
	b := c.client(t, kgo.TransactionalID(newTopic()), kgo.ProducerBatchCompression(kgo.NoCompression()))
	n := c.client(t)
	var want []string
	write := func(cl *kgo.Client, keep bool, values ...string) {
		produce(t, cl, topic, 0, values...)
		if keep {
			want = append(want, values...)
		}
	}
	for i := range 5 {
		p := fmt.Sprint(i, "-")
		require.NoError(t, a.BeginTransaction())
		require.NoError(t, b.BeginTransaction())
		write(a, false, numbered(p+"a-aborted", 3)...)
		write(b, true, numbered(p+"b-committed", 3)...)
		write(n, true, p+"none")
		write(a, false, p+"a-aborted-too")
		require.NoError(t, a.EndTransaction(t.Context(), kgo.TryAbort))
		write(b, true, p+"b-committed-too")
		require.NoError(t, a.BeginTransaction())
		write(a, true, p+"a-committed")
		require.NoError(t, b.EndTransaction(t.Context(), kgo.TryCommit))
		require.NoError(t, a.EndTransaction(t.Context(), kgo.TryCommit))
		require.NoError(t, b.BeginTransaction())
		write(b, false, p+"b-aborted")
		require.NoError(t, b.EndTransaction(t.Context(), kgo.TryAbort))
	}
	tl := whole(t, c.config(topic, 0)) // which ends although markers are the last there is
	require.Equal(t, want, tl.keys())

	// From any offset in the middle, also of an aborted transaction.
	all := tl.snapshot()
	for from := range tl.next[topic+"/0"] {
		cfg := c.config(topic, 0)
		cfg.UntilEnd = true
		start := whole0(t, cfg)
		start.Offset = from
		tl := follow(t, cfg, map[string]tumble.Checkpoint{topic + "/0": start})
		tl.end(t)
		i, _ := slices.BinarySearchFunc(all, from, func(e seen, from int64) int { return int(e.offset - from) })
		requireSame(t, all[i:], tl.snapshot())
	}
}

// whole0 returns the checkpoint at which partition 0 begins.
func whole0(t *testing.T, cfg Config) tumble.Checkpoint {
	s, err := New(cfg)
	require.NoError(t, err)
	all, err := s.Partitions(t.Context(), nil)
	require.NoError(t, err)
	return all[s.id(0)]
}

// What an open transaction wrote, and what lies behind it, is not there yet;
// the partition is not caught up until it is.
func sourceOpenTransaction(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	a, n := c.client(t, kgo.TransactionalID(newTopic())), c.client(t)
	produce(t, n, topic, 0, "before")
	require.NoError(t, a.BeginTransaction())
	produce(t, a, topic, 0, "inside")
	produce(t, n, topic, 0, "behind")
	tl := follow(t, c.config(topic, 0), nil)
	tl.await(t, 1)
	time.Sleep(700 * time.Millisecond)
	tl.mu.Lock()
	require.Empty(t, tl.waits[topic+"/0"], "most transactions are short")
	caught := tl.caught[topic+"/0"]
	tl.mu.Unlock()
	require.False(t, caught)
	require.Equal(t, []string{"before"}, tl.keys())
	tl.awaitWaits(t, topic+"/0", "an open transaction: records from offset 1 on")
	require.NoError(t, a.EndTransaction(t.Context(), kgo.TryCommit))
	tl.await(t, 3)
	tl.awaitWaits(t, topic+"/0", "")
	require.Equal(t, []string{"before", "inside", "behind"}, tl.keys())
}

// Fetch yields the same events from any offset, in any order of asking.
func sourceAnyOffset(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	for _, name := range codecs {
		produce(t, c.client(t, kgo.ProducerBatchCompression(franzCodecs[name])), topic, 0, numbered(name, 40)...)
	}
	total := int64(40 * len(codecs))
	s, err := New(c.config(topic, 0))
	require.NoError(t, err)
	var runs atomic.Int32
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		defer cancel()
		defer runs.Add(1)
		for range 60 {
			from := rand.Int64N(total)
			var got []string
			for next := from; next < from+50 && next < total; {
				c, err := p.Fetch(ctx, unplaced(next))
				if err != nil {
					return err
				}
				for i, e := range c.Events {
					if e.Offset != next+int64(i) {
						return fmt.Errorf("offset %d, not %d", e.Offset, next+int64(i))
					}
					got = append(got, strings.Clone(e.Key))
				}
				next = c.Next
			}
			for i, key := range got {
				at := int(from) + i
				if want := fmt.Sprintf("%s%d", codecs[at/40], at%40); key != want {
					return fmt.Errorf("at %d is %q, not %q", at, key, want)
				}
			}
		}
		return nil
	}))
	require.EqualValues(t, 1, runs.Load())
}

// An event is there a few milliseconds after it was written.
func sourceTrickle(t *testing.T, c cluster) {
	topic := c.create(t, 4)
	cl := c.client(t, kgo.ProducerLinger(0))
	tl := follow(t, c.config(topic), nil)
	produce(t, cl, topic, 0, "warm")
	tl.await(t, 1)
	time.Sleep(settling + 100*time.Millisecond)
	var took []time.Duration
	for i := range 20 {
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		produce(t, cl, topic, int32(i%4), fmt.Sprint(i))
		acked := time.Now()
		tl.await(t, i+2)
		took = append(took, time.Since(acked))
	}
	slices.Sort(took)
	t.Logf("from acknowledged to seen: median %v, largest %v", took[len(took)/2], took[len(took)-1])
	require.Less(t, took[len(took)/2], 30*time.Millisecond)
}

// On an empty log Fetch says twice a second, and not much oftener, that there
// is nothing, and that with ever later times, as long as the broker answers as
// often: on a busy machine some calls may wait longer, or for nothing new.
func sourceQuiet(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	s, err := New(c.config(topic, 0))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		defer cancel()
		var last tumble.Chunk
		var took []time.Duration
		fresh := 0
		for begin := time.Now(); time.Since(begin) < 2*time.Second; {
			asked := time.Now()
			c, err := p.Fetch(ctx, unplaced(0))
			took = append(took, time.Since(asked))
			switch {
			case err != nil:
				return err
			case len(c.Events) != 0 || c.Next != 0:
				return fmt.Errorf("%+v", c)
			case len(took) > 2 && (c.AsOf.Before(last.AsOf) || c.End != 0):
				return fmt.Errorf("%+v follows %+v", c, last)
			case c.AsOf.After(last.AsOf):
				fresh++
			}
			last = c
		}
		slices.Sort(took)
		t.Logf("%d calls, %d with news, median %v, largest %v", len(took), fresh, took[len(took)/2], took[len(took)-1])
		if took[len(took)/2] > 500*time.Millisecond || len(took) > 16 || fresh <= len(took)/2 {
			return fmt.Errorf("of %d calls %d learned something; they took %v", len(took), fresh, took)
		}
		return nil
	}))
}

// Batches larger than a piece, beside small ones in other partitions.
func sourceLargeRecords(t *testing.T, c cluster) {
	topic := c.create(t, 3, "max.message.bytes", "8000000")
	cl := c.client(t, kgo.ProducerBatchCompression(kgo.NoCompression()), kgo.ProducerBatchMaxBytes(7<<20), kgo.BrokerMaxWriteBytes(50<<20))
	want := 0
	for i := range 3 {
		for p := range int32(3) {
			produce(t, cl, topic, p, fmt.Sprint("small", i))
			produce(t, cl, topic, p, strings.Repeat("x", 3_000_000+i))
			want += 2
		}
	}
	cfg := c.config(topic)
	cfg.MaxBuffered = 1 << 20
	cfg.Decode = lengths
	tl := whole(t, cfg)
	require.NoError(t, tl.trouble())
	bytes := 0
	for _, k := range tl.keys() {
		n, err := strconv.Atoi(k)
		require.NoError(t, err)
		bytes += n
	}
	require.Len(t, tl.keys(), want)
	require.Equal(t, 3*(3*3_000_000+3)+9*len("small0"), bytes)

	// What is larger than the limit is an error that says so, and nothing
	// behind it is passed off as read.
	cfg.MaxBatchBytes = 2 << 20
	lost := follow(t, cfg, nil)
	require.Eventually(t, func() bool { return lost.trouble() != nil }, 10*time.Second, 10*time.Millisecond)
	require.ErrorContains(t, lost.trouble(), "MaxBatchBytes")
	require.ErrorContains(t, lost.trouble(), "@1")
	lost.stop(t)
}

// Many partitions share little memory.
func sourceSmallBuffer(t *testing.T, c cluster) {
	const partitions = 48
	topic := c.create(t, partitions)
	cl := c.client(t, kgo.ProducerBatchCompression(kgo.NoCompression()))
	for p := range int32(partitions) {
		for range 4 {
			produce(t, cl, topic, p, slices.Repeat([]string{strings.Repeat("x", 1000)}, 50)...)
		}
	}
	cfg := c.config(topic)
	cfg.MaxBuffered = 1 << 20
	cfg.UntilEnd = true
	gate := make(chan struct{})
	cfg.Decode = func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
		<-gate
		return plainDecode(dst, m)
	}
	s, err := New(cfg)
	require.NoError(t, err)
	tl := followSource(t, s, nil)
	time.Sleep(time.Second) // nobody gets on, and what there is room for is read ahead
	used := s.pool.used.Load()
	close(gate)
	tl.end(t)
	require.Len(t, tl.keys(), partitions*200)
	t.Logf("%d KiB were in use", used>>10)
	require.Greater(t, used, int64(256<<10))
	require.LessOrEqual(t, used, int64(3<<19)) // an answer is rounded up
}

func sourceLatest(t *testing.T, c cluster) {
	topic := c.create(t, 2)
	cl := c.client(t)
	produce(t, cl, topic, 0, "old", "old")
	cfg := c.config(topic)
	cfg.Start = Latest
	var text bytes.Buffer
	cfg.Logger = loggerTo(&text)
	said := func() int { return strings.Count(text.String(), "counting starts at its end") }
	s, err := New(cfg)
	require.NoError(t, err)
	offsets := func(stored map[string]tumble.Checkpoint) []int64 {
		all, err := s.Partitions(t.Context(), stored)
		require.NoError(t, err)
		require.Len(t, all, 2)
		for _, c := range all {
			require.Len(t, c.Log, 32)
			require.Equal(t, c.Origin, c.Offset)
		}
		return []int64{all[topic+"/0"].Offset, all[topic+"/1"].Offset}
	}
	require.Equal(t, []int64{0, 0}, offsets(map[string]tumble.Checkpoint{topic + "/1": {}}))
	require.Zero(t, said())
	require.Equal(t, []int64{2, 0}, offsets(nil))
	require.Contains(t, text.String(), "topic="+topic)
	require.Equal(t, []int64{2, 0}, offsets(map[string]tumble.Checkpoint{"other/0": {}, topic + "/x": {}}))
	require.Equal(t, []int64{0, 0}, offsets(map[string]tumble.Checkpoint{topic + "/1": {}}))
	require.Equal(t, 1, said(), "once a Source")
	cfg.Start = Earliest
	s, err = New(cfg)
	require.NoError(t, err)
	require.Equal(t, []int64{0, 0}, offsets(nil))
	require.Equal(t, 1, said())
	cfg.Start = Latest
	s, err = New(cfg)
	require.NoError(t, err)
	require.Equal(t, []int64{2, 0}, offsets(nil)) // as after a loss and a restart
	require.Equal(t, 2, said())
	cfg.Logger = slog.New(slog.DiscardHandler)
	tl := follow(t, cfg, nil)
	require.Eventually(t, func() bool {
		tl.mu.Lock()
		defer tl.mu.Unlock()
		return tl.caught[topic+"/0"]
	}, 10*time.Second, time.Millisecond)
	produce(t, cl, topic, 0, "new")
	tl.await(t, 1)
	require.Equal(t, []string{"new"}, tl.keys())
}

// A partition that is added is read by whoever reads all of the topic.
func sourceGrowth(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, "first")
	tl := follow(t, c.config(topic), nil)
	fixed := follow(t, c.config(topic, 0), nil)
	tl.await(t, 1)
	c.grow(t, topic, 3)
	produce(t, c.client(t), topic, 2, "second")
	require.Equal(t, topic+"/2", tl.await(t, 2)[1].id)
	require.Len(t, fixed.await(t, 1), 1)
}

// Two members share the topic out; positions are shown to the group.
func sourceGroup(t *testing.T, c cluster) {
	topic, group := c.create(t, 4), newTopic()
	cl := c.client(t)
	cfg := c.config(topic)
	cfg.Group, cfg.SessionTimeout = group, 6*time.Second
	a, b := follow(t, cfg, nil), follow(t, cfg, nil)
	owned := func(tl *tail) int {
		tl.mu.Lock()
		defer tl.mu.Unlock()
		return len(tl.next)
	}
	require.Eventually(t, func() bool { return owned(a) >= 2 && owned(b) >= 2 }, 20*time.Second, 10*time.Millisecond)
	want := 0
	for p := range int32(4) {
		produce(t, cl, topic, p, numbered(fmt.Sprint(p, "-"), 10)...)
		want += 10
	}
	require.Eventually(t, func() bool { return len(a.snapshot())+len(b.snapshot()) >= want }, 10*time.Second, 10*time.Millisecond)
	a.stop(t)
	b.stop(t)
	req := kmsg.NewPtrOffsetFetchRequest()
	rg := kmsg.NewOffsetFetchRequestGroup()
	rg.Group = group
	rg.Topics = nil
	req.Group, req.Topics, req.Groups = group, nil, []kmsg.OffsetFetchRequestGroup{rg}
	res, err := req.RequestWith(t.Context(), cl)
	require.NoError(t, err)
	shown := map[int32]int64{}
	for _, p := range append(res.Groups, kmsg.OffsetFetchResponseGroup{})[0].Topics[0].Partitions {
		shown[p.Partition] = p.Offset
	}
	require.Equal(t, map[int32]int64{0: 10, 1: 10, 2: 10, 3: 10}, shown)
}

// Run ends at what was the end when it began, group or not, also where the log
// ends with what is no event.
func sourceUntilEnd(t *testing.T, c cluster) {
	topic := c.create(t, 3)
	cl := c.client(t)
	produce(t, cl, topic, 0, numbered("", 3000)...)
	produce(t, cl, topic, 1, "", "bad", "none")
	for _, group := range []string{"", newTopic()} {
		cfg := c.config(topic)
		cfg.Group = group
		tl := whole(t, cfg)
		require.Len(t, tl.keys(), 3000)
		require.EqualValues(t, 1, tl.rejected)
		require.EqualValues(t, 2, tl.skipped)
		require.EqualValues(t, 3000, tl.next[topic+"/0"])
		require.EqualValues(t, 3, tl.next[topic+"/1"])
	}
	empty := c.config(c.create(t, 2))
	require.Empty(t, whole(t, empty).keys())
}

// Records that give no event are reported once, with all that is known, however
// often they are read; events of records with more than one come together.
func sourceRejects(t *testing.T, c cluster) {
	topic := c.create(t, 1)
	cl := c.client(t)
	produce(t, cl, topic, 0, "a", "bad1", "", "xxx*b", "none", "bad2", "c")
	now := time.Now()
	times := map[string]time.Time{
		"ahead":  now.Add(time.Hour + time.Minute),
		"nearly": now.Add(time.Hour - time.Second),
		"zero":   {},
		"far":    time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC),
		"old":    time.Date(1699, 12, 31, 23, 59, 59, 0, time.UTC),
		"oldest": time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	var records []*kgo.Record
	for _, v := range []string{"ahead", "nearly", "zero", "far", "old", "oldest"} {
		records = append(records, &kgo.Record{Topic: topic, Value: []byte(v), Timestamp: now})
	}
	require.NoError(t, cl.ProduceSync(t.Context(), records...).FirstErr())
	var causes []string
	cfg := c.config(topic, 0)
	cfg.Decode = func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
		if at, ok := times[string(m.Value)]; ok {
			return append(dst, tumble.Event{Key: string(m.Value), Time: at}), nil
		}
		return plainDecode(dst, m)
	}
	cfg.OnReject = func(_ context.Context, r Rejected) error {
		require.Equal(t, r.Offset, r.Message.Offset)
		causes = append(causes, fmt.Sprintf("%s/%d@%d %s: %v", r.Topic, r.Partition, r.Offset, r.Message.Value, r.Cause))
		return nil
	}
	s, err := New(cfg)
	require.NoError(t, err)
	start, err := s.Partitions(t.Context(), nil)
	require.NoError(t, err)
	var rejected, skipped int64
	for range 2 { // assignments
		ctx, cancel := context.WithCancel(t.Context())
		require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
			defer cancel()
			_, err := p.Resume(ctx, start[p.ID()])
			require.NoError(t, err)
			for range 2 { // from the start again
				var keys []string
				for next := int64(0); next < 13; {
					c, err := p.Fetch(ctx, unplaced(next))
					if err != nil {
						return err
					}
					for _, e := range c.Events {
						keys = append(keys, fmt.Sprint(strings.Clone(e.Key), e.Offset))
					}
					rejected += c.Rejected
					skipped += c.Skipped
					next = c.Next
				}
				require.Equal(t, []string{"a0", "b3", "b3", "b3", "c6", "nearly8", "oldest12"}, keys)
			}
			return nil
		}))
		cancel()
	}
	require.EqualValues(t, 6, rejected)
	require.EqualValues(t, 2, skipped)
	require.Len(t, causes, 6)
	require.Equal(t, topic+"/0@1 bad1: bad value", causes[0])
	require.Equal(t, topic+"/0@5 bad2: bad value", causes[1])
	require.Contains(t, causes[2], "more than 1h0m0s beyond the record's own")
	require.Contains(t, causes[3], "@9 zero: event time 0001-01-01T00:00:00Z is not in the years 1700 to 2199")
	require.Contains(t, causes[4], "@10 far: event time 2200-01-01T00:00:00Z is not in the years")
	require.Contains(t, causes[5], "@11 old: event time 1699-12-31T23:59:59Z is not in the years")

	cfg.FailOnReject = true
	cfg.OnReject = nil
	cfg.UntilEnd = true
	tl := follow(t, cfg, nil)
	err = tl.result(t)
	require.ErrorContains(t, err, "kafka: fetch "+topic+"/0@1: record at offset 1 rejected: bad value")
	require.Equal(t, []string{"a"}, tl.keys())
}

func sourceCompacted(t *testing.T, c cluster) {
	var log strings.Builder
	for _, policy := range []string{"delete", "compact", "compact,delete"} {
		cfg := c.config(c.create(t, 1, "cleanup.policy", policy))
		log.Reset()
		cfg.Logger = loggerTo(&log)
		whole(t, cfg)
		require.Equal(t, strings.Contains(policy, "compact"), strings.Contains(log.String(), "the topic is compacted"), log.String())
	}
}
