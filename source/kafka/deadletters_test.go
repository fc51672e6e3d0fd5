package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

func (c cluster) letters(t testing.TB, topic string, change ...func(*DeadLettersConfig)) *DeadLetters {
	cfg := DeadLettersConfig{Brokers: c.brokers, Topic: topic, Timeout: 5 * time.Second, Logger: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&cfg)
	}
	d, err := NewDeadLetters(cfg)
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return d
}

// records reads n records of a topic, and a while more in case there are others,
// by another client.
func (c cluster) records(t testing.TB, topic string, n int) (all []*kgo.Record) {
	cl := c.client(t, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		if len(all) >= n {
			var done context.CancelFunc
			ctx, done = context.WithTimeout(ctx, 300*time.Millisecond)
			defer done()
		}
		cl.PollFetches(ctx).EachRecord(func(r *kgo.Record) { all = append(all, r) })
	}
	slices.SortFunc(all, func(a, b *kgo.Record) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
	})
	require.Len(t, all, n)
	return all
}

func headers(r *kgo.Record) (text []string) {
	for _, h := range r.Headers {
		v := string(h.Value)
		if h.Value == nil {
			v = "null"
		}
		text = append(text, h.Key+"="+v)
	}
	return text
}

// A letter is what the record was, with where it was and why.
func lettersWhole(t *testing.T, c cluster) {
	from, to := c.create(t, 4), c.create(t, 3)
	at := time.UnixMilli(1700000000123)
	cl := c.client(t)
	require.NoError(t, cl.ProduceSync(t.Context(),
		&kgo.Record{Topic: from, Partition: 3, Key: []byte("k"), Value: []byte("bad\x00\xff"), Timestamp: at, Headers: []kgo.RecordHeader{
			{Key: "trace", Value: []byte("1")}, {Key: "tumble-offset", Value: []byte("77")}, {Key: "null"}}},
		&kgo.Record{Topic: from, Partition: 3, Value: []byte("bad2"), Timestamp: at},
		&kgo.Record{Topic: from, Partition: 1, Key: []byte{}, Value: []byte("bad3"), Timestamp: at},
	).FirstErr())
	letters := c.letters(t, to)
	require.NoError(t, letters.Check(t.Context()))
	cfg := c.config(from)
	cfg.OnReject = letters.Write
	begin := time.Now().Add(-time.Second)
	tl := whole(t, cfg)
	require.EqualValues(t, 3, tl.rejected)
	got := c.records(t, to, 3)
	require.EqualValues(t, []int32{0, 0, 1}, []int32{got[0].Partition, got[1].Partition, got[2].Partition}, "by the partition's number")
	own := func(partition, offset int) []string {
		return []string{"tumble-topic=" + from, fmt.Sprint("tumble-partition=", partition), fmt.Sprint("tumble-offset=", offset),
			"tumble-cause=bad value", "tumble-time=2023-11-14T22:13:20.123Z"}
	}
	require.Equal(t, "k", string(got[0].Key))
	require.Equal(t, "bad\x00\xff", string(got[0].Value))
	require.Equal(t, append([]string{"trace=1", "tumble-offset=77", "null=null"}, own(3, 0)...), headers(got[0]))
	require.Nil(t, got[1].Key)
	require.Equal(t, own(3, 1), headers(got[1]))
	require.NotNil(t, got[2].Key)
	require.Empty(t, got[2].Key)
	for _, r := range got {
		require.True(t, r.Timestamp.After(begin), "when it was written: retention begins anew")
	}
}

