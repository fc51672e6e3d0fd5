package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// spoil lets change have its way with each Fetch answer that c gives.
func (c cluster) spoil(change func(*kmsg.FetchResponse)) {
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
				rp.Partition, rp.HighWatermark, rp.LastStableOffset = qp.Partition, 100, 100
				rt.Partitions = append(rt.Partitions, rp)
			}
			res.Topics = append(res.Topics, rt)
		}
		change(res)
		return res, nil, true
	})
}

// What a broker may send that cannot be read: an error that names the place, as
// long as it lasts, and then every record.
func TestSpoiledBatches(t *testing.T) {
	good := plainBatch(0, 0, []string{"a", "b"}, nil)
	crc := slices.Clone(good)
	crc[len(crc)-1] ^= 1
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"version 0":    {plainBatch(0, 0, []string{"a"}, func(b *kmsg.RecordBatch) { b.Magic = 0 }), "message format version 0"},
		"version 1":    {plainBatch(0, 0, []string{"a"}, func(b *kmsg.RecordBatch) { b.Magic = 1 }), "message format version 1"},
		"checksum":     {crc, "checksum"},
		"cut off":      {good[:len(good)-1], "garbled"},
		"next to none": {good[:5], "garbled"},
		"no snappy":    {plainBatch(0, 0, []string{"a"}, func(b *kmsg.RecordBatch) { b.Attributes = codecSnappy }), "snappy"},
		"behind":       {append(slices.Clone(good), good...), "2 was to follow"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cl := fakeCluster(t)
			topic := cl.create(t, 1)
			var healed atomic.Bool
			cl.spoil(func(r *kmsg.FetchResponse) {
				p := &r.Topics[0].Partitions[0]
				p.HighWatermark, p.LastStableOffset = 2, 2
				p.RecordBatches = c.raw
				if healed.Load() {
					p.RecordBatches = good
				}
			})
			tl := follow(t, cl.config(topic, 0), nil)
			require.Eventually(t, func() bool { return tl.trouble() != nil }, 5*time.Second, time.Millisecond)
			require.ErrorContains(t, tl.trouble(), c.want)
			require.ErrorContains(t, tl.trouble(), "kafka: fetch "+topic+"/0@")
			require.LessOrEqual(t, len(tl.keys()), 2)
			healed.Store(true)
			tl.await(t, 2)
			require.Equal(t, []string{"a", "b"}, tl.keys())
		})
	}
}

// What a broker may say of one partition, or of all, does not hurt the others
// and passes.
func TestFetchErrors(t *testing.T) {
	t.Parallel()
	c := fakeCluster(t)
	t.Run("", func(t *testing.T) { testFetchErrors(t, c) })
}

func testFetchErrors(t *testing.T, c cluster) {
	for _, code := range []int16{3, 6, 9, 56, 74, 75, 78, 100, 103, -1} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			topic := c.create(t, 2)
			produce(t, c.client(t), topic, 0, numbered("", 10)...)
			produce(t, c.client(t), topic, 1, numbered("", 10)...)
			var bad atomic.Bool
			bad.Store(true)
			cfg := c.config(topic)
			cfg.Transport = &tamper{RoundTripper: transport(t, topic), after: func(r *fetchRequest) {
				if !bad.Load() {
					return
				}
				if code == -1 {
					r.code = 2 // the whole answer
					return
				}
				for i := range r.results {
					if p := &r.results[i]; p.partition == 1 {
						p.free()
						p.code = code
					}
				}
			}}
			tl := follow(t, cfg, nil)
			require.Eventually(t, func() bool { return tl.trouble() != nil }, 5*time.Second, time.Millisecond)
			if code != -1 {
				require.ErrorContains(t, tl.trouble(), topic+"/1@0")
				tl.await(t, 10)
			}
			bad.Store(false)
			require.Len(t, tl.await(t, 20), 20)
			time.Sleep(100 * time.Millisecond)
			tl.mu.Lock()
			tl.err = nil
			tl.mu.Unlock()
			time.Sleep(2 * quiet)
			require.NoError(t, tl.trouble()) // once it has passed it is not told any more
		})
	}
}

