//go:build servers

package redis_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// TestReaderOfNothing has readers read before the first count, after it, and after
// all was lost: one of them was given the definition.
func TestReaderOfNothing(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	told := newSink(t, redis.Config{Client: client, Name: name, Definition: minutes})
	other := newSink(t, redis.Config{Client: client, Name: name})
	empty := func() {
		def, err := told.Definition(t.Context())
		require.NoError(t, err)
		require.True(t, def.Same(minutes))
		c, err := told.Count(t.Context(), "alice", noon.Add(time.Second))
		require.NoError(t, err)
		require.Equal(t, tumble.Count{Key: "alice", Start: noon, End: noon.Add(time.Minute)}, c)
		counts, err := told.Range(t.Context(), "alice", noon, noon.Add(time.Hour))
		require.NoError(t, err)
		require.Empty(t, counts)
		for _, read := range []func() (tumble.Page, error){
			func() (tumble.Page, error) { return told.Top(t.Context(), noon, 10) },
			func() (tumble.Page, error) { return told.Scan(t.Context(), noon, "", 10) },
		} {
			page, err := read()
			require.NoError(t, err)
			require.Equal(t, tumble.Page{Start: noon, End: noon.Add(time.Minute)}, page)
		}
		_, err = told.Scan(t.Context(), noon, "anything", 10)
		require.ErrorIs(t, err, tumble.ErrCursor)
		_, err = told.Count(t.Context(), "alice", time.Time{})
		require.ErrorContains(t, err, "the years 1700 to 2199")
		_, err = other.Count(t.Context(), "alice", noon)
		require.ErrorIs(t, err, tumble.ErrNoDefinition)
	}
	empty()
	shard := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), tumble.Definition{Window: tumble.Window{Size: time.Hour}})[0]
	_, err := shard.Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"p": {Log: "log"}}})
	require.NoError(t, err)
	require.NoError(t, shard.Apply(t.Context(), tumble.Batch{
		Partition: "p", Writer: 1, From: tumble.Checkpoint{Log: "log"}, To: tumble.Checkpoint{Log: "log", Offset: 1, Watermark: noon},
		Deltas: []tumble.Delta{{Start: noon, Key: "alice", N: 3}},
	}))
	c, err := told.Count(t.Context(), "alice", noon.Add(time.Second))
	require.NoError(t, err)
	require.EqualValues(t, 3, c.N)
	require.Equal(t, noon.Add(time.Hour), c.End, "what is stored overrules what it was told")
	require.NoError(t, lose(t.Context(), client, name))
	require.Eventually(t, func() bool {
		c, err := told.Count(t.Context(), "alice", noon)
		return err == nil && c.N == 0 && c.End.Equal(noon.Add(time.Minute))
	}, 10*time.Second, 10*time.Millisecond)
	empty()
}

func TestDefinitionToReadByIsChecked(t *testing.T) {
	client := connect(t, single)
	_, err := redis.New(redis.Config{Client: client, Name: "x", Definition: tumble.Definition{Window: tumble.Window{Size: -1}}})
	require.ErrorContains(t, err, "redis: Config.Definition: Window.Size is")
}
