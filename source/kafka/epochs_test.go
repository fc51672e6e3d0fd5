package kafka

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
)

// An epochsEnd is what a broker says of the end of an epoch.
type epochsEnd struct {
	epoch int32
	end   int64
	code  int16
}

// sayEnds lets answer say where epochs end, and counts how often that is asked.
func (c cluster) sayEnds(answer func(asked int32, q kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd) *atomic.Int32 {
	var asked atomic.Int32
	c.fake.ControlKey(int16(protocol.OffsetForLeaderEpoch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		q := req.(*kmsg.OffsetForLeaderEpochRequest)
		res := q.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
		res.Version = q.Version
		n := asked.Add(1)
		for _, qt := range q.Topics {
			rt := kmsg.OffsetForLeaderEpochResponseTopic{Topic: qt.Topic}
			for _, qp := range qt.Partitions {
				e := answer(n, qp)
				rt.Partitions = append(rt.Partitions, kmsg.OffsetForLeaderEpochResponseTopicPartition{Partition: qp.Partition, LeaderEpoch: e.epoch, EndOffset: e.end, ErrorCode: e.code})
			}
			res.Topics = append(res.Topics, rt)
		}
		return res, nil, true
	})
	return &asked
}

// withoutEpochs makes brokers that do not know OffsetForLeaderEpoch.
func (c cluster) withoutEpochs() {
	c.fake.ControlKey(int16(protocol.ApiVersions), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		res := kmsg.NewPtrApiVersionsResponse()
		res.Version = req.GetVersion()
		for key := range int16(62) {
			if r := kmsg.RequestForKey(key); r != nil && protocol.ApiKey(key) != protocol.OffsetForLeaderEpoch {
				res.ApiKeys = append(res.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: key, MaxVersion: min(r.MaxVersion(), 13)})
			}
		}
		return res, nil, true
	})
}

// What the end of the stored epoch, which a broker tells, makes of a checkpoint
// at offset 5 in a log of 5 records.
func TestResumeByEpoch(t *testing.T) {
	always := func(e ...epochsEnd) []epochsEnd { return e }
	there := tumble.Checkpoint{Offset: 5, Epoch: 3, Origin: 4, Watermark: time.Unix(5, 0)}
	unknown := there
	unknown.Epoch = -1
	at := func(offset int64, epoch int32, origin int64) tumble.Checkpoint {
		return tumble.Checkpoint{Offset: offset, Epoch: epoch, Origin: origin, Watermark: there.Watermark}
	}
	for name, c := range map[string]struct {
		stored  tumble.Checkpoint
		ends    []epochsEnd // one after the other, the last one for ever
		without bool        // the API
		first   int64       // of the log
		asked   int32
		want    tumble.Checkpoint // of GoOn
		fails   string            // of Fail; "": it is the same
	}{
		"far enough":              {stored: there, ends: always(epochsEnd{3, 5, 0}), asked: 1, want: there},
		"below":                   {stored: there, ends: always(epochsEnd{2, 3, 0}), asked: 2, want: at(3, 2, 3), fails: "the log was truncated at offset 3, where epoch 3 ends now"},
		"below, origin before it": {stored: at(5, 3, 1), ends: always(epochsEnd{2, 3, 0}), asked: 2, want: at(3, 2, 1), fails: "the log was truncated at offset 3"},
		"below, then far enough":  {stored: there, ends: always(epochsEnd{2, 3, 0}, epochsEnd{3, 9, 0}), asked: 2, want: there},
		"below the first":         {stored: there, ends: always(epochsEnd{2, 3, 0}), first: 4, asked: 2, want: at(4, 0, 4), fails: "the log was truncated at offset 4"},
		"below, and all is gone":  {stored: there, ends: always(epochsEnd{2, 3, 0}), first: 5, asked: 1, want: unknown},
		"ahead of the watermark":  {stored: at(7, 3, 4), ends: always(epochsEnd{3, 9, 0}), asked: 1, want: at(7, 3, 4)},
		"unknown":                 {stored: there, ends: always(epochsEnd{-1, -1, 0}), asked: 1, want: unknown},
		"unknown, past the end":   {stored: at(7, 3, 4), ends: always(epochsEnd{-1, -1, 0}), asked: 2, want: at(5, 0, 4), fails: "the log was truncated: it ends at offset 5, counts reach to 7"},
		"no API":                  {stored: there, without: true, want: unknown},
		"no API, past the end":    {stored: at(7, 3, 4), without: true, want: at(5, 0, 4), fails: "the log was truncated: it ends at offset 5, counts reach to 7"},
		"no epoch":                {stored: unknown, ends: always(epochsEnd{2, 3, 0}), want: unknown},
		"no epoch, past the end":  {stored: at(7, -1, 6), ends: always(epochsEnd{2, 3, 0}), want: at(5, 0, 5), fails: "the log was truncated: it ends at offset 5, counts reach to 7"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cl := fakeCluster(t)
			topic := cl.create(t, 1)
			for range 5 {
				produce(t, cl.client(t), topic, 0, "v")
			}
			if c.first > 0 {
				cl.deleteBefore(t, topic, 0, c.first)
			}
			log := whole0(t, cl.config(topic, 0)).Log
			c.stored.Log, c.want.Log = log, log
			if c.without {
				cl.withoutEpochs()
			}
			var before atomic.Int32
			asked := cl.sayEnds(func(n int32, q kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd {
				return c.ends[min(int(n-before.Load()), len(c.ends))-1]
			})
			for _, policy := range []Policy{Fail, GoOn} {
				before.Store(asked.Load())
				cfg := cl.config(topic, 0)
				cfg.OnTruncated = policy
				resuming(t, cfg, func(ctx context.Context, p tumble.Partition) {
					to, err := p.Resume(ctx, c.stored)
					require.Equal(t, c.asked, asked.Load()-before.Load(), "asked")
					if policy == Fail && c.fails != "" {
						require.ErrorContains(t, err, "kafka: "+topic+"/0@")
						require.ErrorContains(t, err, c.fails)
						require.ErrorContains(t, err, "Config.OnTruncated")
						require.NotErrorIs(t, err, tumble.ErrUnavailable)
						return
					}
					require.NoError(t, err)
					require.Equal(t, c.want, to)
				})
			}
		})
	}
}

