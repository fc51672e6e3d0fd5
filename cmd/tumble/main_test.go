package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// call runs the program, and returns what it wrote and its exit code.
func call(t *testing.T, in string, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(in), &o, &e)
	return o.String(), e.String(), code
}

func TestHelp(t *testing.T) {
	out, errs, code := call(t, "", "help")
	require.Zero(t, code, errs)
	for _, c := range commands {
		require.Contains(t, out, "  "+c.name)
		about, _, code := call(t, "", "help", c.name)
		require.Zero(t, code)
		require.Contains(t, about, "tumble "+c.name)
		require.Contains(t, about, "-json")
		same, _, code := call(t, "", c.name, "-h")
		require.Zero(t, code)
		require.Equal(t, about, same)
	}
}

func TestWrongUsage(t *testing.T) {
	for line, says := range map[string]string{
		"":                          "no command",
		"nonsense":                  `"nonsense" is no command`,
		"help nonsense":             `"nonsense" is no command`,
		"-nonsense names":           "-nonsense",
		"-redis nonsense names":     `"nonsense" is not host:port`,
		"names x":                   "wants no arguments, got 1",
		"get x y":                   "wants NAME KEY TIME, got 2",
		"top x now -nonsense":       "-nonsense",
		"retention x -json 1h more": "wants NAME DURATION, got 3",
	} {
		t.Run(line, func(t *testing.T) {
			_, errs, code := call(t, "", strings.Fields(line)...)
			require.Equal(t, 2, code)
			require.Contains(t, errs, says)
			require.Equal(t, 1, strings.Count(errs, "\n"), errs)
		})
	}
}

func TestUnreachableRedis(t *testing.T) {
	_, errs, code := call(t, "", "-redis", "localhost:1", "names")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "redis localhost:1:")
	require.Equal(t, 1, run(t.Context(), []string{"-redis", "localhost:1", "get", "a", "b", "now"}, nil, io.Discard, io.Discard))
}
