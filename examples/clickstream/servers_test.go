//go:build servers

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

var (
	brokers = cmp.Or(os.Getenv("TUMBLE_KAFKA"), "localhost:9092")
	server  = cmp.Or(os.Getenv("TUMBLE_REDIS"), "localhost:6379")
	cluster = cmp.Or(os.Getenv("TUMBLE_REDIS_CLUSTER"), "localhost:7001,localhost:7002,localhost:7003")
)

// patience is for what takes a moment on a machine that does nothing else.
const patience = 90 * time.Second

// A flow is a topic and a name of counts that no other test uses.
type flow struct {
	name  string // of the topic, the group and the counts
	redis string
}

func newFlow(t *testing.T, redis string, partitions int) *flow {
	t.Helper()
	f := &flow{name: fmt.Sprintf("clickstream-%s-%x", strings.ReplaceAll(t.Name(), "/", "-"), rand.Uint32()), redis: redis}
	client := &kafka.Client{Addr: kafka.TCP(brokers)}
	t.Cleanup(func() {
		f.forget(t)
		if partitions > 0 {
			_, err := client.DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: []string{f.name}})
			require.NoError(t, err)
		}
	})
	if partitions > 0 {
		answer, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{
			Topics: []kafka.TopicConfig{{Topic: f.name, NumPartitions: partitions, ReplicationFactor: 1}},
		})
		require.NoError(t, err, "Kafka at %s", brokers)
		require.NoError(t, answer.Errors[f.name])
	}
	return f
}

// forget deletes what Redis holds for f, as a server that lost everything.
func (f *flow) forget(t *testing.T) {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: strings.Split(f.redis, ",")})
	require.NoError(t, err, "Redis at %s", f.redis)
	defer client.Close()
	ctx := context.Background()
	for _, node := range client.Nodes() {
		for cursor := uint64(0); ; {
			page, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(f.name+"*").Count(1000).Build()).AsScanEntry()
			require.NoError(t, err)
			for _, key := range page.Elements {
				require.NoError(t, node.Do(ctx, node.B().Del().Key(key).Build()).Error())
			}
			if cursor = page.Cursor; cursor == 0 {
				break
			}
		}
	}
}

func (f *flow) produce(t *testing.T, args ...string) *process {
	t.Helper()
	return start(t, "producer", append([]string{"-brokers", brokers, "-topic", f.name}, args...)...)
}

func (f *flow) consume(t *testing.T, args ...string) *process {
	t.Helper()
	return start(t, "consumer", append([]string{"-brokers", brokers, "-topic", f.name, "-group", f.name, "-redis", f.redis, "-name", f.name}, args...)...)
}

// serve starts the API and returns its URL.
func (f *flow) serve(t *testing.T) string {
	t.Helper()
	return start(t, "api", "-addr", "localhost:0", "-redis", f.redis, "-name", f.name).line(t, `on (http://localhost:\d+)$`)[1]
}

// put writes values as they are to a partition; nil is a tombstone.
func (f *flow) put(t *testing.T, partition int, values ...[]byte) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	require.NoError(t, err)
	defer client.Close()
	for _, v := range values {
		r := &kgo.Record{Topic: f.name, Partition: int32(partition), Value: v}
		require.NoError(t, client.ProduceSync(t.Context(), r).FirstErr())
	}
}

// loop counts the topic as a plain loop does, with a client of another make.
// There must be records of that number.
func (f *flow) loop(t *testing.T, records int) map[string]map[string]int64 {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics(f.name), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer client.Close()
	counts := map[string]map[string]int64{}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for n := 0; n < records; {
		fetches := client.PollFetches(ctx)
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			n++
			var click struct {
				UserID    string `json:"user_id"`
				Timestamp string
			}
			require.NoError(t, json.Unmarshal(r.Value, &click))
			minute := click.Timestamp[:len("2023-10-01T12:34")] // the producer writes UTC
			if counts[minute] == nil {
				counts[minute] = map[string]int64{}
			}
			counts[minute][click.UserID]++
		})
		require.LessOrEqual(t, n, records)
	}
	return counts
}

type users struct {
	Minute string
	Users  []userClicks
	Cursor string
}

