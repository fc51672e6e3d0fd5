package kafka

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A rackCluster is of two brokers, of which one leads a partition of ten records, one a
// batch, and sends whoever is in the other's rack there.
type rackCluster struct {
	cluster
	topic    string
	leader   int32
	leaders  atomic.Int64 // answers of the leader
	replicas atomic.Int64 // and of the replica

	mu      sync.Mutex
	end     int64 // of the log, by the leader
	known   int64 // and by the replica
	replica func(q kmsg.FetchRequestTopicPartition, p *kmsg.FetchResponseTopicPartition) bool
}

func newRackCluster(t *testing.T) *rackCluster {
	c := &rackCluster{cluster: fakeCluster(t, kfake.NumBrokers(2)), end: 10, known: 10}
	c.topic = c.create(t, 1)
	c.leader = c.fake.LeaderFor(c.topic, 0)
	c.fake.ControlKey(int16(protocol.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		q := req.(*kmsg.FetchRequest)
		res := q.ResponseKind().(*kmsg.FetchResponse)
		res.Version = q.Version
		qp := q.Topics[0].Partitions[0]
		p := kmsg.NewFetchResponseTopicPartition()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.fake.CurrentNode() == c.leader {
			c.leaders.Add(1)
			p.HighWatermark, p.LastStableOffset = c.end, c.end
			if q.Rack == "near" && qp.FetchOffset <= c.known {
				p.PreferredReadReplica = 1 - c.leader
			} else {
				c.records(qp.FetchOffset, c.end, &p)
			}
		} else {
			c.replicas.Add(1)
			p.HighWatermark, p.LastStableOffset = c.known, c.known
			if c.replica == nil || c.replica(qp, &p) {
				c.records(qp.FetchOffset, c.known, &p)
			}
		}
		if p.RecordBatches == nil {
			time.Sleep(5 * time.Millisecond) // MaxWait
		}
		rt := kmsg.NewFetchResponseTopic()
		rt.Topic, rt.TopicID, rt.Partitions = c.topic, q.Topics[0].TopicID, []kmsg.FetchResponseTopicPartition{p}
		res.Topics = []kmsg.FetchResponseTopic{rt}
		return res, nil, true
	})
	// The end at the start is the leader's.
	c.fake.ControlKey(int16(protocol.ListOffsets), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		q := req.(*kmsg.ListOffsetsRequest)
		res := q.ResponseKind().(*kmsg.ListOffsetsResponse)
		res.Version = q.Version
		p := kmsg.NewListOffsetsResponseTopicPartition()
		p.LeaderEpoch = 0
		if q.Topics[0].Partitions[0].Timestamp == latest {
			c.mu.Lock()
			p.Offset = c.end
			c.mu.Unlock()
		} else {
			p.Offset = 0
		}
		res.Topics = []kmsg.ListOffsetsResponseTopic{{Topic: c.topic, Partitions: []kmsg.ListOffsetsResponseTopicPartition{p}}}
		return res, nil, true
	})
	return c
}

// records puts the next three records before end into an answer.
func (c *rackCluster) records(from, end int64, p *kmsg.FetchResponseTopicPartition) {
	for o := from; o < min(from+3, end); o++ {
		p.RecordBatches = append(p.RecordBatches, plainBatch(o, 0, []string{"k"}, nil)...)
	}
}

func (c *rackCluster) near() Config {
	cfg := c.config(c.topic, 0)
	cfg.Rack = "near"
	return cfg
}

func (tl *tail) isCaught(id string) bool {
	tl.mu.Lock()
	defer tl.mu.Unlock()
	return tl.caught[id]
}

func TestRack(t *testing.T) {
	c := newRackCluster(t)
	tl := follow(t, c.near(), nil)
	tl.await(t, 10)
	require.GreaterOrEqual(t, c.replicas.Load(), int64(4), "records came from the replica")
	require.Eventually(t, func() bool { return tl.isCaught(c.topic + "/0") }, 5*time.Second, time.Millisecond)
	require.NoError(t, tl.trouble())

	far := follow(t, c.config(c.topic, 0), nil)
	before := c.replicas.Load()
	tl.stop(t)
	far.await(t, 10)
	require.LessOrEqual(t, c.replicas.Load()-before, int64(2), "who names no rack reads from the leader")
}

