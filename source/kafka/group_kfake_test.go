package kafka

import (
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

func fakeGroupCluster(t *testing.T, opts ...kfake.Opt) (*kfake.Cluster, groupCluster) {
	c, err := kfake.NewCluster(append(opts, kfake.NumBrokers(3), kfake.GroupMinSessionTimeout(100*time.Millisecond))...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c, groupCluster{brokers: c.ListenAddrs(), session: 2 * time.Second, fake: true}
}

func TestGroupOnFakeCluster(t *testing.T) {
	_, c := fakeGroupCluster(t)
	t.Run("", func(t *testing.T) { runGroupScenarios(t, c) }) // which returns when all have
}

// A coordinator that fails or moves costs no partition while the session lasts.
func TestGroupCoordinatorTrouble(t *testing.T) {
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
	require.ErrorIs(t, m.err, errOldBroker)
	require.ErrorContains(t, m.err, "kafka: group g: ")
}

// What a broker sends is never trusted: not its length, nor that it answers.
func TestGroupExchangeGarbage(t *testing.T) {
	ask := func(answer func(id []byte) []byte) (*groupAnswer, error) {
		here, there := net.Pipe()
		defer here.Close()
		go func() {
			defer there.Close()
			req := make([]byte, 64)
			n, _ := there.Read(req)
			want := slices.Concat([]byte{0, 0, 0, 16, 0, 12, 0, 3}, req[8:12], []byte{0, 4}, []byte("test"), []byte{1, 2})
			if slices.Equal(want, req[:n]) {
				there.Write(answer(req[8:12]))
			}
		}()
		r := groupRequest{key: protocol.Heartbeat, version: 3, clientID: "test", body: []byte{1, 2}}
		if !r.Required(map[protocol.ApiKey]int16{protocol.Heartbeat: 4}) {
			return nil, nil
		}
		res, err := r.RawExchange(here)
		if err != nil {
			return nil, err
		}
		return res.(*groupAnswer), nil
	}
	a, err := ask(func(id []byte) []byte { return slices.Concat([]byte{0, 0, 0, 7}, id, []byte{1, 2, 3}) })
	require.NoError(t, err)
	require.Equal(t, []byte{1, 2, 3}, a.b)
	require.Equal(t, int8(1), a.int8())
	require.Equal(t, int16(0x0203), a.int16())
	require.NoError(t, a.err)
	require.Zero(t, a.int32())
	require.Error(t, a.err)

	for name, answer := range map[string]func(id []byte) []byte{
		"answer of -1 bytes":         func(id []byte) []byte { return slices.Concat([]byte{0xff, 0xff, 0xff, 0xff}, id) },
		"answer of 3 bytes":          func(id []byte) []byte { return slices.Concat([]byte{0, 0, 0, 3}, id) },
		"answer of 2147483647 bytes": func(id []byte) []byte { return slices.Concat([]byte{0x7f, 0xff, 0xff, 0xff}, id) },
		"EOF":                        func(id []byte) []byte { return slices.Concat([]byte{3, 0, 0, 0}, id, []byte{1}) },
		"unexpected EOF":             func(id []byte) []byte { return []byte{0, 0} },
		"answer to request":          func(id []byte) []byte { return []byte{0, 0, 0, 4, 0x70, 0, 0, 0} },
	} {
		_, err := ask(answer)
		require.ErrorContains(t, err, name)
		require.ErrorContains(t, err, "Heartbeat")
	}
}
