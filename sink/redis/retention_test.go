//go:build servers

package redis_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/channel"
)

// ago has what was asked for last so long before now, by the server's clock.
func ago(t testing.TB, client rueidis.Client, name string, retention, age time.Duration) {
	t.Helper()
	now, err := do(t, client, "TIME").AsStrSlice()
	require.NoError(t, err)
	seconds, err := strconv.ParseInt(now[0], 10, 64)
	require.NoError(t, err)
	at := strconv.FormatInt(seconds*1000-age.Milliseconds(), 10)
	do(t, client, "HSET", name+":{460}:retentions", strconv.FormatInt(retention.Milliseconds(), 10), at)
}

// TestRetentionsDiffer has processes that want counts kept for different times,
// as in a rolling update: the longest wins for a minute.
func TestRetentionsDiffer(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	as := func(retention time.Duration) (*redis.Sink, tumble.Shard) {
		s := newSink(t, redis.Config{Client: client, Name: name, Shards: 1})
		return s, open(t, s, tumble.Definition{Window: minutes.Window, Retention: retention})[0]
	}
	s, short := as(10 * time.Minute)
	inForce := func() time.Duration {
		t.Helper()
		var def tumble.Definition
		require.Eventually(t, func() bool { // the cache is told
			var err error
			def, err = s.Definition(t.Context())
			require.NoError(t, err)
			own, err := s.Identity(t.Context())
			require.NoError(t, err)
			return own.Definition.Retention == def.Retention
		}, time.Second, time.Millisecond)
		return def.Retention
	}
	require.Equal(t, 10*time.Minute, inForce())
	from := by(t, short, 1, "p/0", register(t, short, "p/0"), noon)
	from = advance(t, short, "p/0", from, noon, tumble.Delta{Start: noon, Key: "k", N: 1})
	floor := func() time.Time { t.Helper(); return stateOf(t, short).Floors[0] }
	require.True(t, noon.Add(-10*time.Minute).Equal(floor()))

	// A newer process keeps for longer: the older one deletes by its rule at once.
	_, long := as(time.Hour)
	require.Equal(t, time.Hour, inForce())
	from = by(t, short, 1, "p/0", from, noon.Add(30*time.Minute))
	require.True(t, noon.Add(-10*time.Minute).Equal(floor()), "an older process keeps what the newer one wants, and the floor never falls")
	from = by(t, short, 1, "p/0", from, noon.Add(65*time.Minute))
	require.True(t, noon.Add(5*time.Minute).Equal(floor()))

	// It goes away. For a minute it may only have paused.
	told := func() time.Duration { t.Helper(); return stateOf(t, short).Retentions[0] }
	ago(t, client, name, time.Hour, 29*time.Second)
	require.Equal(t, time.Hour, told())
	ago(t, client, name, time.Hour, 36*time.Second)
	require.Equal(t, 10*time.Minute, told(), "what a process counts by stays in force for half a minute")
	ago(t, client, name, time.Hour, 59*time.Second)
	require.True(t, noon.Add(5*time.Minute).Equal(floor()))
	require.Equal(t, time.Hour, inForce())
	ago(t, client, name, time.Hour, 71*time.Second)
	require.True(t, noon.Add(55*time.Minute).Equal(floor()), "a load is enough")
	require.Equal(t, 10*time.Minute, inForce())
	asked, err := do(t, client, "HGETALL", name+":{460}:retentions").AsStrMap()
	require.NoError(t, err)
	require.Len(t, asked, 1, "what is over is forgotten")

	// It comes back, and what is gone stays so.
	_, err = long.Load(t.Context(), tumble.LoadRequest{})
	require.NoError(t, err)
	require.Equal(t, time.Hour, inForce())
	require.True(t, noon.Add(55*time.Minute).Equal(floor()))
	from = by(t, long, 1, "p/0", from, noon.Add(70*time.Minute))
	require.True(t, noon.Add(55*time.Minute).Equal(floor()))
	advance(t, long, "p/0", from, noon.Add(70*time.Minute), tumble.Delta{Start: noon.Add(54 * time.Minute), Key: "k", N: 1})
	time.Sleep(20 * time.Millisecond)
	c, err := s.Count(t.Context(), "k", noon.Add(54*time.Minute))
	require.NoError(t, err)
	require.Equal(t, minute("k", noon.Add(54*time.Minute), 0, tumble.Expired), untermed(c))

	// For ever is longer than any.
	_, _ = as(0)
	require.Zero(t, inForce())
	by(t, long, 1, "p/0", tumble.Checkpoint{Log: "log", Offset: from.Offset + 1, Watermark: noon.Add(70 * time.Minute)}, noon.Add(1000*time.Hour))
	require.True(t, noon.Add(55*time.Minute).Equal(floor()))
}

// TestRetentionIsNoted wants what a process asks for written every 4 seconds,
// not with every load.
func TestRetentionIsNoted(t *testing.T) {
	def := tumble.Definition{Window: minutes.Window, Retention: time.Hour}
	client, name, _, sh := single1(t, def)
	noted := func() string {
		at, err := do(t, client, "HGET", name+":{460}:retentions", "3600000").ToString()
		require.NoError(t, err)
		return at
	}
	for _, age := range []time.Duration{3 * time.Second, 5 * time.Second, -3 * time.Second, -time.Hour} {
		ago(t, client, name, time.Hour, age)
		before := noted()
		stateOf(t, sh)
		require.Equal(t, age.Abs() < 4*time.Second, before == noted(), "%v", age)
	}
}

