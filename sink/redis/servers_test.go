//go:build servers

package redis_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
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

// snapshot returns a function that makes the store hold again what it holds now
// under a name: shard by shard, each in one step, as a server that falls back.
func snapshot(ctx context.Context, client rueidis.Client, name string) (restore func(context.Context) error, err error) {
	held := make(map[string]map[string]string) // by hash tag
	keys, err := keysOf(ctx, client, name)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		value, err := client.Do(ctx, client.B().Dump().Key(key).Build()).ToString()
		if err != nil {
			return nil, err
		}
		if held[tagOf(key)] == nil {
			held[tagOf(key)] = make(map[string]string)
		}
		held[tagOf(key)][key] = value
	}
	return func(ctx context.Context) error {
		keys, err := keysOf(ctx, client, name)
		if err != nil {
			return err
		}
		commands := make(map[string][]rueidis.Completed)
		for _, key := range keys {
			commands[tagOf(key)] = append(commands[tagOf(key)], client.B().Unlink().Key(key).Build())
		}
		for tag, values := range held {
			for key, value := range values {
				commands[tag] = append(commands[tag], client.B().Restore().Key(key).Ttl(0).SerializedValue(value).Build())
			}
		}
		for _, cmds := range commands {
			cmds = slices.Concat([]rueidis.Completed{client.B().Multi().Build()}, cmds, []rueidis.Completed{client.B().Exec().Build()})
			for _, r := range client.DoMulti(ctx, cmds...) {
				if err := r.Error(); err != nil {
					return err
				}
			}
		}
		return nil
	}, nil
}

// tagOf returns the hash tag of a key.
func tagOf(key string) string {
	_, rest, _ := strings.Cut(key, "{")
	tag, _, _ := strings.Cut(rest, "}")
	return tag
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
	return join(t, sh, partition, tumble.Checkpoint{Log: "log"})
}

// join stores a checkpoint for a partition in a shard, unless it has one, and
// returns what is stored.
func join(t testing.TB, sh tumble.Shard, partition string, c tumble.Checkpoint) tumble.Checkpoint {
	t.Helper()
	state, err := sh.Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{partition: c}})
	require.NoError(t, err)
	return state.Checkpoints[partition]
}

// stateOf returns what a Load that brings nothing finds.
func stateOf(t testing.TB, sh tumble.Shard) tumble.ShardState {
	t.Helper()
	state, err := sh.Load(t.Context(), tumble.LoadRequest{})
	require.NoError(t, err)
	return state
}

// minute is a count of a window of one minute, without a term.
func minute(key string, start time.Time, n int64, state tumble.State) tumble.Count {
	return tumble.Count{Key: key, Start: start, End: start.Add(time.Minute), N: n, State: state}
}

// untermed returns a count without its term, for those that ask for the rest.
func untermed(c tumble.Count) tumble.Count {
	c.Term = 0
	return c
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

// Every server that docs/operations.md names, and every way to reach one, holds to the
// rules.
func TestRules(t *testing.T) {
	var kinds sync.WaitGroup // not t.Parallel, which lets as many run as there are cores: the rules wait much
	defer kinds.Wait()
	for kind, c := range map[string]struct {
		env, usual, version string
		change              func(*rueidis.ClientOption)
	}{
		"single":  {"TUMBLE_REDIS", "localhost:6379", "redis_version:", nil},
		"cluster": {"TUMBLE_REDIS_CLUSTER", "localhost:7001,localhost:7002,localhost:7003", "redis_mode:cluster", nil},
		"valkey":  {"TUMBLE_VALKEY", "localhost:6381", "valkey_version:9.", nil},
		"redis 6.2 by RESP2": {"TUMBLE_REDIS_6", "localhost:6380", "redis_version:6.2.", func(o *rueidis.ClientOption) {
			o.AlwaysRESP2, o.DisableCache = true, true // there is no cache without RESP3
		}},
		"sentinel without cache": {"TUMBLE_SENTINEL", "localhost:26379", "role:master", func(o *rueidis.ClientOption) {
			o.Sentinel.MasterSet, o.DisableCache = "tumble", true
		}},
	} {
		kinds.Go(func() {
			t.Run(kind, func(t *testing.T) { testRules(t, addresses(c.env, c.usual), c.version, c.change) })
		})
	}
}

func testRules(t *testing.T, addrs []string, version string, change func(*rueidis.ClientOption)) {
	if change == nil {
		change = func(*rueidis.ClientOption) {}
	}
	client := connect(t, addrs, change)
	reader := connect(t, addrs, change)
	info, err := client.Do(t.Context(), client.B().Info().Build()).ToString()
	require.NoError(t, err)
	require.Contains(t, info, version)
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
		Snapshot: func(ctx context.Context, name string) (func(context.Context) error, error) {
			return snapshot(ctx, client, prefix+name)
		},
		Settle: 100 * time.Millisecond,
	})
}

// pair writes through one client and reads through another, as a service and
// its API do.
type pair struct {
	tumble.Sink
	tumble.Reader
}

// Windows is asked for all there are when a pipeline compares its time zone data with
// the stored windows: they come as they were cut, not as this process cuts them.
func TestWindowsThatOthersCut(t *testing.T) {
	client := connect(t, addresses("TUMBLE_REDIS", "localhost:6379"))
	name := unique(t, client)
	days := func(hoursEast int) (*redis.Sink, tumble.Definition) {
		return newSink(t, redis.Config{Client: client, Name: name, Shards: 2}),
			tumble.Definition{Window: tumble.Window{Calendar: tumble.Day, Zone: faketest.Zone(t, "Africa/Lagos", hoursEast)}}
	}
	one, def := days(1)
	sh := open(t, one, def)[0]
	start := time.Date(2026, 2, 28, 23, 0, 0, 0, time.UTC)
	advance(t, sh, "p", register(t, sh, "p"), start, tumble.Delta{Start: start, Key: "ada", N: 3})
	two, def := days(2)
	open(t, two, def)
	all, err := two.Windows(t.Context(), time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC))
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, start, all[0].Start.UTC())
	require.Equal(t, start.Add(24*time.Hour), all[0].End.UTC())
}