// What is too large for the topic is cut, and says so.
func lettersTooLarge(t *testing.T, c cluster) {
	from, to := c.create(t, 1), c.create(t, 1, "max.message.bytes", "5000")
	random := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		return string(b)
	}
	var log strings.Builder
	letters := c.letters(t, to, func(cfg *DeadLettersConfig) { cfg.Logger = loggerTo(&log) })
	value, key, header := "bad"+random(100_000), random(20_000), random(15_000)
	write := func(offset int64, key []byte, value string, headers ...kgo.RecordHeader) {
		cl := c.client(t)
		r := &kgo.Record{Topic: from, Key: key, Value: []byte(value), Headers: headers}
		require.NoError(t, cl.ProduceSync(t.Context(), r).FirstErr())
		require.Equal(t, offset, r.Offset)
	}
	write(0, []byte("k"), value, kgo.RecordHeader{Key: "h", Value: []byte("v")})
	write(1, []byte(key), "bad")
	write(2, []byte("k"), "bad", kgo.RecordHeader{Key: "h", Value: []byte(header)})
	write(3, []byte("k"), "bad"+strings.Repeat("x", 200_000)) // which compression makes small
	write(4, []byte(key), value, kgo.RecordHeader{Key: "h", Value: []byte(header)})
	cfg := c.config(from)
	cfg.OnReject = letters.Write
	tl := whole(t, cfg)
	require.EqualValues(t, 5, tl.rejected)
	got := c.records(t, to, 5)
	of := func(r *kgo.Record, name string) string {
		for _, h := range slices.Backward(r.Headers) {
			if h.Key == name {
				return string(h.Value)
			}
		}
		return ""
	}
	for i, r := range got {
		require.Equal(t, fmt.Sprint(i), of(r, HeaderOffset))
		require.Equal(t, from, of(r, HeaderTopic))
		require.Equal(t, "bad value", of(r, HeaderCause))
	}
	require.Equal(t, "k", string(got[0].Key))
	require.Equal(t, "v", of(got[0], "h"))
	require.Greater(t, len(got[0].Value), 2000, "as much as half of what fits, at least")
	require.Equal(t, value[:len(got[0].Value)], string(got[0].Value))
	require.Equal(t, fmt.Sprint(len(value)), of(got[0], HeaderSize))
	require.Empty(t, of(got[0], HeaderDropped))

	require.Equal(t, "bad", string(got[1].Value))
	require.Empty(t, got[1].Key)
	require.Equal(t, "key", of(got[1], HeaderDropped))
	require.Equal(t, "3", of(got[1], HeaderSize))

	require.Equal(t, "k", string(got[2].Key))
	require.Equal(t, "bad", string(got[2].Value))
	require.Equal(t, "headers", of(got[2], HeaderDropped))

	require.Len(t, got[3].Value, 200_003)
	require.Empty(t, of(got[3], HeaderSize), "it fits whole")

	require.Equal(t, "key headers", of(got[4], HeaderDropped))
	require.Contains(t, log.String(), "too large for the topic of dead letters")
	require.Contains(t, log.String(), "topic="+from)
	require.Equal(t, 1, strings.Count(log.String(), "\n"), "one line in 10 seconds")
}

// If not even where and why fit, the record is not passed.
func lettersRefused(t *testing.T, c cluster) {
	from, to := c.create(t, 1), c.create(t, 1, "max.message.bytes", "150")
	produce(t, c.client(t), from, 0, "a", "bad")
	letters := c.letters(t, to)
	cfg := c.config(from)
	cfg.OnReject = letters.Write
	tl := follow(t, cfg, nil)
	require.Eventually(t, func() bool { return tl.trouble() != nil }, 10*time.Second, 5*time.Millisecond)
	require.ErrorIs(t, tl.trouble(), kafkago.MessageSizeTooLarge)
	require.ErrorContains(t, tl.trouble(), fmt.Sprintf("dead letters to topic %q", to))
	require.ErrorContains(t, tl.trouble(), from+"/0@1")
	tl.stop(t)
	require.Zero(t, tl.rejected)
	require.EqualValues(t, 1, tl.next[from+"/0"])
}

// A topic that is missing, deleted, or not to be written to, is an error that
// names it, until it is there; nothing is created by asking.
func lettersMissing(t *testing.T, c cluster) {
	from, to := c.create(t, 2), newTopic()
	cl := c.client(t)
	produce(t, cl, from, 0, "a", "bad1", "b")
	produce(t, cl, from, 1, "x")
	letters := c.letters(t, to)
	begin := time.Now()
	err := letters.Check(t.Context())
	require.ErrorContains(t, err, fmt.Sprintf("kafka: dead letters to topic %q: it does not exist at ", to))
	require.Less(t, time.Since(begin), 5*time.Second)
	cfg := c.config(from)
	cfg.OnReject = letters.Write
	tl := follow(t, cfg, nil)
	require.Eventually(t, func() bool { return tl.trouble() != nil }, 10*time.Second, 5*time.Millisecond)
	require.ErrorContains(t, tl.trouble(), "it does not exist")
	for i := range 50 { // the other partition goes on
		produce(t, cl, from, 1, fmt.Sprint("x", i))
	}
	tl.await(t, 52)
	require.NotContains(t, c.topics(t), to)
	c.createAs(t, to, 1)
	tl.await(t, 53)
	c.records(t, to, 1)

	// Gone in between.
	c.delete(t, to)
	produce(t, cl, from, 0, "bad2", "c")
	require.Never(t, func() bool { return slices.Contains(tl.keys(), "c") }, time.Second, 20*time.Millisecond)
	c.createAs(t, to, 1)
	tl.await(t, 54)
	got := c.records(t, to, 1)
	require.Equal(t, "bad2", string(got[0].Value))
	tl.stop(t)
	require.EqualValues(t, 2, tl.rejected)
}

