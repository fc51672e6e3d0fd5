package kafka

import (
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

func TestJSON(t *testing.T) {
	decode := JSON("k", "t")
	value := []byte(`{"k":"ann","t":"2023-10-01T12:34:56Z"}`)
	events, err := decode([]tumble.Event{{Key: "before"}}, Message{Value: value})
	require.NoError(t, err)
	require.Len(t, events, 2)
	require.Equal(t, "before", events[0].Key)
	require.Equal(t, "ann", events[1].Key)
	require.Same(t, &value[6], unsafe.StringData(events[1].Key)) // borrowed
	require.Zero(t, testing.AllocsPerRun(100, func() { events, _ = decode(events[:0], Message{Value: value}) }))

	dst := []tumble.Event{{Key: "before"}}
	events, err = decode(dst, Message{Value: []byte(`{"k":"ann"}`)})
	require.EqualError(t, err, `field "t" is missing`)
	require.Equal(t, dst, events)

	events, err = decode(dst, Message{Key: []byte("x")}) // a tombstone
	require.NoError(t, err)
	require.Equal(t, dst, events)

	_, err = decode(dst, Message{Value: []byte{}}) // empty is not null
	require.Error(t, err)
}

// TestJSONLearns wants the record's offset to choose the records whose shape is
// learned. Learning allocates.
func TestJSONLearns(t *testing.T) {
	decode := JSON("k", "t")
	values := [][]byte{[]byte(`{"k":"ann","t":"2023-10-01T12:34:56Z"}`), []byte(`{"t":"2023-10-01T12:34:56Z","k":"ann"}`)}
	events := make([]tumble.Event, 0, 1)
	learned := func(offset int64) bool {
		return testing.AllocsPerRun(10, func() {
			for _, value := range values {
				var err error
				events, err = decode(events[:0], Message{Value: value, Offset: offset})
				require.NoError(t, err)
			}
		}) > 0
	}
	require.False(t, learned(62))
	require.True(t, learned(63))
}
