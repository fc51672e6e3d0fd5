package memory_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// keeping counts per minute with a retention.
func keeping(retention time.Duration) tumble.Definition {
	return tumble.Definition{Window: tumble.Window{Size: time.Minute}, Retention: retention}
}

// process opens a sink of one shard with a retention.
func process(t *testing.T, s *memory.Sink, retention time.Duration) tumble.Shard {
	shards, err := s.Open(t.Context(), keeping(retention))
	require.NoError(t, err)
	return shards[0]
}

func load(t *testing.T, s tumble.Shard) tumble.ShardState {
	state, err := s.Load(t.Context(), tumble.LoadRequest{})
	require.NoError(t, err)
	return state
}

// move moves the watermark of clicks/0 and adds deltas.
func move(t *testing.T, s tumble.Shard, to time.Time, deltas ...tumble.Delta) {
	state, err := s.Load(t.Context(), begin)
	require.NoError(t, err)
	b := tumble.Batch{Partition: "clicks/0", Writer: 1, From: state.Checkpoints["clicks/0"], Deltas: deltas}
	b.To = b.From
	b.To.Offset++
	b.To.Watermark = to
	require.NoError(t, s.Apply(t.Context(), b))
}

// A longer retention stays in force for a minute after the last Load that asked
// for it.
func TestRetentionInForce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New(memory.Config{})
		inForce := func(want time.Duration) {
			t.Helper()
			def, err := s.Definition(t.Context())
			require.NoError(t, err)
			require.Equal(t, want, def.Retention)
		}
		short, long, ever := process(t, s, time.Minute), process(t, s, time.Hour), process(t, s, 0)
		inForce(time.Minute) // an Open asks for nothing where a definition is stored
		load(t, short)
		inForce(time.Minute)
		load(t, ever)
		load(t, long)
		inForce(0)
		time.Sleep(30 * time.Second)
		load(t, long)
		time.Sleep(30 * time.Second)
		load(t, short)
		inForce(0)
		time.Sleep(time.Nanosecond)
		inForce(time.Hour)
		time.Sleep(30*time.Second - 1)
		inForce(time.Hour)
		load(t, short)
		time.Sleep(time.Nanosecond)
		inForce(time.Minute)

		// While nobody asks it stays what it was.
		load(t, long)
		load(t, short)
		time.Sleep(24 * time.Hour)
		inForce(time.Hour)
		load(t, short)
		inForce(time.Minute)

		// What a Load tells stays in force for half a minute.
		told := func(want time.Duration) {
			t.Helper()
			require.Equal(t, []time.Duration{want}, load(t, short).Retentions)
		}
		load(t, long)
		time.Sleep(30 * time.Second)
		told(time.Hour)
		time.Sleep(time.Nanosecond)
		told(time.Minute)
		inForce(time.Hour)
	})
}

// What a longer retention kept is forgotten once it is no longer in force, also
// where no window closes, by a batch or by a Load; and the floor stays then.
func TestFloorFollowsRetention(t *testing.T) {
	for name, touch := range map[string]func(t *testing.T, s tumble.Shard){
		"Load":  func(t *testing.T, s tumble.Shard) { load(t, s) },
		"Apply": func(t *testing.T, s tumble.Shard) { move(t, s, t0.Add(30*time.Minute)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := memory.New(memory.Config{})
				long, short := process(t, s, time.Hour), process(t, s, time.Minute)
				load(t, long)
				move(t, short, t0, tumble.Delta{Start: t0, Key: "a", N: 1})
				move(t, short, t0.Add(30*time.Minute))
				require.Equal(t, t0.Add(-30*time.Minute), load(t, short).Floors[0])
				c, err := s.Count(t.Context(), "a", t0)
				require.NoError(t, err)
				require.EqualValues(t, 1, c.N)
				require.Equal(t, tumble.Closed, c.State)

				time.Sleep(time.Minute + 1)
				touch(t, short)
				c, err = s.Count(t.Context(), "a", t0)
				require.NoError(t, err)
				require.EqualValues(t, 0, c.N)
				require.Equal(t, tumble.Expired, c.State)
				require.Equal(t, t0.Add(29*time.Minute), load(t, short).Floors[0])
				require.Equal(t, t0.Add(29*time.Minute), load(t, long).Floors[0])
			})
		})
	}
}

// The longest retention before the first year is further back than int64 has
// nanoseconds.
func TestFloorBeforeAllYears(t *testing.T) {
	s := memory.New(memory.Config{})
	shard := process(t, s, 50*365*24*time.Hour)
	year := time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC)
	move(t, shard, year, tumble.Delta{Start: year, Key: "a", N: 1})
	move(t, shard, year.Add(time.Hour), tumble.Delta{Start: year, Key: "a", N: 1})
	c, err := s.Count(t.Context(), "a", year)
	require.NoError(t, err)
	require.EqualValues(t, 2, c.N)
	require.Equal(t, tumble.Closed, c.State)
}