// resuming runs a Source and calls f with its partition 0.
func resuming(t *testing.T, cfg Config, f func(ctx context.Context, p tumble.Partition)) {
	t.Helper()
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

// That a leader is not known, or another one by now, is no verdict.
func TestResumeFenced(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, "v")
	c.sayEnds(func(int32, kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd { return epochsEnd{-1, -1, 74} })
	stored := whole0(t, c.config(topic, 0))
	resuming(t, c.config(topic, 0), func(ctx context.Context, p tumble.Partition) {
		_, err := p.Resume(ctx, stored)
		require.ErrorIs(t, err, tumble.ErrUnavailable)
	})
}

// Many shards stand at one place: it is asked for once, until the leader is
// another one.
func TestResumeAsksOnce(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	for range 5 {
		produce(t, c.client(t), topic, 0, "v")
	}
	var end atomic.Int64
	end.Store(5)
	asked := c.sayEnds(func(_ int32, q kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd {
		return epochsEnd{q.LeaderEpoch, end.Load(), 0}
	})
	stored := whole0(t, c.config(topic, 0))
	resuming(t, c.config(topic, 0), func(ctx context.Context, p tumble.Partition) {
		for i := range 16 {
			for _, stored.Epoch = range []int32{0, 1} {
				stored.Offset = int64(i % 6)
				to, err := p.Resume(ctx, stored)
				require.NoError(t, err)
				require.Equal(t, stored, to)
			}
		}
		require.EqualValues(t, 2, asked.Load())

		end.Store(3)
		require.NoError(t, c.fake.MoveTopicPartition(topic, 0, c.fake.LeaderFor(topic, 0)))
		f := p.(*partition).fetch
		require.Eventually(t, func() bool {
			f.refresh.send()
			return f.leaderEpoch(p.(*partition)) == 1
		}, 900*time.Millisecond, 5*time.Millisecond) // a yes is remembered for longer
		stored.Offset, stored.Epoch = 2, 1
		_, err := p.Resume(ctx, stored)
		require.NoError(t, err)
		stored.Offset, stored.Epoch = 5, 0 // of which the leader before said yes
		_, err = p.Resume(ctx, stored)
		require.ErrorContains(t, err, "truncated at offset 3")
	})
}

// A position is validated when the leader is another one, before a record of that
// comes.
func TestFetchVetsANewLeader(t *testing.T) {
	for name, end := range map[string]int64{"valid": 5, "truncated": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := fakeCluster(t)
			topic := c.create(t, 1)
			produce(t, c.client(t), topic, 0, numbered("old", 5)...)
			asked := c.sayEnds(func(_ int32, q kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd {
				if q.CurrentLeaderEpoch != 1 || q.LeaderEpoch != 0 {
					return epochsEnd{-1, -1, 75}
				}
				return epochsEnd{0, end, 0}
			})
			stored := whole0(t, c.config(topic, 0))
			resuming(t, c.config(topic, 0), func(ctx context.Context, p tumble.Partition) {
				chunk := fetchSome(t, ctx, p, tumble.Position{Offset: 0, Epoch: -1})
				require.EqualValues(t, 5, chunk.Next)
				require.EqualValues(t, stored.Epoch, chunk.Epoch)
				require.Zero(t, asked.Load())
				require.NoError(t, c.fake.MoveTopicPartition(topic, 0, c.fake.LeaderFor(topic, 0)))
				produce(t, c.client(t), topic, 0, numbered("new", 5)...)
				at := tumble.Position{Offset: 5, Epoch: chunk.Epoch}
				if end < 5 {
					require.ErrorIs(t, fetchError(t, ctx, p, at), tumble.ErrTruncated)
					return
				}
				chunk = fetchSome(t, ctx, p, at)
				require.EqualValues(t, 10, chunk.Next)
				require.EqualValues(t, 1, chunk.Epoch)
				require.EqualValues(t, 1, asked.Load())
			})
		})
	}
}

// fetchSome fetches until there are events.
func fetchSome(t *testing.T, ctx context.Context, p tumble.Partition, at tumble.Position) tumble.Chunk {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		chunk, err := p.Fetch(ctx, at)
		require.NoError(t, err)
		if len(chunk.Events) > 0 {
			return chunk
		}
		require.Equal(t, at.Offset, chunk.Next)
	}
	require.FailNow(t, "nothing comes")
	return tumble.Chunk{}
}

