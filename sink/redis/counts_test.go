//go:build servers

package redis_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// onBoth runs a test on a single server and on a cluster.
func onBoth(t *testing.T, test func(t *testing.T, client, reading rueidis.Client, name string)) {
	for kind, addrs := range map[string][]string{"single": single, "cluster": cluster} {
		t.Run(kind, func(t *testing.T) {
			client := connect(t, addrs)
			test(t, client, connect(t, addrs), unique(t, client))
		})
	}
}

// TestModel applies random batches through two sinks that do not know of each
// other, as two processes have them, to windows that grow from nothing to many
// buckets, and compares all reads with maps.
func TestModel(t *testing.T) {
	onBoth(t, func(t *testing.T, client, reading rueidis.Client, name string) {
		for seed := range uint64(2) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				rnd := rand.New(rand.NewPCG(seed, 0))
				name := name + ":" + fmt.Sprint(seed)
				const shards = 3
				writers := [][]tumble.Shard{
					open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: shards}), minutes),
					open(t, newSink(t, redis.Config{Client: client, Name: name}), minutes),
				}
				from := [][]tumble.Checkpoint{registerAll(t, writers[0], "p/0"), registerAll(t, writers[1], "p/1")}
				reader := newSink(t, redis.Config{Client: reading, Name: name})
				want := make([]map[string]int64, 4)
				for i := range want {
					want[i] = make(map[string]int64)
				}
				keys := func() string {
					switch k := rnd.IntN(1 << rnd.IntN(13)); k {
					case 0:
						return ""
					case 1:
						return "\x00"
					case 2:
						return strings.Repeat("long", 100)
					default:
						return "\x00\n{" + strconv.Itoa(k)
					}
				}
				for range 60 {
					p, sh := rnd.IntN(2), rnd.IntN(shards)
					deltas := make(map[string]tumble.Delta)
					for range rnd.IntN(1 << rnd.IntN(12)) {
						key, w := keys(), rnd.IntN(len(want))
						if int(tumble.Hash(key)%shards) == sh {
							deltas[strconv.Itoa(w)+key] = tumble.Delta{Start: noon.Add(time.Duration(w) * time.Minute), Key: key, N: 1 + rnd.Int64N(300)}
						}
					}
					for _, d := range deltas {
						want[d.Start.Sub(noon)/time.Minute][d.Key] += d.N
					}
					partition := "p/" + strconv.Itoa(p)
					from[p][sh] = advance(t, writers[p][sh], partition, from[p][sh], time.Time{}, slices.Collect(maps.Values(deltas))...)
					// Fill the cache with what will be out of date.
					_, err := reader.Count(t.Context(), keys(), noon)
					require.NoError(t, err)
				}
				for w, want := range want {
					at := noon.Add(time.Duration(w) * time.Minute)
					requireWindow(t, reader, at, want)
					for key, n := range want {
						require.Eventually(t, func() bool {
							c, err := reader.Count(t.Context(), key, at)
							require.NoError(t, err)
							return c == minute(key, at, n, tumble.Open)
						}, 2*time.Second, time.Millisecond, "%q is to be %d", key, n)
					}
				}
				for key := range want[0] {
					var series []tumble.Count
					for w := range want {
						if n := want[w][key]; n > 0 {
							series = append(series, minute(key, noon.Add(time.Duration(w)*time.Minute), n, tumble.Open))
						}
					}
					for _, far := range []time.Duration{4 * time.Minute, 10000 * time.Hour} {
						got, err := reader.Range(t.Context(), key, noon, noon.Add(far))
						require.NoError(t, err)
						require.Equal(t, series, got)
					}
				}
			})
		}
	})
}

