//go:build servers

package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble/sink/redis"
)

var (
	brokers = cmp.Or(os.Getenv("TUMBLE_KAFKA"), "localhost:9092")
	server  = cmp.Or(os.Getenv("TUMBLE_REDIS"), "localhost:6379")
	cluster = cmp.Or(os.Getenv("TUMBLE_REDIS_CLUSTER"), "localhost:7001,localhost:7002,localhost:7003")
)

// patience is for what takes a moment on a machine that does nothing else.
const patience = 90 * time.Second

// A flow is a topic with 2 partitions and a name of counts that no other test
// uses.
type flow struct {
	name   string // of the topic, the group and the counts
	redis  string
	client rueidis.Client
}

func newFlow(t *testing.T, redis string) *flow {
	t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: strings.Split(redis, ",")})
	require.NoError(t, err, "Redis at %s", redis)
	f := &flow{name: fmt.Sprintf("kafka-redis-%x", rand.Uint64()), redis: redis, client: client}
	admin := &kafkago.Client{Addr: kafkago.TCP(brokers)}
	answer, err := admin.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{
		Topics: []kafkago.TopicConfig{{Topic: f.name, NumPartitions: 2, ReplicationFactor: 1}},
	})
	require.NoError(t, err, "Kafka at %s", brokers)
	require.NoError(t, answer.Errors[f.name])
	t.Cleanup(func() {
		ctx := context.Background()
		defer client.Close()
		_, err := admin.DeleteTopics(ctx, &kafkago.DeleteTopicsRequest{Topics: []string{f.name}})
		require.NoError(t, err)
		for _, node := range client.Nodes() {
			for cursor := uint64(0); ; {
				page, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(f.name+":*").Count(1000).Build()).AsScanEntry()
				require.NoError(t, err)
				for _, key := range page.Elements {
					require.NoError(t, node.Do(ctx, node.B().Del().Key(key).Build()).Error())
				}
				if cursor = page.Cursor; cursor == 0 {
					break
				}
			}
		}
	})
	return f
}

// produce writes n clicks of 10 users, a second apart from at on, and adds them
// to want, by minute and user. One record in 50 is no JSON.
func (f *flow) produce(t *testing.T, at time.Time, n int, want map[time.Time]map[string]int64) {
	t.Helper()
	var messages []kafkago.Message
	for i := range n {
		user, when := fmt.Sprintf("user_%d", rand.IntN(10)), at.Add(time.Duration(i)*time.Second)
		value, err := json.Marshal(map[string]string{"user_id": user, "timestamp": when.Format(time.RFC3339), "page": "/home"})
		require.NoError(t, err)
		if i%50 == 49 {
			value = value[1:]
		} else {
			minute := when.Truncate(time.Minute)
			if want[minute] == nil {
				want[minute] = map[string]int64{}
			}
			want[minute][user]++
		}
		messages = append(messages, kafkago.Message{Key: []byte(user), Value: value})
	}
	w := &kafkago.Writer{Addr: kafkago.TCP(brokers), Topic: f.name, Balancer: &kafkago.Hash{}, RequiredAcks: kafkago.RequireAll, BatchTimeout: 10 * time.Millisecond}
	defer w.Close()
	require.NoError(t, w.WriteMessages(t.Context(), messages...))
}

// A process is the program, running.
type process struct {
	cmd *exec.Cmd
	out *bufio.Scanner // of stdout and stderr
}

func (f *flow) start(t *testing.T) *process {
	t.Helper()
	p := &process{cmd: program("-brokers", brokers, "-topic", f.name, "-group", f.name, "-redis", f.redis, "-name", f.name)}
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	p.cmd.Stderr = p.cmd.Stdout
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // it may have ended
	p.out = bufio.NewScanner(stdout)
	return p
}

// line returns the rest of the next line that begins with prefix, skipping those
// of the library's log.
func (p *process) line(t *testing.T, prefix string) string {
	t.Helper()
	defer time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() }).Stop()
	for p.out.Scan() {
		if rest, ok := strings.CutPrefix(p.out.Text(), prefix); ok {
			return rest
		}
	}
	t.Fatalf("it ended without the line %q", prefix)
	return ""
}

