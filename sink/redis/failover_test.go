//go:build servers

package redis_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// An address is what clients know of a master, whoever that is.
type address struct {
	server
	mu    sync.Mutex
	to    string
	conns []net.Conn
}

func newAddress(t testing.TB) *address {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := &address{server: server{addr: l.Addr().String()}}
	t.Cleanup(func() { l.Close(); a.fallOver("") })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			a.pass(in)
		}
	}()
	return a
}

// pass connects a client with the master.
func (a *address) pass(in net.Conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	out, err := net.Dial("tcp", a.to)
	if err != nil {
		in.Close()
		return
	}
	a.conns = append(a.conns, in, out)
	go func() { io.Copy(out, in); out.Close() }()
	go func() { io.Copy(in, out); in.Close() }()
}

// fallOver makes another server the master, and cuts all connections.
func (a *address) fallOver(to string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.to = to
	for _, c := range a.conns {
		c.Close()
	}
	a.conns = nil
}

// steps has something happen before the calls of a client, by their numbers. It
// pins what is sent: the client sends it again over a new connection, and uses its
// memory anew while the writer of the broken one may still read it.
type steps struct {
	rueidis.Client
	at    map[int]func()
	calls int
}

func (s *steps) step() {
	f := s.at[s.calls]
	s.calls++
	if f != nil {
		f()
	}
}

func (s *steps) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	s.step()
	return s.Client.Do(ctx, cmd.Pin())
}

func (s *steps) DoMulti(ctx context.Context, cmds ...rueidis.Completed) []rueidis.RedisResult {
	s.step()
	for i := range cmds {
		cmds[i] = cmds[i].Pin()
	}
	return s.Client.DoMulti(ctx, cmds...)
}

func (s *steps) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	s.step()
	return s.Client.DoCache(ctx, cmd.Pin(), ttl)
}

func (s *steps) DoMultiCache(ctx context.Context, cmds ...rueidis.CacheableTTL) []rueidis.RedisResult {
	s.step()
	for i := range cmds {
		cmds[i].Cmd = cmds[i].Cmd.Pin()
	}
	return s.Client.DoMultiCache(ctx, cmds...)
}

// copyAll makes a server hold what another holds.
func copyAll(t testing.TB, from, to rueidis.Client) {
	t.Helper()
	do(t, to, "FLUSHALL")
	keys, err := do(t, from, "KEYS", "*").AsStrSlice()
	require.NoError(t, err)
	for _, key := range keys {
		value, err := do(t, from, "DUMP", key).ToString()
		require.NoError(t, err)
		do(t, to, "RESTORE", key, "0", value)
	}
}

// A reading returns what was read of key k, by window, and what is known of all
// windows that it asked for: those that it leaves out held nothing.
type reading func(ctx context.Context, r tumble.Reader) ([]tumble.Count, error)

var readings = map[string]reading{
	"count": func(ctx context.Context, r tumble.Reader) ([]tumble.Count, error) {
		c, err := r.Count(ctx, "k", noon)
		return []tumble.Count{c}, err
	},
	"range": func(ctx context.Context, r tumble.Reader) ([]tumble.Count, error) {
		return r.Range(ctx, "k", noon, noon.Add(2*time.Minute))
	},
	"long range": func(ctx context.Context, r tumble.Reader) ([]tumble.Count, error) {
		return r.Range(ctx, "k", noon.Add(-1000*time.Hour), noon.Add(2*time.Minute))
	},
	"top": func(ctx context.Context, r tumble.Reader) ([]tumble.Count, error) {
		return pageOf(r.Top(ctx, noon, 10_000))
	},
	"scan": func(ctx context.Context, r tumble.Reader) ([]tumble.Count, error) {
		return pageOf(r.Scan(ctx, noon, "", 10_000))
	},
}

// pageOf returns the count of k on a page that has the whole window.
func pageOf(page tumble.Page, err error) ([]tumble.Count, error) {
	for _, c := range page.Counts {
		if c.Key == "k" {
			return []tumble.Count{c}, err
		}
	}
	return []tumble.Count{{Key: "k", Start: page.Start, End: page.End, State: page.State, Term: page.Term}}, err
}

// A loss is what a store falls back by: what it held, and the batch after that,
// which it loses, and which is counted again.
type loss struct {
	def    tumble.Definition
	before []tumble.Delta // with a watermark of noon
	mark   time.Time      // of before
	lost   []tumble.Delta // with a watermark of two minutes later
	least  int64          // the count of k at noon that was on time
}

