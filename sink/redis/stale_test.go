//go:build servers

package redis_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// users returns n increments of a window, of users from first on.
func users(start time.Time, first, n int) []tumble.Delta {
	deltas := make([]tumble.Delta, n)
	for i := range deltas {
		deltas[i] = tumble.Delta{Start: start, Key: "user-" + strconv.Itoa(first+i), N: 1}
	}
	return deltas
}

// TestWritersOutOfDate has writers that take a window to have other numbers of
// buckets than it has: more, fewer, or of a life that ended.
func TestWritersOutOfDate(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	writer := func() tumble.Shard {
		return open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
	}
	first := writer()
	from := register(t, first, "p/0")
	want := make(map[string]int64)
	apply := func(sh tumble.Shard, deltas []tumble.Delta) {
		from = advance(t, sh, "p/0", from, time.Time{}, deltas...)
		for _, d := range deltas {
			want[d.Key] += d.N
		}
	}
	apply(first, users(noon, 0, 5))     // one bucket
	apply(writer(), users(noon, 0, 90)) // it guesses more
	second := writer()
	apply(second, users(noon, 80, 1500))
	apply(first, users(noon, 0, 1700)) // it knows of one
	apply(second, users(noon, 0, 1700))
	requireWindow(t, newSink(t, redis.Config{Client: client, Name: name}), noon, want)

	require.NoError(t, lose(t.Context(), client, name))
	clear(want)
	third := writer()
	from = register(t, third, "p/0")
	apply(third, users(noon, 0, 5))
	apply(first, users(noon, 0, 100))
	requireWindow(t, newSink(t, redis.Config{Client: client, Name: name}), noon, want)
}

// stuck remembers a field for ever, as a cache does for a moment. It also refuses commands that a client may send to replicas.
type stuck struct {
	rueidis.Client
	t     *testing.T
	field string // of any key
	mu    sync.Mutex
	seen  map[string]rueidis.RedisResult
}

func (s *stuck) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	completed := rueidis.Completed(cmd)
	require.False(s.t, completed.IsReadOnly(), "%q may go to a replica", cmd.Commands())
	words := cmd.Commands()
	if words[0] != "HGET" || words[2] != s.field {
		return s.Client.DoCache(ctx, cmd, ttl)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	key := words[1]
	if _, ok := s.seen[key]; !ok {
		s.seen[key] = s.Client.DoCache(ctx, cmd, ttl)
	}
	return s.seen[key]
}

func (s *stuck) DoMultiCache(ctx context.Context, cmds ...rueidis.CacheableTTL) []rueidis.RedisResult {
	all := make([]rueidis.RedisResult, len(cmds))
	for i, c := range cmds {
		all[i] = s.DoCache(ctx, c.Cmd, c.TTL)
	}
	return all
}

// TestReaderOutOfDate reads a window through a cache that knows an earlier
// number of buckets.
func TestReaderOutOfDate(t *testing.T) {
	for _, before := range []int{1, 90, 300} { // keys when the reader first looks
		t.Run(fmt.Sprint(before), func(t *testing.T) {
			client := connect(t, single)
			name := unique(t, client)
			sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
			from := advance(t, sh, "p/0", register(t, sh, "p/0"), time.Time{}, users(noon, 0, before)...)
			reader := newSink(t, redis.Config{
				Client: &stuck{Client: connect(t, single), t: t, field: "\x00", seen: make(map[string]rueidis.RedisResult)}, Name: name,
			})
			look := func(n int) {
				for i := 0; i < n; i += 1 + n/400 {
					key := "user-" + strconv.Itoa(i)
					want := minute(key, noon, 1, tumble.Open)
					c, err := reader.Count(t.Context(), key, noon)
					require.NoError(t, err)
					require.Equal(t, want, c)
					counts, err := reader.Range(t.Context(), key, noon.Add(-time.Minute), noon.Add(time.Minute))
					require.NoError(t, err)
					require.Equal(t, []tumble.Count{want}, counts)
				}
			}
			look(before)
			advance(t, sh, "p/0", from, time.Time{}, users(noon, before, 3000)...)
			time.Sleep(50 * time.Millisecond) // the notices of the buckets
			look(before + 3000)
		})
	}
}