// fetchError fetches until there is an error, before which nothing must come.
func fetchError(t *testing.T, ctx context.Context, p tumble.Partition, at tumble.Position) error {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); {
		chunk, err := p.Fetch(ctx, at)
		if err != nil {
			return err
		}
		require.Equal(t, at.Offset, chunk.Next)
	}
	return nil
}

// What was read ahead is dropped when the new leader does not hold it, and the
// consumer, who has not seen it, need not know.
func TestReadAheadIsVetted(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("old", 5)...)
	require.NoError(t, c.fake.MoveTopicPartition(topic, 0, c.fake.LeaderFor(topic, 0)))
	produce(t, c.client(t), topic, 0, numbered("lost", 5)...)
	c.sayEnds(func(_ int32, q kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd {
		return epochsEnd{q.LeaderEpoch, []int64{5, 7}[q.LeaderEpoch], 0}
	})
	var mu sync.Mutex
	var froms []int64
	cfg := c.config(topic, 0)
	cfg.Transport = &tamper{RoundTripper: transport(t, topic), after: func(r *fetchRequest) {
		mu.Lock()
		defer mu.Unlock()
		froms = append(froms, r.asks[0].from)
	}}
	resuming(t, cfg, func(ctx context.Context, p tumble.Partition) {
		chunk := fetchSome(t, ctx, p, tumble.Position{Offset: 0, Epoch: 0})
		require.EqualValues(t, 5, chunk.Next)
		require.EqualValues(t, 0, chunk.Epoch)
		require.NoError(t, c.fake.MoveTopicPartition(topic, 0, c.fake.LeaderFor(topic, 0)))
		require.Eventually(t, p.(*partition).feed.cut.Load, 5*time.Second, time.Millisecond)
		mu.Lock()
		require.NotContains(t, froms, int64(5))
		mu.Unlock()
		chunk = fetchSome(t, ctx, p, tumble.Position{Offset: 5, Epoch: 0})
		require.EqualValues(t, 10, chunk.Next) // there is nothing else in this log
		mu.Lock()
		require.Contains(t, froms, int64(5))
		mu.Unlock()
	})
}

