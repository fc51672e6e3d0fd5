package kafka

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
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

func TestFields(t *testing.T) {
	at := time.Date(2023, 10, 1, 12, 34, 56, 789e6, time.UTC)
	clicks := Fields{Key: "user.id", Time: "at", Unit: Milliseconds, N: "bytes", Where: map[string][]string{"kind": {"view", "1"}, "user.bot": {"false"}}}
	for value, want := range map[string]*tumble.Event{
		`{"user":{"id":"ann","bot":false},"at":1696163696789,"kind":"view","bytes":17}`: {Key: "ann", Time: at, N: 17},
		`{"user":{"id":7,"bot":"false"},"at":1696163696789,"kind":1,"bytes":17}`:        {Key: "7", Time: at, N: 17},
		`{"user":{"id":"ann","bot":false},"at":1696163696789,"kind":"view","bytes":0}`:  nil,
		`{"user":{"id":"ann","bot":true},"at":"?","kind":"view","bytes":null}`:          nil,
		`{"user":{"bot":false}}`:           nil,
		`{"user":{"bot":false},"kind":{}}`: nil,
	} {
		events, err := clicks.Decode()(nil, Message{Value: []byte(value)})
		require.NoError(t, err, value)
		if want == nil {
			require.Empty(t, events, value)
		} else {
			require.Equal(t, []tumble.Event{*want}, events, value)
		}
	}
	_, err := clicks.Decode()(nil, Message{Value: []byte(`{"user":{"bot":false},"kind":"view"}`)})
	require.EqualError(t, err, `field "user.id" is missing`)

	// The time of the record, which it may lack. Events without N count 1.
	recorded := Fields{Key: "k", Unit: RecordTime}.Decode()
	events, err := recorded(nil, Message{Value: []byte(`{"k":"ann"}`), Time: at})
	require.NoError(t, err)
	require.Equal(t, []tumble.Event{{Key: "ann", Time: at}}, events)
	_, err = recorded(nil, Message{Value: []byte(`{"k":"ann"}`)})
	require.ErrorIs(t, err, errNoTimestamp)

	for unit, text := range map[Unit]string{RFC3339: `"2023-10-01T12:34:56.789Z"`, Seconds: "1696163696.789", Milliseconds: "1696163696789", Microseconds: "1696163696789000", Nanoseconds: "1696163696789000000"} {
		events, err = Fields{Key: "k", Time: "t", Unit: unit}.Decode()(nil, Message{Value: []byte(`{"k":"ann","t":` + text + `}`)})
		require.NoError(t, err)
		require.Equal(t, at, events[0].Time)
	}
	require.Panics(t, func() { Fields{Unit: 6}.Decode() })
	many := map[string][]string{}
	for i := range 62 {
		many[strings.Repeat("x", i)] = nil
	}
	require.Panics(t, func() { Fields{Where: many}.Decode() })
	delete(many, "")
	require.NotPanics(t, func() { Fields{Where: many}.Decode() })
}

func TestUnmarshal(t *testing.T) {
	type order struct {
		At    time.Time
		Items []struct {
			SKU   string
			Cents int64
		}
	}
	decode := Unmarshal(json.Unmarshal, func(dst []tumble.Event, o *order) ([]tumble.Event, error) {
		if o.At.IsZero() {
			return dst, errors.New("no time")
		}
		for _, item := range o.Items {
			dst = append(dst, tumble.Event{Key: item.SKU, Time: o.At, N: item.Cents})
		}
		return dst, nil
	})
	before := []tumble.Event{{Key: "before"}}
	at := time.Date(2023, 10, 1, 12, 34, 56, 0, time.UTC)
	events, err := decode(before, Message{Value: []byte(`{"at":"2023-10-01T12:34:56Z","items":[{"sku":"a","cents":5},{"sku":"b","cents":7}]}`)})
	require.NoError(t, err)
	require.Equal(t, []tumble.Event{before[0], {Key: "a", Time: at, N: 5}, {Key: "b", Time: at, N: 7}}, events)
	for value, fails := range map[string]bool{`{"at":"2023-10-01T12:34:56Z"}`: false, `{}`: true, `{`: true} {
		events, err = decode(before, Message{Value: []byte(value)})
		require.Equal(t, fails, err != nil, value)
		require.Equal(t, before, events)
	}
	events, err = decode(before, Message{})
	require.NoError(t, err)
	require.Equal(t, before, events)
}
