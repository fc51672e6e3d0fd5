//go:build servers

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/channel"
)

var server = func() string {
	if v := os.Getenv("TUMBLE_REDIS"); v != "" {
		return v
	}
	return "localhost:6379"
}()

// clicks counts a few clicks under a name of its own, which is deleted after the
// test.
func clicks(t *testing.T, rollups ...tumble.Rollup) (name string) {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: strings.Split(server, ",")})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	name = fmt.Sprintf("test-tumble-%016x", rand.Uint64())
	sink, err := redis.New(redis.Config{Client: client, Name: name, Shards: 2})
	require.NoError(t, err)
	in := make(chan tumble.Event)
	source, err := channel.New(channel.Config{ID: "clicks", Events: in})
	require.NoError(t, err)
	p, err := tumble.New(tumble.Config{Source: source, Sink: sink, Window: tumble.Window{Size: time.Minute}, Rollups: rollups})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	for i, key := range []string{"ada", "ada", "bob", "ada", "eve\n"} {
		in <- tumble.Event{Key: key, Time: time.Date(2023, 10, 1, 12, i/3, 5, 0, time.UTC)}
	}
	close(in)
	require.NoError(t, <-done)
	cancel()
	t.Cleanup(func() { forget(t, client, name) })
	return name
}

// forget deletes all that is stored under a name.
func forget(t *testing.T, client rueidis.Client, name string) {
	keys, err := client.Do(context.Background(), client.B().Keys().Pattern(name+":*").Build()).AsStrSlice()
	require.NoError(t, err)
	for _, key := range keys {
		require.NoError(t, client.Do(context.Background(), client.B().Del().Key(key).Build()).Error())
	}
}

func TestReads(t *testing.T) {
	name := clicks(t)
	tumble := func(args ...string) string {
		t.Helper()
		out, errs, code := call(t, "", append([]string{"-redis", server}, args...)...)
		require.Zero(t, code, errs)
		return out
	}
	require.Contains(t, strings.Split(tumble("names"), "\n"), name)
	var names []string
	require.NoError(t, json.Unmarshal([]byte(tumble("names", "-json")), &names))
	require.Contains(t, names, name)

	require.Equal(t, "ada  2023-10-01T12:00  2  closed\n", tumble("get", name, "ada", "2023-10-01T12:00"))
	require.JSONEq(t, `{"key":"ada","start":"2023-10-01T12:00:00Z","end":"2023-10-01T12:01:00Z","n":2,"state":"closed"}`,
		tumble("get", "-json", name, "ada", "2023-10-01T12:00:59Z"))
	require.Equal(t, "ada  2023-10-01T12:00  2  closed\nada  2023-10-01T12:01  1  open\n",
		tumble("range", name, "ada", "2023-10-01T12:00", "2023-10-01T13:00"))
	require.Equal(t, "ada  2023-10-01T12:00  2  closed\nbob  2023-10-01T12:00  1  closed\n", tumble("top", name, "2023-10-01T12:00"))
	require.Equal(t, "ada  2023-10-01T12:00  2  closed\n", tumble("top", name, "2023-10-01T12:00", "-n", "1"))
	require.Equal(t, "ada  2023-10-01T12:01  1  open\neve  2023-10-01T12:01  1  open\n", tumble("top", name, "2023-10-01T12:01"))
	require.JSONEq(t, `{"start":"2023-10-01T13:00:00Z","end":"2023-10-01T13:01:00Z","state":"open","top":[]}`, tumble("top", name, "2023-10-01T13:00", "-json"))

	_, errs, code := call(t, "", "-redis", server, "get", name, "ada", "yesterday")
	require.Equal(t, 2, code)
	require.Contains(t, errs, `TIME is "yesterday"`)
	_, errs, code = call(t, "", "-redis", server, "get", name+"x", "ada", "now")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "nothing is stored under this name")
}