// A replica that does not know the end yet is not believed that it is reached: the leader
// has the rest.
func TestRackReplicaBehind(t *testing.T) {
	c := newRackCluster(t)
	c.known = 6
	tl := follow(t, c.near(), nil)
	tl.await(t, 6)
	for range 50 {
		require.False(t, tl.isCaught(c.topic+"/0") && tl.next[c.topic+"/0"] < 10)
		time.Sleep(time.Millisecond)
	}
	c.mu.Lock()
	c.known = 10
	c.mu.Unlock()
	tl.await(t, 10)
	require.Eventually(t, func() bool { return tl.isCaught(c.topic + "/0") }, 5*time.Second, time.Millisecond)
}

// What a replica refuses is asked of the leader, who decides.
func TestRackReplicaRefuses(t *testing.T) {
	for name, code := range map[string]int16{
		"out of range": kerr.OffsetOutOfRange.Code, "not available": kerr.OffsetNotAvailable.Code, "no replica": kerr.NotLeaderForPartition.Code,
	} {
		t.Run(name, func(t *testing.T) {
			c := newRackCluster(t)
			refused := 0
			c.replica = func(q kmsg.FetchRequestTopicPartition, p *kmsg.FetchResponseTopicPartition) bool {
				if q.FetchOffset >= 3 && refused < 3 {
					refused++
					p.ErrorCode = code
					p.HighWatermark = -1
					return false
				}
				return true
			}
			tl := follow(t, c.near(), nil)
			tl.await(t, 10)
			require.Len(t, tl.snapshot(), 10)
			require.Equal(t, 3, refused)
			require.NoError(t, tl.trouble())
		})
	}
	t.Run("another history", func(t *testing.T) {
		c := newRackCluster(t)
		diverges := true
		c.replica = func(q kmsg.FetchRequestTopicPartition, p *kmsg.FetchResponseTopicPartition) bool {
			if q.FetchOffset >= 3 && diverges {
				diverges = false
				p.DivergingEpoch.Epoch, p.DivergingEpoch.EndOffset = 0, 1
				return false
			}
			return true
		}
		tl := follow(t, c.near(), nil)
		tl.await(t, 10)
		require.Len(t, tl.snapshot(), 10)
		require.False(t, diverges)
	})
}

// A replica that is gone is one that the leader stands in for.
func TestRackReplicaGone(t *testing.T) {
	c := newRackCluster(t)
	tl := follow(t, c.near(), nil)
	tl.await(t, 10)
	c.mu.Lock()
	gone := true
	c.replica = func(_ kmsg.FetchRequestTopicPartition, p *kmsg.FetchResponseTopicPartition) bool {
		if gone {
			p.Partition = 99 // an answer that leaves out what was asked for
		}
		return !gone
	}
	c.end, c.known = 13, 11 // the leader would send us there
	before := c.leaders.Load()
	c.mu.Unlock()
	require.Eventually(t, func() bool { return c.leaders.Load() > before+3 }, 5*time.Second, time.Millisecond, "the leader is asked each time")
	c.mu.Lock()
	gone = false
	c.known = 13
	c.mu.Unlock()
	tl.await(t, 13)
	require.Len(t, tl.snapshot(), 13)
}

// After a while the leader is asked again, although the replica has more.
func TestRackReturns(t *testing.T) {
	s, err := New(Config{Brokers: []string{"localhost:1"}, Topic: "t", Decode: plainDecode, Rack: "near"})
	require.NoError(t, err)
	f := newFetcher(s, nil)
	f.layout.id = topicID{1}
	p := f.add(0)
	d := &p.feed
	d.log, d.leader, d.epoch, d.vetted, d.want, d.last = f.layout.id, 1, 0, 0, 5, 0
	f.mu.Lock()
	f.readFrom(p, 2)
	f.mu.Unlock()
	leader, replica := &loop{f: f, broker: 1}, &loop{f: f, broker: 2}
	asks, _, _ := leader.prepare()
	require.Empty(t, asks)
	d.doubt()
	require.EqualValues(t, 1, d.broker(), "the leader is asked whether the position is there")
	d.vetted = 0
	asks, _, _ = replica.prepare()
	require.Len(t, asks, 1)
	d.asked = false
	d.returns = time.Now().Add(-time.Second)
	asks, _, _ = replica.prepare()
	require.Empty(t, asks)
	asks, _, _ = leader.prepare()
	require.Len(t, asks, 1)
	f.mu.Lock()
	d.asked = false
	f.readFrom(p, 2)
	f.layout.partitions = map[int32]leadership{0: {leader: 3, epoch: 1}}
	f.place(p)
	f.mu.Unlock()
	require.EqualValues(t, 3, d.broker())
	require.EqualValues(t, -1, d.replica, "a new leader names its own")
}
