//go:build servers

package redis_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/channel"
)

// What these tests do to a server others could not bear, so each starts its
// own.

type server struct {
	addr string
	cmd  *exec.Cmd
}

// start starts a server that ends with the test.
func start(t testing.TB, args ...string) *server {
	t.Helper()
	return launch(t, "--port", func(addr string) (net.Conn, error) { return net.Dial("tcp", addr) }, args...)
}

// launch starts one that takes its port by the name of an option, and is there
// once it answers to whom dial connects.
func launch(t testing.TB, port string, dial func(addr string) (net.Conn, error), args ...string) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	cmd := exec.Command("redis-server", append([]string{
		port, strconv.Itoa(l.Addr().(*net.TCPAddr).Port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir(),
	}, args...)...)
	require.NoError(t, cmd.Start(), "Redis is to be installed")
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	require.Eventually(t, func() bool {
		conn, err := dial(addr)
		if err != nil {
			return false
		}
		defer conn.Close()
		if _, err := conn.Write([]byte("PING\r\n")); err != nil {
			return false
		}
		n, err := conn.Read(make([]byte, 64))
		return err == nil && n > 0
	}, 20*time.Second, 10*time.Millisecond)
	return &server{addr, cmd}
}

// connect returns a client of the server.
func (s *server) connect(t testing.TB, change ...func(*rueidis.ClientOption)) rueidis.Client {
	return connect(t, []string{s.addr}, append([]func(*rueidis.ClientOption){func(o *rueidis.ClientOption) {
		o.ForceSingleClient = true
	}}, change...)...)
}

func do(t testing.TB, client rueidis.Client, words ...string) rueidis.RedisResult {
	t.Helper()
	r := client.Do(context.Background(), client.B().Arbitrary(words...).Build())
	if err := r.Error(); err != nil && !rueidis.IsRedisNil(err) {
		require.NoError(t, err, words)
	}
	return r
}

func TestEviction(t *testing.T) {
	client := start(t).connect(t)
	strict := newSink(t, redis.Config{Client: client, Name: "a"})
	lax := newSink(t, redis.Config{Client: client, Name: "a", AllowEviction: true})
	for _, policy := range []string{"allkeys-lru", "allkeys-lfu", "allkeys-random"} {
		do(t, client, "CONFIG", "SET", "maxmemory-policy", policy)
		_, err := strict.Open(t.Context(), minutes)
		require.ErrorContains(t, err, policy)
		require.ErrorContains(t, err, "AllowEviction")
		n, err := do(t, client, "DBSIZE").AsInt64()
		require.NoError(t, err)
		require.Zero(t, n, "a server that is refused holds nothing")
	}
	open(t, lax, minutes)
	for _, policy := range []string{"noeviction", "volatile-lru", "volatile-ttl"} {
		do(t, client, "CONFIG", "SET", "maxmemory-policy", policy)
		open(t, strict, minutes)
	}
}

// TestEvictionUnknown has a server that does not tell its policy.
func TestEvictionUnknown(t *testing.T) {
	srv := start(t)
	do(t, srv.connect(t), "ACL", "SETUSER", "clerk", "on", ">pass", "~*", "&*", "+@all", "-info")
	client := srv.connect(t, func(o *rueidis.ClientOption) { o.Username, o.Password = "clerk", "pass" })
	_, err := newSink(t, redis.Config{Client: client, Name: "a"}).Open(t.Context(), minutes)
	require.ErrorContains(t, err, "INFO is not allowed")
	require.ErrorContains(t, err, "AllowEviction")
	open(t, newSink(t, redis.Config{Client: client, Name: "a", AllowEviction: true}), minutes)
}

// TestEvictionRenamed has a server on which INFO has another name.
func TestEvictionRenamed(t *testing.T) {
	client := start(t, "--rename-command", "INFO", "").connect(t)
	_, err := newSink(t, redis.Config{Client: client, Name: "a"}).Open(t.Context(), minutes)
	require.ErrorContains(t, err, "INFO is not allowed")
	open(t, newSink(t, redis.Config{Client: client, Name: "a", AllowEviction: true}), minutes)
}