// An answer to Fetch that contradicts a position is a reason to validate it. If
// the end of its epoch says nothing against it, reading goes on.
func TestFetchDoubts(t *testing.T) {
	const valid, truncated = 9, 3
	for name, contradict := range map[string]func(res *kmsg.FetchResponseTopicPartition){
		"diverging": func(p *kmsg.FetchResponseTopicPartition) {
			p.DivergingEpoch.Epoch, p.DivergingEpoch.EndOffset = 2, 9
		},
		"out of range": func(p *kmsg.FetchResponseTopicPartition) { p.ErrorCode = codeOffsetOutOfRange },
		"an earlier epoch": func(p *kmsg.FetchResponseTopicPartition) {
			p.RecordBatches = plainBatch(5, 0, []string{"next"}, func(b *kmsg.RecordBatch) { b.PartitionLeaderEpoch = 2 })
		},
		"another epoch in the batch": func(p *kmsg.FetchResponseTopicPartition) {
			p.RecordBatches = plainBatch(4, 0, []string{"before", "next"}, func(b *kmsg.RecordBatch) { b.PartitionLeaderEpoch = 4 })
		},
	} {
		for _, end := range []int64{valid, truncated} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				c := fakeCluster(t)
				topic := c.create(t, 1)
				asked := c.sayEnds(func(n int32, _ kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd {
					if n == 1 { // before anything is fetched
						return epochsEnd{2, valid, 0}
					}
					return epochsEnd{2, end, 0}
				})
				var mu sync.Mutex
				var last []int32
				asks := func() []int32 {
					mu.Lock()
					defer mu.Unlock()
					return slices.Clone(last)
				}
				c.answerFetch(func(q kmsg.FetchRequestTopicPartition, p *kmsg.FetchResponseTopicPartition) {
					mu.Lock()
					last = append(last, q.LastFetchedEpoch)
					mu.Unlock()
					p.HighWatermark, p.LastStableOffset = 6, 6
					switch {
					case q.FetchOffset > 5:
						time.Sleep(10 * time.Millisecond)
					case q.LastFetchedEpoch >= 0:
						contradict(p)
					default:
						p.RecordBatches = plainBatch(5, 0, []string{"next"}, func(b *kmsg.RecordBatch) { b.PartitionLeaderEpoch = 7 })
					}
				})
				resuming(t, c.config(topic, 0), func(ctx context.Context, p tumble.Partition) {
					at := tumble.Position{Offset: 5, Epoch: 3}
					if end == truncated {
						require.ErrorIs(t, fetchError(t, ctx, p, at), tumble.ErrTruncated)
						require.Equal(t, []int32{3}, asks())
						return
					}
					chunk := fetchSome(t, ctx, p, at)
					require.EqualValues(t, 6, chunk.Next)
					require.Equal(t, "next", chunk.Events[0].Key)
					require.EqualValues(t, 7, chunk.Epoch)
					require.Equal(t, []int32{3, -1}, asks()[:2])
					require.EqualValues(t, 2, asked.Load())
				})
			})
		}
	}
}

