//go:build servers

package kafka

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
)

// need returns an address or a path that `scripts/servers env` prints.
func need(t testing.TB, name string) string {
	t.Helper()
	v := os.Getenv(name)
	require.NotEmpty(t, v, "%s is not set: scripts/servers up, and eval \"$(scripts/servers env)\"", name)
	return v
}

// jars is Java's class path with Kafka in it.
func jars(t testing.TB) string { return filepath.Join(need(t, "TUMBLE_KAFKA_JARS"), "*") }

// A java is the program testdata/Writer.java: producers of Kafka's own client.
type java struct {
	in  io.Writer
	out *bufio.Scanner
}

func startJava(t testing.TB) *java {
	cmd := exec.CommandContext(t.Context(), "java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", jars(t), filepath.Join("testdata", "Writer.java"))
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	var trouble strings.Builder
	cmd.Stderr = &trouble
	require.NoError(t, cmd.Start(), "a JDK is to be installed")
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(trouble.String())
		}
	})
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	return &java{in, lines}
}

// do runs one command and returns the offsets in its answer.
func (j *java) do(t testing.TB, format string, args ...any) (offsets []int64) {
	t.Helper()
	_, err := fmt.Fprintf(j.in, format+"\n", args...)
	require.NoError(t, err)
	require.True(t, j.out.Scan(), "the Java program has ended")
	text, ok := strings.CutPrefix(j.out.Text(), "ok")
	require.True(t, ok, j.out.Text())
	for word := range strings.FieldsSeq(text) {
		n, err := strconv.ParseInt(word, 10, 64)
		require.NoError(t, err)
		offsets = append(offsets, n)
	}
	return offsets
}

func (j *java) open(t testing.TB, c cluster, name string, properties ...string) {
	t.Helper()
	j.do(t, "open %s bootstrap.servers=%s %s", name, c.brokers[0], strings.Join(properties, " "))
}

// span is what the Java program's send writes.
func span(prefix string, from, to int) (values []string) {
	for i := from; i < to; i++ {
		values = append(values, prefix+strconv.Itoa(i))
	}
	return values
}

// What the Java client compresses: batches of several sizes, one record and
// thousands, with and without transactions, with times of its own and with the
// broker's.
func TestCodecsOfJava(t *testing.T) {
	c := realCluster(t)
	j := startJava(t)
	for kind, age := range map[string]time.Duration{"CreateTime": time.Hour, "LogAppendTime": 0} {
		topic := c.create(t, 1, "message.timestamp.type", kind)
		begin := time.Now().Truncate(time.Millisecond)
		var want []string
		for _, name := range codecs {
			for _, properties := range [][]string{{"linger.ms=100", "batch.size=500000"}, {"transactional.id=" + newTopic()}} {
				producer := newTopic()
				j.open(t, c, producer, append(properties, "compression.type="+name)...)
				if len(properties) == 1 {
					j.do(t, "begin %s", producer)
				}
				prefix := producer + strings.Repeat("-", 100)
				for _, n := range []int{1, 3000} {
					j.do(t, "send %s %s 0 %s 0 %d", producer, topic, prefix, n)
					want = append(want, span(prefix, 0, n)...)
				}
				if len(properties) == 1 {
					j.do(t, "commit %s", producer)
				}
				j.do(t, "close %s", producer)
			}
		}
		tl := whole(t, c.config(topic, 0))
		require.Equal(t, want, tl.keys())
		last := begin.Add(-age).UnixMilli()
		for _, e := range tl.snapshot() {
			require.GreaterOrEqual(t, e.at, last, "the producers wrote one after the other")
			last = e.at
		}
		require.LessOrEqual(t, last, time.Now().Add(-age).UnixMilli())
	}
}