// TestPassword changes the password under a client that has one.
func TestPassword(t *testing.T) {
	srv := start(t, "--requirepass", "right")
	client := srv.connect(t, func(o *rueidis.ClientOption) { o.Password = "right" })
	s := newSink(t, redis.Config{Client: client, Name: "a", Shards: 1})
	sh := open(t, s, minutes)[0]
	do(t, client, "CONFIG", "SET", "requirepass", "other")
	do(t, client, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
	began := time.Now()
	require.Eventually(t, func() bool {
		_, err := sh.Load(t.Context(), tumble.LoadRequest{})
		return err != nil && strings.Contains(err.Error(), "WRONGPASS") && strings.Contains(err.Error(), "wrong user name or password")
	}, 3*time.Second, 20*time.Millisecond)
	_, err := s.Open(t.Context(), minutes)
	require.ErrorContains(t, err, "WRONGPASS")
	require.ErrorContains(t, err, srv.addr)
	require.Less(t, time.Since(began), 8*time.Second)
}

func TestUnreachable(t *testing.T) {
	srv := start(t)
	s := newSink(t, redis.Config{Client: srv.connect(t), Name: "a"})
	shards := open(t, s, minutes)
	require.NoError(t, srv.cmd.Process.Kill())
	srv.cmd.Wait()
	began := time.Now()
	_, err := s.Open(t.Context(), minutes)
	require.ErrorContains(t, err, srv.addr)
	require.Less(t, time.Since(began), 9*time.Second)
	require.NotErrorIs(t, err, tumble.ErrConflict)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err = shards[0].Apply(ctx, tumble.Batch{Partition: "p/0"})
	require.ErrorContains(t, err, srv.addr)
	require.NotErrorIs(t, err, tumble.ErrConflict)
	require.NotErrorIs(t, err, tumble.ErrDefinition)
}

// A server that hangs up in the middle of a call leaves an error that does not
// say whose it was.
func TestHangsUp(t *testing.T) {
	srv := start(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	var up atomic.Bool // what a client says, it hears
	up.Store(true)
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return // closed
			}
			out, err := net.Dial("tcp", srv.addr)
			if err != nil {
				in.Close()
				return
			}
			go func() {
				defer out.Close()
				io.Copy(in, out)
			}()
			go func() {
				defer in.Close()
				for buf := make([]byte, 1<<16); ; {
					n, err := in.Read(buf)
					// A new connection's greeting passes, so that the error is
					// that of the call.
					if err != nil || !up.Load() && !bytes.Contains(buf[:n], []byte("HELLO")) {
						return
					}
					if _, err := out.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	through := &server{l.Addr().String(), nil}
	// The client would send what only reads again until it has an answer.
	client := through.connect(t, func(o *rueidis.ClientOption) { o.DisableRetry = true })
	s := newSink(t, redis.Config{Client: client, Name: "a", Shards: 1})
	sh := open(t, s, minutes)[0]
	from := register(t, sh, "p/0")
	up.Store(false)
	for name, call := range map[string]func() error{
		"open":       func() error { _, err := s.Open(t.Context(), minutes); return err },
		"definition": func() error { _, err := s.Definition(t.Context()); return err },
		"apply": func() error {
			return sh.Apply(t.Context(), tumble.Batch{Partition: "p/0", From: from, To: tumble.Checkpoint{Log: from.Log, Offset: 1}})
		},
		"load":  func() error { _, err := sh.Load(t.Context(), tumble.LoadRequest{}); return err },
		"count": func() error { _, err := s.Count(t.Context(), "x", noon); return err },
		"range": func() error { _, err := s.Range(t.Context(), "x", noon, noon.Add(time.Minute)); return err },
		"top":   func() error { _, err := s.Top(t.Context(), noon, 1); return err },
		"scan":  func() error { _, err := s.Scan(t.Context(), noon, "", 1); return err },
	} {
		err := call()
		t.Log(name, err)
		require.ErrorContains(t, err, through.addr, name)
		require.NotErrorIs(t, err, tumble.ErrConflict, name)
		require.NotErrorIs(t, err, context.DeadlineExceeded, name)
	}
}

// TestHung stops a server without closing its connections.
func TestHung(t *testing.T) {
	srv := start(t)
	s := newSink(t, redis.Config{Client: srv.connect(t), Name: "a", Shards: 1, Timeout: time.Second})
	sh := open(t, s, minutes)[0]
	from := register(t, sh, "p/0")
	batch := tumble.Batch{
		Partition: "p/0", From: from, To: tumble.Checkpoint{Log: from.Log, Offset: 1},
		Deltas: []tumble.Delta{{Start: noon, Key: "k", N: 1}},
	}
	require.NoError(t, srv.cmd.Process.Signal(syscall.SIGSTOP))
	for name, call := range map[string]func() error{
		"apply": func() error { return sh.Apply(t.Context(), batch) },
		"load":  func() error { _, err := sh.Load(t.Context(), tumble.LoadRequest{}); return err },
		"count": func() error { _, err := s.Count(t.Context(), "x", noon); return err },
		"top":   func() error { _, err := s.Top(t.Context(), noon, 1); return err },
	} {
		began := time.Now()
		err := call()
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		require.ErrorContains(t, err, srv.addr, name)
		require.Less(t, time.Since(began), 3*time.Second, name)
	}
	began := time.Now()
	_, err := s.Open(t.Context(), minutes)
	require.ErrorContains(t, err, srv.addr)
	require.Less(t, time.Since(began), 5*time.Second)
	require.NoError(t, srv.cmd.Process.Signal(syscall.SIGCONT))

	// The late copy may have landed or not; sent again, the batch counts once.
	require.Eventually(t, func() bool {
		err = sh.Apply(t.Context(), batch)
		return err == nil || strings.Contains(err.Error(), tumble.ErrConflict.Error())
	}, 20*time.Second, 50*time.Millisecond)
	require.True(t, batch.To.Same(stateOf(t, sh).Checkpoints["p/0"]))
	c, err := s.Count(t.Context(), "k", noon)
	require.NoError(t, err)
	require.EqualValues(t, 1, c.N)
}

// TestOutOfMemory wants a refused batch to leave nothing, retention to go on, and
// an answer to who only asks.
func TestOutOfMemory(t *testing.T) {
	client := start(t).connect(t)
	s := newSink(t, redis.Config{Client: client, Name: "a", Shards: 1})
	sh := open(t, s, tumble.Definition{Window: minutes.Window, Retention: time.Minute})[0]
	from := register(t, sh, "p/0")
	from = advance(t, sh, "p/0", from, noon, tumble.Delta{Start: noon, Key: "k", N: 1})
	do(t, client, "HSET", "a:{460}:retentions", "60000", "0") // asked for long ago: to be noted again
	before := dump(t, client)
	do(t, client, "CONFIG", "SET", "maxmemory", "1")
	batch := tumble.Batch{
		Partition: "p/0", From: from, To: tumble.Checkpoint{Log: from.Log, Offset: 2, Watermark: noon.Add(time.Minute)},
		Deltas: []tumble.Delta{{Start: noon, Key: "k", N: 1}, {Start: noon.Add(time.Hour), Key: "k", N: 1}},
	}
	err := sh.Apply(t.Context(), batch)
	require.ErrorContains(t, err, "OOM")
	require.ErrorContains(t, err, "maxmemory")
	require.NotErrorIs(t, err, tumble.ErrConflict)
	require.True(t, from.Same(stateOf(t, sh).Checkpoints["p/0"]))
	_, err = sh.Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"p/1": {}}})
	require.ErrorContains(t, err, "OOM")
	require.Equal(t, before, dump(t, client))

	// A batch that leaves a window past retention gives back its memory first.
	batch.To.Watermark = noon.Add(time.Hour)
	require.NoError(t, sh.Apply(t.Context(), batch))
	for _, key := range dump(t, client) {
		require.NotContains(t, key, strconv.FormatInt(noon.UnixMilli(), 10)+":")
	}
}

