//go:build servers

package kafka

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A client that a quota of the broker slows down reads everything, says why it takes so
// long, and stays in its group.
func TestQuotaOnRealBroker(t *testing.T) {
	t.Parallel()
	c := realCluster(t)
	topic := c.create(t, 3)
	const bytesASecond = 100_000
	c.limit(t, topic, bytesASecond)
	value := strings.Repeat("x", 1000)
	for p := range int32(3) {
		produce(t, c.client(t, kgo.ProducerBatchCompression(kgo.NoCompression())), topic, p, numbered(value, 500)...)
	}
	var log bytes.Buffer
	cfg := c.config(topic)
	cfg.Group, cfg.ClientID, cfg.SessionTimeout = topic, topic, 6*time.Second
	cfg.Logger = loggerTo(&log)
	begin := time.Now()
	tl := follow(t, cfg, nil)
	tl.awaitWaits(t, topic+"/0", "a quota of the brokers")
	require.Eventually(t, func() bool { return len(tl.snapshot()) == 1500 }, time.Minute, 100*time.Millisecond)
	t.Logf("1.5 MB at %d bytes a second: %v", bytesASecond, time.Since(begin))
	require.Greater(t, time.Since(begin), 5*time.Second, "it was not throttled")
	require.NoError(t, tl.trouble())
	tl.stop(t)
	require.NotContains(t, log.String(), "heartbeat failed")
	require.Equal(t, 1, strings.Count(log.String(), "joined"), log.String())
}

// limit gives a client a quota of the broker for what it reads.
func (c cluster) limit(t testing.TB, clientID string, bytesASecond float64) {
	kind := "client-id"
	entity := kmsg.NewAlterClientQuotasRequestEntryEntity()
	entity.Type, entity.Name = kind, &clientID
	op := kmsg.NewAlterClientQuotasRequestEntryOp()
	op.Key, op.Value = "consumer_byte_rate", bytesASecond
	entry := kmsg.NewAlterClientQuotasRequestEntry()
	entry.Entity, entry.Ops = append(entry.Entity, entity), append(entry.Ops, op)
	req := kmsg.NewPtrAlterClientQuotasRequest()
	req.Entries = append(req.Entries, entry)
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	require.Len(t, res.Entries, 1)
	require.Zero(t, res.Entries[0].ErrorCode)
}
