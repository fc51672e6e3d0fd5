//go:build servers

package redis_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// serverCPU returns the CPU time that the server has used.
func serverCPU(t testing.TB, client rueidis.Client) time.Duration {
	var seconds float64
	for _, name := range []string{"used_cpu_user", "used_cpu_sys"} {
		f, err := strconv.ParseFloat(info(t, client, "cpu", name), 64)
		require.NoError(t, err)
		seconds += f
	}
	return time.Duration(seconds * float64(time.Second))
}

// info returns a field of the reply to INFO.
func info(t testing.TB, client rueidis.Client, section, name string) string {
	text, err := client.Do(context.Background(), client.B().Info().Section(section).Build()).ToString()
	require.NoError(t, err)
	for line := range strings.SplitSeq(text, "\r\n") {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return value
		}
	}
	require.Fail(t, "INFO has no such field", name)
	return ""
}

func clientCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// load counts every key once in a window, in batches of 1000 increments a
// shard, and returns the number of counts. The server must serve nobody else.
func load(t testing.TB, shards []tumble.Shard, keys int, window time.Time, from []tumble.Checkpoint) {
	pending := make([][]tumble.Delta, len(shards))
	flush := func(i int) {
		from[i] = advance(t, shards[i], "p/0", from[i], time.Time{}, pending[i]...)
		pending[i] = pending[i][:0]
	}
	for k := range keys {
		key := "user-" + strconv.Itoa(k)
		i := tumble.Hash(key) % uint64(len(shards))
		pending[i] = append(pending[i], tumble.Delta{Start: window, Key: key, N: 1 + int64(k%9)})
		if len(pending[i]) == 1000 {
			flush(int(i))
		}
	}
	for i := range pending {
		flush(i)
	}
}

func registerAll(t testing.TB, shards []tumble.Shard, partition string) []tumble.Checkpoint {
	from := make([]tumble.Checkpoint, len(shards))
	for i, sh := range shards {
		from[i] = register(t, sh, partition)
	}
	return from
}

// BenchmarkMemory reports what one stored count takes, everything included,
// and what its first increment costs.
func BenchmarkMemory(b *testing.B) {
	for _, keys := range []int{10, 1000, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(keys), func(b *testing.B) {
			client := connect(b, single)
			for range b.N {
				name := unique(b, client)
				shards := open(b, newSink(b, redis.Config{Client: client, Name: name}), minutes)
				from := registerAll(b, shards, "p/0")
				before, cpu := usedMemory(b, client), serverCPU(b, client)
				load(b, shards, keys, noon, from)
				b.ReportMetric(float64(serverCPU(b, client)-cpu)/float64(keys), "server-ns/count")
				b.ReportMetric(float64(usedMemory(b, client)-before)/float64(keys), "B/count")
			}
		})
	}
	b.Run("60 windows of 100000", func(b *testing.B) {
		client := connect(b, single)
		for range b.N {
			name := unique(b, client)
			shards := open(b, newSink(b, redis.Config{Client: client, Name: name}), minutes)
			from := registerAll(b, shards, "p/0")
			before, cpu := usedMemory(b, client), serverCPU(b, client)
			for m := range 60 {
				load(b, shards, 100_000, noon.Add(time.Duration(m)*time.Minute), from)
			}
			b.ReportMetric(float64(serverCPU(b, client)-cpu)/6e6, "server-ns/count")
			b.ReportMetric(float64(usedMemory(b, client)-before)/6e6, "B/count")
		}
	})
}

func usedMemory(t testing.TB, client rueidis.Client) int64 {
	n, err := strconv.ParseInt(info(t, client, "memory", "used_memory"), 10, 64)
	require.NoError(t, err)
	return n
}

// BenchmarkApply adds batches of increments of keys that have a count already,
// as most increments of a busy stream do.
func BenchmarkApply(b *testing.B) {
	for _, size := range []int{3, 100, 1000} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			client := connect(b, single)
			name := unique(b, client)
			shards := open(b, newSink(b, redis.Config{Client: client, Name: name}), minutes)
			from := registerAll(b, shards, "p/0")
			load(b, shards, 100_000, noon, from)
			var keys []string
			for k := range 100_000 {
				if key := "user-" + strconv.Itoa(k); tumble.Hash(key)%uint64(len(shards)) == 0 {
					keys = append(keys, key)
				}
			}
			deltas := make([]tumble.Delta, size)
			rnd := rand.New(rand.NewPCG(1, 2))
			server, own := serverCPU(b, client), clientCPU()
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				at := rnd.IntN(len(keys))
				for i := range deltas {
					deltas[i] = tumble.Delta{Start: noon, Key: keys[(at+i*7)%len(keys)], N: 1}
				}
				from[0] = advance(b, shards[0], "p/0", from[0], time.Time{}, deltas...)
			}
			b.StopTimer()
			n := float64(b.N * size)
			b.ReportMetric(float64(clientCPU()-own)/n, "client-ns/increment")
			b.ReportMetric(float64(serverCPU(b, client)-server)/n, "server-ns/increment")
		})
	}
}