// served asks the API for all users of the minutes in want, and compares.
func served(t *testing.T, api string, want map[string]map[string]int64) {
	t.Helper()
	for minute, expected := range want {
		got := map[string]int64{}
		for cursor := ""; ; {
			var page users
			fetch(t, api+"/minutes/"+minute+"/users?limit=100&cursor="+url.QueryEscape(cursor), &page)
			require.Equal(t, minute, page.Minute)
			for _, u := range page.Users {
				require.NotContains(t, got, u.UserID, "comes once")
				got[u.UserID] = u.Clicks
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
		require.Equal(t, expected, got, minute)
	}
}

func total(counts map[string]map[string]int64) (n int64) {
	for _, users := range counts {
		for _, c := range users {
			n += c
		}
	}
	return n
}

func TestFlow(t *testing.T) {
	for name, redis := range map[string]string{"server": server, "cluster": cluster} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t, redis, 3)
			api := f.serve(t)
			var before count
			fetch(t, api+"/clicks/user_1/2023-10-01T12:34:56Z", &before)
			require.Equal(t, count{UserID: "user_1", Minute: "2023-10-01T12:34", State: "open"}, before, "nothing is counted yet")

			const clicks = 20_000
			p := f.produce(t, "-count", strconv.Itoa(clicks), "-rate", "0", "-users", "500", "-seed", "1", "-start", "2023-10-01T12:00:00Z", "-step", "50ms")
			require.Zero(t, p.wait(t, patience))
			require.Len(t, p.stdout, clicks, "a report for each")
			require.Regexp(t, `^delivered to `+f.name+` \[[0-2]\] @\d+$`, p.stdout[0])

			c := f.consume(t, "-until-end")
			require.Zero(t, c.wait(t, patience))
			b := c.books(t)
			require.EqualValues(t, clicks, b.Read)
			require.EqualValues(t, clicks, b.Counted)

			want := f.loop(t, clicks)
			require.EqualValues(t, clicks, total(want))
			served(t, api, want)

			var one count
			fetch(t, api+"/clicks/user_7/2023-10-01T14:05:59.5+02:00", &one)
			require.Equal(t, count{"user_7", "2023-10-01T12:05", want["2023-10-01T12:05"]["user_7"], "closed"}, one)
			var best top
			fetch(t, api+"/minutes/2023-10-01T12:05/top?n=3", &best)
			require.Len(t, best.Top, 3)
			for _, u := range best.Top {
				require.Equal(t, want["2023-10-01T12:05"][u.UserID], u.Clicks)
			}
			for user, n := range want["2023-10-01T12:05"] {
				require.LessOrEqual(t, n, best.Top[0].Clicks, user)
			}
			var history struct {
				UserID string `json:"user_id"`
				Total  int64
				State  string
				Clicks []struct {
					Minute string
					Clicks int64
					State  string
				}
			}
			fetch(t, api+"/clicks/user_7?from=2023-10-01T12:02&to=2023-10-01T12:09", &history)
			var sum int64
			for _, h := range history.Clicks {
				require.Equal(t, want[h.Minute]["user_7"], h.Clicks)
				require.Equal(t, "closed", h.State)
				sum += h.Clicks
			}
			require.Equal(t, sum, history.Total)
			require.Equal(t, "closed", history.State)

			// Once more: it goes on where the counts are.
			c = f.consume(t, "-until-end")
			require.Zero(t, c.wait(t, patience))
			require.Zero(t, c.books(t).Read)
			served(t, api, want)
			// Another definition under the name is refused.
			c = f.consume(t, "-until-end", "-window", "2m")
			require.Equal(t, 1, c.wait(t, patience))
			require.Contains(t, strings.Join(c.stderr, "\n"), "2m0s")
			served(t, api, want)
			// Another retention is not.
			for _, retention := range []string{"87600h", "43800h"} {
				c = f.consume(t, "-until-end", "-retention", retention)
				require.Zero(t, c.wait(t, patience))
				served(t, api, want)
			}
		})
	}
}