// requireWindow compares Top and Scan with all counts of a window.
func requireWindow(t *testing.T, r tumble.Reader, at time.Time, want map[string]int64) {
	t.Helper()
	page, err := r.Top(t.Context(), at, 1<<20)
	require.NoError(t, err)
	got := make(map[string]int64)
	for i, c := range page.Counts {
		got[c.Key] = c.N
		if i > 0 {
			before := page.Counts[i-1]
			require.True(t, before.N > c.N || before.N == c.N && before.Key < c.Key)
		}
	}
	require.Equal(t, want, got)
	require.Len(t, page.Counts, len(want))
	// The total, after whatever splits and repetitions.
	totals, err := r.Windows(t.Context(), page.Start, page.End)
	require.NoError(t, err)
	var sum, keys int64
	for _, total := range totals {
		sum, keys = sum+total.N, keys+total.Keys
	}
	for _, n := range want {
		sum -= n
	}
	require.Zero(t, sum, "the total")
	require.EqualValues(t, len(want), keys, "distinct keys")
	top, err := r.Top(t.Context(), at, 10)
	require.NoError(t, err)
	require.Equal(t, page.Counts[:min(10, len(page.Counts))], top.Counts)
	for _, limit := range []int{1, 200, 1 << 20} {
		got := make(map[string]int64)
		n := 0
		for cursor := ""; ; {
			page, err := r.Scan(t.Context(), at, cursor, limit)
			require.NoError(t, err)
			for _, c := range page.Counts {
				got[c.Key] = c.N
				n++
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
		require.Equal(t, want, got)
		require.Equal(t, len(want), n, "a key came twice")
	}
}

// TestLarge has a batch of 5,000 increments for one window that has few keys
// already, and keys of 1 MB.
func TestLarge(t *testing.T) {
	onBoth(t, func(t *testing.T, client, reading rueidis.Client, name string) {
		sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
		from := advance(t, sh, "p/0", register(t, sh, "p/0"), time.Time{}, tumble.Delta{Start: noon, Key: "0", N: 1})
		want := map[string]int64{"0": 1}
		var deltas []tumble.Delta
		for i := range 5000 {
			key := strconv.Itoa(i)
			if i < 3 {
				key = strings.Repeat(string(rune('a'+i)), 1<<20)
			}
			deltas = append(deltas, tumble.Delta{Start: noon, Key: key, N: int64(i + 1)})
			want[key] += int64(i + 1)
		}
		from = advance(t, sh, "p/0", from, time.Time{}, deltas...)
		reader := newSink(t, redis.Config{Client: reading, Name: name})
		requireWindow(t, reader, noon, want)
		for _, key := range []string{deltas[0].Key, deltas[4].Key} {
			c, err := reader.Count(t.Context(), key, noon)
			require.NoError(t, err)
			require.Equal(t, want[key], c.N)
		}
		// No call moves many bytes to split buckets, so it takes some of them.
		for i := 0; ; i++ {
			n, err := client.Do(t.Context(), client.B().Hget().Key(name+":{460}:"+strconv.FormatInt(noon.UnixMilli(), 10)+":0").Field("\x00").Build()).AsInt64()
			require.NoError(t, err)
			if n >= 5000/48-2 {
				break
			}
			require.Less(t, i, 50)
			key := fmt.Sprint("more-", i)
			want[key] = 1
			from = advance(t, sh, "p/0", from, time.Time{}, tumble.Delta{Start: noon, Key: key, N: 1})
		}
		requireWindow(t, reader, noon, want)
	})
}

// TestOverflow wants a batch refused whole that brings a count beyond what Lua
// computes exactly.
func TestOverflow(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	s := newSink(t, redis.Config{Client: client, Name: name, Shards: 1})
	sh := open(t, s, minutes)[0]
	const most = 1<<53 - 1
	from := advance(t, sh, "p/0", register(t, sh, "p/0"), time.Time{}, tumble.Delta{Start: noon, Key: "k", N: most - 2})
	from = advance(t, sh, "p/0", from, time.Time{}, tumble.Delta{Start: noon, Key: "k", N: 2})
	for _, n := range []int64{1, 2, most} {
		err := sh.Apply(t.Context(), tumble.Batch{
			Partition: "p/0", From: from, To: tumble.Checkpoint{Log: from.Log, Offset: 9},
			Deltas: []tumble.Delta{{Start: noon, Key: "a", N: 1}, {Start: noon, Key: "k", N: n}, {Start: noon.Add(time.Minute), Key: "k", N: 1}},
		})
		require.ErrorIs(t, err, tumble.ErrOverflow)
		require.ErrorContains(t, err, `in the window from 2024-05-01T12:00:00Z to 2024-05-01T12:01:00Z`)
	}
	require.True(t, from.Same(stateOf(t, sh).Checkpoints["p/0"]))
	requireWindow(t, s, noon, map[string]int64{"k": most})
	requireWindow(t, s, noon.Add(time.Minute), map[string]int64{})
}

// TestDefinitions opens one name with what differs from what is stored.
func TestDefinitions(t *testing.T) {
	onBoth(t, func(t *testing.T, client, _ rueidis.Client, name string) {
		def := tumble.Definition{Window: tumble.Window{Size: time.Minute}, Grace: time.Second, Retention: time.Hour}
		stored := newSink(t, redis.Config{Client: client, Name: name, Shards: 5})
		require.Len(t, open(t, stored, def), 5)
		other := func(change func(*tumble.Definition)) tumble.Definition {
			d := def
			change(&d)
			return d
		}
		for wanted, d := range map[string]tumble.Definition{
			"window 2m0s":    other(func(d *tumble.Definition) { d.Window.Size *= 2 }),
			"window 1m0s+1s": other(func(d *tumble.Definition) { d.Window.Offset = time.Second }),
			"grace 2s":       other(func(d *tumble.Definition) { d.Grace *= 2 }),
			"drop late true": other(func(d *tumble.Definition) { d.DropLate = true }),
		} {
			_, err := stored.Open(t.Context(), d)
			require.ErrorIs(t, err, tumble.ErrDefinition)
			require.ErrorContains(t, err, wanted)
			var both *tumble.DefinitionError
			require.ErrorAs(t, err, &both)
			require.Equal(t, def.String(), both.Stored.String())
			require.Equal(t, d.String(), both.Wanted.String())
		}
		_, err := newSink(t, redis.Config{Client: client, Name: name, Shards: 6}).Open(t.Context(), def)
		require.ErrorIs(t, err, tumble.ErrDefinition)
		require.ErrorContains(t, err, "stored are 5 shards, wanted 6")
		longer := other(func(d *tumble.Definition) { d.Retention *= 2 })
		require.Len(t, open(t, stored, longer), 5)
		def = longer
		require.Len(t, open(t, newSink(t, redis.Config{Client: client, Name: name}), def), 5)

		// With the first shard lost, the others still know.
		require.NoError(t, client.Do(t.Context(), client.B().Del().Key(name+":{460}").Build()).Error())
		have, err := newSink(t, redis.Config{Client: client, Name: name}).Definition(t.Context())
		require.NoError(t, err)
		require.True(t, def.Same(have))
		require.Len(t, open(t, newSink(t, redis.Config{Client: client, Name: name}), def), 5)
		_, err = newSink(t, redis.Config{Client: client, Name: name}).Open(t.Context(), minutes)
		require.ErrorIs(t, err, tumble.ErrDefinition)
	})
}

// TestOpenRace opens a new name several times at once, with as many shards as the
// servers are for.
func TestOpenRace(t *testing.T) {
	for want, addrs := range map[int][]string{4: single, 16: cluster} {
		client := connect(t, addrs)
		for range 10 {
			name := unique(t, client)
			lens := make(chan int)
			for range 4 {
				go func() {
					shards, err := newSink(t, redis.Config{Client: client, Name: name}).Open(context.Background(), minutes)
					if err != nil {
						t.Error(err)
					}
					lens <- len(shards)
				}()
			}
			for range 4 {
				require.Equal(t, want, <-lens)
			}
		}
	}
}

// TestRetention wants every key of a window gone once all partitions have
// passed it, even if it has many buckets, and that it does not come back.
func TestRetention(t *testing.T) {
	onBoth(t, func(t *testing.T, client, reading rueidis.Client, name string) {
		def := tumble.Definition{Window: tumble.Window{Size: time.Minute}, Grace: 10 * time.Second, Retention: 2 * time.Minute}
		sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), def)[0]
		reader := newSink(t, redis.Config{Client: reading, Name: name})
		slow, from := register(t, sh, "slow"), register(t, sh, "p/0")
		var deltas []tumble.Delta
		for i := range 20_000 {
			deltas = append(deltas, tumble.Delta{Start: noon, Key: strconv.Itoa(i), N: 1})
		}
		for part := range slices.Chunk(deltas, 1000) {
			from = advance(t, sh, "p/0", from, noon, part...)
		}
		later := tumble.Delta{Start: noon.Add(time.Minute), Key: "later", N: 1}
		from = advance(t, sh, "p/0", from, noon.Add(time.Hour), later)
		stored := func(at time.Time) (n int) {
			keys, err := keysOf(t.Context(), client, name)
			require.NoError(t, err)
			for _, key := range keys {
				if strings.Contains(key, ":"+strconv.FormatInt(at.UnixMilli(), 10)+":") {
					n++
				}
			}
			return n
		}
		read := func(key string) (c tumble.Count) {
			time.Sleep(20 * time.Millisecond) // the notice to the cache
			c, err := reader.Count(t.Context(), key, noon)
			require.NoError(t, err)
			return c
		}
		buckets := stored(noon)
		require.InDelta(t, 20_000/48, buckets, 5)

		// One partition holds the frontier back, to just before the end.
		end := noon.Add(time.Minute + def.Grace + def.Retention)
		slow = advance(t, sh, "slow", slow, end.Add(-1))
		for range 10 {
			from = advance(t, sh, "p/0", from, time.Time{}, later)
		}
		require.Equal(t, buckets, stored(noon))
		require.Equal(t, minute("7", noon, 1, tumble.Closed), untermed(read("7")))

		slow = advance(t, sh, "slow", slow, end)
		require.Equal(t, tumble.Expired, read("7").State)
		for range 10 { // bounded work for each
			before := stored(noon)
			from = advance(t, sh, "p/0", from, time.Time{}, later, tumble.Delta{Start: noon, Key: "late", N: 1})
			require.LessOrEqual(t, before-stored(noon), 512+2)
		}
		require.Zero(t, stored(noon))
		require.Equal(t, 1, stored(later.Start))
		require.Equal(t, minute("late", noon, 0, tumble.Expired), untermed(read("late")))
		for key, want := range map[string]int64{":windows": 1, ":totals": 1} {
			command := map[string]string{":windows": "ZCARD", ":totals": "HLEN"}[key]
			n, err := client.Do(t.Context(), client.B().Arbitrary(command).Keys(name+":{460}"+key).Build()).AsInt64()
			require.NoError(t, err)
			require.Equal(t, want, n, key)
		}

		// A partition whose log is replaced may start without a watermark. The
		// window is then no longer final, but stays gone.
		require.NoError(t, sh.Apply(t.Context(), tumble.Batch{Partition: "slow", From: slow, To: tumble.Checkpoint{Log: "new"}}))
		from = advance(t, sh, "p/0", from, time.Time{}, tumble.Delta{Start: noon, Key: "late", N: 1})
		require.Zero(t, stored(noon))
		require.Equal(t, minute("late", noon, 0, tumble.Expired), untermed(read("late")))
		time.Sleep(20 * time.Millisecond)
		c, err := reader.Count(t.Context(), "later", later.Start)
		require.NoError(t, err)
		require.Equal(t, tumble.Open, c.State)

		// Nor does it come back where the frontier is once more before it, when
		// another partition joins.
		slow = tumble.Checkpoint{Log: "new"}
		slow = advance(t, sh, "slow", slow, noon)
		require.True(t, register(t, sh, "joins").Watermark.Equal(slow.Watermark))
		require.Equal(t, minute("late", noon, 0, tumble.Expired), untermed(read("late")))
	})
}