func losses() map[string]loss {
	k := func(min int, n int64) tumble.Delta {
		return tumble.Delta{Start: noon.Add(time.Duration(min) * time.Minute), Key: "k", N: n}
	}
	final := tumble.Definition{Window: minutes.Window, DropLate: true}
	return map[string]loss{
		"a part of a count":  {final, []tumble.Delta{k(0, 1)}, noon, []tumble.Delta{k(0, 2), k(1, 1)}, 3},
		"all of a count":     {final, nil, noon, []tumble.Delta{k(0, 3), k(1, 1)}, 3},
		"all, others stay":   {final, users(noon, 0, 600), noon, []tumble.Delta{k(0, 3), k(1, 1)}, 3},
		"buckets, by others": {minutes, []tumble.Delta{k(0, 3), k(1, 1)}, noon.Add(2 * time.Minute), users(noon, 0, 600), 3},
	}
}

// fallible is a name in a store that can fall back.
type fallible struct {
	t             *testing.T
	loss          loss
	address       *address
	whole, behind *server
	clients       []rueidis.Client // of these two
	shards        []tumble.Shard   // of these two
	last          tumble.Batch
}

// newFallible stores all, in one server, and in the other what is left if it
// falls back.
func newFallible(t *testing.T, a *address, servers [2]*server, clients []rueidis.Client, l loss) *fallible {
	f := &fallible{t: t, loss: l, address: a, whole: servers[0], behind: servers[1], clients: clients}
	for _, c := range clients {
		do(t, c, "FLUSHALL")
	}
	f.shards = []tumble.Shard{open(t, newSink(t, redis.Config{Client: clients[0], Name: "a", Shards: 1}), l.def)[0]}
	zero := register(t, f.shards[0], "p/0")
	one := tumble.Checkpoint{Log: "log", Offset: 1, Watermark: l.mark}
	require.NoError(t, f.shards[0].Apply(t.Context(), tumble.Batch{Partition: "p/0", Writer: 1, From: zero, To: one, Deltas: l.before}))
	copyAll(t, clients[0], clients[1])
	f.shards = append(f.shards, open(t, newSink(t, redis.Config{Client: clients[1], Name: "a", Shards: 1}), l.def)[0])
	two := tumble.Checkpoint{Log: "log", Offset: 2, Watermark: noon.Add(2 * time.Minute)}
	f.last = tumble.Batch{Partition: "p/0", Writer: 1, From: one, To: two, Deltas: l.lost}
	require.NoError(t, f.shards[0].Apply(t.Context(), f.last))
	a.fallOver(f.whole.addr)
	return f
}

func (f *fallible) fall() { f.address.fallOver(f.behind.addr) }

// heal counts again what was lost, as another settling of the pipeline does.
func (f *fallible) heal() {
	again := f.last
	again.Writer = 2
	require.NoError(f.t, f.shards[1].Apply(f.t.Context(), again))
	time.Sleep(5 * time.Millisecond) // the notices to the cache
}

// check wants of what was read that nothing is called closed which lacks counts
// that were on time.
func (f *fallible) check(counts []tumble.Count, err error) {
	f.t.Helper()
	require.NoError(f.t, err)
	if len(counts) > 0 && counts[0].Start.After(noon) && counts[0].State != tumble.Open {
		require.Fail(f.t, "noon is left out, and a later window closed", "%v", counts)
	}
	for _, c := range counts {
		if c.Start.Equal(noon) && c.State != tumble.Open {
			require.GreaterOrEqual(f.t, c.N, f.loss.least, "%v", c)
		}
	}
}