// dump returns what a server holds, in a form that can be compared.
func dump(t testing.TB, client rueidis.Client) []string {
	keys, err := do(t, client, "KEYS", "*").AsStrSlice()
	require.NoError(t, err)
	var all []string
	for _, key := range keys {
		value, err := do(t, client, "DUMP", key).ToString()
		require.NoError(t, err)
		all = append(all, key+" "+value)
	}
	slices.Sort(all)
	return all
}

// TestErrorInTheMiddle puts a key of the wrong type in the way of what a call
// needs, down to the last thing: nothing of it may stay.
func TestErrorInTheMiddle(t *testing.T) {
	client := start(t).connect(t)
	def := tumble.Definition{Window: minutes.Window, Retention: time.Minute}
	from := tumble.Checkpoint{Log: "log", Offset: 1, Watermark: noon.Add(time.Minute)}
	later := strconv.FormatInt(noon.Add(time.Hour).UnixMilli(), 10)
	batch := func(change func(*tumble.Batch)) func(ctx context.Context, sh tumble.Shard) error {
		b := tumble.Batch{
			Partition: "p/0", Writer: 2, From: from, To: from,
			Deltas: []tumble.Delta{
				{Start: noon.Add(time.Minute), Key: "k", N: 1}, {Start: noon.Add(time.Minute), Key: "other", N: 1}, {Start: noon.Add(time.Hour), Key: "k", N: 1},
			},
		}
		b.To.Offset++
		change(&b)
		return func(ctx context.Context, sh tumble.Shard) error { return sh.Apply(ctx, b) }
	}
	for name, call := range map[string]struct {
		call    func(ctx context.Context, sh tumble.Shard) error
		touches string
	}{
		"apply": {batch(func(*tumble.Batch) {}), " checkpoints finality tainted totals windows " + later + ":0"},
		// So far that the next one goes by its own floor, and deletes.
		"apply that closes": {batch(func(b *tumble.Batch) { b.To.Watermark = noon.Add(2 * time.Minute) }),
			" checkpoints finality tainted live totals windows " + later + ":0"},
		"apply that moves on": {batch(func(b *tumble.Batch) { b.To.Watermark = b.To.Watermark.Add(1) }), " checkpoints finality tainted live"},
		"apply that ends":     {batch(func(b *tumble.Batch) { b.To.Ended, b.Token = true, 7 }), " checkpoints finality tainted live ended announced"},
		"load": {func(ctx context.Context, sh tumble.Shard) error {
			_, err := sh.Load(ctx, tumble.LoadRequest{
				Init:     map[string]tumble.Checkpoint{"p/1": {Log: "log"}, "p/2": {Log: "log", Ended: true}},
				Announce: map[string]uint64{"p/1": 1},
			})
			return err
		}, " checkpoints finality live ended announced retentions"},
	} {
		for _, suffix := range strings.Split(call.touches, " ") {
			t.Run(name+" "+suffix, func(t *testing.T) {
				do(t, client, "FLUSHALL")
				s := newSink(t, redis.Config{Client: client, Name: "a", Shards: 1})
				sh := open(t, s, def)[0]
				require.NoError(t, sh.Apply(t.Context(), tumble.Batch{
					Partition: "p/0", Writer: 1, From: register(t, sh, "p/0"), To: from,
					Deltas: []tumble.Delta{{Start: noon, Key: "k", N: 1}, {Start: noon.Add(time.Minute), Key: "k", N: 1}},
				}))
				_, err := sh.Load(t.Context(), tumble.LoadRequest{
					Init: map[string]tumble.Checkpoint{"p/9": {Log: "log", Watermark: noon.Add(time.Hour)}}, Announce: map[string]uint64{"p/0": 7},
				})
				require.NoError(t, err)
				poisoned := "a:{460}"
				if suffix != "" {
					poisoned += ":" + suffix
				}
				do(t, client, "HSET", "a:{460}:retentions", "60000", "0") // to be noted again
				do(t, client, "COPY", poisoned, "kept")
				do(t, client, "DEL", poisoned)
				do(t, client, "PFADD", poisoned, "poison")
				if suffix == "finality" || suffix == "tainted" { // a string as well, as it happens
					do(t, client, "DEL", poisoned)
					do(t, client, "SADD", poisoned, "poison")
				}
				before := dump(t, client)
				err = call.call(t.Context(), sh)
				require.ErrorContains(t, err, "WRONGTYPE")
				require.NotErrorIs(t, err, tumble.ErrConflict)
				require.Equal(t, before, dump(t, client))

				do(t, client, "DEL", poisoned)
				do(t, client, "COPY", "kept", poisoned)
				require.NoError(t, call.call(t.Context(), sh))
			})
		}
	}
}