// TestNoTimeToLive looks at every key.
func TestNoTimeToLive(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	shards := open(t, newSink(t, redis.Config{Client: client, Name: name}), tumble.Definition{Window: minutes.Window, Retention: time.Hour})
	load(t, shards, 3000, noon, registerAll(t, shards, "p/0"))
	keys, err := keysOf(t.Context(), client, name)
	require.NoError(t, err)
	require.Greater(t, len(keys), 16*4)
	for _, key := range keys {
		ttl, err := client.Do(t.Context(), client.B().Pttl().Key(key).Build()).AsInt64()
		require.NoError(t, err)
		require.EqualValues(t, -1, ttl, key)
	}
}

// TestCompact wants the buckets of a window to stay in Redis's compact form
// while it grows, in steps of any size.
func TestCompact(t *testing.T) {
	client := connect(t, single)
	for _, step := range []int{7, 100, 1000} {
		name := unique(t, client)
		sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
		from := register(t, sh, "p/0")
		var deltas []tumble.Delta
		for i := range 9000 {
			deltas = append(deltas, tumble.Delta{Start: noon, Key: "user-" + strconv.Itoa(i), N: 1})
			if len(deltas) == step {
				from = advance(t, sh, "p/0", from, time.Time{}, deltas...)
				deltas = deltas[:0]
			}
		}
		keys, err := keysOf(t.Context(), client, name+":{460}")
		require.NoError(t, err)
		n := 0
		for _, key := range keys {
			if !strings.Contains(key, strconv.FormatInt(noon.UnixMilli(), 10)) {
				continue
			}
			n++
			encoding, err := client.Do(t.Context(), client.B().ObjectEncoding().Key(key).Build()).ToString()
			require.NoError(t, err)
			require.Equal(t, "listpack", encoding, key)
		}
		require.InDelta(t, 9000/48, n, 25)
	}
}