func transport(t testing.TB, topic string) *kafkago.Transport {
	tr := &kafkago.Transport{MetadataTopics: []string{topic}, MetadataTTL: time.Second}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// A tamper changes Fetch answers after they were read.
type tamper struct {
	kafkago.RoundTripper
	after func(*fetchRequest)
}

func (tr *tamper) RoundTrip(ctx context.Context, a net.Addr, r kafkago.Request) (kafkago.Response, error) {
	res, err := tr.RoundTripper.RoundTrip(ctx, a, r)
	if q, ok := r.(*wire.Request); ok && err == nil {
		if fetch, ok := q.Into.(*fetchRequest); ok {
			tr.after(fetch)
		}
	}
	return res, err
}

// Leaders move, connections break and brokers go while two producers write:
// every record comes once, in order.
func TestLeadersMove(t *testing.T) {
	t.Parallel()
	c := fakeCluster(t, kfake.NumBrokers(3))
	topic := c.create(t, 3)
	cfg := c.config(topic)
	var conns sync.Map
	tr := transport(t, topic)
	tr.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			conns.Store(conn, true)
		}
		return conn, err
	}
	cfg.Transport = tr
	tl := follow(t, cfg, nil)
	cl := c.client(t)
	want := map[string][]string{}
	for i := range 150 {
		p := int32(i % 3)
		v := fmt.Sprint(i)
		produce(t, cl, topic, p, v)
		id := fmt.Sprint(topic, "/", p)
		want[id] = append(want[id], v)
		switch i % 10 {
		case 3:
			require.NoError(t, c.fake.MoveTopicPartition(topic, p, rand.Int32N(3)))
		case 7:
			conns.Range(func(conn, _ any) bool {
				if rand.IntN(3) == 0 {
					conn.(net.Conn).Close()
					conns.Delete(conn)
				}
				return true
			})
		}
		time.Sleep(10 * time.Millisecond)
	}
	tl.await(t, 150)
	got := map[string][]string{}
	tl.mu.Lock()
	for _, e := range tl.events {
		got[e.id] = append(got[e.id], e.key)
	}
	tl.mu.Unlock()
	require.Equal(t, want, got)
}

// Old brokers know the topic by name only.
func TestOldBroker(t *testing.T) {
	var versions sync.Map
	c := fakeCluster(t)
	c.fake.ControlKey(int16(protocol.ApiVersions), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if req.GetVersion() != 0 || strings.Contains(fmt.Sprint(req.(*kmsg.ApiVersionsRequest).ClientSoftwareName), "kgo") {
			return nil, nil, false
		}
		res := kmsg.NewPtrApiVersionsResponse()
		for key, to := range map[protocol.ApiKey]int16{protocol.Fetch: 12, protocol.Metadata: 10, protocol.ApiVersions: 0, protocol.ListOffsets: 5, protocol.DescribeConfigs: 1} {
			res.ApiKeys = append(res.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: int16(key), MaxVersion: to})
		}
		return res, nil, true
	})
	c.fake.ControlKey(int16(protocol.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		versions.Store(req.GetVersion(), true)
		return nil, nil, false
	})
	topic := c.create(t, 2)
	produce(t, c.client(t), topic, 1, numbered("", 10)...)
	require.Len(t, whole(t, c.config(topic)).keys(), 10)
	_, ok := versions.Load(int16(12))
	require.True(t, ok)
}

// A broker that does not know topic ids has answered: nothing will change by
// itself.
func TestTooOldBroker(t *testing.T) {
	c := fakeCluster(t, kfake.MaxVersions(kversion.V2_2_0()))
	s, err := New(c.config("t"))
	require.NoError(t, err)
	_, err = s.Partitions(t.Context(), nil)
	require.ErrorIs(t, err, wire.ErrOld)
	require.NotErrorIs(t, err, tumble.ErrUnavailable)
}

