//go:build servers

package recipes

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/kafka"
)

var (
	redisAt = cmp.Or(os.Getenv("TUMBLE_REDIS"), "localhost:6379")
	kafkaAt = cmp.Or(os.Getenv("TUMBLE_KAFKA"), "localhost:9092")
)

// The test is its own child, to be killed: RECIPE is what it does, NAME that of the
// counts, TO where they go.
func TestMain(m *testing.M) {
	if recipe := os.Getenv("RECIPE"); recipe != "" {
		if err := child(recipe, os.Getenv("NAME"), os.Getenv("TO")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(recipe, name, to string) error {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{redisAt}})
	if err != nil {
		return err
	}
	counts, err := redis.New(redis.Config{Client: client, Name: name})
	if err != nil {
		return err
	}
	ctx := context.Background()
	if recipe == "topic" {
		d, err := OpenTopic(ctx, []string{kafkaAt}, to, name)
		if err != nil {
			return err
		}
		return Follow(ctx, counts, d)
	}
	url, file, _ := strings.Cut(to, " ")
	return Follow(ctx, counts, &Webhook{URL: url, Name: name, File: file, Size: 10})
}

// killed runs the recipe in two processes at a time that are killed at random moments,
// while windows become final, and then in one, until done says that all has come.
func killed(t *testing.T, recipe string, to func(name string) string, done func(want map[place]int64) bool) map[place]int64 {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{redisAt}})
	require.NoError(t, err)
	defer client.Close()
	name := fmt.Sprintf("recipes-%x", rand.Uint64())
	counts, err := redis.New(redis.Config{Client: client, Name: name, Shards: 4})
	require.NoError(t, err)
	var want map[place]int64
	var counting sync.WaitGroup
	counting.Go(func() { want = count(t, counts, 60, 50, 80*time.Millisecond) })
	start := func() (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "RECIPE="+recipe, "NAME="+name, "TO="+to(name))
		said := new(bytes.Buffer)
		cmd.Stderr = said
		require.NoError(t, cmd.Start())
		return cmd, said
	}
	require.Eventually(t, func() bool { _, err := counts.Definition(t.Context()); return err == nil }, 10*time.Second, 10*time.Millisecond)
	for range 12 {
		var two []*exec.Cmd
		for range 2 {
			cmd, _ := start()
			two = append(two, cmd)
			time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		}
		time.Sleep(time.Duration(50+rand.IntN(300)) * time.Millisecond)
		for _, cmd := range two {
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it may have ended by itself: fenced off
		}
	}
	counting.Wait()
	cmd, said := start()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	require.Eventually(t, func() bool { return done(want) }, time.Minute, 50*time.Millisecond, "%s", said)
	return want
}

func TestTopicKilled(t *testing.T) {
	topic := fmt.Sprintf("finals-%x", rand.Uint64())
	admin, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt))
	require.NoError(t, err)
	defer admin.Close()
	_, err = kadm.NewClient(admin).CreateTopic(t.Context(), 3, 1, nil, topic)
	require.NoError(t, err)
	reader, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer reader.Close()
	got, times := map[place]int64{}, map[place]int{}
	want := killed(t, "topic", func(string) string { return topic }, func(want map[place]int64) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		reader.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			var row Row
			require.NoError(t, json.Unmarshal(r.Value, &row))
			require.Equal(t, row.Key, string(r.Key))
			got[place{row.Key, row.Start}] = row.N
			times[place{row.Key, row.Start}]++
		})
		return len(got) >= len(want)
	})
	require.Equal(t, want, got)
	for p, n := range times {
		require.Equal(t, 1, n, p)
	}
}

func TestWebhookKilled(t *testing.T) {
	r := newReceiver(t)
	server := httptest.NewServer(r)
	defer server.Close()
	file := filepath.Join(t.TempDir(), "cursor")
	want := killed(t, "webhook", func(string) string { return server.URL + " " + file }, func(want map[place]int64) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.got) >= len(want)
	})
	require.Equal(t, want, r.got)
	require.Greater(t, r.calls, len(r.seen), "nothing came twice, so nothing was tried")
}

// Who has the name before is fenced off, and knows it.
func TestFenced(t *testing.T) {
	topic := fmt.Sprintf("finals-%x", rand.Uint64())
	admin, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt))
	require.NoError(t, err)
	defer admin.Close()
	_, err = kadm.NewClient(admin).CreateTopic(t.Context(), 1, 1, nil, topic)
	require.NoError(t, err)
	first, err := OpenTopic(t.Context(), []string{kafkaAt}, topic, topic)
	require.NoError(t, err)
	defer first.Close()
	w := tumble.Total{Start: day, End: day.Add(time.Minute), Cursor: "one"}
	require.NoError(t, first.Write(t.Context(), w, []tumble.Count{{Key: "a", Start: day, N: 1}}))
	second, err := OpenTopic(t.Context(), []string{kafkaAt}, topic, topic)
	require.NoError(t, err)
	defer second.Close()
	cursor, err := second.Cursor(t.Context())
	require.NoError(t, err)
	require.Equal(t, "one", cursor)
	w.Cursor = "two"
	require.Error(t, first.Write(t.Context(), w, []tumble.Count{{Key: "a", Start: day, N: 2}}))
	_, err = first.Cursor(t.Context())
	require.Error(t, err, "it must not fence off the newest in turn")
	require.NoError(t, second.Move(t.Context(), "three"))
	cursor, err = second.Cursor(t.Context())
	require.NoError(t, err)
	require.Equal(t, "three", cursor)
}