// BenchmarkCatchUp adds what a catch-up does: in turns of some windows, for each
// of four partitions and each shard a batch of new counts.
func BenchmarkCatchUp(b *testing.B) {
	const users, windows, partitions, turn = 10_000, 60, 4, 3
	client := connect(b, single)
	server, own, n := serverCPU(b, client), clientCPU(), 0
	for range b.N {
		name := unique(b, client)
		shards := open(b, newSink(b, redis.Config{Client: client, Name: name}), minutes)
		from := make([][]tumble.Checkpoint, partitions)
		for p := range from {
			from[p] = registerAll(b, shards, fmt.Sprint("p/", p))
		}
		batches := make([][partitions][]tumble.Delta, len(shards))
		for window := range windows {
			for u := range users {
				key := "user_" + strconv.Itoa(u)
				to := &batches[tumble.Hash(key)%uint64(len(shards))][u%partitions]
				*to = append(*to, tumble.Delta{Start: noon.Add(time.Duration(window) * time.Minute), Key: key, N: 6})
			}
			if (window+1)%turn > 0 {
				continue
			}
			for i, sh := range shards {
				for p, deltas := range batches[i] {
					from[p][i] = advance(b, sh, fmt.Sprint("p/", p), from[p][i], time.Time{}, deltas...)
					n += len(deltas)
					batches[i][p] = deltas[:0]
				}
			}
		}
	}
	b.ReportMetric(float64(clientCPU()-own)/float64(n), "client-ns/increment")
	b.ReportMetric(float64(serverCPU(b, client)-server)/float64(n), "server-ns/increment")
}

// minutesOf is a source of 4 partitions that costs nothing: 2,400,000 clicks of 10,000
// users over an hour, in order.
type minutesOf struct {
	id     string
	events []tumble.Event
}

type catchUp []*minutesOf

func clicksOfAnHour(sum bool) (all catchUp) {
	const users, each = 10_000, 600_000
	rng := rand.New(rand.NewPCG(1, 1))
	for p := range 4 {
		m := &minutesOf{id: fmt.Sprint("p/", p)}
		for i := range each {
			ev := tumble.Event{Key: "user_" + strconv.Itoa(p+4*rng.IntN(users/4)), Time: noon.Add(time.Duration(i) * time.Hour / each), Offset: int64(i)}
			if sum {
				ev.N = 1 + rng.Int64N(1000)
			}
			m.events = append(m.events, ev)
		}
		all = append(all, m)
	}
	return all
}

func (c catchUp) Partitions(context.Context, map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	all := map[string]tumble.Checkpoint{}
	for _, m := range c {
		all[m.id] = tumble.Checkpoint{Log: "log"}
	}
	return all, nil
}