// TestFallsBackWhileRead has the store fall back before each call that a read
// makes, and heal before each that comes later, or not at all.
func TestFallsBackWhileRead(t *testing.T) {
	servers := [2]*server{start(t), start(t)}
	clients := []rueidis.Client{servers[0].connect(t), servers[1].connect(t)}
	a := newAddress(t)
	for name, l := range losses() {
		for kind, read := range readings {
			t.Run(name+", "+kind, func(t *testing.T) {
				// try makes a read through the address and returns its calls.
				try := func(warm bool, fall, heal int) int {
					f := newFallible(t, a, servers, clients, l)
					client := &steps{Client: a.connect(t)}
					defer client.Close()
					r := newSink(t, redis.Config{Client: client, Name: "a"})
					other, err := r.Count(t.Context(), "nobody", noon) // fills the cache with what all reads need
					require.NoError(t, err)
					require.NotEqual(t, tumble.Open, other.State)
					if warm {
						f.check(read(t.Context(), r))
					}
					client.calls, client.at = 0, map[int]func(){}
					if fall >= 0 {
						client.at[fall] = f.fall
					}
					if heal > fall {
						client.at[heal] = f.heal
					} else if heal == fall && fall >= 0 {
						client.at[fall] = func() { f.fall(); f.heal() }
					}
					f.check(read(t.Context(), r))
					calls := client.calls
					f.check(read(t.Context(), r))
					return calls
				}
				for _, warm := range []bool{false, true} {
					for fall := 0; fall < try(warm, -1, -1); fall++ {
						calls := try(warm, fall, -1)
						for heal := fall; heal < calls; heal++ {
							calls = max(calls, try(warm, fall, heal))
						}
					}
				}
			})
		}
	}
}

// TestShrinksBetweenPieces has a window that is closed fall back to fewer buckets
// between two pieces of a page, so that keys of the second are in what was read.
func TestShrinksBetweenPieces(t *testing.T) {
	servers := [2]*server{start(t), start(t)}
	clients := []rueidis.Client{servers[0].connect(t), servers[1].connect(t)}
	a := newAddress(t)
	l := loss{minutes, users(noon, 0, 1500), noon.Add(2 * time.Minute), users(noon, 1500, 6000), 1}
	for kind, read := range map[string]func(r tumble.Reader) (tumble.Page, error){
		"top":  func(r tumble.Reader) (tumble.Page, error) { return r.Top(t.Context(), noon, 100_000) },
		"scan": func(r tumble.Reader) (tumble.Page, error) { return r.Scan(t.Context(), noon, "", 100_000) },
	} {
		for piece := range 3 {
			t.Run(fmt.Sprint(kind, " ", piece), func(t *testing.T) {
				f := newFallible(t, a, servers, clients, l)
				client := &steps{Client: a.connect(t)}
				r := newSink(t, redis.Config{Client: client, Name: "a"})
				_, err := r.Definition(t.Context())
				require.NoError(t, err)
				client.calls, client.at = 0, map[int]func(){piece + 2: f.fall}
				page, err := read(r)
				require.NoError(t, err)
				require.Equal(t, tumble.Closed, page.State)
				seen := make(map[string]bool)
				for _, c := range page.Counts {
					seen[c.Key] = true
				}
				for i := range 1500 {
					require.True(t, seen["user-"+strconv.Itoa(i)], i)
				}
			})
		}
	}
}

// demoted is a client of a cluster that still takes an old master for the master
// of the slot, has its finality in the cache, and is sent on to the new one
// whenever it has to ask. How long that lasts is up to when the client hears of
// the change, and from whom, so this is put together of two servers.
type demoted struct {
	rueidis.Client // of the new master
	old            rueidis.Client
}

func (d demoted) Mode() rueidis.ClientMode { return rueidis.ClientModeCluster }

func (d demoted) DoCache(ctx context.Context, cmd rueidis.Cacheable, ttl time.Duration) rueidis.RedisResult {
	if words := cmd.Commands(); strings.HasSuffix(words[1], ":finality") {
		return d.old.DoCache(ctx, cmd, ttl)
	}
	return d.Client.DoCache(ctx, cmd, ttl)
}

// TestDemotedMasterIsCached wants what the cache holds of a master that lost its
// place not to be taken for what the new one says, the first time and when the
// counts of the new one are in the cache as well.
func TestDemotedMasterIsCached(t *testing.T) {
	servers := [2]*server{start(t), start(t)}
	clients := []rueidis.Client{servers[0].connect(t), servers[1].connect(t)}
	for name, l := range losses() {
		for kind, read := range readings {
			t.Run(name+", "+kind, func(t *testing.T) {
				f := newFallible(t, newAddress(t), servers, clients, l)
				r := newSink(t, redis.Config{Client: demoted{clients[1], clients[0]}, Name: "a"})
				for range 3 {
					f.check(read(t.Context(), r))
				}
				f.heal()
				clients[0], clients[1] = clients[1], clients[0] // the cache hears of the new one
				defer func() { clients[0], clients[1] = clients[1], clients[0] }()
				r = newSink(t, redis.Config{Client: clients[0], Name: "a"})
				counts, err := read(t.Context(), r)
				f.check(counts, err)
				require.NotEqual(t, tumble.Open, counts[0].State)
			})
		}
	}
}

