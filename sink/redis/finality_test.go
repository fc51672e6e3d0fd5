//go:build servers

package redis_test

import (
	"fmt"
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

// single1 opens a new name with one shard on the single server.
func single1(t testing.TB, def tumble.Definition) (client rueidis.Client, name string, s *redis.Sink, sh tumble.Shard) {
	client = connect(t, single)
	name = unique(t, client)
	s = newSink(t, redis.Config{Client: client, Name: name, Shards: 1})
	return client, name, s, open(t, s, def)[0]
}

// said returns the words of a finality key.
func said(t testing.TB, client rueidis.Client, name string) []string {
	text, err := client.Do(t.Context(), client.B().Get().Key(name+":{460}:finality").Build()).ToString()
	if rueidis.IsRedisNil(err) {
		return nil
	}
	require.NoError(t, err)
	return strings.Fields(text)
}

// by applies a batch without deltas that moves the watermark.
func by(t testing.TB, sh tumble.Shard, writer uint64, partition string, from tumble.Checkpoint, mark time.Time) tumble.Checkpoint {
	t.Helper()
	to := from
	to.Offset++
	to.Watermark = mark
	require.NoError(t, sh.Apply(t.Context(), tumble.Batch{Partition: partition, Writer: writer, From: from, To: to}))
	return to
}

func TestTerms(t *testing.T) {
	client, name, s, sh := single1(t, minutes)
	at := func(min int) time.Time { return noon.Add(time.Duration(min) * time.Minute) }
	from := register(t, sh, "p/0")
	require.Nil(t, said(t, client, name))
	last := ""
	step := func(what string, writer uint64, mark time.Time, changes bool) {
		t.Helper()
		from = by(t, sh, writer, "p/0", from, mark)
		term := said(t, client, name)[1]
		require.Equal(t, changes, term != last, "%s: %s, then %s", what, last, term)
		last = term
		c, err := s.Count(t.Context(), "k", noon.Add(-time.Minute))
		require.NoError(t, err)
		require.Equal(t, tumble.Closed, c.State)
		want, err := strconv.ParseUint(term, 16, 64)
		require.NoError(t, err)
		require.Equal(t, want, c.Term)
		page, err := s.Top(t.Context(), noon.Add(-time.Minute), 1)
		require.NoError(t, err)
		require.Equal(t, want, page.Term, "one shard")
	}
	step("the first that closes", 1, at(0), true)
	step("the same writer", 1, at(1), false)
	step("another writer that closes none", 2, at(1).Add(1), false)
	_, err := sh.Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"p/1": {Log: "log"}}})
	require.NoError(t, err)
	require.Equal(t, last, said(t, client, name)[1], "a load changes none")
	other := by(t, sh, 1, "p/1", stateOf(t, sh).Checkpoints["p/1"], at(9))
	step("the next that closes", 2, at(2), true)
	step("the mark is taken away", 2, at(3), false)
	step("another writer that closes", 3, at(4), true)
	by(t, sh, 5, "p/1", other, at(10))
	step("another writer of another partition", 3, at(5), true)
	step("and then none", 3, at(6), false)

	// Who gives no number is not another one than a load is, and yet a term is drawn.
	require.NoError(t, lose(t.Context(), client, name))
	last = "-"
	from = register(t, sh, "p/0")
	step("the first that closes", 0, at(0), true)
}

