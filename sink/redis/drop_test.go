//go:build servers

package redis_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// fill counts keys under a name, over several windows and buckets, and returns the
// sink.
func fill(t *testing.T, client rueidis.Client, name string, keys int) *redis.Sink {
	t.Helper()
	sink, err := redis.New(redis.Config{Client: client, Name: name, Shards: 4})
	require.NoError(t, err)
	shards, err := sink.Open(t.Context(), tumble.Definition{Window: tumble.Window{Size: time.Minute}})
	require.NoError(t, err)
	start := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	for i, shard := range shards {
		var deltas []tumble.Delta
		for k := range keys {
			if key := strconv.Itoa(k); tumble.Hash(key)%uint64(len(shards)) == uint64(i) {
				deltas = append(deltas, tumble.Delta{Start: start.Add(time.Duration(k%3) * time.Minute), Key: key, N: 1})
			}
		}
		from := tumble.Checkpoint{Log: "log"}
		state, err := shard.Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"p": from}})
		require.NoError(t, err)
		to := state.Checkpoints["p"]
		to.Offset = int64(keys)
		require.NoError(t, shard.Apply(t.Context(), tumble.Batch{Partition: "p", Writer: 1, From: state.Checkpoints["p"], To: to, Deltas: deltas}))
	}
	return sink
}

// calm makes it look as if nobody had counted under a name for a while.
func calm(t *testing.T, client rueidis.Client, name string) {
	t.Helper()
	long := strconv.FormatInt(time.Now().Add(-time.Minute).UnixMilli(), 10)
	for _, tag := range strings.Fields(definitionOf(t, client, name)["tags"]) {
		key := name + ":{" + tag + "}:retentions"
		noted, err := client.Do(t.Context(), client.B().Hkeys().Key(key).Build()).AsStrSlice()
		require.NoError(t, err)
		for _, retention := range noted {
			require.NoError(t, client.Do(t.Context(), client.B().Hset().Key(key).FieldValue().FieldValue(retention, long).Build()).Error())
		}
	}
}

// definitionOf returns what the first shard says of what is stored under a name.
func definitionOf(t *testing.T, client rueidis.Client, name string) map[string]string {
	t.Helper()
	const first = "{460}" // the tag of the first shard: see the package's documentation
	stored, err := client.Do(t.Context(), client.B().Hgetall().Key(name+":"+first).Build()).AsStrMap()
	require.NoError(t, err)
	return stored
}

func TestDrop(t *testing.T) {
	for server, addrs := range map[string][]string{"single": single, "cluster": cluster} {
		t.Run(server, func(t *testing.T) {
			client := connect(t, addrs)
			// Names with characters that are special in a pattern, and one that begins
			// like the other.
			begin := unique(t, client)
			name := begin + "[a]*?\\"
			other := name + "b"
			t.Cleanup(func() { require.NoError(t, lose(context.Background(), client, begin+"*")) })
			sink, kept := fill(t, client, name, 3000), fill(t, client, other, 10)

			names, err := redis.Names(t.Context(), client)
			require.NoError(t, err)
			require.Contains(t, names, name)
			require.Contains(t, names, other)

			require.ErrorIs(t, sink.Drop(t.Context()), redis.ErrCounted)
			c, err := sink.Count(t.Context(), "0", time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC))
			require.NoError(t, err)
			require.Equal(t, int64(1), c.N)

			calm(t, client, name)
			require.NoError(t, sink.Drop(t.Context()))
			require.ErrorIs(t, sink.Drop(t.Context()), tumble.ErrNoDefinition)
			left, err := keysOf(t.Context(), client, begin+"*")
			require.NoError(t, err)
			require.NotEmpty(t, left)
			for _, key := range left {
				require.True(t, strings.HasPrefix(key, other+":"), key)
			}
			names, err = redis.Names(t.Context(), client)
			require.NoError(t, err)
			require.NotContains(t, names, name)
			c, err = kept.Count(t.Context(), "1", time.Date(2023, 10, 1, 12, 1, 0, 0, time.UTC))
			require.NoError(t, err)
			require.Equal(t, int64(1), c.N)
		})
	}
}

// While a name is deleted nobody may count under it, and whoever tries is told
// what to do.
func TestDropIsFinished(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	sink := fill(t, client, name, 300)
	def, err := sink.Definition(t.Context())
	require.NoError(t, err)
	shards, err := sink.Open(t.Context(), def)
	require.NoError(t, err)
	calm(t, client, name)
	// As a Drop leaves it that was cut off before it deleted anything.
	for _, tag := range strings.Fields(definitionOf(t, client, name)["tags"]) {
		key := name + ":{" + tag + "}"
		require.NoError(t, client.Do(t.Context(), client.B().Hset().Key(key).FieldValue().FieldValue("version", "dropped").FieldValue("id", "").Build()).Error())
	}
	from := tumble.Checkpoint{Log: "log", Offset: 300}
	to := from
	to.Offset++
	err = shards[0].Apply(t.Context(), tumble.Batch{Partition: "p", Writer: 2, From: from, To: to})
	require.ErrorIs(t, err, tumble.ErrDefinition)
	require.ErrorContains(t, err, "is being deleted")
	_, err = sink.Open(t.Context(), def)
	require.ErrorIs(t, err, tumble.ErrDefinition)
	_, err = newSink(t, redis.Config{Client: client, Name: name}).Count(t.Context(), "1", time.Now())
	require.ErrorIs(t, err, tumble.ErrDefinition)
	require.NoError(t, sink.Drop(t.Context()))
	left, err := keysOf(t.Context(), client, name)
	require.NoError(t, err)
	require.Empty(t, left)
	_, err = sink.Open(t.Context(), def)
	require.NoError(t, err)
}