// TestLayoutOutOfDate reads with the layout of an earlier life, which had more or
// fewer shards.
func TestLayoutOutOfDate(t *testing.T) {
	for kind, read := range reads(t) {
		for _, shards := range [][2]int{{3, 4}, {4, 3}} {
			t.Run(fmt.Sprint(kind, " ", shards), func(t *testing.T) {
				client := connect(t, single)
				name := unique(t, client)
				write := func(n int) {
					all := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: n}), minutes)
					for i, from := range registerAll(t, all, "p/0") {
						var deltas []tumble.Delta
						if tumble.Hash("k")%uint64(n) == uint64(i) {
							deltas = []tumble.Delta{{Start: noon, Key: "k", N: int64(n)}}
						}
						advance(t, all[i], "p/0", from, noon.Add(time.Hour), deltas...)
					}
				}
				require.NotEqual(t, tumble.Hash("k")%3, tumble.Hash("k")%4)
				r := newSink(t, redis.Config{Name: name, Client: &stuck{
					Client: connect(t, single), t: t, field: "id", seen: make(map[string]rueidis.RedisResult),
				}})
				for i, n := range shards {
					if i > 0 {
						require.NoError(t, lose(t.Context(), client, name))
					}
					write(n)
					time.Sleep(20 * time.Millisecond) // the notices of what is not stuck
					require.Equal(t, minute("k", noon, int64(n), tumble.Closed), untermed(read(r)))
				}
			})
		}
	}
}

// TestRedefined reads with the definition of an earlier life, which had shorter
// windows: of the first half of one nothing may be said as of a window.
func TestRedefined(t *testing.T) {
	for kind, read := range reads(t) {
		t.Run(kind, func(t *testing.T) {
			client := connect(t, single)
			name := unique(t, client)
			write := func(size time.Duration, n int64) {
				def := tumble.Definition{Window: tumble.Window{Size: size}}
				sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), def)[0]
				advance(t, sh, "p/0", register(t, sh, "p/0"), noon.Add(time.Hour), tumble.Delta{Start: noon, Key: "k", N: n})
			}
			r := newSink(t, redis.Config{Name: name, Client: &stuck{
				Client: connect(t, single), t: t, field: "id", seen: make(map[string]rueidis.RedisResult),
			}})
			write(time.Minute, 1)
			require.Equal(t, minute("k", noon, 1, tumble.Closed), untermed(read(r)))
			require.NoError(t, lose(t.Context(), client, name))
			write(2*time.Minute, 2)
			time.Sleep(20 * time.Millisecond) // the notices of what is not stuck
			want := minute("k", noon, 2, tumble.Closed)
			want.End = noon.Add(2 * time.Minute)
			require.Equal(t, want, untermed(read(r)))
		})
	}
}

// meddling calls before before counts are read for the first time, or after
// after that.
type meddling struct {
	rueidis.Client
	before, after func()
}

// around calls read, and what there is to call before and after it if command
// is the one that reads counts.
func (m *meddling) around(command, counts string, read func()) {
	if command != counts {
		read()
		return
	}
	before, after := m.before, m.after
	m.before, m.after = nil, nil
	if before != nil {
		before()
	}
	read()
	if after != nil {
		after()
	}
}

func (m *meddling) DoMulti(ctx context.Context, cmds ...rueidis.Completed) (all []rueidis.RedisResult) {
	m.around(cmds[len(cmds)/2].Commands()[0], "HGETALL", func() { all = m.Client.DoMulti(ctx, cmds...) })
	return all
}

func (m *meddling) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) (one rueidis.RedisResult) {
	m.around(cmd.Commands()[0], "HMGET", func() { one = m.Client.DoCache(ctx, cmd, ttl) })
	return one
}

func (m *meddling) DoMultiCache(ctx context.Context, cmds ...rueidis.CacheableTTL) (all []rueidis.RedisResult) {
	m.around(cmds[0].Cmd.Commands()[0], "HMGET", func() { all = m.Client.DoMultiCache(ctx, cmds...) })
	return all
}