// TestTokens has announcements and objections.
func TestTokens(t *testing.T) {
	client, name, _, sh := single1(t, minutes)
	from := register(t, sh, "p/0")
	load := func(r tumble.LoadRequest) map[string]uint64 {
		state, err := sh.Load(t.Context(), r)
		require.NoError(t, err)
		return state.Announced
	}
	end := func(token uint64) error {
		to := from
		to.Ended = true
		return sh.Apply(t.Context(), tumble.Batch{Partition: "p/0", Token: token, From: from, To: to})
	}
	token := func(n uint64) map[string]uint64 { return map[string]uint64{"p/0": n} }
	require.ErrorIs(t, end(1), tumble.ErrObjected, "nothing is announced")
	require.Equal(t, token(1), load(tumble.LoadRequest{Announce: token(1)}))
	require.ErrorIs(t, end(2), tumble.ErrObjected, "another is announced")
	require.Equal(t, token(1), load(tumble.LoadRequest{Object: token(2)}), "a stale objection")
	require.Empty(t, load(tumble.LoadRequest{Object: token(1)}))
	require.ErrorIs(t, end(1), tumble.ErrObjected, "somebody has objected")
	require.Empty(t, load(tumble.LoadRequest{Announce: token(1)}), "sent again, nobody knowing whether it had arrived")
	require.Equal(t, token(1<<63), load(tumble.LoadRequest{Announce: token(1 << 63)}))
	require.Empty(t, load(tumble.LoadRequest{Announce: token(5), Object: token(5)}), "the objection comes second")
	require.Equal(t, token(6), load(tumble.LoadRequest{Announce: token(6)}))
	wrong := from
	wrong.Offset++
	require.ErrorIs(t, sh.Apply(t.Context(), tumble.Batch{Partition: "p/0", Token: 6, From: wrong, To: wrong}), tumble.ErrConflict)
	require.True(t, from.Same(stateOf(t, sh).Checkpoints["p/0"]))
	require.NoError(t, end(6))
	require.True(t, stateOf(t, sh).Checkpoints["p/0"].Ended)
	require.Empty(t, load(tumble.LoadRequest{}))
	n, err := client.Do(t.Context(), client.B().Exists().Key(name+":{460}:announced").Build()).AsInt64()
	require.NoError(t, err)
	require.Zero(t, n)
}

// TestRevival lets a partition that has ended go on where the frontier is, or
// further, and nowhere before.
func TestRevival(t *testing.T) {
	client, name, _, sh := single1(t, minutes)
	ended := join(t, sh, "p/0", tumble.Checkpoint{Log: "log", Ended: true})
	revive := func(mark time.Time) error {
		to := ended
		to.Ended, to.Watermark, to.Log = false, mark, "new"
		err := sh.Apply(t.Context(), tumble.Batch{Partition: "p/0", From: ended, To: to})
		if err == nil {
			back := to
			back.Ended = true
			require.NoError(t, sh.Apply(t.Context(), tumble.Batch{Partition: "p/0", From: to, To: back}))
			ended = back
		}
		return err
	}
	require.NoError(t, revive(time.Time{}), "there is no frontier")
	require.NoError(t, revive(noon))
	require.ErrorIs(t, revive(noon.Add(-1)), tumble.ErrPassed, "the frontier is its own watermark")
	require.ErrorIs(t, revive(time.Time{}), tumble.ErrPassed)
	live := by(t, sh, 1, "p/1", register(t, sh, "p/1"), noon.Add(time.Hour))
	before := contents(t, client, name)
	err := revive(noon.Add(time.Hour - 1))
	require.ErrorIs(t, err, tumble.ErrPassed)
	require.ErrorContains(t, err, "the frontier is 2024-05-01 13:00:00 +0000 UTC")
	require.NotErrorIs(t, err, tumble.ErrConflict)
	require.Equal(t, before, contents(t, client, name))
	require.NoError(t, revive(noon.Add(time.Hour)))

	// A live one that begins a new log without a watermark takes the frontier away.
	require.NoError(t, sh.Apply(t.Context(), tumble.Batch{Partition: "p/1", From: live, To: tumble.Checkpoint{Log: "new"}}))
	require.NoError(t, revive(noon))
	// Nobody asks of a partition that stays ended.
	to := ended
	to.Watermark = noon.Add(-time.Hour)
	require.NoError(t, sh.Apply(t.Context(), tumble.Batch{Partition: "p/0", From: ended, To: to}))
}