// TestKill kills one of two consumers in mid-stream, and then another, while
// clicks come in.
func TestKill(t *testing.T) {
	f := newFlow(t, server, 4)
	const clicks = 100_000
	p := f.produce(t, "-count", strconv.Itoa(clicks), "-rate", "5000", "-users", "300", "-seed", "2", "-start", "2023-10-01T12:00:00Z", "-step", "20ms", "-quiet")
	steady := f.consume(t, "-flush", "20ms")
	for range 2 {
		// The second takes the place of the first, once the group has noticed.
		victim := f.consume(t, "-flush", "20ms", "-metrics", "localhost:0")
		at := victim.line(t, `metrics on (http://localhost:\d+/metrics)`)[1]
		require.Eventually(t, func() bool { return countedSome.MatchString(text(t, at)) }, patience, 10*time.Millisecond)
		require.NoError(t, victim.cmd.Process.Kill())
		require.Equal(t, -1, victim.wait(t, patience))
	}
	again := f.consume(t)
	require.Zero(t, p.wait(t, patience))
	again.stop(t, syscall.SIGTERM, 10*time.Second)
	steady.stop(t, os.Interrupt, 10*time.Second)

	last := f.consume(t, "-until-end")
	require.Zero(t, last.wait(t, patience))
	require.Zero(t, last.books(t).Pending)
	served(t, f.serve(t), f.loop(t, clicks))
}

// countedSome finds thousands of counted events in metrics.
var countedSome = regexp.MustCompile(`(?m)^tumble_counted_total \d{4}`)

// TestRedisLosesEverything takes the counts away from a running consumer.
func TestRedisLosesEverything(t *testing.T) {
	f := newFlow(t, server, 2)
	const clicks = 5000
	p := f.produce(t, "-count", strconv.Itoa(clicks), "-rate", "0", "-users", "50", "-seed", "3", "-start", "2023-10-01T12:00:00Z", "-step", "100ms", "-quiet")
	require.Zero(t, p.wait(t, patience))
	want := f.loop(t, clicks)
	c := f.consume(t)
	api := f.serve(t)
	counted := func(limit time.Duration) {
		t.Helper()
		require.Eventually(t, func() bool {
			var all int64
			for minute := range want {
				var best top
				fetch(t, api+"/minutes/"+minute+"/top?n=1000", &best)
				for _, u := range best.Top {
					all += u.Clicks
				}
			}
			return all == clicks
		}, limit, 100*time.Millisecond)
		served(t, api, want)
	}
	counted(patience)
	f.forget(t)
	var one count
	fetch(t, api+"/clicks/user_1/2023-10-01T12:01", &one)
	counted(20 * time.Second)
	b := c.stop(t, os.Interrupt, 5*time.Second)
	require.GreaterOrEqual(t, b.Read, int64(2*clicks), "all of it was read again")
}

func TestRejects(t *testing.T) {
	f := newFlow(t, server, 1)
	now := time.Now().UTC()
	good := `{"user_id":"a/b","timestamp":"2023-10-01T12:34:56Z"}`
	bad := []string{
		``, `null`, `[]`, `"x"`, `{`, good + `x`, good + good, `{"user_id":"u"}`, `{"timestamp":"2023-10-01T12:34:56Z"}`,
		`{"user_id":"","timestamp":"2023-10-01T12:34:56Z"}`, `{"user_id":7.5,"timestamp":"2023-10-01T12:34:56Z"}`, `{"user_id":"u","timestamp":1696163696}`,
		`{"user_id":"u","timestamp":"yesterday"}`, `{"x":` + good + `}`, `{"user_id":"u","timestamp":"1600-01-01T00:00:00Z"}`,
		fmt.Sprintf(`{"user_id":"u","timestamp":%q}`, now.Add(2*time.Hour).Format(time.RFC3339)),
	}
	values := [][]byte{[]byte(good), nil}
	for _, v := range bad {
		values = append(values, []byte(v))
	}
	values = append(values, nil, []byte(good))
	f.put(t, 0, values...)

	c := f.consume(t, "-until-end")
	require.Zero(t, c.wait(t, patience))
	b := c.books(t)
	require.EqualValues(t, len(values), b.Read)
	require.EqualValues(t, 2, b.Counted)
	require.EqualValues(t, 2, b.Skipped)
	require.EqualValues(t, len(bad), b.Rejected)
	text := strings.Join(c.stderr, "\n")
	require.Contains(t, text, "rejected "+f.name+"/0@2: ")
	require.Regexp(t, `rejected \d+ more`, text)
	shown := strings.Count(text, "rejected "+f.name)
	more := int64(0)
	for _, l := range c.stderr {
		if _, rest, ok := strings.Cut(l, "consumer: rejected "); ok && strings.HasSuffix(rest, " more") {
			n, err := strconv.ParseInt(strings.TrimSuffix(rest, " more"), 10, 64)
			require.NoError(t, err)
			more += n
		}
	}
	require.EqualValues(t, len(bad), int64(shown)+more, "each is shown or in the sum")

	var one count
	fetch(t, f.serve(t)+"/clicks/a%2Fb/2023-10-01T12:34", &one)
	require.Equal(t, count{"a/b", "2023-10-01T12:34", 2, "open"}, one, "an event after its end would close it")
}