// Out of range in truth is said, once the epoch is no reason for it.
func TestFetchOutOfRangeByEpoch(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	c.sayEnds(func(int32, kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd { return epochsEnd{3, 9, 0} })
	c.answerFetch(func(_ kmsg.FetchRequestTopicPartition, p *kmsg.FetchResponseTopicPartition) {
		p.ErrorCode = codeOffsetOutOfRange
	})
	resuming(t, c.config(topic, 0), func(ctx context.Context, p tumble.Partition) {
		require.ErrorIs(t, fetchError(t, ctx, p, tumble.Position{Offset: 5, Epoch: 3}), tumble.ErrOffsetOutOfRange)
	})
}

// Brokers without the API are read as ever: the first position and those behind
// it are not compared.
func TestFetchWithoutEpochs(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	cl := c.client(t)
	produce(t, cl, topic, 0, numbered("a", 5)...)
	c.withoutEpochs()
	asked := c.sayEnds(func(int32, kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd { return epochsEnd{0, 0, 0} })
	tl := follow(t, c.config(topic, 0), nil)
	tl.await(t, 5)
	require.NoError(t, c.fake.MoveTopicPartition(topic, 0, c.fake.LeaderFor(topic, 0)))
	produce(t, cl, topic, 0, numbered("b", 5)...)
	require.Equal(t, "b4", tl.await(t, 10)[9].key)
	require.Zero(t, asked.Load())
}

// answerFetch lets answer fill each partition's part of Fetch answers.
func (c cluster) answerFetch(answer func(kmsg.FetchRequestTopicPartition, *kmsg.FetchResponseTopicPartition)) {
	c.fake.ControlKey(int16(protocol.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		q := req.(*kmsg.FetchRequest)
		res := q.ResponseKind().(*kmsg.FetchResponse)
		res.Version = q.Version
		for _, qt := range q.Topics {
			rt := kmsg.NewFetchResponseTopic()
			rt.Topic, rt.TopicID = qt.Topic, qt.TopicID
			for _, qp := range qt.Partitions {
				rp := kmsg.NewFetchResponseTopicPartition()
				rp.Partition = qp.Partition
				answer(qp, &rp)
				rt.Partitions = append(rt.Partitions, rp)
			}
			res.Topics = append(res.Topics, rt)
		}
		return res, nil, true
	})
}

// A log that was cut and does not grow never reaches the end that UntilEnd has
// noted: its own end will do.
func TestUntilEndOfATruncatedLog(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("", 5)...)
	var lies atomic.Bool
	lies.Store(true)
	c.fake.ControlKey(int16(protocol.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		q := req.(*kmsg.ListOffsetsRequest)
		if q.Topics[0].Partitions[0].Timestamp != latest || !lies.Load() {
			return nil, nil, false
		}
		res := q.ResponseKind().(*kmsg.ListOffsetsResponse)
		res.Version = q.Version
		p := kmsg.NewListOffsetsResponseTopicPartition()
		p.Offset, p.LeaderEpoch = 50, 0
		res.Topics = []kmsg.ListOffsetsResponseTopic{{Topic: topic, Partitions: []kmsg.ListOffsetsResponseTopicPartition{p}}}
		return res, nil, true
	})
	cfg := c.config(topic, 0)
	cfg.UntilEnd = true
	s, err := New(cfg)
	require.NoError(t, err)
	_, err = s.Partitions(t.Context(), nil)
	require.NoError(t, err)
	lies.Store(false)
	for range 2 { // runs
		tl := followSource(t, s, nil)
		tl.end(t)
		require.Len(t, tl.keys(), 5)
	}
}

// What Resume learns of a truncation moves the end of UntilEnd, too.
func TestUntilEndAfterResume(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("", 5)...)
	cfg := c.config(topic, 0)
	cfg.OnTruncated = GoOn
	stored := whole0(t, cfg)
	stored.Offset = 20
	resuming(t, cfg, func(ctx context.Context, part tumble.Partition) {
		p := part.(*partition)
		p.end, p.src.ends = 20, map[int32]int64{0: 20}
		to, err := p.Resume(ctx, stored)
		require.NoError(t, err)
		require.EqualValues(t, 5, to.Offset)
		require.EqualValues(t, 5, p.end) // not only once Fetch has looked
		_, err = p.Fetch(ctx, tumble.Position{Offset: to.Offset, Epoch: to.Epoch})
		require.Equal(t, io.EOF, err)
		require.EqualValues(t, 5, p.src.ends[0])
	})
}