// contents returns what a name holds, in a form that can be compared.
func contents(t testing.TB, client rueidis.Client, name string) []string {
	keys, err := keysOf(t.Context(), client, name)
	require.NoError(t, err)
	var all []string
	for _, key := range keys {
		value, err := client.Do(t.Context(), client.B().Dump().Key(key).Build()).ToString()
		require.NoError(t, err)
		all = append(all, key+" "+value)
	}
	slices.Sort(all)
	return all
}

// TestFrontierIsKept goes through random histories of partitions that join, move
// on, end, revive and begin new logs, and compares what the shard keeps step by
// step with what all checkpoints together say.
func TestFrontierIsKept(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			def := tumble.Definition{Window: tumble.Window{Size: time.Minute}, Grace: time.Duration(rnd.IntN(90)) * time.Second}
			client, name, _, sh := single1(t, def)
			known := make(map[string]tumble.Checkpoint)
			mark := func() time.Time {
				switch rnd.IntN(8) {
				case 0:
					return time.Time{}
				case 1:
					return time.Unix(0, rnd.Int64N(1e6)-5e5) // about the epoch, by nanoseconds
				}
				return noon.Add(time.Duration(rnd.Int64N(int64(20 * time.Minute))))
			}
			passed := 0
			for range 200 {
				frontier := tumble.Frontier(known)
				partition := strings.Repeat(" p\n", rnd.IntN(2)) + strconv.Itoa(rnd.IntN(6))
				from, ok := known[partition]
				if !ok || rnd.IntN(8) == 0 {
					init := map[string]tumble.Checkpoint{}
					for range 1 + rnd.IntN(3) {
						init[strconv.Itoa(rnd.IntN(6))] = tumble.Checkpoint{Log: "log", Watermark: mark(), Ended: rnd.IntN(3) == 0}
					}
					init[partition] = tumble.Checkpoint{Log: "log", Watermark: mark(), Ended: rnd.IntN(3) == 0}
					_, err := sh.Load(t.Context(), tumble.LoadRequest{Init: init})
					require.NoError(t, err)
					for p, c := range init {
						if _, ok := known[p]; ok {
							continue
						}
						if c.Watermark.Before(frontier) {
							c.Watermark = frontier
						}
						known[p] = c
					}
				} else {
					to := from
					to.Offset++
					to.Epoch = int32(rnd.IntN(3) - 1)
					if rnd.IntN(3) > 0 {
						to.Watermark = mark()
					}
					to.Ended = rnd.IntN(3) == 0
					err := sh.Apply(t.Context(), tumble.Batch{Partition: partition, Writer: 1, From: from, To: to})
					if from.Ended && !to.Ended && to.Watermark.Before(frontier) {
						require.ErrorIs(t, err, tumble.ErrPassed)
						passed++
					} else {
						require.NoError(t, err)
						known[partition] = to
					}
				}
				closed := "-" // before a load could mend it
				if words := said(t, client, name); words != nil {
					closed = words[0]
				}
				state := stateOf(t, sh)
				require.Len(t, state.Checkpoints, len(known))
				for p, c := range known {
					require.True(t, c.Same(state.Checkpoints[p]), "%q: %v, should be %v", p, state.Checkpoints[p], c)
				}
				frontier = tumble.Frontier(known)
				require.True(t, frontier.Equal(state.Frontier), "%v, should be %v", state.Frontier, frontier)
				want := "-"
				if c := def.ClosedAt(frontier); !c.IsZero() {
					want = strconv.FormatInt(c.UnixMilli(), 10)
				}
				require.Equal(t, want, closed)
				members := 0
				for _, set := range []string{":live", ":ended"} {
					n, err := client.Do(t.Context(), client.B().Zcard().Key(name+":{460}"+set).Build()).AsInt64()
					require.NoError(t, err)
					members += int(n)
				}
				require.Equal(t, len(known), members)
			}
			require.Positive(t, passed)
		})
	}
}