// Transactions of two Java producers and one of another client, in any order and
// over each other, some of which are aborted, some of which end with their
// producer: the next one of that name aborts them. What is committed is read
// once, in order, from any offset on.
func TestTransactionsOfJava(t *testing.T) {
	c := realCluster(t)
	j := startJava(t)
	const partitions = 2
	topic := c.create(t, partitions)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))

	// A writer has at most one transaction, of which values holds what it wrote
	// and where.
	type writer struct {
		name   string
		franz  *kgo.Client
		values map[[2]int64]string // by partition and offset; nil: no transaction
	}
	writers := []*writer{{name: "a"}, {name: "b"}, {name: "c"}, {name: "franz"}}
	ids := map[string]string{}
	reopen := func(w *writer) {
		j.open(t, c, w.name, "transactional.id="+ids[w.name], "compression.type="+codecs[rnd.IntN(len(codecs))], "batch.size=2000")
	}
	for _, w := range writers {
		ids[w.name] = newTopic()
		if w.name == "franz" {
			w.franz = c.client(t, kgo.TransactionalID(ids[w.name]))
		} else {
			reopen(w)
		}
	}
	j.open(t, c, "plain", "linger.ms=0")
	want := map[[2]int64]string{}
	ended := map[string]int{}
	end := func(w *writer, how string) {
		ended[how]++
		switch {
		case w.franz != nil && how == "commit":
			require.NoError(t, w.franz.EndTransaction(t.Context(), kgo.TryCommit))
		case w.franz != nil:
			require.NoError(t, w.franz.EndTransaction(t.Context(), kgo.TryAbort))
		case how == "fence":
			reopen(w)
		default:
			j.do(t, "%s %s", how, w.name)
		}
		if how == "commit" {
			for at, v := range w.values {
				want[at] = v
			}
		}
		w.values = nil
	}
	for i := range 120 {
		p := int64(rnd.IntN(partitions))
		n := 1 + rnd.IntN(3)
		if rnd.IntN(10) == 0 {
			n = 200 // several batches
		}
		prefix := fmt.Sprintf("%d-", i)
		// Another transaction's marker may come between two of the records:
		// its producer does not wait for it to be written.
		note := func(into map[[2]int64]string, offsets []int64) {
			require.Len(t, offsets, n)
			for k, v := range span(prefix, 0, n) {
				into[[2]int64{p, offsets[k]}] = v
			}
		}
		if rnd.IntN(6) == 0 {
			note(want, j.do(t, "send plain %s %d %s 0 %d", topic, p, prefix, n))
			continue
		}
		w := writers[rnd.IntN(len(writers))]
		if w.values == nil {
			w.values = map[[2]int64]string{}
			if w.franz != nil {
				require.NoError(t, w.franz.BeginTransaction())
			} else {
				j.do(t, "begin %s", w.name)
			}
		}
		if w.franz != nil {
			var offsets []int64
			for _, v := range span(prefix, 0, n) {
				offsets = append(offsets, produce(t, w.franz, topic, int32(p), v))
			}
			note(w.values, offsets)
		} else {
			note(w.values, j.do(t, "send %s %s %d %s 0 %d", w.name, topic, p, prefix, n))
		}
		if rnd.IntN(2) == 0 {
			end(w, []string{"commit", "commit", "abort", "abort", "fence"}[rnd.IntN(5)])
		}
	}
	for i, w := range writers { // so that markers are the last there is
		if w.values != nil {
			end(w, []string{"commit", "abort"}[i%2])
		}
	}
	t.Logf("%d records committed, transactions %v", len(want), ended)

	all := make(map[string][]seen)
	for at, v := range want {
		id := fmt.Sprint(topic, "/", at[0])
		all[id] = append(all[id], seen{id: id, offset: at[1], key: v})
	}
	starts, err := must(New(c.config(topic))).Partitions(t.Context(), nil)
	require.NoError(t, err)
	for p := range int32(partitions) {
		id := fmt.Sprint(topic, "/", p)
		slices.SortFunc(all[id], func(a, b seen) int { return int(a.offset - b.offset) })
		cfg := c.config(topic, p)
		cfg.UntilEnd = true
		end := whole(t, cfg).next[id]
		for from := int64(0); from < end; from += 1 + rnd.Int64N(60) {
			start := starts[id]
			start.Offset = from
			tl := follow(t, cfg, map[string]tumble.Checkpoint{id: start})
			tl.end(t)
			i, _ := slices.BinarySearchFunc(all[id], from, func(e seen, from int64) int { return int(e.offset - from) })
			got := tl.snapshot()
			for k := range got {
				got[k].at = 0
			}
			requireSame(t, all[id][i:], got)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A transaction whose producer crashed stays open until the coordinator aborts
// it: nothing behind it is read before, all is after.
func TestTransactionTimesOut(t *testing.T) {
	c := realCluster(t)
	j := startJava(t)
	topic := c.create(t, 1)
	j.open(t, c, "crashes", "transactional.id="+newTopic(), "transaction.timeout.ms=1000")
	j.open(t, c, "plain")
	j.do(t, "send plain %s 0 before- 0 1", topic)
	j.do(t, "begin crashes")
	j.do(t, "send crashes %s 0 never- 0 3", topic)
	j.do(t, "send plain %s 0 behind- 0 2", topic)
	tl := follow(t, c.config(topic, 0), nil)
	require.Len(t, tl.await(t, 1), 1)
	require.Eventually(t, func() bool { return len(tl.keys()) > 1 }, 40*time.Second, 50*time.Millisecond)
	tl.await(t, 3)
	require.Equal(t, []string{"before-0", "behind-0", "behind-1"}, tl.keys())
	require.Eventually(t, func() bool { // past the marker
		tl.mu.Lock()
		defer tl.mu.Unlock()
		return tl.caught[topic+"/0"] && tl.next[topic+"/0"] == 7
	}, 10*time.Second, 10*time.Millisecond)
}