// Down when the service stops, for as long as it takes: whoever goes on tells of
// the record; nobody counts it as rejected who has not.
func lettersDownAtShutdown(t *testing.T, c cluster) {
	from, to := c.create(t, 1), c.create(t, 1)
	produce(t, c.client(t), from, 0, "a", "bad1", "b", "bad2", "c")
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nowhere := dead.Addr().String()
	dead.Close()
	sink := memory.New(memory.Config{})
	var told int64
	for round := range 3 {
		letters := c.letters(t, to, func(cfg *DeadLettersConfig) {
			if round < 2 {
				cfg.Brokers = []string{nowhere}
			}
		})
		cfg := c.config(from)
		cfg.OnReject = letters.Write
		s, err := New(cfg)
		require.NoError(t, err)
		p, err := tumble.New(tumble.Config{Source: s, Sink: sink, Window: tumble.Window{Size: 24 * time.Hour}, Logger: cfg.Logger})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		if round < 2 {
			require.Eventually(t, func() bool {
				parts := p.Stats().Partitions
				return len(parts) == 1 && parts[0].Err != nil && parts[0].Committed == 1
			}, 15*time.Second, 5*time.Millisecond)
			require.ErrorContains(t, p.Stats().Partitions[0].Err, "record at offset 1 was rejected")
			require.ErrorContains(t, p.Stats().Partitions[0].Err, nowhere)
		} else {
			require.Eventually(t, func() bool { return p.Stats().Counted == 2 }, 15*time.Second, 5*time.Millisecond)
		}
		begin := time.Now()
		cancel()
		require.NoError(t, <-done)
		require.Less(t, time.Since(begin), time.Second)
		told += p.Stats().Rejected
	}
	require.EqualValues(t, 2, told)
	var values []string
	for _, r := range c.records(t, to, 2) {
		values = append(values, string(r.Value))
	}
	require.Equal(t, []string{"bad1", "bad2"}, values)
	var n int64
	for _, key := range []string{"a", "b", "c"} {
		count, err := sink.Count(t.Context(), key, time.Now())
		require.NoError(t, err)
		n += count.N
	}
	require.EqualValues(t, 3, n)
}

// One Transport, with the metadata of the source's topic alone, does for both;
// and the letters must not come back to where they are rejected.
func lettersShareTransport(t *testing.T, c cluster) {
	from, to := c.create(t, 1), c.create(t, 1)
	produce(t, c.client(t), from, 0, "bad1")
	tr := transport(t, from)
	cfg := c.config(from)
	cfg.Transport = tr
	letters := c.letters(t, to, func(cfg *DeadLettersConfig) { cfg.Transport = tr })
	cfg.OnReject = letters.Write
	whole(t, cfg)
	c.records(t, to, 1)

	circle := c.letters(t, from)
	require.ErrorContains(t, circle.Write(t.Context(), Rejected{Topic: from, Cause: errors.New("bad")}), "it is the topic whose records are rejected")
	c.records(t, from, 1)
}

func runLetterScenarios(t *testing.T, c cluster) {
	for name, scenario := range map[string]func(*testing.T, cluster){
		"Whole": lettersWhole, "TooLarge": lettersTooLarge, "Refused": lettersRefused, "Missing": lettersMissing,
		"DownAtShutdown": lettersDownAtShutdown, "ShareTransport": lettersShareTransport,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scenario(t, c)
		})
	}
}

func TestDeadLettersOnFakeCluster(t *testing.T) {
	t.Parallel()
	c := fakeCluster(t)
	t.Run("", func(t *testing.T) { runLetterScenarios(t, c) })
}

// Every replica must have the letter before its record is passed.
func TestDeadLettersAreAcknowledgedByAll(t *testing.T) {
	c := fakeCluster(t)
	to := c.create(t, 1)
	asked := make(chan int16, 1)
	c.fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		asked <- req.(*kmsg.ProduceRequest).Acks
		return nil, nil, false
	})
	require.NoError(t, c.letters(t, to).Write(t.Context(), Rejected{Topic: "clicks", Cause: errors.New("bad")}))
	require.EqualValues(t, -1, <-asked)

	// With an error that comes without words, too, it is not passed.
	c.fake.ControlKey(int16(kmsg.Produce), func(req kmsg.Request) (kmsg.Response, error, bool) {
		res := req.ResponseKind().(*kmsg.ProduceResponse)
		topic := kmsg.NewProduceResponseTopic()
		p := kmsg.NewProduceResponseTopicPartition()
		topic.Topic, p.ErrorCode = to, int16(kafkago.NotEnoughReplicas)
		topic.Partitions = append(topic.Partitions, p)
		res.Topics = append(res.Topics, topic)
		return res, nil, true
	})
	err := c.letters(t, to).Write(t.Context(), Rejected{Topic: "clicks", Cause: errors.New("bad")})
	require.ErrorIs(t, err, kafkago.NotEnoughReplicas)
}