// TestManyPartitions stores 2,000 partitions in one step, on a server that serves
// nobody else, and wants a batch that closes a window not to read them all.
func TestManyPartitions(t *testing.T) {
	client, name := start(t).connect(t), "a"
	sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
	init := make(map[string]tumble.Checkpoint)
	for i := range 2000 {
		init["clicks/"+strconv.Itoa(i)] = tumble.Checkpoint{Log: "log", Watermark: noon.Add(time.Duration(i) * time.Second)}
	}
	began := time.Now()
	state, err := sh.Load(t.Context(), tumble.LoadRequest{Init: init})
	require.NoError(t, err)
	t.Log("stored in", time.Since(began))
	require.Equal(t, len(init), len(state.Checkpoints))
	require.True(t, noon.Equal(state.Frontier))
	// HGETALL of all checkpoints is what would take long.
	calls := func() string { return info(t, client, "commandstats", "cmdstat_hgetall") }
	before := calls()
	by(t, sh, 1, "clicks/0", init["clicks/0"], noon.Add(time.Hour))
	require.Equal(t, before, calls())
	require.True(t, noon.Add(time.Second).Equal(stateOf(t, sh).Frontier))
	require.Equal(t, strconv.FormatInt(noon.UnixMilli(), 10), said(t, client, name)[0])
}

func TestIdentity(t *testing.T) {
	client, name, s, _ := single1(t, minutes)
	identity := func() tumble.Identity {
		have, err := s.Identity(t.Context())
		require.NoError(t, err)
		return have
	}
	first := identity()
	require.Equal(t, name, first.Name)
	require.NotEmpty(t, first.Store)
	require.True(t, minutes.Same(first.Definition))
	require.Equal(t, first, identity())
	other, err := newSink(t, redis.Config{Client: connect(t, single), Name: name}).Identity(t.Context())
	require.NoError(t, err)
	require.Equal(t, first, other)

	_, err = s.Count(t.Context(), "k", noon) // fills the cache
	require.NoError(t, err)
	require.NoError(t, lose(t.Context(), client, name))
	_, err = s.Identity(t.Context())
	require.ErrorIs(t, err, tumble.ErrNoDefinition)
	open(t, s, minutes)
	require.NotEqual(t, first.Store, identity().Store)
}

// TestVersion2 has the keys of the version before.
func TestVersion2(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	do(t, client, "HSET", name+":{460}", "version", "2", "id", "0", "window", "1m0s", "grace", "0",
		"retention", "0", "droplate", "false", "shards", "1", "shard", "0", "tags", "460")
	s := newSink(t, redis.Config{Client: client, Name: name})
	before := contents(t, client, name)
	for what, call := range map[string]func() error{
		"open":       func() error { _, err := s.Open(t.Context(), minutes); return err },
		"definition": func() error { _, err := s.Definition(t.Context()); return err },
		"identity":   func() error { _, err := s.Identity(t.Context()); return err },
		"count":      func() error { _, err := s.Count(t.Context(), "k", noon); return err },
	} {
		err := call()
		require.ErrorIs(t, err, tumble.ErrDefinition, what)
		require.ErrorContains(t, err, `version "2"`, what)
		require.ErrorContains(t, err, "another name, or delete the keys", what)
	}
	require.Equal(t, before, contents(t, client, name))
	// A shard that was opened before others wrote the keys.
	require.NoError(t, lose(t.Context(), client, name))
	sh := open(t, newSink(t, redis.Config{Client: client, Name: name, Shards: 1}), minutes)[0]
	do(t, client, "HSET", name+":{460}", "version", "2")
	_, err := sh.Load(t.Context(), tumble.LoadRequest{})
	require.ErrorIs(t, err, tumble.ErrDefinition)
	require.ErrorContains(t, err, "delete the keys")
}