func TestRollups(t *testing.T) {
	hours := tumble.Window{Size: time.Hour}
	name := clicks(t, tumble.Rollup{Window: hours})
	tumble := func(args ...string) string {
		t.Helper()
		out, errs, code := call(t, "", append([]string{"-redis", server}, args...)...)
		require.Zero(t, code, errs)
		return out
	}
	require.Equal(t, "ada  2023-10-01T12:00  3  open\n", tumble("get", name, "ada", "2023-10-01T12:59", "-window", "1h"))
	require.Equal(t, "ada  2023-10-01T12:01  1  open\n", tumble("get", name, "ada", "2023-10-01T12:01", "-window", "1m"))
	require.Equal(t, "ada  2023-10-01T12:00  3  open\n", tumble("top", name, "2023-10-01T12:00", "-n", "1", "-window", "1h"))
	require.Equal(t, "bob  2023-10-01T12:00  1  open\n", tumble("range", "-window", "1h", name, "bob", "2023-10-01T12:00", "2023-10-01T13:00"))
	_, errs, code := call(t, "", "-redis", server, "get", name, "ada", "now", "-window", "1d")
	require.Equal(t, 2, code)
	require.Contains(t, errs, `invalid value "1d" for flag -window`)
	_, errs, code = call(t, "", "-redis", server, "get", name, "ada", "now", "-window", "2h")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "no such window is counted: 2h0m0s, counted are 1m0s, 1h0m0s")
	require.Contains(t, tumble("retention", name, "0", "-window", "1h"), "per 1h0m0s are kept for ever")
	_, errs, code = call(t, "", "-redis", server, "retention", name, "7d", "-window", "1h")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "no shorter than that of the finest window")
	_, errs, code = call(t, "", "-redis", server, "retention", name, "7d", "-window", "2h")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "counted are 1m0s, 1h0m0s")
}

func TestWatch(t *testing.T) {
	name := clicks(t)
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- run(ctx, []string{"-redis", server, "watch", name, "-every", "10ms", "-json"}, nil, writer, writer)
	}()
	decoder := json.NewDecoder(reader)
	for range 3 {
		var look struct {
			Start   time.Time
			State   string
			N, Keys int64
			Top     []count
		}
		require.NoError(t, decoder.Decode(&look))
		require.Equal(t, "2023-10-01T12:01:00Z", look.Start.Format(time.RFC3339), "the clicks are old")
		require.Equal(t, "open", look.State)
		require.EqualValues(t, 2, look.N)
		require.EqualValues(t, 2, look.Keys)
		require.Equal(t, []string{"ada", "eve\n"}, []string{look.Top[0].Key, look.Top[1].Key})
	}
	cancel()
	require.Zero(t, <-done)

	_, errs, code := call(t, "", "-redis", server, "watch", name+"-none")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "nothing is stored under this name")
}

func TestDrop(t *testing.T) {
	name := clicks(t)
	_, errs, code := call(t, "", "-redis", server, "drop", name)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "nothing was deleted")
	_, errs, code = call(t, name+"\n", "-redis", server, "drop", name)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "counted at the moment")
	out, _, code := call(t, "", "-redis", server, "get", name, "ada", "2023-10-01T12:00")
	require.Zero(t, code)
	require.Contains(t, out, "  2  ")
	_, errs, code = call(t, "", "-redis", server, "drop", name+"x", "-yes")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "nothing is stored under this name: tumble names lists")
}

func TestRetention(t *testing.T) {
	name := clicks(t)
	// A longer one is in force at once, and "for ever" is the longest: so the other
	// direction takes the minute that the notes last, which nobody waits for here.
	out, errs, code := call(t, "", "-redis", server, "retention", name, "0")
	require.Zero(t, code, errs)
	require.Contains(t, out, "are kept for ever")
	_, errs, code = call(t, "", "-redis", server, "retention", name, "1w")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "DURATION must be a duration")
}

func TestEnd(t *testing.T) {
	name := clicks(t)
	_, errs, code := call(t, "", "-redis", server, "end", name, "nonsense")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "nonsense")
	out, errs, code := call(t, "", "-redis", server, "end", name, "clicks")
	require.Zero(t, code, errs) // a closed clicks has ended already
	require.Contains(t, out, "clicks has ended")
}

