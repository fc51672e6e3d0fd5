//go:build servers

package kafka

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
)

func realCluster(t testing.TB) cluster {
	c := cluster{brokers: strings.Split(cmp.Or(os.Getenv("TUMBLE_KAFKA"), "localhost:9092"), ",")}
	require.NoError(t, c.client(t).Ping(t.Context()), "a Kafka broker must run at %v (TUMBLE_KAFKA)", c.brokers)
	return c
}

func TestSourceOnRealBroker(t *testing.T) {
	c := realCluster(t)
	t.Run("", func(t *testing.T) { runSourceScenarios(t, c) })
}

// The broker compresses anew where the topic says so: what Java writes, such as
// snappy in frames, is not what other clients write.
func TestCodecsOfTheBroker(t *testing.T) {
	c := realCluster(t)
	for _, name := range codecs[1:] {
		topic := c.create(t, 1, "compression.type", name)
		cl := c.client(t, kgo.ProducerBatchCompression(kgo.NoCompression()))
		var want []string
		for i := range 5 {
			values := numbered(fmt.Sprint(name, i, strings.Repeat("-", 100)), 1500)
			produce(t, cl, topic, 0, values...)
			want = append(want, values...)
		}
		tl := whole(t, c.config(topic, 0))
		require.NoError(t, tl.trouble())
		require.Equal(t, want, tl.keys())
	}
}

// And what librdkafka writes.
func TestCodecsOfKcat(t *testing.T) {
	c := realCluster(t)
	topic := c.create(t, 1)
	var want []string
	for _, name := range codecs {
		values := numbered(name+strings.Repeat("-", 100), 500)
		cmd := exec.CommandContext(t.Context(), "kcat", "-P", "-b", c.brokers[0], "-t", topic, "-p", "0", "-z", name, "-H", "k=v")
		cmd.Stdin = strings.NewReader(strings.Join(values, "\n"))
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		want = append(want, values...)
	}
	require.Equal(t, want, whole(t, c.config(topic, 0)).keys())
}

// A topic with LogAppendTime: the record's time is the broker's.
func TestLogAppendTime(t *testing.T) {
	c := realCluster(t)
	topic := c.create(t, 1, "message.timestamp.type", "LogAppendTime")
	cl := c.client(t)
	begin := time.Now().Truncate(time.Millisecond)
	old := &kgo.Record{Topic: topic, Value: []byte("old"), Timestamp: time.Unix(1000, 0)}
	require.NoError(t, cl.ProduceSync(t.Context(), old).FirstErr())
	events := whole(t, c.config(topic, 0)).snapshot()
	require.Len(t, events, 1)
	require.GreaterOrEqual(t, events[0].at, begin.UnixMilli())
	require.LessOrEqual(t, events[0].at, time.Now().UnixMilli())
}

// A compacted topic has holes, also where the reading begins or ends, and
// batches that hold nothing.
func TestCompactedTopic(t *testing.T) {
	c := realCluster(t)
	topic := c.create(t, 1, "cleanup.policy", "compact", "segment.ms", "200", "min.cleanable.dirty.ratio", "0.01",
		"max.compaction.lag.ms", "1000", "delete.retention.ms", "0")
	cl := c.client(t)
	const rounds, keys = 40, 7
	last := map[string]string{}
	for i := range rounds {
		var records []*kgo.Record
		for k := range keys {
			key, v := fmt.Sprint(k), fmt.Sprintf("%d-%d", k, i)
			if k == 0 && i > 0 {
				key = fmt.Sprint("rare", i/10) // so that a batch keeps a record in the middle
			}
			records = append(records, &kgo.Record{Topic: topic, Key: []byte(key), Value: []byte(v)})
			last[key] = v
		}
		require.NoError(t, cl.ProduceSync(t.Context(), records...).FirstErr())
		time.Sleep(30 * time.Millisecond)
	}
	cfg := c.config(topic, 0)
	var tl *tail
	require.Eventually(t, func() bool { // until the broker has come to it
		require.NoError(t, cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte("last"), Value: []byte("last")}).FirstErr())
		tl = whole(t, cfg)
		return len(tl.keys()) < rounds*keys/2
	}, time.Minute, time.Second)
	t.Logf("%d of %d records are left", len(tl.keys()), rounds*keys)
	values, final := map[int64]string{}, map[int64]string{}
	for _, e := range tl.snapshot() {
		values[e.offset] = e.key
		if slices.Contains(slices.Collect(maps.Values(last)), e.key) {
			final[e.offset] = e.key
		}
	}
	require.Len(t, final, len(last))
	cfg.UntilEnd = true
	start := whole0(t, cfg)
	for from := int64(0); from < rounds*keys; from += 3 { // compaction goes on, but never takes a key's last record
		start.Offset = from
		tl := follow(t, cfg, map[string]tumble.Checkpoint{topic + "/0": start})
		tl.end(t)
		got := map[int64]string{}
		for _, e := range tl.snapshot() {
			got[e.offset] = e.key
			require.GreaterOrEqual(t, e.offset, from)
			require.True(t, values[e.offset] == e.key || e.key == "last", "%+v", e)
		}
		for offset, v := range final {
			require.True(t, offset < from || got[offset] == v, "%q at %d is missing from %d on", v, offset, from)
		}
	}
}

// BenchmarkCPU compares the processor time of this process with franz-go's bare
// poll, over the same topic by turns.
func BenchmarkCPU(b *testing.B) {
	c := realCluster(b)
	for _, name := range codecs {
		b.Run(name, func(b *testing.B) { compareCPU(b, c, franzCodecs[name], 1_000_000) })
	}
}

func TestRulesOnRealBroker(t *testing.T) { runRules(t, realCluster(t)) }
