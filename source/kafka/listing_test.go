package kafka

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/segmentio/kafka-go/protocol"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
)

// TestListingWhileRunning has brokers hang up on who asks for offsets, for
// longer than one listing takes. A pipeline lists again when it is given a
// partition that is new, and an error would end all that it reads.
func TestListingWhileRunning(t *testing.T) {
	c := fakeCluster(t)
	topic := c.create(t, 1)
	source, err := New(c.config(topic, 0))
	require.NoError(t, err)
	source.client.timeout = 200 * time.Millisecond
	var down atomic.Bool
	var asked atomic.Int32
	c.fake.ControlKey(int16(protocol.ListOffsets), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.fake.KeepControl()
		if down.Load() {
			asked.Add(1)
			return nil, net.ErrClosed, true
		}
		return nil, nil, false
	})

	down.Store(true)
	_, err = source.Partitions(t.Context(), nil)
	require.Error(t, err, "before it runs it says so")
	down.Store(false)

	ctx, stop := context.WithCancel(t.Context())
	running, ended := make(chan bool), make(chan error)
	go func() {
		ended <- source.Run(ctx, func(ctx context.Context, _ tumble.Partition) error {
			close(running)
			<-ctx.Done()
			return nil
		})
	}()
	<-running
	down.Store(true)
	asked.Store(0)
	time.AfterFunc(2*time.Second, func() { down.Store(false) })
	all, err := source.Partitions(t.Context(), nil)
	require.NoError(t, err)
	require.Contains(t, all, topic+"/0")
	require.Greater(t, asked.Load(), int32(2))

	down.Store(true)
	bounded, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = source.Partitions(bounded, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	down.Store(false)

	c.delete(t, topic)
	_, err = source.Partitions(t.Context(), nil)
	require.ErrorContains(t, err, "does not exist", "what brokers say is an answer")
	stop()
	require.NoError(t, <-ended)
}