// TestListIsNotCached has a list of windows come from the new master, and all
// their counts from the cache, which another reader of the same client filled.
func TestListIsNotCached(t *testing.T) {
	servers := [2]*server{start(t), start(t)}
	clients := []rueidis.Client{servers[0].connect(t), servers[1].connect(t)}
	next := noon.Add(time.Minute)
	f := newFallible(t, newAddress(t), servers, clients, loss{
		tumble.Definition{Window: minutes.Window, DropLate: true}, []tumble.Delta{{Start: next, Key: "k", N: 1}}, noon,
		[]tumble.Delta{{Start: noon, Key: "k", N: 3}}, 3,
	})
	client := demoted{clients[1], clients[0]}
	_, err := newSink(t, redis.Config{Client: client, Name: "a"}).Count(t.Context(), "k", next)
	require.NoError(t, err)
	counts, err := readings["long range"](t.Context(), newSink(t, redis.Config{Client: client, Name: "a"}))
	f.check(counts, err)
	require.Equal(t, minute("k", next, 1, tumble.Open), untermed(counts[0]))
}

// TestReplacedBetweenPieces has all lost and counted again, otherwise, between
// two pieces of a page.
func TestReplacedBetweenPieces(t *testing.T) {
	for kind, read := range map[string]func(r tumble.Reader) (tumble.Page, error){
		"top":  func(r tumble.Reader) (tumble.Page, error) { return r.Top(t.Context(), noon, 100_000) },
		"scan": func(r tumble.Reader) (tumble.Page, error) { return r.Scan(t.Context(), noon, "", 100_000) },
	} {
		t.Run(kind, func(t *testing.T) {
			client := connect(t, single)
			name := unique(t, client)
			write := func(times int) {
				sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
				from := register(t, sh, "p/0")
				for range times {
					from = advance(t, sh, "p/0", from, time.Time{}, users(noon, 0, 1000)...)
				}
				advance(t, sh, "p/0", from, noon.Add(time.Hour))
			}
			write(1)
			between := &steps{Client: connect(t, single)}
			r := newSink(t, redis.Config{Client: between, Name: name})
			_, err := r.Definition(t.Context())
			require.NoError(t, err)
			between.calls, between.at = 0, map[int]func(){2: func() {
				require.NoError(t, lose(t.Context(), client, name))
				write(2)
			}}
			page, err := read(r)
			require.NoError(t, err)
			require.Equal(t, tumble.Closed, page.State)
			require.Len(t, page.Counts, 1000)
			for _, c := range page.Counts {
				require.EqualValues(t, 2, c.N, c.Key)
			}
		})
	}
}