// TestMarkers looks at what the buckets of a window say while it grows: the first
// how many there are, any other how many there were when it was last split.
func TestMarkers(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
	from := register(t, sh, "p/0")
	marker := func(bucket int) (n int) {
		key := fmt.Sprintf("%s:{460}:%d:%d", name, noon.UnixMilli(), bucket)
		text, err := client.Do(t.Context(), client.B().Hget().Key(key).Field("\x00").Build()).ToString()
		if rueidis.IsRedisNil(err) {
			return 0
		}
		require.NoError(t, err)
		n, err = strconv.Atoi(text)
		require.NoError(t, err)
		return n
	}
	want := map[int]int{}
	for first, n := 0, 1; first < 3600; first += 40 {
		from = advance(t, sh, "p/0", from, time.Time{}, users(noon, first, 40)...)
		for ; n < marker(0); n++ {
			p := 1
			for 2*p <= n {
				p *= 2
			}
			want[n-p] = n + 1
			want[0] = n + 1
		}
		for i := range n {
			require.Equal(t, want[i], marker(i), "bucket %d of %d", i, n)
		}
	}
	require.Greater(t, want[0], 64)
}

// TestCacheServesReads counts the commands that repeated reads send.
func TestCacheServesReads(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	def := tumble.Definition{Window: minutes.Window, Retention: time.Hour}
	shards := open(t, newSink(t, redis.Config{Client: client, Name: name}), def)
	load(t, shards, 1000, noon, registerAll(t, shards, "p/0"))
	reads := 0
	reader := newSink(t, redis.Config{Client: counting{connect(t, single), &reads}, Name: name})
	for range 2 {
		reads = 0
		for i := range 1000 {
			_, err := reader.Count(t.Context(), "user-"+strconv.Itoa(i), noon)
			require.NoError(t, err)
		}
		_, err := reader.Range(t.Context(), "user-1", noon.Add(-30*time.Minute), noon.Add(30*time.Minute))
		require.NoError(t, err)
	}
	require.Zero(t, reads, "the second time all is in the cache")
}

