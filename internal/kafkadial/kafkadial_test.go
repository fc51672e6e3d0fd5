package kafkadial

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
)

// find looks the topic up as a program does that starts.
func find(t *testing.T, broker, topic string, create bool) (int, error) {
	t.Helper()
	at := New([]string{broker}, topic)
	defer at.Close()
	began := time.Now()
	created, err := at.Find(t.Context(), create)
	require.Less(t, time.Since(began), 5*time.Second)
	return created, err
}

func TestFind(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.DefaultNumPartitions(7), kfake.SeedTopics(3, "there"))
	require.NoError(t, err)
	defer cluster.Close()
	broker := cluster.ListenAddrs()[0]

	for _, create := range []bool{false, true} {
		created, err := find(t, broker, "there", create)
		require.NoError(t, err)
		require.Zero(t, created)
	}
	for range 2 { // to ask does not create it
		_, err = find(t, broker, "missing", false)
		require.EqualError(t, err, "kafka "+broker+`: topic "missing": does not exist`)
	}
	created, err := find(t, broker, "missing", true)
	require.NoError(t, err)
	require.Equal(t, 7, created, "by the broker's default")
	created, err = find(t, broker, "missing", true)
	require.NoError(t, err)
	require.Zero(t, created, "once")
}

func TestFindNamesTheBrokers(t *testing.T) {
	silent, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	defer silent.Close()
	closed, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	for broker, says := range map[string]string{silent.Addr().String(): "no answer within 4s", closed.Addr().String(): "refused"} {
		_, err := find(t, broker, "clicks", true)
		require.ErrorContains(t, err, "kafka "+broker+`: topic "clicks": `)
		require.ErrorContains(t, err, says)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	_, err = New([]string{silent.Addr().String()}, "clicks").Find(stopped, false)
	require.ErrorIs(t, err, context.Canceled)
}
