package kafka

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
)

// TestListing has brokers hang up on who asks for offsets. A pipeline that lists
// the partitions again, because one is new, must be able to tell that from an
// answer: an error would end all that it reads.
func TestListing(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	source, err := New(c.config(topic, 0))
	require.NoError(t, err)
	source.client.timeout = 200 * time.Millisecond
	var down atomic.Bool
	c.fake.ControlKey(int16(protocol.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if down.Load() {
			return nil, net.ErrClosed, true
		}
		return nil, nil, false
	})
	down.Store(true)
	_, err = source.Partitions(t.Context(), nil)
	require.ErrorIs(t, err, tumble.ErrUnavailable)
	down.Store(false)
	all, err := source.Partitions(t.Context(), nil)
	require.NoError(t, err)
	require.Contains(t, all, topic+"/0")

	other, err := New(c.config(topic, 7))
	require.NoError(t, err)
	_, err = other.Partitions(t.Context(), nil)
	require.ErrorContains(t, err, "Config.Partitions holds 7")
	require.NotErrorIs(t, err, tumble.ErrUnavailable, "what is wrong here stays wrong")

	c.delete(t, topic)
	_, err = source.Partitions(t.Context(), nil)
	require.ErrorContains(t, err, "does not exist")
	require.NotErrorIs(t, err, tumble.ErrUnavailable, "what brokers say is an answer")
}
