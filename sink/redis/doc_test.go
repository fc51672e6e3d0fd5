//go:build servers

package redis_test

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// TestDocumentation types the commands of the package's documentation, and
// wants the answers that it shows.
func TestDocumentation(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	shards := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}),
		tumble.Definition{Window: tumble.Window{Size: time.Minute}, Retention: time.Hour})
	from := tumble.Checkpoint{Log: "log-1"}
	_, err := shards[0].Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"clicks/0": from}})
	require.NoError(t, err)
	require.NoError(t, shards[0].Apply(t.Context(), tumble.Batch{
		Partition: "clicks/0",
		Writer:    0xc0ffee,
		From:      from,
		To:        tumble.Checkpoint{Log: "log-1", Offset: 118, Epoch: 7, Watermark: noon.Add(90 * time.Second)},
		Deltas: []tumble.Delta{
			{Start: noon, Key: "alice", N: 3},
			{Start: noon, Key: "bob", N: 1},
			{Start: noon.Add(time.Minute), Key: "bob", N: 2},
		},
	}))

	source, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	_, text, found := strings.Cut(string(source), "in redis-cli:\n//\n")
	require.True(t, found)
	host, port, err := net.SplitHostPort(single[0])
	require.NoError(t, err)

	var command string
	var want []string
	commands := 0
	check := func() {
		if command == "" {
			return
		}
		commands++
		cli := exec.CommandContext(t.Context(), "redis-cli", "-h", host, "-p", port, "--no-raw")
		cli.Stdin = strings.NewReader(strings.Replace(command, "clicks:{", name+":{", 1) + "\n")
		out, err := cli.CombinedOutput()
		require.NoError(t, err, "%s: %s", command, out)
		require.Equal(t, drawn(command, strings.Join(want, "\n")), drawn(command, strings.TrimSpace(string(out))), command)
		command, want = "", nil
	}
	for line := range strings.Lines(text) {
		line, found := strings.CutPrefix(strings.TrimSpace(line), "//\t")
		if !found {
			break
		}
		if next, found := strings.CutPrefix(line, "> "); found {
			check()
			command = next
		} else {
			want = append(want, line)
		}
	}
	check()
	require.Equal(t, 7, commands)
}

// drawn leaves out of the answer to a command what is drawn at random: TERM and
// ID of the finality key.
func drawn(command, answer string) string {
	words := strings.Split(answer, " ")
	if !strings.HasSuffix(command, ":finality") || len(words) != 5 {
		return answer
	}
	return strings.Join([]string{words[0], "TERM", words[2], "ID", words[4]}, " ")
}
