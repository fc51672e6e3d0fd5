//go:build servers

package kafka

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
)

// first returns the earliest offset that a partition holds.
func (c cluster) first(t testing.TB, topic string, partition int32) int64 {
	req := kmsg.NewPtrListOffsetsRequest()
	req.ReplicaID = -1
	req.Topics = []kmsg.ListOffsetsRequestTopic{{Topic: topic, Partitions: []kmsg.ListOffsetsRequestTopicPartition{
		{Partition: partition, CurrentLeaderEpoch: -1, Timestamp: earliest},
	}}}
	shards := c.client(t).RequestSharded(t.Context(), req)
	require.Len(t, shards, 1)
	require.NoError(t, shards[0].Err)
	return shards[0].Resp.(*kmsg.ListOffsetsResponse).Topics[0].Partitions[0].Offset
}

// The broker deletes what is too old, by whole segments, while somebody reads,
// and before somebody comes back. Who has read it all notices nothing; who has
// not is told which offsets are gone, or goes on behind them.
func TestRetentionDeletes(t *testing.T) {
	c := realCluster(t)
	topic := c.create(t, 1, "retention.ms", "2000", "segment.ms", "500", "file.delete.delay.ms", "0")
	defer c.delete(t, topic) // the broker complains of times in the future for as long as there are any
	id := topic + "/0"
	cfg := c.config(topic, 0)
	start := whole0(t, cfg)
	tl := follow(t, cfg, nil)
	cl := c.client(t)
	var want []string
	values := map[int64]string{}
	begin := time.Now()
	for i := 0; c.first(t, topic, 0) < 20; i++ {
		require.Less(t, time.Since(begin), time.Minute, "the broker deletes nothing")
		v := fmt.Sprint(i)
		values[produce(t, cl, topic, 0, v)] = v
		want = append(want, v)
		time.Sleep(50 * time.Millisecond)
	}
	tl.await(t, len(want))
	tl.stop(t)
	require.Equal(t, want, tl.keys(), "nothing is missing of what was read in time")

	stored := start
	stored.Offset = 5
	cfg.UntilEnd = true
	late := follow(t, cfg, map[string]tumble.Checkpoint{id: stored})
	err := late.result(t)
	require.ErrorContains(t, err, id+"@5: retention deleted offsets 5 to ")
	require.ErrorContains(t, err, "OnGap")
	require.Empty(t, late.keys())

	// Records that are young, so that there is something to go on with.
	young := &kgo.Record{Topic: topic, Value: []byte("young"), Timestamp: time.Now().Add(30 * time.Minute)}
	require.NoError(t, cl.ProduceSync(t.Context(), young).FirstErr())
	values[young.Offset] = "young"
	cfg.OnGap = GoOn
	late = follow(t, cfg, map[string]tumble.Checkpoint{id: stored})
	late.end(t)
	events := late.snapshot()
	require.NotEmpty(t, events)
	require.GreaterOrEqual(t, events[0].offset, int64(20))
	for i, e := range events {
		require.Equal(t, values[e.offset], e.key)
		require.Equal(t, events[0].offset+int64(i), e.offset)
	}
	require.Equal(t, "young", events[len(events)-1].key)
}