// TestNothingOldIsStored goes through many minutes, of which a hundred are kept,
// and wants what is past retention deleted as fast as windows come, and the rest
// once somebody loads.
func TestNothingOldIsStored(t *testing.T) {
	const kept, step = 100, 60
	client, name, _, sh := single1(t, tumble.Definition{Window: minutes.Window, Retention: kept * time.Minute})
	from := register(t, sh, "p/0")
	stored := func() int {
		n, err := do(t, client, "ZCARD", name+":{460}:windows").AsInt64()
		require.NoError(t, err)
		return int(n)
	}
	at := noon
	for range 40 {
		var deltas []tumble.Delta
		for range step {
			deltas = append(deltas, users(at, 0, 120)...)
			at = at.Add(time.Minute)
		}
		from = advance(t, sh, "p/0", from, at, deltas...)
		require.LessOrEqual(t, stored(), 2*(kept+step)+64)
	}
	stateOf(t, sh)
	require.Equal(t, kept, stored())
}

// TestLoadDeletes has much past retention at once, and nobody who counts.
func TestLoadDeletes(t *testing.T) {
	client, name, _, sh := single1(t, minutes)
	from := register(t, sh, "p/0")
	for i := range 120 { // each of some 20 buckets
		from = advance(t, sh, "p/0", from, noon, users(noon.Add(time.Duration(i)*time.Minute), 0, 1000)...)
	}
	advance(t, sh, "p/0", from, noon.Add(20*time.Hour))
	keys := func() int {
		all, err := keysOf(t.Context(), client, name)
		require.NoError(t, err)
		return len(all)
	}
	before := keys()
	require.Greater(t, before, 2100)
	sh = open(t, newSink(t, redis.Config{Client: client, Name: name}), tumble.Definition{Window: minutes.Window, Retention: time.Hour})[0]
	require.Equal(t, before, keys(), "for ever is in force")
	ago(t, client, name, 0, 71*time.Second)
	for n := keys(); ; n = keys() {
		stateOf(t, sh)
		require.LessOrEqual(t, n-keys(), 2060, "no call takes long")
		if keys() == n {
			break
		}
		require.True(t, n-keys() < 2000 || sh.(tumble.Cleaner).Backlog(), "there is more to do")
	}
	require.False(t, sh.(tumble.Cleaner).Backlog())
	for _, key := range []string{":windows", ":totals"} {
		n, err := do(t, client, "EXISTS", name+":{460}"+key).AsInt64()
		require.NoError(t, err)
		require.Zero(t, n, key)
	}
}

// TestDeletesAPieceAtATime has a window of many buckets go past retention: no call
// deletes all of it, and the calls together leave nothing.
func TestDeletesAPieceAtATime(t *testing.T) {
	def := tumble.Definition{Window: minutes.Window, Retention: time.Minute}
	client, name, _, sh := single1(t, def)
	from := register(t, sh, "p/0")
	for i := range 20 {
		from = advance(t, sh, "p/0", from, noon, users(noon, i*2000, (i+1)*2000)...)
	}
	keys := func() int {
		all, err := keysOf(t.Context(), client, name)
		require.NoError(t, err)
		return len(all)
	}
	before := keys()
	require.Greater(t, before, 600)
	for n, calls := before, 0; n > 20; calls++ {
		require.Less(t, calls, 20)
		from = advance(t, sh, "p/0", from, noon.Add(time.Hour+time.Duration(calls)*time.Minute))
		after := keys()
		require.LessOrEqual(t, n-after, 520, "no call takes long")
		n = after
	}
}

// TestABacklogIsWorkedOff lets windows go past retention all at once, as when a
// partition that held the frontier back goes on or ends: they are deleted by the
// time that Run returns, and nobody waits for a poll.
func TestABacklogIsWorkedOff(t *testing.T) {
	client := connect(t, single)
	name := unique(t, client)
	sink := newSink(t, redis.Config{Client: client, Name: name, Shards: 2})
	events := make(chan tumble.Event)
	source, err := channel.New(channel.Config{ID: "p", Events: events})
	require.NoError(t, err)
	p, err := tumble.New(tumble.Config{Source: source, Sink: sink, Window: minutes.Window, Retention: time.Hour})
	require.NoError(t, err)
	// Another partition, that nobody reads, has not got beyond the first minute.
	for _, sh := range open(t, sink, tumble.Definition{Window: minutes.Window, Retention: time.Hour}) {
		state, err := sh.Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"slow": {Log: "l"}}})
		require.NoError(t, err)
		advance(t, sh, "slow", state.Checkpoints["slow"], noon)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context()) }()
	const all = 20_000
	for i := range all {
		events <- tumble.Event{Key: strconv.Itoa(i % 10), Time: noon.Add(time.Duration(i) * time.Minute)}
	}
	stored := func() (n int64) {
		for _, tag := range []string{"460", "16"} {
			one, err := do(t, client, "ZCARD", name+":{"+tag+"}:windows").AsInt64()
			require.NoError(t, err)
			n += one
		}
		return n
	}
	require.Eventually(t, func() bool { return stored() == all }, 10*time.Second, 10*time.Millisecond)
	for _, sh := range open(t, sink, tumble.Definition{Window: minutes.Window, Retention: time.Hour}) {
		advance(t, sh, "slow", stateOf(t, sh).Checkpoints["slow"], noon.Add(all*time.Minute))
	}
	close(events)
	require.NoError(t, <-done)
	require.Less(t, stored(), int64(200))
}
