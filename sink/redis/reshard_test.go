//go:build servers

package redis_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
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

// TestReshardingInAnyOrder moves the slot of a shard key by key, in orders that
// Redis may choose as well, and applies and loads at every step. What the
// client is asked for (ASK) goes to a server that has only some of the keys.
func TestReshardingInAnyOrder(t *testing.T) {
	addrs := startCluster(t)
	client := connect(t, addrs)
	orders := map[string]func(keys []string){
		// A slot lists its newest keys first; one that was moved before has
		// them the other way round.
		"own key first": func(keys []string) {
			slices.SortFunc(keys, func(a, b string) int { return len(a) - len(b) })
		},
		"own key and checkpoints first": func(keys []string) {
			rank := func(key string) int {
				switch {
				case strings.HasSuffix(key, "}"):
					return 0
				case strings.HasSuffix(key, ":checkpoints"):
					return 1
				}
				return 2
			}
			slices.SortFunc(keys, func(a, b string) int { return rank(a) - rank(b) })
		},
	}
	for seed := range uint64(5) {
		orders["seed "+strconv.FormatUint(seed, 10)] = func(keys []string) {
			slices.Sort(keys)
			rand.New(rand.NewPCG(seed, 0)).Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		}
	}
	for name, order := range orders {
		t.Run(name, func(t *testing.T) {
			s := newSink(t, redis.Config{Client: client, Name: strings.ReplaceAll(name, " ", "-"), Shards: 1})
			sh := open(t, s, minutes)[0]
			from := advance(t, sh, "p/0", register(t, sh, "p/0"), noon, users(noon, 0, 300)...)
			want := make(map[string]int64)
			for i := range 300 {
				want["user-"+strconv.Itoa(i)] = 1
			}
			agree(t, client, addrs)
			n, err := do(t, client.Nodes()[addrs[0]], "CLUSTER", "KEYSLOT", "a:{460}").AsInt64()
			require.NoError(t, err)
			slot := strconv.FormatInt(n, 10)
			at := 0 // who has it now: each order moves it to the other
			for i, addr := range addrs[:2] {
				held, err := do(t, client.Nodes()[addr], "CLUSTER", "COUNTKEYSINSLOT", slot).AsInt64()
				require.NoError(t, err)
				if held > 0 {
					at = i
				}
			}
			source, target := client.Nodes()[addrs[at]], client.Nodes()[addrs[1-at]]
			sourceID, err := do(t, source, "CLUSTER", "MYID").ToString()
			require.NoError(t, err)
			targetID, err := do(t, target, "CLUSTER", "MYID").ToString()
			require.NoError(t, err)
			do(t, target, "CLUSTER", "SETSLOT", slot, "IMPORTING", sourceID)
			do(t, source, "CLUSTER", "SETSLOT", slot, "MIGRATING", targetID)
			keys, err := do(t, source, "CLUSTER", "GETKEYSINSLOT", slot, "1000").AsStrSlice()
			require.NoError(t, err)
			order(keys)
			host, port, err := net.SplitHostPort(addrs[1-at])
			require.NoError(t, err)

			next, refused := 300, 0
			apply := func() (applied bool) {
				deltas := append(users(noon, next-30, 60), users(noon.Add(time.Minute), next, 1)...)
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				to := tumble.Checkpoint{Log: from.Log, Offset: from.Offset + 1, Watermark: noon.Add(time.Duration(next) * time.Millisecond)}
				err := sh.Apply(ctx, tumble.Batch{Partition: "p/0", From: from, To: to, Deltas: deltas})
				require.False(t, errors.Is(err, tumble.ErrConflict) || errors.Is(err, tumble.ErrDefinition), "%v", err)
				if err != nil {
					refused++
					return false
				}
				from = to
				next += 30
				for _, d := range deltas[:60] {
					want[d.Key]++
				}
				return true
			}
			load := func() {
				ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
				defer cancel()
				state, err := sh.Load(ctx, tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"p/0": {Log: "log"}}})
				if stored := state.Checkpoints["p/0"]; err == nil {
					require.True(t, from.Same(stored), "%v, should be %v", stored, from)
				}
			}
			for _, key := range keys {
				apply()
				load()
				answer, err := do(t, source, "MIGRATE", host, port, key, "0", "5000").ToString()
				require.NoError(t, err, "%q has come to be on both", key)
				require.Equal(t, "OK", answer, "%q", key)
			}
			apply()
			load()
			do(t, target, "CLUSTER", "SETSLOT", slot, "NODE", targetID)
			do(t, source, "CLUSTER", "SETSLOT", slot, "NODE", targetID)
			require.Positive(t, refused)
			require.Eventually(t, apply, 5*time.Second, 50*time.Millisecond)
			all := stateOf(t, sh).Checkpoints
			require.True(t, from.Same(all["p/0"]), "%v", all)
			requireWindow(t, s, noon, want)
			require.NoError(t, lose(context.Background(), client, strings.ReplaceAll(name, " ", "-")))
		})
	}
}

// agree waits until all masters know of the last change, so that the next one
// is later to all of them.
func agree(t testing.TB, client rueidis.Client, addrs []string) {
	t.Helper()
	require.Eventually(t, func() bool {
		epochs := make(map[string]bool)
		for _, addr := range addrs {
			info, err := do(t, client.Nodes()[addr], "CLUSTER", "INFO").ToString()
			require.NoError(t, err)
			_, rest, found := strings.Cut(info, "cluster_current_epoch:")
			require.True(t, found, "%s", info)
			epoch, _, _ := strings.Cut(rest, "\r\n")
			epochs[epoch] = true
		}
		return len(epochs) == 1
	}, 10*time.Second, 50*time.Millisecond)
}