// stop ends the program as SIGTERM does, and returns the numbers of its last
// line.
func (p *process) stop(t *testing.T) (read, counted, rejected int) {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	_, err := fmt.Sscanf(p.line(t, "kafka-redis: read "), "%d records, counted %d, rejected %d", &read, &counted, &rejected)
	require.NoError(t, err)
	require.NoError(t, p.cmd.Wait())
	return read, counted, rejected
}

// counted reads all counts of the minutes in want.
func (f *flow) counted(ctx context.Context, want map[time.Time]map[string]int64) (map[time.Time]map[string]int64, error) {
	reader, err := redis.New(redis.Config{Client: f.client, Name: f.name})
	if err != nil {
		return nil, err
	}
	got := map[time.Time]map[string]int64{}
	for minute := range want {
		page, err := reader.Top(ctx, minute, 1000)
		if err != nil {
			return nil, err
		}
		got[minute] = map[string]int64{}
		for _, c := range page.Counts {
			got[minute][c.Key] = c.N
		}
	}
	return got, nil
}

// await waits until as many clicks are counted as are wanted, and compares.
func (f *flow) await(t *testing.T, want map[time.Time]map[string]int64) {
	t.Helper()
	var got map[time.Time]map[string]int64
	var err error
	for end := time.Now().Add(patience); total(got) < total(want) && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
		got, err = f.counted(t.Context(), want) // at first nothing is stored, an error
	}
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func total(counts map[time.Time]map[string]int64) (n int) {
	for _, users := range counts {
		for _, c := range users {
			n += int(c)
		}
	}
	return n
}

func TestFlow(t *testing.T) {
	for name, redis := range map[string]string{"server": server, "cluster": cluster} {
		t.Run(name, func(t *testing.T) {
			f := newFlow(t, redis)
			want := map[time.Time]map[string]int64{}
			at := time.Now().UTC().Add(-time.Hour).Truncate(time.Second)
			f.produce(t, at, 1000, want)

			p := f.start(t)
			api := p.line(t, "  go run ")
			f.await(t, want)
			f.produce(t, at, 100, want) // while it runs
			f.await(t, want)
			read, counted, rejected := p.stop(t)
			require.Equal(t, []int{1100, 1078, 22}, []int{read, counted, rejected})

			// Once more: it goes on where the counts are.
			f.produce(t, at.Add(time.Minute), 50, want)
			p = f.start(t)
			f.await(t, want)
			read, counted, rejected = p.stop(t)
			require.Equal(t, []int{50, 49, 1}, []int{read, counted, rejected})
			f.await(t, want)

			f.ask(t, api, want)
		})
	}
}

// ask runs the command that the program says reads a count, and reads one.
func (f *flow) ask(t *testing.T, api string, want map[time.Time]map[string]int64) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"run"}, append(strings.Fields(api), "-addr", "localhost:0")...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // go run's child as well
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	kill := func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	defer func() { kill(); _ = cmd.Wait() }()
	defer time.AfterFunc(patience, kill).Stop()
	at, said := "", ""
	for lines := bufio.NewScanner(stderr); at == "" && lines.Scan(); {
		said += lines.Text() + "\n"
		if _, rest, ok := strings.Cut(lines.Text(), " on http://"); ok {
			at = rest
		}
	}
	require.NotEmpty(t, at, said)
	for minute, users := range want {
		for user, n := range users {
			answer, err := http.Get(fmt.Sprintf("http://%s/clicks/%s/%s", at, user, minute.Format("2006-01-02T15:04")))
			require.NoError(t, err)
			body, err := io.ReadAll(answer.Body)
			require.NoError(t, err)
			require.NoError(t, answer.Body.Close())
			require.Contains(t, string(body), fmt.Sprintf(`"clicks":%d,`, n))
			return
		}
	}
}

func TestUnreachable(t *testing.T) {
	f := newFlow(t, server)
	refused, silent := nobody(t)
	for _, addr := range []string{refused, silent} {
		fails(t, addr, "-brokers", addr, "-topic", f.name, "-redis", server, "-name", f.name)
	}
	fails(t, f.name+"-none", "-brokers", brokers, "-topic", f.name+"-none", "-redis", server, "-name", f.name)
}