func TestMetricsAndStop(t *testing.T) {
	f := newFlow(t, server, 2)
	p := f.produce(t, "-count", "100", "-rate", "0", "-quiet")
	require.Zero(t, p.wait(t, patience))
	c := f.consume(t, "-metrics", "localhost:0")
	at := c.line(t, `metrics on (http://localhost:\d+)/metrics`)[1]
	require.Eventually(t, func() bool {
		return strings.Contains(text(t, at+"/metrics"), "\ntumble_counted_total 100\n")
	}, patience, 50*time.Millisecond)
	metrics := text(t, at+"/metrics")
	for partition := range 2 {
		require.Contains(t, metrics, fmt.Sprintf("tumble_partition_lag{partition=%q} 0\n", fmt.Sprintf("%s/%d", f.name, partition)))
	}
	var health map[string]string
	for _, path := range []string{"/healthz", "/readyz"} {
		fetch(t, at+path, &health)
		require.Equal(t, map[string]string{"status": "ok"}, health)
	}
	fails(t, 1, strings.TrimPrefix(at, "http://"), "consumer", "-metrics", strings.TrimPrefix(at, "http://"), "-brokers", brokers, "-redis", server)
	require.EqualValues(t, 100, c.stop(t, os.Interrupt, time.Second).Counted, "idle, so within a second")
}

func TestSameSeedSameRecords(t *testing.T) {
	f, g := newFlow(t, server, 3), newFlow(t, server, 3)
	for _, one := range []*flow{f, g} {
		p := one.produce(t, "-count", "1000", "-rate", "0", "-users", "20", "-seed", "9", "-start", "2023-10-01T14:00:00+02:00", "-step", "7ms", "-quiet")
		require.Zero(t, p.wait(t, patience))
		require.Empty(t, p.stdout)
	}
	require.Equal(t, f.loop(t, 1000), g.loop(t, 1000))
}

func TestMissingTopic(t *testing.T) {
	f := newFlow(t, server, 0)
	missing := func() bool {
		client := &kafka.Client{Addr: kafka.TCP(brokers)}
		all, err := client.Metadata(t.Context(), &kafka.MetadataRequest{Topics: []string{f.name}})
		require.NoError(t, err)
		return all.Topics[0].Error != nil
	}
	fails(t, 1, f.name, "consumer", "-brokers", brokers, "-topic", f.name, "-redis", server, "-name", f.name)
	require.True(t, missing(), "asking does not create it")

	p := f.produce(t, "-count", "3", "-rate", "0")
	require.Zero(t, p.wait(t, patience))
	p.line(t, "created topic "+f.name)
	require.Len(t, p.stdout, 3)
	require.Eventually(t, func() bool { return !missing() }, patience, 100*time.Millisecond)
	_, err := (&kafka.Client{Addr: kafka.TCP(brokers)}).DeleteTopics(t.Context(), &kafka.DeleteTopicsRequest{Topics: []string{f.name}})
	require.NoError(t, err)
}

func TestRefusedAndUnreachable(t *testing.T) {
	f := newFlow(t, server, 1)
	login := "redis://nobody:wrong@" + server
	fails(t, 1, server, "api", "-addr", "localhost:0", "-redis", login)
	fails(t, 1, server, "consumer", "-brokers", brokers, "-topic", f.name, "-redis", login)
	fails(t, 1, "localhost:1", "consumer", "-brokers", brokers, "-topic", f.name, "-redis", "localhost:1")
	fails(t, 1, "localhost:1", "consumer", "-brokers", "localhost:1", "-topic", f.name, "-redis", server)
	fails(t, 1, server, "consumer", "-brokers", server, "-topic", f.name, "-redis", server) // Redis is no Kafka
	fails(t, 1, brokers, "api", "-addr", "localhost:0", "-redis", brokers)                  // nor the other way round
}
