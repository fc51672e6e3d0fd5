package kafka

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// decoded lets a partition decode some records by a Decode, and returns the events
// and the first error.
func decoded(t *testing.T, maxKey int, decode Decode, records int) ([]tumble.Event, *partition, error) {
	t.Helper()
	src := &Source{cfg: Config{Decode: decode, MaxKey: maxKey, MaxSkew: -1}}
	src.rejects.log = loggerTo(&strings.Builder{})
	p := &partition{src: src, about: &report{}}
	for offset := range int64(records) {
		r := record{Message: Message{Topic: "t", Offset: offset, Value: []byte("x")}}
		if err := p.decode(&r); err != nil {
			return p.events, p, err
		}
	}
	return p.events, p, nil
}

var someTime = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

// A Decode that does not append to what it is given loses the events before, so
// the pipeline stops with an error that names it.
func TestDecodeAppends(t *testing.T) {
	event := tumble.Event{Key: "k", Time: someTime}
	own := make([]tumble.Event, 1, 8)
	for name, test := range map[string]struct {
		decode Decode
		wrong  bool
	}{
		"appends one":  {func(dst []tumble.Event, _ Message) ([]tumble.Event, error) { return append(dst, event), nil }, false},
		"appends none": {func(dst []tumble.Event, _ Message) ([]tumble.Event, error) { return dst, nil }, false},
		"appends many": {func(dst []tumble.Event, _ Message) ([]tumble.Event, error) {
			return append(dst, event, event, event), nil
		}, false},
		"its own of one":       {func([]tumble.Event, Message) ([]tumble.Event, error) { own[0] = event; return own, nil }, true},
		"a new one each time":  {func([]tumble.Event, Message) ([]tumble.Event, error) { return []tumble.Event{event}, nil }, true},
		"a new one of several": {func([]tumble.Event, Message) ([]tumble.Event, error) { return make([]tumble.Event, 20), nil }, true},
		"nil": {func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
			if m.Offset > 1 {
				return nil, nil
			}
			return append(dst, event), nil
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			events, _, err := decoded(t, 1024, test.decode, 8)
			if !test.wrong {
				require.NoError(t, err)
				for _, e := range events {
					require.Equal(t, "k", e.Key)
				}
				return
			}
			require.ErrorAs(t, err, new(*fatalError))
			require.ErrorContains(t, err, "Config.Decode returned a slice")
			require.ErrorContains(t, err, "offset")
		})
	}
}

// An error's slice does not matter.
func TestDecodeWithAnErrorMayReturnNil(t *testing.T) {
	events, p, err := decoded(t, 1024, func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
		if m.Offset == 1 {
			return nil, errors.New("bad")
		}
		return append(dst, tumble.Event{Key: "k", Time: someTime}), nil
	}, 3)
	require.NoError(t, err)
	require.Len(t, events, 2)
	require.EqualValues(t, 1, p.rejected)
}

// A record of which one key is too long, or all together are, is rejected as a
// whole.
func TestLongKeysAreRejected(t *testing.T) {
	long := strings.Repeat("k", 101)
	for name, test := range map[string]struct {
		keys     []string
		rejected bool
	}{
		"as long as may be": {[]string{long[:100]}, false},
		"longer":            {[]string{long}, true},
		"the last of three": {[]string{"a", "b", long}, true},
		"many":              {slices.Repeat([]string{long[:100]}, maxKeys/100), false},
		"too many":          {slices.Repeat([]string{long[:100]}, maxKeys/100+1), true},
	} {
		t.Run(name, func(t *testing.T) {
			events, p, err := decoded(t, 100, func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
				for _, key := range test.keys {
					dst = append(dst, tumble.Event{Key: key, Time: someTime})
				}
				return dst, nil
			}, 1)
			require.NoError(t, err)
			if test.rejected {
				require.Empty(t, events)
				require.EqualValues(t, 1, p.rejected)
				return
			}
			require.Len(t, events, len(test.keys))
		})
	}
}