// reads are the ways to read the count of k at noon, which is to be there.
func reads(t *testing.T) map[string]func(r tumble.Reader) tumble.Count {
	only := func(counts []tumble.Count, err error) tumble.Count {
		t.Helper()
		require.NoError(t, err)
		require.Len(t, counts, 1)
		return counts[0]
	}
	return map[string]func(r tumble.Reader) tumble.Count{
		"count": func(r tumble.Reader) tumble.Count {
			c, err := r.Count(t.Context(), "k", noon)
			require.NoError(t, err)
			return c
		},
		"range": func(r tumble.Reader) tumble.Count { return only(r.Range(t.Context(), "k", noon, noon.Add(1))) },
		"top": func(r tumble.Reader) tumble.Count {
			page, err := r.Top(t.Context(), noon, 10)
			return only(page.Counts, err)
		},
		"scan": func(r tumble.Reader) tumble.Count {
			page, err := r.Scan(t.Context(), noon, "", 10)
			return only(page.Counts, err)
		},
	}
}

// TestClosesWhileRead has the last count come, and close the window, when the
// counts have been read: what was read is not final.
func TestClosesWhileRead(t *testing.T) {
	for name, read := range reads(t) {
		t.Run(name, func(t *testing.T) {
			client := connect(t, single)
			name := unique(t, client)
			sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
			from := advance(t, sh, "p/0", register(t, sh, "p/0"), noon, tumble.Delta{Start: noon, Key: "k", N: 1})
			r := newSink(t, redis.Config{Name: name, Client: &meddling{Client: connect(t, single), after: func() {
				advance(t, sh, "p/0", from, noon.Add(time.Minute), tumble.Delta{Start: noon, Key: "k", N: 2})
				time.Sleep(20 * time.Millisecond) // the notices to the cache
			}}})
			require.Equal(t, minute("k", noon, 1, tumble.Open), untermed(read(r)))
			require.Equal(t, minute("k", noon, 3, tumble.Closed), untermed(read(r)))
		})
	}
}

// TestGrowsWhileRead splits buckets between two looks of Top and Scan: what was
// there before must be found.
func TestGrowsWhileRead(t *testing.T) {
	for read, f := range map[string]func(r tumble.Reader) (tumble.Page, error){
		"top":  func(r tumble.Reader) (tumble.Page, error) { return r.Top(t.Context(), noon, 100_000) },
		"scan": func(r tumble.Reader) (tumble.Page, error) { return r.Scan(t.Context(), noon, "", 100_000) },
	} {
		t.Run(read, func(t *testing.T) {
			client := connect(t, single)
			name := unique(t, client)
			sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
			from := advance(t, sh, "p/0", register(t, sh, "p/0"), time.Time{}, users(noon, 0, 900)...)
			grow := func() { advance(t, sh, "p/0", from, time.Time{}, users(noon, 900, 1000)...) }
			page, err := f(newSink(t, redis.Config{Client: &meddling{Client: client, before: grow}, Name: name}))
			require.NoError(t, err)
			seen := make(map[string]bool)
			for _, c := range page.Counts {
				seen[c.Key] = true
			}
			for i := range 900 {
				require.True(t, seen["user-"+strconv.Itoa(i)], i)
			}
		})
	}
}

// TestReplacedWhileRead loses all and writes it again while a reader reads, and
// wants no count called final that was read of another life than the finality
// was.
func TestReplacedWhileRead(t *testing.T) {
	for name, read := range reads(t) {
		for _, whole := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", whole), func(t *testing.T) {
				client := connect(t, single)
				name := unique(t, client)
				write := func(n int64, end time.Time) {
					sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
					from := advance(t, sh, "p/0", register(t, sh, "p/0"), noon, tumble.Delta{Start: noon, Key: "k", N: n})
					advance(t, sh, "p/0", from, end)
				}
				write(3, noon.Add(time.Hour))
				r := newSink(t, redis.Config{Name: name, Client: &meddling{Client: connect(t, single), before: func() {
					require.NoError(t, lose(t.Context(), client, name))
					if whole {
						write(3, noon.Add(time.Hour))
					} else {
						write(1, noon) // the rest is still to come
					}
					time.Sleep(20 * time.Millisecond) // the notices to the cache
				}}})
				want := minute("k", noon, 1, tumble.Open)
				if whole {
					want.N, want.State = 3, tumble.Closed
				}
				require.Equal(t, want, untermed(read(r)))
			})
		}
	}
}