// Of what no broker would read to its end, because it is beyond what it takes in
// one request, the beginning is written: nothing else could be.
func TestDeadLetterBeyondARequest(t *testing.T) {
	c := fakeCluster(t)
	to := c.create(t, 1)
	letters := c.letters(t, to)
	letters.most = 5000
	var asked atomic.Int32
	c.fake.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		asked.Add(1)
		return nil, nil, false
	})
	require.NoError(t, letters.Write(t.Context(), Rejected{Topic: "clicks", Cause: errors.New("bad"), Message: Message{Value: make([]byte, 16_000)}}))
	got := c.records(t, to, 1)
	require.InDelta(t, 4000, len(got[0].Value), 300, "a quarter, less the headers")
	require.Equal(t, "16000", string(got[0].Headers[4].Value))
	require.EqualValues(t, 1, asked.Load())
}

// The leader of the topic moves: the letter goes to the next one.
func TestDeadLettersLeaderMoves(t *testing.T) {
	c := fakeCluster(t)
	id, _, err := c.fake.AddNode(-1, 0)
	require.NoError(t, err)
	from, to := c.create(t, 1), c.create(t, 1)
	letters := c.letters(t, to)
	r := Rejected{Topic: from, Offset: 1, Cause: errors.New("bad"), Message: Message{Value: []byte("v")}}
	for i := range 6 {
		r.Offset = int64(i)
		require.NoError(t, c.fake.MoveTopicPartition(to, 0, []int32{id, 0}[i%2]))
		var err error
		require.Eventually(t, func() bool { err = letters.Write(t.Context(), r); return err == nil }, 5*time.Second, 20*time.Millisecond, "%v", err)
	}
	require.Len(t, c.records(t, to, 6), 6)
}

func TestDeadLettersConfig(t *testing.T) {
	good := DeadLettersConfig{Brokers: []string{"localhost:9092"}, Topic: "letters"}
	for want, change := range map[string]func(*DeadLettersConfig){
		"DeadLettersConfig.Brokers is empty":                 func(c *DeadLettersConfig) { c.Brokers = nil },
		`DeadLettersConfig.Brokers holds "localhost"`:        func(c *DeadLettersConfig) { c.Brokers = []string{"localhost"} },
		"DeadLettersConfig.Topic is empty":                   func(c *DeadLettersConfig) { c.Topic = "" },
		`DeadLettersConfig.Topic is "a b"`:                   func(c *DeadLettersConfig) { c.Topic = "a b" },
		"DeadLettersConfig.Timeout is -1s, must be from 1ms": func(c *DeadLettersConfig) { c.Timeout = -time.Second },
	} {
		cfg := good
		change(&cfg)
		_, err := NewDeadLetters(cfg)
		require.ErrorContains(t, err, "kafka: "+want)
	}
	_, err := NewDeadLetters(good)
	require.NoError(t, err)
}

// However little room there is, the letter says where the record is, and nothing
// is longer than it should be.
func TestLetterCut(t *testing.T) {
	l := newLetter(Rejected{Topic: "clicks", Partition: 3, Offset: 9, Cause: errors.New(strings.Repeat("ä", 2000)),
		Message: Message{Key: make([]byte, 300), Value: make([]byte, 5000)}})
	l.headers = []letterHeader{{"h", make([]byte, 200)}}
	least := letter{own: l.own}
	require.LessOrEqual(t, least.size(), 1200, "a cause is bounded")
	for limit := l.size() - 1; limit > 0; limit -= 7 {
		c := l.cut(limit)
		if !c.least() {
			require.LessOrEqual(t, c.size(), limit)
		}
		require.Equal(t, l.own, c.own[:len(l.own)])
		require.Equal(t, letterHeader{HeaderSize, []byte("5000")}, c.own[len(l.own)])
		if limit > least.size()+400 {
			require.Len(t, c.key, 300, "%d", limit)
		}
	}
	last := l.cut(0)
	require.True(t, last.least())
}