// TestReadOnly applies to a server that has become a replica.
func TestReadOnly(t *testing.T) {
	client := start(t).connect(t)
	sh := open(t, newSink(t, redis.Config{Client: client, Name: "a", Shards: 1}), minutes)[0]
	from := register(t, sh, "p/0")
	do(t, client, "REPLICAOF", "127.0.0.1", "1")
	err := sh.Apply(t.Context(), tumble.Batch{Partition: "p/0", From: from, To: tumble.Checkpoint{Log: from.Log, Offset: 1}})
	require.ErrorContains(t, err, "READONLY")
	require.ErrorContains(t, err, "a replica")
	require.NotErrorIs(t, err, tumble.ErrConflict)
}

// TestReplicasAreNotRead has a client that sends what only reads elsewhere.
func TestReplicasAreNotRead(t *testing.T) {
	primary, stale := start(t), start(t)
	client := connect(t, []string{primary.addr}, func(o *rueidis.ClientOption) {
		o.Standalone.ReplicaAddress = []string{stale.addr}
		o.SendToReplicas = func(cmd rueidis.Completed) bool { return cmd.IsReadOnly() }
	})
	s := newSink(t, redis.Config{Client: client, Name: "a", Shards: 1, AllowEviction: true})
	sh := open(t, s, minutes)[0]
	advance(t, sh, "p/0", register(t, sh, "p/0"), time.Time{}, tumble.Delta{Start: noon, Key: "k", N: 1})
	c, err := s.Count(t.Context(), "k", noon)
	require.NoError(t, err)
	require.EqualValues(t, 1, c.N)
	page, err := s.Top(t.Context(), noon, 1)
	require.NoError(t, err)
	require.Len(t, page.Counts, 1)
	counts, err := s.Range(t.Context(), "k", noon.Add(-10000*time.Hour), noon.Add(time.Hour))
	require.NoError(t, err)
	require.Len(t, counts, 1)
}