// In a truncated log an offset comes again, and what is there now is told of.
func TestReportAfterTruncation(t *testing.T) {
	r := &report{epoch: -1}
	r.begin("log")
	tell := func(from, to int64, epoch int32) (told []int64) {
		for o := from; o < to; o++ {
			if r.once(o, epoch) {
				told = append(told, o)
			}
		}
		return told
	}
	require.Equal(t, []int64{0, 1, 2, 3, 4}, tell(0, 5, 2))
	require.Empty(t, tell(0, 5, 2))
	r.cut(3)
	require.Equal(t, []int64{3, 4, 5}, tell(3, 6, 4)) // written later
	r.cut(3)                                          // another lane, of the same truncation
	require.Empty(t, tell(3, 6, 4))
	require.Empty(t, tell(0, 3, 2))
	require.Equal(t, []int64{4, 5}, tell(4, 6, 5)) // and that it is noticed by reading alone
	require.Equal(t, []int64{6}, tell(5, 7, 5))

	r.begin("another")
	require.Equal(t, []int64{0, 1, 2}, tell(0, 3, -1)) // without epochs
	require.Empty(t, tell(0, 3, -1))
	r.cut(1)
	require.Equal(t, []int64{1, 2}, tell(0, 3, -1))
}

// Batches of several epochs make several Chunks, however they lie in answers.
func TestChunksByEpoch(t *testing.T) {
	var raw []byte
	epochs := []int32{1, 1, 2, 5, 5, 5, 6, -1, 7}
	for i, e := range epochs {
		raw = append(raw, plainBatch(int64(2*i), codecNone, []string{"a", "b"}, func(b *kmsg.RecordBatch) {
			b.PartitionLeaderEpoch = e
			if i == 4 {
				b.Attributes |= attrControl // gives no records
			}
		})...)
	}
	s, err := New(Config{Brokers: []string{"none:1"}, Topic: "t", Decode: plainDecode, MaxSkew: -1})
	require.NoError(t, err)
	for start := range int64(2 * len(epochs)) {
		p := newFetcher(s, nil).add(0)
		at := unplaced(start)
		p.seek(at)
		seg := &segment{buf: s.pool.get(len(raw))}
		copy(seg.buf.b, raw)
		seg.data, _, err = scan(seg.buf.b, unplaced(0))
		require.NoError(t, err)
		p.feed.queue = append(p.feed.queue, seg)
		var passed []int32 // by offset
		for at.Offset < int64(2*len(epochs)) {
			chunk, err := p.Fetch(t.Context(), at)
			require.NoError(t, err)
			require.Greater(t, chunk.Next, at.Offset)
			passed = append(passed, slices.Repeat([]int32{chunk.Epoch}, int(chunk.Next-at.Offset))...)
			at = tumble.Position{Offset: chunk.Next, Epoch: chunk.Epoch}
		}
		for i, e := range passed {
			require.Equal(t, epochs[(start+int64(i))/2], e, "offset %d, read from %d", start+int64(i), start)
		}
	}
}

// Fetch from a position of another epoch is another place, though the offset is
// the one that was to come.
func TestFetchAnotherEpoch(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("", 5)...)
	c.sayEnds(func(_ int32, q kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd {
		if q.LeaderEpoch == 0 {
			return epochsEnd{0, 5, 0}
		}
		return epochsEnd{0, 2, 0}
	})
	resuming(t, c.config(topic, 0), func(ctx context.Context, p tumble.Partition) {
		chunk := fetchSome(t, ctx, p, tumble.Position{Offset: 0, Epoch: 0})
		require.EqualValues(t, 5, chunk.Next)
		err := fetchError(t, ctx, p, tumble.Position{Offset: 5, Epoch: 1})
		require.ErrorIs(t, err, tumble.ErrTruncated)
		require.True(t, strings.HasPrefix(err.Error(), "kafka: fetch "+topic+"/0@5: "), err)
		require.False(t, errors.Is(err, tumble.ErrOffsetOutOfRange))
	})
}

