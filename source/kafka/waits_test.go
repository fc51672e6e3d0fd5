package kafka

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A broker that throttles answers at once, without the partitions, and then does not
// look at the connection: it is no trouble of theirs, is told, and is waited for.
func TestThrottled(t *testing.T) {
	t.Parallel()
	c := fakeCluster(t)
	topic := c.create(t, 1)
	produce(t, c.client(t), topic, 0, "a", "b")
	const pause = 300 * time.Millisecond
	var mu sync.Mutex
	var answers []time.Time
	c.spoil(func(res *kmsg.FetchResponse) {
		mu.Lock()
		defer mu.Unlock()
		answers = append(answers, time.Now())
		res.ThrottleMillis, res.Topics = int32(pause.Milliseconds()), nil
	})
	var log bytes.Buffer
	cfg := c.config(topic, 0)
	cfg.Logger = loggerTo(&log)
	tl := follow(t, cfg, nil)
	tl.awaitWaits(t, topic+"/0", "a quota of the brokers")
	time.Sleep(4 * pause)
	require.NoError(t, tl.trouble())
	begin := time.Now()
	tl.stop(t)
	require.Less(t, time.Since(begin), pause/2, "nobody waits for the end of a throttle to stop")
	require.Empty(t, log.String())
	mu.Lock()
	defer mu.Unlock()
	require.Greater(t, len(answers), 3)
	for i := range answers[1:] {
		require.GreaterOrEqual(t, answers[i+1].Sub(answers[i]), pause-10*time.Millisecond, "the connection is left alone")
	}
}
