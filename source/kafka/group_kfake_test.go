package kafka

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

func fakeGroupCluster(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, groupCluster) {
	c, err := kfake.NewCluster(append(opts, kfake.NumBrokers(3), kfake.GroupMinSessionTimeout(100*time.Millisecond))...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c, groupCluster{brokers: c.ListenAddrs(), session: 2 * time.Second, fake: true}
}

func TestGroupOnFakeCluster(t *testing.T) {
	t.Parallel()
	_, c := fakeGroupCluster(t)
	t.Run("", func(t *testing.T) { runGroupScenarios(t, c) }) // which returns when all have
}

// A coordinator that fails or moves costs no partition while the session lasts.
func TestGroupCoordinatorTrouble(t *testing.T) {
	t.Parallel()
	fake, c := fakeGroupCluster(t)
	topic := c.create(t, 4)
	cfg := c.config(t, topic, c.name(t))
	cfg.session = 4 * time.Second
	m := startMember(t, cfg, 0)
	eventually(t, 10*time.Second, "alone", func() bool { return covers(4, m.now()) })
	for _, trouble := range []any{kafkago.NotCoordinatorForGroup, kafkago.GroupLoadInProgress, kafkago.GroupCoordinatorNotAvailable, kafkago.Unknown, net.ErrClosed} {
		var failed atomic.Int32
		fake.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
			fake.KeepControl()
			if failed.Add(1) > 3 {
				fake.DropControl()
				return nil, nil, false
			}
			if err, ok := trouble.(error); ok && err == net.ErrClosed {
				return nil, err, true
			}
			res := req.ResponseKind().(*kmsg.HeartbeatResponse)
			res.ErrorCode = int16(trouble.(kafkago.Error))
			return res, nil, true
		})
		eventually(t, 5*time.Second, fmt.Sprint(trouble), func() bool { return failed.Load() >= 4 })
	}
	time.Sleep(time.Second)
	require.Len(t, m.generations(), 1)
	require.True(t, covers(4, m.now()))

	// A group of kfake's does not move with its coordinator: the member comes
	// to one that does not know it, and joins as a new one.
	moved := fake.CoordinatorFor(cfg.id)
	for range 20 {
		if fake.RehashCoordinators(); fake.CoordinatorFor(cfg.id) != moved {
			break
		}
	}
	eventually(t, 10*time.Second, "on another coordinator", func() bool {
		gens := m.generations()
		return len(gens) <= 2 && covers(4, m.now()) && m.g.node.Load() == fake.CoordinatorFor(cfg.id)
	})
	require.NoError(t, m.g.commit(t.Context(), m.generations()[len(m.generations())-1].assignment, map[int32]int64{1: 1}))
	took, err := m.stop()
	require.NoError(t, err)
	require.Less(t, took, time.Second)
}

func TestGroupOldBroker(t *testing.T) {
	_, c := fakeGroupCluster(t, kfake.MaxVersions(kversion.V2_2_0()))
	cfg := c.config(t, c.create(t, 1), "g")
	m := startMember(t, cfg, 0)
	m.wait(t, 10*time.Second)
	require.ErrorIs(t, m.err, wire.ErrOld)
	require.ErrorContains(t, m.err, "kafka: group g: ")
}