// TestFlushAll has a reader that outlives what is stored, and finds what is
// stored next, which is laid out otherwise.
func TestFlushAll(t *testing.T) {
	srv := start(t)
	client := srv.connect(t)
	reader := newSink(t, redis.Config{Client: srv.connect(t), Name: "a"})
	gone := func() bool {
		_, err := reader.Count(t.Context(), "k", noon)
		return err != nil && strings.Contains(err.Error(), tumble.ErrNoDefinition.Error())
	}
	for i, n := range []int{16, 5, 200, 1} {
		require.Eventually(t, gone, 2*time.Second, time.Millisecond)
		_, err := reader.Definition(t.Context())
		require.ErrorIs(t, err, tumble.ErrNoDefinition)
		def := tumble.Definition{Window: tumble.Window{Size: time.Duration(i+1) * time.Minute}}
		shards := open(t, newSink(t, redis.Config{Client: client, Name: "a", Shards: n}), def)
		from := registerAll(t, shards, "p/0")
		for i, sh := range shards {
			var deltas []tumble.Delta
			for k := range 1000 {
				if key := fmt.Sprint(k); int(tumble.Hash(key)%uint64(n)) == i {
					start, _ := def.Window.Bounds(noon)
					deltas = append(deltas, tumble.Delta{Start: start, Key: key, N: int64(k + n)})
				}
			}
			advance(t, sh, "p/0", from[i], noon.Add(time.Hour), deltas...)
		}
		require.Eventually(t, func() bool {
			for k := range 1000 {
				c, err := reader.Count(t.Context(), fmt.Sprint(k), noon)
				if err != nil || c.N != int64(k+n) {
					require.Equal(t, tumble.Open, c.State, "%v", c)
					return false
				}
				require.Equal(t, tumble.Closed, c.State)
			}
			return true
		}, 5*time.Second, 10*time.Millisecond)
		have, err := reader.Definition(t.Context())
		require.NoError(t, err)
		require.True(t, def.Same(have))
		do(t, client, "FLUSHALL")
	}
	require.Eventually(t, gone, 2*time.Second, time.Millisecond)
}