// The keys of the loop are read as they were written.
func TestOldKeys(t *testing.T) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{redisAt}})
	require.NoError(t, err)
	defer client.Close()
	user := fmt.Sprintf("user_%x", rand.Uint64())
	key := "clicks:" + user + ":2024-05-01T00:00"
	require.NoError(t, client.Do(t.Context(), client.B().Incrby().Key(key).Increment(7).Build()).Error())
	defer client.Do(context.Background(), client.B().Del().Key(key).Build())
	old := OldKeys(client)
	n, err := old(t.Context(), user, day)
	require.NoError(t, err)
	require.EqualValues(t, 7, n)
	n, err = old(t.Context(), user, day.Add(time.Minute))
	require.NoError(t, err)
	require.Zero(t, n)
}

// Rejected records, mended, are in the topic once, however often they are replayed.
func TestReplay(t *testing.T) {
	letters, topic := fmt.Sprintf("rejects-%x", rand.Uint64()), fmt.Sprintf("clicks-%x", rand.Uint64())
	client, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt))
	require.NoError(t, err)
	defer client.Close()
	_, err = kadm.NewClient(client).CreateTopics(t.Context(), 2, 1, nil, letters, topic)
	require.NoError(t, err)
	for i := range 100 {
		value := fmt.Sprintf(`{"user":"user_%d"}`, i)
		if i%10 == 0 {
			value = "beyond repair"
		}
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: letters, Key: fmt.Appendf(nil, "user_%d", i), Value: []byte(value)}).FirstErr())
	}
	mend := func(r *kgo.Record) []byte {
		if !json.Valid(r.Value) {
			return nil
		}
		return bytes.Replace(r.Value, []byte(`"user"`), []byte(`"user_id"`), 1)
	}
	for _, want := range []int{90, 0} {
		n, err := Replay(t.Context(), []string{kafkaAt}, letters, topic, letters+"-replay", mend)
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	reader, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer reader.Close()
	got := map[string]int{}
	for end := time.Now().Add(10 * time.Second); len(got) < 90 && time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		reader.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			require.JSONEq(t, `{"user_id":"`+string(r.Key)+`"}`, string(r.Value))
			got[string(r.Key)]++
		})
		cancel()
	}
	require.Len(t, got, 90)
	for key, n := range got {
		require.Equal(t, 1, n, key)
	}
}

// newTopic creates a topic, and opens it under its own name.
func newTopic(t *testing.T) (*Topic, string) {
	topic := fmt.Sprintf("finals-%x", rand.Uint64())
	admin, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt))
	require.NoError(t, err)
	defer admin.Close()
	_, err = kadm.NewClient(admin).CreateTopic(t.Context(), 1, 1, nil, topic)
	require.NoError(t, err)
	d, err := OpenTopic(t.Context(), []string{kafkaAt}, topic, topic)
	require.NoError(t, err)
	t.Cleanup(d.Close)
	return d, topic
}

// The broker answers a commit before consumers can see it. A Topic that is used again
// must not go on from the cursor before.
func TestTopicUsedAgain(t *testing.T) {
	d, _ := newTopic(t)
	for i := range 50 {
		want := fmt.Sprint(i)
		require.NoError(t, d.Move(t.Context(), want))
		cursor, err := d.Cursor(t.Context())
		require.NoError(t, err)
		require.Equal(t, want, cursor)
	}
}

// Calls are cut off at any moment of a transaction, and the commit is given up as well. The
// next call goes on, and each window is in the topic once.
func TestTopicCutOff(t *testing.T) {
	for name, impatient := range map[string]bool{"produce": false, "commit": true} {
		t.Run(name, func(t *testing.T) { cutOff(t, impatient) })
	}
}