func TestUnreachable(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	talks, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer talks.Close()
	go func() {
		for {
			conn, err := talks.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
		}
	}()
	for name, l := range map[string]net.Listener{"silent": silent, "closed": closed, "HTTP": talks} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := New(Config{Brokers: []string{l.Addr().String()}, Topic: "t", Decode: plainDecode})
			require.NoError(t, err)
			begin := time.Now()
			_, err = s.Partitions(t.Context(), nil)
			require.ErrorContains(t, err, l.Addr().String())
			require.Less(t, time.Since(begin), 5*time.Second)
		})
	}
	t.Cleanup(func() { silent.Close() })
}

func TestWrongPassword(t *testing.T) {
	c := fakeCluster(t, kfake.EnableSASL(), kfake.Superuser("PLAIN", "admin", "right"))
	for _, password := range []string{"right", "wrong"} {
		tr := transport(t, "t")
		tr.SASL = plain.Mechanism{Username: "admin", Password: password}
		cfg := c.config("t")
		cfg.Transport = tr
		s, err := New(cfg)
		require.NoError(t, err)
		begin := time.Now()
		_, err = s.Partitions(t.Context(), nil)
		require.Less(t, time.Since(begin), 5*time.Second)
		if password == "right" {
			require.ErrorContains(t, err, "does not exist")
		} else {
			require.ErrorContains(t, err, "SASL")
			require.ErrorContains(t, err, c.brokers[0])
		}
	}
}

// pipe answers one exchange with raw bytes.
type pipe struct {
	io.Reader
	sent []byte
}

func (p *pipe) Write(b []byte) (int, error) { p.sent = append(p.sent, b...); return len(b), nil }

// An answer of any bytes ends in an error or a result, never in a panic, and
// gives back every buffer.
func FuzzFetchAnswer(f *testing.F) {
	res := kmsg.NewPtrFetchResponse()
	res.Version = 13
	rt := kmsg.NewFetchResponseTopic()
	rp := kmsg.NewFetchResponseTopicPartition()
	rp.HighWatermark = 9
	rp.AbortedTransactions = []kmsg.FetchResponseTopicPartitionAbortedTransaction{{ProducerID: 3, FirstOffset: 8}, {ProducerID: 2, FirstOffset: 4}}
	rp.RecordBatches = plainBatch(7, 0, []string{"a", "b"}, nil)
	rt.Partitions = append(rt.Partitions, rp)
	res.Topics = append(res.Topics, rt)
	f.Add(res.AppendTo(nil), true)
	f.Add(res.AppendTo(nil)[:len(res.AppendTo(nil))-2], true)
	res.Version = 12
	f.Add(res.AppendTo(nil), false)
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f}, true)
	f.Fuzz(func(t *testing.T, body []byte, byID bool) {
		api := wire.FetchByName
		if byID {
			api = wire.Fetch
		}
		pool := new(pool)
		r := &fetchRequest{pool: pool, limit: 1 << 16, total: 1 << 20, abandoned: make(chan struct{})}
		q := r.request(1, api)
		raw := binary.BigEndian.AppendUint32(nil, uint32(len(body)+5))
		raw = append(raw, "tmbl"...)
		raw = append(append(raw, 0), body...)
		_, err := q.RawExchange(&pipe{Reader: strings.NewReader(string(raw))})
		if err == nil {
			for _, one := range r.results {
				if one.buf != nil {
					require.LessOrEqual(t, len(one.buf.b), len(body))
				}
			}
		}
		r.abandon()
		require.Zero(t, pool.used.Load())
	})
}