func TestShowAndCheck(t *testing.T) {
	name := clicks(t)
	out, errs, code := call(t, "", "-redis", server, "show", name)
	require.Zero(t, code, errs)
	require.Contains(t, out, "window 1m0s  kept for 0s  2 stored  5 in all\n")
	require.Regexp(t, `shards +2\n`, out)
	require.Regexp(t, `redis +[1-9]\d* keys +[1-9]\d* bytes\n`, out)
	var s shown
	out, errs, code = call(t, "", "-redis", server, "show", name, "-json")
	require.Zero(t, code, errs)
	require.NoError(t, json.Unmarshal([]byte(out), &s))
	require.Equal(t, 2, s.Shards)
	require.Len(t, s.Partitions, 1)
	require.NotNil(t, s.Frontier)

	out, errs, code = call(t, "", "-redis", server, "check", name)
	require.Zero(t, code, errs)
	require.Equal(t, "2 windows, 4 counts, 0 differences\n", out)

	// A count that somebody has changed.
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server}})
	require.NoError(t, err)
	defer client.Close()
	keys, err := client.Do(t.Context(), client.B().Keys().Pattern(name+":{*}:*:0").Build()).AsStrSlice()
	require.NoError(t, err)
	changed := false
	for _, key := range keys {
		if n, err := client.Do(t.Context(), client.B().Hget().Key(key).Field("bob").Build()).AsInt64(); err == nil {
			require.NoError(t, client.Do(t.Context(), client.B().Hset().Key(key).FieldValue().FieldValue("bob", strconv.FormatInt(n+1, 10)).Build()).Error())
			changed = true
		}
	}
	require.True(t, changed)
	out, errs, code = call(t, "", "-redis", server, "check", name)
	require.Equal(t, 3, code)
	require.Empty(t, errs)
	require.Equal(t, "1m0s 2023-10-01T12:00: 2 counts that add up to 4, its total says 2 and 3\n2 windows, 4 counts, 1 differences\n", out)
	_, errs, code = call(t, "", "-redis", server, "check", name+"x")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "nothing is stored under this name")
}

// TestCheckOfOpenWindows deletes counts of a window that is open. Nobody counts into it,
// so that it is told.
func TestCheckOfOpenWindows(t *testing.T) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server}})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	name := fmt.Sprintf("test-tumble-%016x", rand.Uint64())
	sink, err := redis.New(redis.Config{Client: client, Name: name, Shards: 2})
	require.NoError(t, err)
	t.Cleanup(func() { forget(t, client, name) })
	in := make(chan tumble.Event)
	source, err := channel.New(channel.Config{ID: "clicks", Events: in})
	require.NoError(t, err)
	p, err := tumble.New(tumble.Config{Source: source, Sink: sink, Window: tumble.Window{Size: time.Hour}, Grace: time.Hour})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Run(context.Background()) }()
	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	for range 3 {
		in <- tumble.Event{Key: "ada", Time: noon}
	}
	close(in)
	require.NoError(t, <-done)
	one, err := sink.Count(t.Context(), "ada", noon)
	require.NoError(t, err)
	require.Equal(t, tumble.Open, one.State)
	out, errs, code := call(t, "", "-redis", server, "check", name)
	require.Zero(t, code, "%s %s", out, errs)
	keys, err := client.Do(t.Context(), client.B().Keys().Pattern(name+":{*}:*:0").Build()).AsStrSlice()
	require.NoError(t, err)
	require.Len(t, keys, 1)
	require.NoError(t, client.Do(t.Context(), client.B().Del().Key(keys...).Build()).Error())
	out, errs, code = call(t, "", "-redis", server, "check", name)
	require.Equal(t, 3, code, errs)
	require.Equal(t, "1h0m0s 2023-10-01T12:00: 0 counts that add up to 0, its total says 1 and 3\n1 windows, 0 counts, 1 differences\n", out)
}