// TestEndedIsRaised stores a partition that has ended where others are further:
// what it closes then is what the frontier closes, not what it closed itself.
func TestEndedIsRaised(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	def := tumble.Definition{Window: tumble.Window{Calendar: tumble.Day, Zone: berlin}, Grace: time.Hour, Retention: 48 * time.Hour}
	sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), def)[0]
	advance(t, sh, "live", register(t, sh, "live"), noon.Add(1))
	for partition, c := range map[string]tumble.Checkpoint{
		"none":  {Log: "log", Ended: true},
		"early": {Log: "log", Ended: true, Watermark: noon.Add(-100 * time.Hour)},
	} {
		have := join(t, sh, partition, c)
		c.Watermark = noon.Add(1)
		require.True(t, c.Same(have), "%v", have)
		stored, err := client.Do(t.Context(), client.B().Hget().Key(name+":{460}:checkpoints").Field(partition).Build()).ToString()
		require.NoError(t, err)
		day := time.Date(2024, 5, 1, 0, 0, 0, 0, berlin)
		require.Equal(t, fmt.Sprintf("%d 0 0 0 0 %d ended log", day.UnixMilli(), noon.UnixNano()+1), stored)
	}
}

// TestExpiresWhileRead wants a window that goes past retention while its counts
// are read to be called so.
func TestExpiresWhileRead(t *testing.T) {
	def := tumble.Definition{Window: minutes.Window, Retention: time.Hour}
	for kind, read := range reads(t) {
		t.Run(kind, func(t *testing.T) {
			client := connect(t, single)
			name := unique(t, client)
			sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), def)[0]
			from := advance(t, sh, "p/0", register(t, sh, "p/0"), noon.Add(time.Minute), tumble.Delta{Start: noon, Key: "k", N: 1})
			r := newSink(t, redis.Config{Name: name, Client: &meddling{Client: connect(t, single), after: func() {
				from = advance(t, sh, "p/0", from, noon.Add(100*time.Hour))
				advance(t, sh, "p/0", from, time.Time{}) // deletes
				time.Sleep(20 * time.Millisecond)
			}}})
			// The pages were judged by what the shard said when they were read.
			state := map[bool]tumble.State{true: tumble.Closed, false: tumble.Expired}[kind == "top" || kind == "scan"]
			require.Equal(t, minute("k", noon, 1, state), untermed(read(r)))
			c, err := r.Count(t.Context(), "k", noon)
			require.NoError(t, err)
			require.Equal(t, minute("k", noon, 0, tumble.Expired), untermed(c))
		})
	}
}

// beaten opens the same name through another sink just before it writes.
type beaten struct {
	rueidis.Client
	first func()
}

func (b *beaten) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	if cmd.Commands()[0] == "EVALSHA" && b.first != nil {
		first := b.first
		b.first = nil
		first()
	}
	return b.Client.Do(ctx, cmd)
}

// TestOpenComesSecond has another process store another number of shards after
// this one has found nothing.
func TestOpenComesSecond(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	second := &beaten{client, func() { open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 3}), minutes) }}
	require.Len(t, open(t, newSink(t, redis.Config{Client: second, Name: name}), minutes), 3)
	second.first = func() {
		require.NoError(t, lose(t.Context(), client, name))
		open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 4}), minutes)
	}
	require.NoError(t, lose(t.Context(), client, name))
	_, err := newSink(t, redis.Config{Client: second, Name: name, Shards: 3}).Open(t.Context(), minutes)
	require.ErrorIs(t, err, tumble.ErrDefinition)
}