func (c catchUp) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	errs := make([]error, len(c))
	var wg sync.WaitGroup
	for i, m := range c {
		wg.Go(func() { errs[i] = consume(ctx, m) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *minutesOf) ID() string { return m.id }

func (m *minutesOf) Resume(_ context.Context, c tumble.Checkpoint) (tumble.Checkpoint, error) {
	return c, nil
}

func (m *minutesOf) Fetch(_ context.Context, from tumble.Position) (tumble.Chunk, error) {
	if int(from.Offset) == len(m.events) {
		return tumble.Chunk{}, tumble.ErrEnded
	}
	next := min(int(from.Offset)+4096, len(m.events))
	return tumble.Chunk{Events: m.events[from.Offset:next], Next: int64(next), End: int64(len(m.events))}, nil
}

// BenchmarkRollups is a catch-up, from a source that costs nothing: of minutes alone, with
// roll-ups of hours and days, and of sums.
func BenchmarkRollups(b *testing.B) {
	client := connect(b, single)
	day := tumble.Window{Calendar: tumble.Day}
	for _, c := range []struct {
		name    string
		rollups []tumble.Rollup
		sum     bool
	}{
		{"minutes", nil, false},
		{"rollups=2", []tumble.Rollup{{Window: tumble.Window{Size: time.Hour}}, {Window: day}}, false},
		{"sums", nil, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			source := clicksOfAnHour(c.sum)
			b.ResetTimer()
			server, own, n := serverCPU(b, client), clientCPU(), int64(0)
			for range b.N {
				p, err := tumble.New(tumble.Config{
					Source: source, Sink: newSink(b, redis.Config{Client: client, Name: unique(b, client)}),
					Window: minutes.Window, Rollups: c.rollups, Sum: c.sum, Logger: slog.New(slog.DiscardHandler),
				})
				require.NoError(b, err)
				require.NoError(b, p.Run(b.Context()))
				n += p.Stats().Counted
			}
			b.ReportMetric(float64(clientCPU()-own)/float64(n), "client-ns/event")
			b.ReportMetric(float64(serverCPU(b, client)-server)/float64(n), "server-ns/event")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkCount reads counts of one window: cached, and while another client
// writes to it.
func BenchmarkCount(b *testing.B) {
	for _, writes := range []bool{false, true} {
		b.Run(fmt.Sprintf("writes=%v", writes), func(b *testing.B) {
			client, reading := connect(b, single), connect(b, single)
			name := unique(b, client)
			shards := open(b, newSink(b, redis.Config{Client: client, Name: name}), minutes)
			from := registerAll(b, shards, "p/0")
			load(b, shards, 100_000, noon, from)
			reader := newSink(b, redis.Config{Client: reading, Name: name})
			for k := range 1000 { // fill the cache
				_, err := reader.Count(context.Background(), "user-"+strconv.Itoa(k), noon)
				require.NoError(b, err)
			}
			stop := make(chan struct{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				for writes {
					select {
					case <-stop:
						return
					case <-time.After(100 * time.Millisecond):
						load(b, shards, 1000, noon, from)
					}
				}
			}()
			b.ReportAllocs()
			b.SetParallelism(32)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					c, err := reader.Count(context.Background(), "user-"+strconv.Itoa(rand.IntN(1000)), noon)
					if err != nil || c.N == 0 {
						b.Error(c, err)
						return
					}
				}
			})
			b.StopTimer()
			close(stop)
			<-done
		})
	}
}

// BenchmarkCounts reads a hundred counts, by one call and by a hundred, without a cache. It
// tells the processor time of this process beside the time that passes.
func BenchmarkCounts(b *testing.B) {
	client := connect(b, single, func(o *rueidis.ClientOption) { o.DisableCache = true })
	name := unique(b, client)
	shards := open(b, newSink(b, redis.Config{Client: client, Name: name}), minutes)
	load(b, shards, 100_000, noon, registerAll(b, shards, "p/0"))
	reader := newSink(b, redis.Config{Client: client, Name: name})
	ask := map[string]func(keys []string) (counts []tumble.Count, err error){
		"one call": func(keys []string) ([]tumble.Count, error) { return reader.Counts(b.Context(), noon, keys...) },
		"a hundred calls": func(keys []string) (counts []tumble.Count, err error) {
			for _, key := range keys {
				c, err := reader.Count(b.Context(), key, noon)
				if err != nil {
					return nil, err
				}
				counts = append(counts, c)
			}
			return counts, nil
		},
	}
	for name, ask := range ask {
		b.Run(name, func(b *testing.B) {
			began := clientCPU()
			for b.Loop() {
				keys := make([]string, 100)
				for i := range keys {
					keys[i] = "user-" + strconv.Itoa(rand.IntN(100_000))
				}
				counts, err := ask(keys)
				require.NoError(b, err)
				require.Len(b, counts, 100)
			}
			b.ReportMetric(float64((clientCPU()-began).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

// BenchmarkTop reads the ten highest of 100,000 counts.
func BenchmarkTop(b *testing.B) {
	client := connect(b, single)
	name := unique(b, client)
	s := newSink(b, redis.Config{Client: client, Name: name})
	shards := open(b, s, minutes)
	load(b, shards, 100_000, noon, registerAll(b, shards, "p/0"))
	b.ResetTimer()
	for range b.N {
		page, err := s.Top(context.Background(), noon, 10)
		require.NoError(b, err)
		require.Len(b, page.Counts, 10)
	}
}
