package tumble

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestStateAsText(t *testing.T) {
	for s := Open; s <= Expired; s++ {
		text, err := s.MarshalText()
		require.NoError(t, err)
		require.Equal(t, s.String(), string(text))
		var back State
		require.NoError(t, back.UnmarshalText(text))
		require.Equal(t, s, back)
	}
	_, err := State(7).MarshalText()
	require.ErrorContains(t, err, "no state has the number 7")
	require.Equal(t, "State(-1)", State(-1).String())
	require.ErrorContains(t, new(State).UnmarshalText([]byte("done")), "must be open, closed, final or expired")
}