// counting counts what the cache does not answer.
type counting struct {
	rueidis.Client
	reads *int
}

func (c counting) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	*c.reads++
	return c.Client.Do(ctx, cmd)
}

func (c counting) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	r := c.Client.DoCache(ctx, cmd, ttl)
	if !r.IsCacheHit() {
		*c.reads++
	}
	return r
}

func (c counting) DoMultiCache(ctx context.Context, cmds ...rueidis.CacheableTTL) []rueidis.RedisResult {
	rs := c.Client.DoMultiCache(ctx, cmds...)
	for _, r := range rs {
		if !r.IsCacheHit() {
			*c.reads++
		}
	}
	return rs
}

// TestAskedOnce wants the sum of an hour of closed minutes from the client's cache, once it
// is there, and many keys of a window from each shard in one transaction.
func TestAskedOnce(t *testing.T) {
	counting, reading := connect(t, single), connect(t, single)
	name := unique(t, counting)
	shards := open(t, newSink(t, redis.Config{Client: counting, Name: name, Shards: 4}), minutes)
	from := registerAll(t, shards, "p/0")
	keys := make([]string, 200)
	for i := range keys {
		keys[i] = "user-" + strconv.Itoa(i)
	}
	of := func(key string) int { return int(tumble.Hash(key) % uint64(len(shards))) }
	for minute := range 60 {
		batches := make([][]tumble.Delta, len(shards))
		for _, key := range keys {
			batches[of(key)] = append(batches[of(key)], tumble.Delta{Start: noon.Add(time.Duration(minute) * time.Minute), Key: key, N: int64(minute + 1)})
		}
		for i, sh := range shards {
			from[i] = advance(t, sh, "p/0", from[i], noon.Add(time.Duration(minute+2)*time.Minute), batches[i]...)
		}
	}
	reader := newSink(t, redis.Config{Client: reading, Name: name})
	asked := func(f func()) int {
		t.Helper()
		total := func() int {
			n, err := strconv.Atoi(info(t, counting, "stats", "total_commands_processed"))
			require.NoError(t, err)
			return n
		}
		before := total()
		f()
		return total() - before - 1 // INFO
	}
	sum := func() {
		got, err := tumble.Sum(t.Context(), reader, "user-7", noon, noon.Add(time.Hour))
		require.NoError(t, err)
		require.EqualValues(t, 60*61/2, got.N)
		require.Equal(t, tumble.Closed, got.State)
	}
	sum()
	require.Zero(t, asked(sum), "the second time")

	several := func() {
		counts, err := reader.Counts(t.Context(), noon, keys...)
		require.NoError(t, err)
		for i, c := range counts {
			require.Equal(t, keys[i], c.Key)
			require.EqualValues(t, 1, c.N)
		}
	}
	several()
	// MULTI, the finality, the number of buckets, those buckets, EXEC.
	require.LessOrEqual(t, asked(several), len(shards)*(4+3))
}