func cutOff(t *testing.T, impatient bool) {
	d, topic := newTopic(t)
	patience := d.patience
	const windows = 30
	cut := 0
	for calls := 0; ; calls++ {
		require.Less(t, calls, 50*windows, "it does not get on")
		d.patience = patience
		cursor, err := d.Cursor(t.Context())
		require.NoError(t, err)
		next := 0
		if cursor != "" {
			_, err := fmt.Sscan(cursor, &next)
			require.NoError(t, err)
		}
		if next == windows {
			break
		}
		ctx, cancel := t.Context(), context.CancelFunc(func() {})
		if rand.IntN(5) > 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(1+[]int{200, 1500}[rand.IntN(2)]))*time.Microsecond)
		}
		if impatient && rand.IntN(2) == 0 {
			d.patience = time.Duration(rand.IntN(6000)) * time.Microsecond
		}
		start := day.Add(time.Duration(next) * time.Minute)
		err = d.Write(ctx, tumble.Total{Start: start, End: start.Add(time.Minute), Cursor: fmt.Sprint(next + 1)},
			[]tumble.Count{{Key: "a", Start: start, N: 1}, {Key: "b", Start: start, N: 2}})
		if cancel(); err != nil {
			cut++
			if !impatient {
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.NoError(t, d.broken, "the transaction was ended in the call that was cut off")
			}
		}
	}
	require.Positive(t, cut, "no call was cut off, so nothing was tried")
	t.Logf("%d calls were cut off", cut)
	reader, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer reader.Close()
	times := map[place]int{}
	for quiet := 0; quiet < 5; quiet++ {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		reader.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
			var row Row
			require.NoError(t, json.Unmarshal(r.Value, &row))
			times[place{row.Key, row.Start}]++
			quiet = 0
		})
		cancel()
	}
	require.Len(t, times, 2*windows)
	for p, n := range times {
		require.Equal(t, 1, n, p)
	}
}

// Who does not know what became of a commit is told to ask, so that it writes nothing twice.
func TestTopicAsksFirst(t *testing.T) {
	d, _ := newTopic(t)
	patience := d.patience
	d.patience = 0
	require.ErrorIs(t, d.Move(t.Context(), "one"), context.DeadlineExceeded)
	d.patience = patience
	require.ErrorContains(t, d.Move(t.Context(), "one"), "Cursor must be called first")
	_, err := d.Cursor(t.Context())
	require.NoError(t, err)
	require.NoError(t, d.Move(t.Context(), "two"))
	cursor, err := d.Cursor(t.Context())
	require.NoError(t, err)
	require.Equal(t, "two", cursor)
}

// A call whose context has ended already changes nothing, and the next one goes on.
func TestTopicNotBegun(t *testing.T) {
	d, _ := newTopic(t)
	require.NoError(t, d.Move(t.Context(), "one"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, d.Move(ctx, "two"), context.Canceled)
	cursor, err := d.Cursor(t.Context())
	require.NoError(t, err)
	require.Equal(t, "one", cursor)
	require.NoError(t, d.Move(t.Context(), "three"))
}

// Records that a pipeline rejects come back with their headers and timestamps.
func TestReplayKeeps(t *testing.T) {
	clicks := fmt.Sprintf("clicks-%x", rand.Uint64())
	letters, topic := clicks+"-rejected", clicks+"-again"
	client, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt))
	require.NoError(t, err)
	defer client.Close()
	_, err = kadm.NewClient(client).CreateTopics(t.Context(), 1, 1, nil, clicks, letters, topic)
	require.NoError(t, err)
	const n = 5
	headers := []kgo.RecordHeader{{Key: "trace", Value: []byte("1")}, {Key: "trace", Value: []byte("2")}, {Key: kafka.HeaderCause, Value: []byte("of its own")}}
	for i := range n {
		require.NoError(t, client.ProduceSync(t.Context(), &kgo.Record{Topic: clicks, Key: fmt.Appendf(nil, "user_%d", i), Value: []byte("x"),
			Headers: headers, Timestamp: day.Add(time.Duration(i) * 1001 * time.Millisecond)}).FirstErr())
	}

	dead, err := kafka.NewDeadLetters(kafka.DeadLettersConfig{Brokers: []string{kafkaAt}, Topic: letters})
	require.NoError(t, err)
	defer dead.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	written := make(chan struct{}, n)
	source, err := kafka.New(kafka.Config{Brokers: []string{kafkaAt}, Topic: clicks, Partitions: []int32{0},
		Decode: func(dst []tumble.Event, _ kafka.Message) ([]tumble.Event, error) { return dst, errors.New("rejected") },
		OnReject: func(ctx context.Context, r kafka.Rejected) error {
			err := dead.Write(ctx, r)
			if err == nil {
				written <- struct{}{}
			}
			return err
		}})
	require.NoError(t, err)
	p, err := tumble.New(tumble.Config{Source: source, Sink: memory.New(memory.Config{}), Window: tumble.Window{Size: time.Minute}})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	for range n {
		<-written
	}
	stop()
	require.NoError(t, <-done)

	replayed, err := Replay(t.Context(), []string{kafkaAt}, letters, topic, letters+"-replay", func(r *kgo.Record) []byte { return append(r.Value, "!"...) })
	require.NoError(t, err)
	require.Equal(t, n, replayed)
	reader, err := kgo.NewClient(kgo.SeedBrokers(kafkaAt), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for i := 0; i < n; {
		fetches := reader.PollFetches(ctx)
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			require.Equal(t, fmt.Sprintf("user_%d", i), string(r.Key))
			require.Equal(t, "x!", string(r.Value))
			require.Equal(t, headers, r.Headers)
			require.Equal(t, day.Add(time.Duration(i)*1001*time.Millisecond), r.Timestamp.UTC())
			i++
		})
	}
}