// TestPagesJudgeAllShards has a window closed in one shard of two: pages of
// either say so only once it is closed in both, and expired when it is in one.
func TestPagesJudgeAllShards(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	s := newSink(t, redis.Config{Client: client, Name: name, Shards: 2})
	shards := open(t, s, tumble.Definition{Window: minutes.Window, Retention: time.Hour})
	from := registerAll(t, shards, "p/0")
	load(t, shards, 2000, noon, from)
	var cursor string
	pages := func(want tumble.State) {
		t.Helper()
		top, err := s.Top(t.Context(), noon, 10)
		require.NoError(t, err)
		first, err := s.Scan(t.Context(), noon, "", 1)
		require.NoError(t, err)
		cursor = first.Cursor
		last, err := s.Scan(t.Context(), noon, cursor, 10_000)
		require.NoError(t, err)
		for _, page := range []tumble.Page{top, first, last} {
			require.Equal(t, want, page.State)
			require.Equal(t, top.Term, page.Term)
			for _, c := range page.Counts {
				require.Equal(t, want, c.State)
				require.Equal(t, noon.Add(time.Minute), c.End)
				one, err := s.Count(t.Context(), c.Key, noon)
				require.NoError(t, err)
				require.Equal(t, one.Term, c.Term, "that of its shard")
			}
		}
	}
	pages(tumble.Open)
	for i, marks := range [][2]time.Time{{noon, noon.Add(time.Minute)}, {noon.Add(time.Minute), noon}} {
		for n, sh := range shards {
			from[n] = by(t, sh, 1, "p/0", from[n], later(marks[n], from[n].Watermark))
		}
		time.Sleep(20 * time.Millisecond)
		pages([]tumble.State{tumble.Open, tumble.Closed}[i])
	}
	by(t, shards[1], 1, "p/0", from[1], noon.Add(61*time.Minute))
	time.Sleep(20 * time.Millisecond)
	top, err := s.Top(t.Context(), noon, 10)
	require.NoError(t, err)
	require.Equal(t, tumble.Expired, top.State)
	for _, cursor := range []string{"", cursor} {
		page, err := s.Scan(t.Context(), noon, cursor, 1)
		require.NoError(t, err)
		require.Equal(t, tumble.Expired, page.State)
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// TestReadsWhileSlotMoves moves the slot of a shard key by key, in several
// orders, and reads at every step: a read has all of a window, or an error.
func TestReadsWhileSlotMoves(t *testing.T) {
	addrs := startCluster(t)
	client := connect(t, addrs)
	def := tumble.Definition{Window: minutes.Window, DropLate: true}
	reader := connect(t, addrs)
	at := 0
	for i, first := range []string{":finality", ":0", "}"} {
		t.Run(first, func(t *testing.T) {
			do(t, client.Nodes()[addrs[at]], "FLUSHALL")
			name := "moves-" + strconv.Itoa(i)
			sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), def)[0]
			advance(t, sh, "p/0", register(t, sh, "p/0"), noon.Add(time.Minute), append(users(noon, 0, 300), tumble.Delta{Start: noon, Key: "k", N: 3})...)
			agree(t, client, addrs)
			source, target := client.Nodes()[addrs[at]], client.Nodes()[addrs[1-at]]
			sourceID, err := do(t, source, "CLUSTER", "MYID").ToString()
			require.NoError(t, err)
			targetID, err := do(t, target, "CLUSTER", "MYID").ToString()
			require.NoError(t, err)
			n, err := do(t, source, "CLUSTER", "KEYSLOT", "a:{460}").AsInt64()
			require.NoError(t, err)
			slot := strconv.FormatInt(n, 10)
			do(t, target, "CLUSTER", "SETSLOT", slot, "IMPORTING", sourceID)
			do(t, source, "CLUSTER", "SETSLOT", slot, "MIGRATING", targetID)
			keys, err := do(t, source, "CLUSTER", "GETKEYSINSLOT", slot, "1000").AsStrSlice()
			require.NoError(t, err)
			slices.SortFunc(keys, func(a, b string) int {
				rank := func(key string) int {
					if len(key) >= len(first) && key[len(key)-len(first):] == first {
						return 0
					}
					return 1
				}
				return rank(a) - rank(b)
			})
			host, port, err := net.SplitHostPort(addrs[1-at])
			require.NoError(t, err)
			answers := 0
			look := func() {
				// A client of its own, so that the cache knows nothing.
				s := newSink(t, redis.Config{Client: reader, Name: name})
				for _, kind := range []string{"count", "range", "top", "scan"} {
					ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
					counts, err := readings[kind](ctx, s)
					cancel()
					if err != nil {
						continue
					}
					answers++
					require.Len(t, counts, 1, kind)
					if counts[0].State != tumble.Open {
						require.EqualValues(t, 3, counts[0].N, kind)
					}
				}
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				defer cancel()
				if c, err := s.Count(ctx, "nobody", noon); err == nil {
					require.Zero(t, c.N)
				}
			}
			for _, key := range keys {
				look()
				do(t, source, "MIGRATE", host, port, key, "0", "5000")
			}
			look()
			// Who has time waits for the end of it.
			waiting := make(chan error)
			go func() {
				_, err := newSink(t, redis.Config{Client: reader, Name: name}).Top(context.Background(), noon, 1)
				waiting <- err
			}()
			select {
			case err := <-waiting:
				require.Fail(t, "a transaction knew of buckets that are missing here", "%v", err)
			case <-time.After(100 * time.Millisecond):
			}
			do(t, target, "CLUSTER", "SETSLOT", slot, "NODE", targetID)
			do(t, source, "CLUSTER", "SETSLOT", slot, "NODE", targetID)
			at = 1 - at
			require.NoError(t, <-waiting)
			require.Positive(t, answers)
			s := newSink(t, redis.Config{Client: reader, Name: name})
			for kind, read := range readings {
				counts, err := read(t.Context(), s)
				require.NoError(t, err, kind)
				require.EqualValues(t, 3, counts[0].N, kind)
				require.Equal(t, tumble.Final, counts[0].State, kind)
			}
		})
	}
}