// TestHeals counts on after all was lost, with the shards that were open.
func TestHeals(t *testing.T) {
	client := start(t).connect(t)
	s := newSink(t, redis.Config{Client: client, Name: "a", Shards: 1})
	sh := open(t, s, minutes)[0]
	from := register(t, sh, "p/0")
	advance(t, sh, "p/0", from, time.Time{}, tumble.Delta{Start: noon, Key: "k", N: 1})
	do(t, client, "FLUSHALL")
	err := sh.Apply(t.Context(), tumble.Batch{Partition: "p/0", From: from, To: from})
	require.ErrorIs(t, err, tumble.ErrConflict)
	from = register(t, sh, "p/0")
	from = advance(t, sh, "p/0", from, time.Time{}, tumble.Delta{Start: noon, Key: "k", N: 1})
	c, err := s.Count(t.Context(), "k", noon)
	require.NoError(t, err)
	require.EqualValues(t, 1, c.N)

	// Another process may have healed it: the id is another, the rest as known.
	do(t, client, "HSET", "a:{460}", "id", "other")
	from = advance(t, sh, "p/0", from, time.Time{}, tumble.Delta{Start: noon, Key: "k", N: 1})
	// Or only the definition is gone.
	do(t, client, "DEL", "a:{460}")
	from = advance(t, sh, "p/0", from, time.Time{}, tumble.Delta{Start: noon, Key: "k", N: 1})
	// Or it is of a program that counts something else.
	do(t, client, "HSET", "a:{460}", "id", "third", "grace", "1000")
	err = sh.Apply(t.Context(), tumble.Batch{Partition: "p/0", From: from, To: from})
	require.ErrorIs(t, err, tumble.ErrDefinition)
	require.ErrorContains(t, err, "stored is grace 1s, wanted grace 0s")
}

// TestLoading has a server that takes its time to load its data after a restart: a pipeline
// waits and loses nothing.
func TestLoading(t *testing.T) {
	dir := t.TempDir()
	srv := start(t, "--dir", dir)
	client := srv.connect(t, func(o *rueidis.ClientOption) { o.DialCtxFn = redis.Dial })
	for i := range 4000 { // to be loaded, a thousandth of a second each
		do(t, client, "SET", fmt.Sprint("other-", i), strings.Repeat("x", 2000))
	}
	events := make(chan tumble.Event)
	source, err := channel.New(channel.Config{ID: "p", Events: events})
	require.NoError(t, err)
	var log bytes.Buffer
	s := newSink(t, redis.Config{Client: client, Name: "a", Shards: 2, Timeout: time.Second})
	p, err := tumble.New(tumble.Config{Source: source, Sink: s, Window: tumble.Window{Size: time.Minute}, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	require.NoError(t, err)
	ran := make(chan error, 1)
	go func() { ran <- p.Run(t.Context()) }()
	send := func(n int) {
		for range n {
			events <- tumble.Event{Key: "k", Time: noon}
		}
	}
	counted := func() int64 { return p.Stats().Counted }
	send(10)
	require.Eventually(t, func() bool { return counted() == 10 }, 10*time.Second, 10*time.Millisecond)

	conn, err := net.Dial("tcp", srv.addr) // the client would ask again, and the next server would be gone, too
	require.NoError(t, err)
	_, err = conn.Write([]byte("SHUTDOWN SAVE\r\n"))
	require.NoError(t, err)
	_ = srv.cmd.Wait()
	require.NoError(t, conn.Close())
	_, port, err := net.SplitHostPort(srv.addr)
	require.NoError(t, err)
	again := exec.Command("redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", dir,
		"--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
	require.NoError(t, again.Start())
	t.Cleanup(func() {
		again.Process.Kill()
		again.Wait()
	})
	send(10)
	require.EqualValues(t, 10, counted())
	require.Eventually(t, func() bool { return counted() == 20 }, 20*time.Second, 20*time.Millisecond)
	close(events)
	require.NoError(t, <-ran)
	c, err := s.Count(t.Context(), "k", noon)
	require.NoError(t, err)
	require.EqualValues(t, 20, c.N)
	require.LessOrEqual(t, strings.Count(log.String(), "in trouble"), 1, log.String())
}
