//go:build servers

package redis_test

import (
	"context"
	"errors"
	"net"
	"os/exec"
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

// startCluster starts a cluster of three masters that ends with the test, and
// returns their addresses.
func startCluster(t testing.TB) []string {
	t.Helper()
	var addrs []string
	for range 3 {
		addrs = append(addrs, start(t, "--cluster-enabled", "yes").addr)
	}
	makeCluster(t, addrs)
	return addrs
}

// makeCluster makes a cluster of servers that redis-cli reaches with options.
func makeCluster(t testing.TB, addrs []string, options ...string) {
	t.Helper()
	run := func(args ...string) (string, error) {
		out, err := exec.Command("redis-cli", slices.Concat(options, args)...).CombinedOutput()
		return string(out), err
	}
	out, err := run(slices.Concat([]string{"--cluster", "create"}, addrs, []string{"--cluster-yes"})...)
	require.NoError(t, err, out)
	for _, addr := range addrs { // they take a moment to agree
		host, port, err := net.SplitHostPort(addr)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			out, err := run("-h", host, "-p", port, "cluster", "info")
			return err == nil && strings.Contains(out, "cluster_state:ok")
		}, 20*time.Second, 50*time.Millisecond)
	}
}

// TestClusterLosesAMaster has one of three masters come back empty: its shards
// say nothing final, the others are as they were.
func TestClusterLosesAMaster(t *testing.T) {
	addrs := startCluster(t)
	client := connect(t, addrs)
	s := newSink(t, redis.Config{Client: client, Name: "a"})
	shards := open(t, s, minutes)
	from := registerAll(t, shards, "p/0")
	load(t, shards, 1000, noon, from)
	for i, sh := range shards {
		from[i] = advance(t, sh, "p/0", stateOf(t, sh).Checkpoints["p/0"], noon.Add(time.Hour))
	}

	// The first shard, which readers ask first, is on the first master.
	for _, addr := range addrs {
		node := client.Nodes()[addr]
		require.NoError(t, node.Do(t.Context(), node.B().ConfigSet().ParameterValue().ParameterValue("maxmemory-policy", "allkeys-lru").Build()).Error())
		_, err := s.Open(t.Context(), minutes)
		require.ErrorContains(t, err, addr+": the maxmemory-policy is allkeys-lru")
		require.NoError(t, node.Do(t.Context(), node.B().ConfigSet().ParameterValue().ParameterValue("maxmemory-policy", "noeviction").Build()).Error())
	}
	node := client.Nodes()[addrs[0]]
	require.NoError(t, node.Do(t.Context(), node.B().Flushall().Build()).Error())
	time.Sleep(50 * time.Millisecond) // the notice to the cache
	lost := 0
	for k := range 1000 {
		key := "user-" + strconv.Itoa(k)
		c, err := s.Count(t.Context(), key, noon)
		require.NoError(t, err)
		if c.N == 0 {
			lost++
		}
		require.Equal(t, c.N > 0, c.State == tumble.Closed, "%v", c)
	}
	require.InDelta(t, 375, lost, 60, "6 of 16 shards")
	page, err := s.Top(t.Context(), noon, 2000)
	require.NoError(t, err)
	require.Len(t, page.Counts, 1000-lost)
	require.Equal(t, tumble.Open, page.State)

	empty := 0
	for _, sh := range shards { // as a pipeline does, to find out
		if register(t, sh, "p/0").Offset == 0 {
			empty++
		}
	}
	require.Equal(t, 6, empty)
	have, err := s.Definition(t.Context())
	require.NoError(t, err)
	require.True(t, minutes.Same(have))
}

// TestResharding moves the slot of a shard to another master, key by key, and
// applies a batch at every step: it counts once, or leaves nothing.
func TestResharding(t *testing.T) {
	addrs := startCluster(t)
	client := connect(t, addrs)
	s := newSink(t, redis.Config{Client: client, Name: "a", Shards: 1})
	sh := open(t, s, minutes)[0]
	from := advance(t, sh, "p/0", register(t, sh, "p/0"), noon, users(noon, 0, 300)...)
	want := make(map[string]int64)
	for i := range 300 {
		want["user-"+strconv.Itoa(i)] = 1
	}
	source, target := client.Nodes()[addrs[0]], client.Nodes()[addrs[1]]
	ids := make([]string, 2)
	for i, node := range []rueidis.Client{source, target} {
		var err error
		ids[i], err = do(t, node, "CLUSTER", "MYID").ToString()
		require.NoError(t, err)
	}
	n, err := do(t, source, "CLUSTER", "KEYSLOT", "a:{460}").AsInt64()
	require.NoError(t, err)
	slot := strconv.FormatInt(n, 10)
	do(t, target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
	do(t, source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
	keys, err := do(t, source, "CLUSTER", "GETKEYSINSLOT", slot, "1000").AsStrSlice()
	require.NoError(t, err)
	require.Greater(t, len(keys), 5)
	host, port, err := net.SplitHostPort(addrs[1])
	require.NoError(t, err)

	next := 300
	refused := 0
	apply := func() {
		// Some keys that are there, some that are new, in two windows.
		deltas := append(users(noon, next-30, 60), users(noon.Add(time.Minute), next, 1)...)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		to := tumble.Checkpoint{Log: from.Log, Offset: from.Offset + 1, Watermark: noon.Add(time.Duration(next) * time.Millisecond)}
		err := sh.Apply(ctx, tumble.Batch{Partition: "p/0", From: from, To: to, Deltas: deltas})
		require.False(t, errors.Is(err, tumble.ErrConflict) || errors.Is(err, tumble.ErrDefinition), "%v", err)
		if err != nil {
			refused++
			return
		}
		from = to
		next += 30
		for _, d := range deltas[:60] {
			want[d.Key]++
		}
	}
	for _, key := range keys {
		apply()
		do(t, source, "MIGRATE", host, port, key, "0", "5000")
	}
	apply()
	do(t, target, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])
	do(t, source, "CLUSTER", "SETSLOT", slot, "NODE", ids[1])
	require.Positive(t, refused)
	require.Eventually(t, func() bool {
		before := from
		apply()
		return !before.Same(from)
	}, 5*time.Second, 50*time.Millisecond)
	all := stateOf(t, sh).Checkpoints
	require.True(t, from.Same(all["p/0"]), "%v", all)
	requireWindow(t, s, noon, want)
}