// After a truncation nothing that was read ahead is left, also if reading stood
// just there.
func TestResumeDropsReadAhead(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("old", 5)...)
	require.NoError(t, c.fake.MoveTopicPartition(topic, 0, c.fake.LeaderFor(topic, 0)))
	produce(t, c.client(t), topic, 0, numbered("lost", 5)...)
	c.sayEnds(func(int32, kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd { return epochsEnd{0, 5, 0} })
	var mu sync.Mutex
	again := false
	cfg := c.config(topic, 0)
	cfg.OnTruncated = GoOn
	cfg.Transport = &tamper{RoundTripper: transport(t, topic), after: func(r *fetchRequest) {
		mu.Lock()
		defer mu.Unlock()
		again = again || r.asks[0].from == 5
	}}
	stored := whole0(t, cfg)
	resuming(t, cfg, func(ctx context.Context, p tumble.Partition) {
		chunk := fetchSome(t, ctx, p, tumble.Position{Offset: 0, Epoch: 0})
		require.EqualValues(t, 5, chunk.Next)
		stored.Offset, stored.Epoch = 10, 1
		to, err := p.Resume(ctx, stored)
		require.NoError(t, err)
		at := tumble.Position{Offset: to.Offset, Epoch: to.Epoch}
		require.Equal(t, tumble.Position{Offset: 5, Epoch: 0}, at)
		mu.Lock()
		require.False(t, again)
		mu.Unlock()
		fetchSome(t, ctx, p, at)
		mu.Lock()
		require.True(t, again)
		mu.Unlock()
	})
}

// Counting begins in the epoch that the broker tells, also behind a gap.
func TestFirstEpoch(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("a", 5)...)
	cfg := c.config(topic, 0)
	cfg.OnGap = GoOn
	stored := whole0(t, cfg)
	require.EqualValues(t, 0, stored.Epoch)
	for range 2 {
		require.NoError(t, c.fake.MoveTopicPartition(topic, 0, c.fake.LeaderFor(topic, 0)))
	}
	produce(t, c.client(t), topic, 0, numbered("b", 5)...)
	c.deleteBefore(t, topic, 0, 7)
	first := whole0(t, cfg)
	require.EqualValues(t, 7, first.Offset)
	require.EqualValues(t, 2, first.Epoch)
	resuming(t, cfg, func(ctx context.Context, p tumble.Partition) {
		to, err := p.Resume(ctx, stored)
		require.NoError(t, err)
		stored.Offset, stored.Epoch = 7, 2
		require.Equal(t, stored, to)
		stored.Log = strings.Repeat("0", 32)
		p.(*partition).src.cfg.OnRecreated = GoOn
		to, err = p.Resume(ctx, stored)
		require.NoError(t, err)
		require.Equal(t, first, to)
	})
}

// An epoch that the leader cannot place is not compared.
func TestFetchUnknownEpoch(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, numbered("", 5)...)
	asked := c.sayEnds(func(int32, kmsg.OffsetForLeaderEpochRequestTopicPartition) epochsEnd { return epochsEnd{-1, -1, 0} })
	resuming(t, c.config(topic, 0), func(ctx context.Context, p tumble.Partition) {
		chunk := fetchSome(t, ctx, p, tumble.Position{Offset: 2, Epoch: 3})
		require.EqualValues(t, 5, chunk.Next)
		require.EqualValues(t, 0, chunk.Epoch)
		require.EqualValues(t, 1, asked.Load())
	})
}

// A leader that changed since positions were validated is not asked for records.
func TestUnvettedIsNotFetched(t *testing.T) {
	s, err := New(Config{Brokers: []string{"none:1"}, Topic: "t", Decode: plainDecode})
	require.NoError(t, err)
	f := newFetcher(s, nil)
	p := f.add(0)
	l := &loop{f: f, broker: 1}
	p.feed.leader, p.feed.epoch = 1, 7
	p.feed.reset(tumble.Position{Offset: 5, Epoch: 3})
	asks, _, again := l.prepare()
	require.Empty(t, asks)
	require.Zero(t, again)
	require.Len(t, l.doubts(), 1)
	p.feed.vetted = 7
	asks, _, _ = l.prepare()
	require.Len(t, asks, 1)
	require.EqualValues(t, 3, asks[0].last)
	require.EqualValues(t, 7, asks[0].epoch)
	require.Empty(t, l.doubts())
}