// An answer that goes on behind its end was not understood, and the buffers of one
// that nobody waits for are given back.
func TestFetchAnswer(t *testing.T) {
	res := kmsg.NewPtrFetchResponse()
	res.Version = 13
	rt, rp := kmsg.NewFetchResponseTopic(), kmsg.NewFetchResponseTopicPartition()
	rp.RecordBatches = plainBatch(0, 0, []string{"a"}, nil)
	rt.Partitions = append(rt.Partitions, rp)
	res.Topics = append(res.Topics, rt)
	answer := func(r *fetchRequest, extra string) error {
		body := append(res.AppendTo(nil), extra...)
		raw := binary.BigEndian.AppendUint32(nil, uint32(len(body)+5))
		raw = append(append(raw, "tmbl\x00"...), body...)
		_, err := r.request(1, wire.Fetch).RawExchange(&pipe{Reader: bytes.NewReader(raw)})
		return err
	}
	r := &fetchRequest{pool: new(pool), limit: 1 << 16, total: 1 << 20, abandoned: make(chan struct{})}
	require.NoError(t, answer(r, ""))
	require.Len(t, r.results, 1)
	require.NotZero(t, r.pool.used.Load())
	r.abandon()
	require.Zero(t, r.pool.used.Load())
	require.NoError(t, answer(r, ""))
	require.Zero(t, r.pool.used.Load())
	require.ErrorContains(t, answer(r, "\x00"), "longer than it should be")

	// A throttled connection is not held for a request that nobody waits for.
	res.ThrottleMillis = 60_000
	r = &fetchRequest{pool: new(pool), limit: 1 << 16, total: 1 << 20, hold: time.Minute, abandoned: make(chan struct{})}
	time.AfterFunc(100*time.Millisecond, r.abandon)
	begin := time.Now()
	require.NoError(t, answer(r, ""))
	require.GreaterOrEqual(t, time.Since(begin), 100*time.Millisecond)
	require.Eventually(t, func() bool { return r.pool.used.Load() == 0 }, 10*time.Second, time.Millisecond)
}

// Partitions whose buffers nobody takes do not stop the others.
func TestSlowConsumer(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 2)
	cl := c.client(t, kgo.ProducerBatchCompression(kgo.NoCompression()))
	for range 60 {
		for p := range int32(2) {
			produce(t, cl, topic, p, slices.Repeat([]string{strings.Repeat("x", 1000)}, 100)...)
		}
	}
	s, err := New(c.config(topic))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		next := int64(0)
		c, err := p.Fetch(ctx, unplaced(next))
		if err != nil {
			return err
		}
		if p.ID() == topic+"/0" {
			<-ctx.Done() // and holds what it has
			return nil
		}
		defer cancel()
		begin := time.Now()
		for next = c.Next; next < 6000; next = c.Next {
			if c, err = p.Fetch(ctx, unplaced(next)); err != nil {
				return err
			}
		}
		if time.Since(begin) > 5*time.Second {
			return fmt.Errorf("took %v", time.Since(begin))
		}
		return nil
	}))
}

func TestConfig(t *testing.T) {
	good := Config{Brokers: []string{"localhost:9092"}, Topic: "clicks", Decode: plainDecode}
	_, err := New(good)
	require.NoError(t, err)
	for field, change := range map[string]func(*Config){
		"Brokers":                  func(c *Config) { c.Brokers = nil },
		"Brokers holds":            func(c *Config) { c.Brokers = []string{"localhost"} },
		"Topic":                    func(c *Config) { c.Topic = "" },
		"Topic is":                 func(c *Config) { c.Topic = "a/b" },
		"Decode":                   func(c *Config) { c.Decode = nil },
		"Partitions":               func(c *Config) { c.Group, c.Partitions = "g", []int32{1} },
		"Partitions holds":         func(c *Config) { c.Partitions = []int32{1, 1} },
		"InstanceID":               func(c *Config) { c.InstanceID = "i" },
		"SessionTimeout":           func(c *Config) { c.SessionTimeout = -1 },
		"SessionTimeout is 840h":   func(c *Config) { c.SessionTimeout = 35 * 24 * time.Hour },
		"RebalanceTimeout":         func(c *Config) { c.RebalanceTimeout = -1 },
		"RebalanceTimeout is 840h": func(c *Config) { c.RebalanceTimeout = 35 * 24 * time.Hour },
		"Start":                    func(c *Config) { c.Start = 2 },
		"OnGap":                    func(c *Config) { c.OnGap = -1 },
		"OnTruncated":              func(c *Config) { c.OnTruncated = 2 },
		"OnRecreated":              func(c *Config) { c.OnRecreated = 2 },
		"MaxWait":                  func(c *Config) { c.MaxWait = time.Second },
		"MaxBuffered":              func(c *Config) { c.MaxBuffered = 1 },
		"MaxBatchBytes":            func(c *Config) { c.MaxBatchBytes = 1 },
	} {
		cfg := good
		change(&cfg)
		_, err := New(cfg)
		require.ErrorContains(t, err, "kafka: Config."+field)
	}
}

