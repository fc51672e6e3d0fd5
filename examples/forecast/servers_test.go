//go:build servers

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/channel"
)

// The program forecasts what stands in a real Redis, and shows it on the page.
func TestProgram(t *testing.T) {
	server := os.Getenv("TUMBLE_REDIS")
	require.NotEmpty(t, server, "scripts/servers up, and its env")
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server}})
	require.NoError(t, err)
	defer client.Close()
	name := fmt.Sprintf("forecast-%x", rand.Uint64())
	sink, err := redis.New(redis.Config{Client: client, Name: name})
	require.NoError(t, err)
	events := make(chan tumble.Event, 1000)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	require.NoError(t, err)
	p, err := tumble.New(tumble.Config{
		Source: source, Sink: sink, Window: tumble.Window{Size: time.Minute}, Rollups: []tumble.Rollup{{Window: tumble.Window{Size: time.Hour}}},
	})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Run(context.Background()) }()
	for i := range 95 {
		for j := range wave(i) {
			events <- tumble.Event{Key: "a", Time: begin.Add(time.Duration(i)*time.Minute + time.Duration(j)*time.Millisecond)}
		}
	}
	events <- tumble.Event{Key: "a", Time: begin.Add(95*time.Minute + time.Second)}
	close(events)
	require.NoError(t, <-done)

	program := filepath.Join(t.TempDir(), "forecast")
	out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.Command(program, "-redis", server, "-name", name, "-season", "10", "-ahead", "3", "-json").CombinedOutput()
	require.NoError(t, err, "%s", out)
	var answer said
	require.NoError(t, json.Unmarshal(out, &answer))
	require.Equal(t, "2024-05-01T01:35:00Z", answer.Forecast[0].Start)
	require.InDelta(t, wave(95), answer.Forecast[0].Middle, 0.5)

	for want, args := range map[string][]string{
		"too short for two seasons of hours": {"-window", "1h"},
		"a roll-up that is not counted":      {"-window", "1h30m"},
		"a name without counts":              {"-name", name + "-none"},
		"a bad season":                       {"-season", "1"},
	} {
		out, err := exec.Command(program, append([]string{"-redis", server, "-name", name}, args...)...).CombinedOutput()
		require.Error(t, err, want)
		require.Equal(t, 1, strings.Count(string(out), "\n"), "%s: %s", want, out)
	}

	ctx, stop := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, program, "-redis", server, "-name", name, "-season", "10", "-ahead", "4", "-serve", "localhost:0")
	said, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() { stop(); _ = cmd.Wait() }()
	line, err := bufio.NewReader(said).ReadString('\n')
	require.NoError(t, err)
	url := strings.TrimSpace(line[strings.Index(line, "http://"):])
	events2, err := http.Get(url + "/events")
	require.NoError(t, err)
	defer events2.Body.Close()
	for s := bufio.NewScanner(events2.Body); s.Scan(); {
		if data, ok := strings.CutPrefix(s.Text(), "data: "); ok {
			var shown struct{ Band []struct{ Start string } }
			require.NoError(t, json.Unmarshal([]byte(data), &shown))
			require.Len(t, shown.Band, 4)
			require.Equal(t, "2024-05-01T01:35", shown.Band[0].Start)
			return
		}
	}
	t.Fatal("no event came")
}
