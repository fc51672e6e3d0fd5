//go:build servers

package kafka

import (
	"cmp"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