// A broker that cuts a batch off at the size that was asked for is asked for
// more.
func TestBatchCutOff(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	raw := plainBatch(0, 0, []string{strings.Repeat("x", 3<<20), "last"}, nil)
	cfg := c.config(topic, 0)
	cfg.Decode = lengths
	c.fake.ControlKey(int16(protocol.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		q := req.(*kmsg.FetchRequest)
		res := q.ResponseKind().(*kmsg.FetchResponse)
		res.Version = q.Version
		rt, rp := kmsg.NewFetchResponseTopic(), kmsg.NewFetchResponseTopicPartition()
		rt.TopicID = q.Topics[0].TopicID
		rp.HighWatermark, rp.LastStableOffset = 2, 2
		if asked := q.Topics[0].Partitions[0]; asked.FetchOffset < 2 {
			rp.RecordBatches = raw[:min(len(raw), int(asked.PartitionMaxBytes))]
		} else {
			time.Sleep(10 * time.Millisecond)
		}
		rt.Partitions = append(rt.Partitions, rp)
		res.Topics = append(res.Topics, rt)
		return res, nil, true
	})
	tl := follow(t, cfg, nil)
	require.Equal(t, "4", tl.await(t, 2)[1].key)
	require.NoError(t, tl.trouble())
}

// An answer to what was asked for before a seek does not count after it.
func TestSeekWhileAsked(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	for _, v := range numbered("", 10) {
		produce(t, c.client(t), topic, 0, v)
	}
	cfg := c.config(topic, 0)
	hold, held := make(chan struct{}), make(chan struct{})
	var once sync.Once
	cfg.Transport = &tamper{RoundTripper: transport(t, topic), after: func(r *fetchRequest) {
		if r.asks[0].from == 5 {
			once.Do(func() { close(held); <-hold })
		}
	}}
	s, err := New(cfg)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		defer cancel()
		c, err := p.Fetch(ctx, unplaced(5))
		require.NoError(t, err)
		require.Empty(t, c.Events)
		<-held
		time.AfterFunc(50*time.Millisecond, func() { close(hold) })
		require.EqualValues(t, 0, fetchSome(t, ctx, p, unplaced(0)).Events[0].Offset)
		return nil
	}))
}

// A run that ends at the moment an answer has come keeps none of its buffers:
// the next run of the Source would have less to read ahead with.
func TestStopsAsAnAnswerComes(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, "a", "b")
	cfg := c.config(topic, 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var brought atomic.Int64
	cfg.Transport = &tamper{RoundTripper: transport(t, topic), after: func(r *fetchRequest) {
		for _, one := range r.results {
			if one.buf != nil {
				brought.Add(1)
				cancel()
			}
		}
	}}
	s, err := New(cfg)
	require.NoError(t, err)
	require.NoError(t, s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		for ctx.Err() == nil {
			if _, err := p.Fetch(ctx, unplaced(0)); err != nil && ctx.Err() == nil {
				return err
			}
		}
		return nil
	}))
	require.EqualValues(t, 1, brought.Load())
	require.Zero(t, s.pool.used.Load(), "bytes of buffers were not given back")
}
