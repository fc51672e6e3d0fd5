//go:build servers

package kafka

import (
	"cmp"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestGroupOnRealBroker(t *testing.T) {
	c := groupCluster{
		brokers: strings.Split(cmp.Or(os.Getenv("TUMBLE_KAFKA"), "localhost:9092"), ","),
		session: 6 * time.Second, // the least that a broker accepts by default
	}
	require.NoError(t, c.client(t).Ping(t.Context()), "a Kafka broker must run at %v (TUMBLE_KAFKA)", c.brokers)
	runGroupScenarios(t, c)
}
