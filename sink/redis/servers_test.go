//go:build servers

package redis_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/sink/sinktest"
)

var (
	single  = addresses("TUMBLE_REDIS", "localhost:6379")
	cluster = addresses("TUMBLE_REDIS_CLUSTER", "localhost:7001,localhost:7002,localhost:7003")
)

func addresses(env, usual string) []string {
	if v := os.Getenv(env); v != "" {
		usual = v
	}
	return strings.Split(usual, ",")
}

// connect returns a client that is closed after the test.
func connect(t testing.TB, addrs []string, change ...func(*rueidis.ClientOption)) rueidis.Client {
	t.Helper()
	opt := rueidis.ClientOption{InitAddress: addrs}
	for _, f := range change {
		f(&opt)
	}
	client, err := rueidis.NewClient(opt)
	require.NoError(t, err, "a Redis server is needed at %v", addrs)
	t.Cleanup(client.Close)
	return client
}

// unique returns a name that nobody else uses, whose keys are deleted after the
// test.
func unique(t testing.TB, client rueidis.Client) string {
	name := fmt.Sprintf("test-%016x", rand.Uint64())
	t.Cleanup(func() { require.NoError(t, lose(context.Background(), client, name)) })
	return name
}

// lose deletes what is stored under a name.
func lose(ctx context.Context, client rueidis.Client, name string) error {
	keys, err := keysOf(ctx, client, name)
	if err != nil {
		return err
	}
	for _, key := range keys {
		if err := client.Do(ctx, client.B().Unlink().Key(key).Build()).Error(); err != nil {
			return err
		}
	}
	return nil
}

// keysOf returns all keys of a name, of all masters.
func keysOf(ctx context.Context, client rueidis.Client, name string) ([]string, error) {
	var keys []string
	for _, node := range client.Nodes() {
		for cursor := uint64(0); ; {
			e, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(name+":*").Count(10000).Build()).AsScanEntry()
			if err != nil {
				return nil, err
			}
			keys = append(keys, e.Elements...)
			if cursor = e.Cursor; cursor == 0 {
				break
			}
		}
	}
	return keys, nil
}

func newSink(t testing.TB, cfg redis.Config) *redis.Sink {
	t.Helper()
	s, err := redis.New(cfg)
	require.NoError(t, err)
	return s
}

func open(t testing.TB, s tumble.Sink, def tumble.Definition) []tumble.Shard {
	t.Helper()
	shards, err := s.Open(t.Context(), def)
	require.NoError(t, err)
	return shards
}

// minutes is the definition of most tests.
var minutes = tumble.Definition{Window: tumble.Window{Size: time.Minute}}

var noon = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

// register stores a checkpoint for a partition in a shard.
func register(t testing.TB, sh tumble.Shard, partition string) tumble.Checkpoint {
	t.Helper()
	all, err := sh.Load(t.Context(), map[string]tumble.Checkpoint{partition: {Log: "log"}})
	require.NoError(t, err)
	return all[partition]
}

// advance applies deltas and moves the checkpoint by one offset, to mark if
// that is not zero.
func advance(t testing.TB, sh tumble.Shard, partition string, from tumble.Checkpoint, mark time.Time, deltas ...tumble.Delta) tumble.Checkpoint {
	t.Helper()
	to := from
	to.Offset++
	if !mark.IsZero() {
		to.Watermark = mark
	}
	require.NoError(t, sh.Apply(t.Context(), tumble.Batch{Partition: partition, From: from, To: to, Deltas: deltas}))
	return to
}

func TestRules(t *testing.T) {
	for kind, addrs := range map[string][]string{"single": single, "cluster": cluster} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel() // the rules wait much
			client := connect(t, addrs)
			reader := connect(t, addrs)
			prefix := unique(t, client)
			t.Cleanup(func() { require.NoError(t, lose(context.Background(), client, prefix+"*")) })
			sinktest.Test(t, sinktest.Config{
				Open: func(_ context.Context, name string) (sinktest.Sink, error) {
					writes, err := redis.New(redis.Config{Client: client, Name: prefix + name, Shards: 4})
					if err != nil {
						return nil, err
					}
					reads, err := redis.New(redis.Config{Client: reader, Name: prefix + name})
					return pair{writes, reads}, err
				},
				Lose: func(ctx context.Context, name string) error {
					return lose(ctx, client, prefix+name)
				},
				Settle: 100 * time.Millisecond,
			})
		})
	}
}

// pair writes through one client and reads through another, as a service and
// its API do.
type pair struct {
	tumble.Sink
	tumble.Reader
}
