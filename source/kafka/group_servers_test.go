//go:build servers

package kafka

import (
	"cmp"
	"context"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

func TestGroupOnRealBroker(t *testing.T) {
	c := groupCluster{
		brokers: strings.Split(cmp.Or(os.Getenv("TUMBLE_KAFKA"), "localhost:9092"), ","),
		session: 6 * time.Second, // the least that a broker accepts by default
	}
	require.NoError(t, c.client(t).Ping(t.Context()), "a Kafka broker must run at %v (TUMBLE_KAFKA)", c.brokers)
	runGroupScenarios(t, c)
	t.Run("MixedNewProtocol", func(t *testing.T) {
		t.Parallel()
		groupMixedNewProtocol(t, c)
	})
	t.Run("LeavesNothingBehind", func(t *testing.T) {
		t.Parallel()
		groupLeavesNothingBehind(t, c)
	})
}

// A group moves to the protocol of KIP-848 member by member, whoever was first;
// then the broker shares out.
func groupMixedNewProtocol(t *testing.T, c groupCluster) {
	const n = 6
	topic, id := c.create(t, n), c.name(t)
	one := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, one.now()) })

	var mu sync.Mutex
	theirs := make(map[int32]bool)
	note := func(has bool) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, m map[string][]int32) {
			mu.Lock()
			defer mu.Unlock()
			for _, p := range m[topic] {
				if theirs[p] = has; !has {
					delete(theirs, p)
				}
			}
		}
	}
	share := func() []int32 {
		mu.Lock()
		defer mu.Unlock()
		return slices.Collect(maps.Keys(theirs))
	}
	them := c.client(t, kgo.ConsumerGroup(id), kgo.ConsumeTopics(topic), kgo.ServerSideBalancer(), kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(note(true)), kgo.OnPartitionsRevoked(note(false)), kgo.OnPartitionsLost(note(false)))
	eventually(t, 20*time.Second, "shared", func() bool { return len(share()) == n/2 && covers(n, one.now(), share()) })

	two := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 20*time.Second, "shared by three", func() bool {
		return len(share()) == n/3 && len(one.now()) == n/3 && covers(n, one.now(), two.now(), share())
	})
	require.NoError(t, two.g.commit(t.Context(), two.generations()[len(two.generations())-1].assignment, map[int32]int64{two.now()[0]: 4}))
	_, err := one.stop()
	require.NoError(t, err)
	eventually(t, 20*time.Second, "left", func() bool { return len(share()) == n/2 && covers(n, two.now(), share()) })
	them.Close()
	eventually(t, 20*time.Second, "back among ourselves", func() bool { return covers(n, two.now()) })
}

// countedConn tells how many connections are open.
type countedConn struct {
	net.Conn
	open *atomic.Int32
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// A join that is given up does not linger until the others have joined: the
// coordinator answers it when the member leaves, and its connection is free.
func groupLeavesNothingBehind(t *testing.T, c groupCluster) {
	topic, id := c.create(t, 2), c.name(t)
	slow := startMember(t, c.deaf(t, topic, id), 0)
	eventually(t, 10*time.Second, "alone", func() bool { return covers(2, slow.now()) })

	var open atomic.Int32
	cfg := c.config(t, topic, id)
	tr := cfg.wire.Transport.(*kafkago.Transport)
	tr.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		open.Add(1)
		return &countedConn{Conn: conn, open: &open}, nil
	}
	waiting := startMember(t, cfg, 0)
	time.Sleep(time.Second) // it joins
	_, err := waiting.stop()
	require.NoError(t, err)
	require.Empty(t, waiting.generations())
	require.NotZero(t, open.Load())
	tr.CloseIdleConnections()
	eventually(t, c.session/2, "every connection is closed", func() bool { return open.Load() == 0 })
}
