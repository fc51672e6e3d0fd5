package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// What a group must do on any cluster, fake or real: each takes a groupCluster.
type groupCluster struct {
	brokers []string
	session time.Duration // the shortest that it allows
	fake    bool
}

// runGroupScenarios runs each with a topic and a group of its own.
func runGroupScenarios(t *testing.T, c groupCluster) {
	for name, scenario := range map[string]func(t *testing.T, c groupCluster){
		"Takeover":       groupTakeover,
		"Mixed":          groupMixed,
		"Topics":         groupTopics,
		"Keeps":          groupKeeps,
		"Killed":         groupKilled,
		"StaticRestart":  groupStaticRestart,
		"StaticLeader":   groupStaticLeader,
		"SlowDrain":      groupSlowDrain,
		"StopsInJoin":    groupStopsInJoin,
		"Growth":         groupGrowth,
		"Offsets":        groupOffsets,
		"MoreMembers":    groupMoreMembersThanPartitions,
		"Fenced":         groupFenced,
		"SessionRefused": groupSessionRefused,
		"OtherCounts":    groupOtherCounts,
		"Race":           groupRace,
		"StoreAnew":      groupStoreAnew,
		"Unchecked":      groupUnchecked,
		"StaticClaims":   groupStaticClaims,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scenario(t, c)
		})
	}
}

// name returns one that no other test uses.
func (c groupCluster) name(t *testing.T) string {
	return fmt.Sprintf("group-test-%x", rand.Uint64())
}

// client returns a client of another make, for what the tests need beside.
func (c groupCluster) client(t *testing.T, opts ...kgo.Opt) *kgo.Client {
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(c.brokers...))...)
	require.NoError(t, err)
	t.Cleanup(cl.Close)
	return cl
}

func (c groupCluster) create(t *testing.T, partitions int32) (topic string) {
	return cluster{brokers: c.brokers}.create(t, partitions)
}

func (c groupCluster) config(t *testing.T, topic, id string) groupConfig {
	tr := &kafkago.Transport{MetadataTopics: []string{topic}, MetadataTTL: time.Second}
	t.Cleanup(tr.CloseIdleConnections)
	cfg := groupConfig{
		wire: wire.Client{Transport: tr, Addr: kafkago.TCP(c.brokers...), ID: "tumble-test"}, id: id, topic: topic,
		session: c.session, rebalance: 30 * time.Second, heartbeat: min(200*time.Millisecond, c.session/3),
		growth: 300 * time.Millisecond,
		logger: slog.New(slog.DiscardHandler),
	}
	g := newGroup(cfg)
	cfg.partitions = func(ctx context.Context) (int, error) {
		counts, err := g.metadata(ctx, []string{topic})
		if err == nil && counts[topic] == 0 {
			err = errors.New("no such topic")
		}
		return counts[topic], err
	}
	return cfg
}

// now returns the partitions that m serves now; nil: none, or it does not serve.
func (m *testMember) now() []int32 {
	gens := m.generations()
	if len(gens) == 0 || !gens[len(gens)-1].ended.IsZero() {
		return nil
	}
	return gens[len(gens)-1].partitions
}

func eventually(t *testing.T, within time.Duration, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, within, 10*time.Millisecond, what)
}

// covers reports whether the shares are those of n partitions, each once.
func covers(n int, shares ...[]int32) bool {
	var all []int32
	for _, s := range shares {
		all = append(all, s...)
	}
	slices.Sort(all)
	for i, p := range all {
		if int(p) != i {
			return false
		}
	}
	return len(all) == n
}

// mortal is a transport that dies with its process.
type mortal struct {
	kafkago.RoundTripper
	dead atomic.Bool
}

func (m *mortal) RoundTrip(ctx context.Context, a net.Addr, r kafkago.Request) (kafkago.Response, error) {
	if m.dead.Load() {
		return nil, net.ErrClosed
	}
	return m.RoundTripper.RoundTrip(ctx, a, r)
}

// A member that dies without a word is replaced once its session is over; one
// that leaves, at once.
func groupTakeover(t *testing.T, c groupCluster) {
	const n = 6
	topic, id := c.create(t, n), c.name(t)
	one := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, one.now()) })

	cfg := c.config(t, topic, id)
	life := &mortal{RoundTripper: cfg.wire.Transport}
	cfg.wire.Transport = life
	two := startMember(t, cfg, 0)
	eventually(t, 10*time.Second, "shared", func() bool { return len(one.now()) == n/2 && covers(n, one.now(), two.now()) })

	life.dead.Store(true)
	two.stop()
	died := time.Now()
	require.Len(t, one.now(), n/2)
	eventually(t, 2*c.session+5*time.Second, "taken over", func() bool { return covers(n, one.now()) })
	require.GreaterOrEqual(t, time.Since(died), c.session-time.Second)

	three := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 10*time.Second, "shared again", func() bool { return len(one.now()) == n/2 && covers(n, one.now(), three.now()) })
	took, err := one.stop()
	require.NoError(t, err)
	require.Less(t, took, time.Second)
	eventually(t, min(c.session-time.Second, 3*time.Second), "left", func() bool { return covers(n, three.now()) })
}

// other is a consumer of another make in the same group.
type other struct {
	cl     *kgo.Client
	shares chan map[string][]int32
}

func (c groupCluster) other(t *testing.T, id string, topics ...string) *other {
	o := &other{shares: make(chan map[string][]int32, 100)}
	lost := func(context.Context, *kgo.Client, map[string][]int32) { o.shares <- nil }
	o.cl = c.client(t, kgo.ConsumerGroup(id), kgo.ConsumeTopics(topics...), kgo.Balancers(kgo.RoundRobinBalancer(), kgo.RangeBalancer()),
		kgo.SessionTimeout(c.session), kgo.HeartbeatInterval(min(200*time.Millisecond, c.session/3)), kgo.DisableAutoCommit(),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, m map[string][]int32) { o.shares <- m }),
		kgo.OnPartitionsRevoked(lost), kgo.OnPartitionsLost(lost))
	return o
}

// await returns the next share for which ok holds.
func (o *other) await(t *testing.T, ok func(share map[string][]int32) bool) map[string][]int32 {
	t.Helper()
	timeout := time.After(15 * time.Second)
	for {
		select {
		case s := <-o.shares:
			if ok(s) {
				return s
			}
		case <-timeout:
			require.FailNow(t, "the other consumer got no such share")
		}
	}
}

// A group is either ours or others': who comes second is refused.
func groupMixed(t *testing.T, c groupCluster) {
	const n = 4
	topic, id := c.create(t, n), c.name(t)
	them := c.other(t, id, topic)
	them.await(t, func(s map[string][]int32) bool { return len(s[topic]) == n })
	us := startMember(t, c.config(t, topic, id), 0)
	us.wait(t, 10*time.Second)
	require.ErrorIs(t, us.err, kafkago.InconsistentGroupProtocol)
	require.ErrorContains(t, us.err, "other consumers than tumble's are in it")
	require.Empty(t, us.generations())
	them.cl.Close()

	us = startMember(t, c.config(t, topic, id), 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, us.now()) })
	h := &groupErrors{make(chan error, 100)}
	c.client(t, kgo.ConsumerGroup(id), kgo.ConsumeTopics(topic), kgo.SessionTimeout(c.session), kgo.HeartbeatInterval(c.session/3), kgo.DisableAutoCommit(), kgo.WithHooks(h))
	select {
	case err := <-h.errs:
		require.ErrorContains(t, err, "INCONSISTENT_GROUP_PROTOCOL")
	case <-time.After(15 * time.Second):
		require.Fail(t, "the other consumer is not refused")
	}
	require.Len(t, us.generations(), 1, "and nobody notices")
}

// groupErrors hears of what ends a session of another consumer.
type groupErrors struct{ errs chan error }

func (g *groupErrors) OnGroupManageError(err error) { g.errs <- err }

// The leader shares out topics that are not its own, to those who want them.
func groupTopics(t *testing.T, c groupCluster) {
	const n = 6
	topic, theirTopic, id := c.create(t, n), c.create(t, 3), c.name(t)
	us := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, us.now()) })
	them := startMember(t, c.config(t, theirTopic, id), 0)
	eventually(t, 10*time.Second, "shared", func() bool { return covers(n, us.now()) && covers(3, them.now()) })
	more := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 10*time.Second, "shared by three", func() bool {
		return len(us.now()) == n/2 && covers(n, us.now(), more.now()) && covers(3, them.now())
	})
	// Also when a topic grows that only they read.
	c.grow(t, theirTopic, 5)
	eventually(t, 10*time.Second, "grown", func() bool { return covers(n, us.now(), more.now()) && covers(5, them.now()) })
}

// While members come and go, each of the others goes on with what it keeps, and it
// keeps as much as it can.
func groupKeeps(t *testing.T, c groupCluster) {
	const n = 12
	topic, id := c.create(t, n), c.name(t)
	start := func() *testMember { return startMember(t, c.config(t, topic, id), 0) }
	one := start()
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, one.now()) })
	two := start()
	eventually(t, 10*time.Second, "shared", func() bool { return len(one.now()) == 6 && covers(n, one.now(), two.now()) })
	three := start()
	eventually(t, 10*time.Second, "shared by three", func() bool {
		return len(one.now()) == 4 && len(two.now()) == 4 && covers(n, one.now(), two.now(), three.now())
	})
	kept := map[*testMember][]int32{one: one.now(), two: two.now()}
	_, err := three.stop()
	require.NoError(t, err)
	eventually(t, 10*time.Second, "shared by two again", func() bool { return len(one.now()) == 6 && covers(n, one.now(), two.now()) })
	for m, had := range kept {
		require.Subset(t, m.now(), had)
		gens := m.generations()
		for i := 1; i < len(gens); i++ {
			require.Less(t, gens[i].from.Sub(gens[i-1].ended), time.Millisecond, "it never held nothing")
			if len(gens[i].partitions) < len(gens[i-1].partitions) {
				require.Subset(t, gens[i-1].partitions, gens[i].partitions)
			} else {
				require.Subset(t, gens[i].partitions, gens[i-1].partitions)
			}
		}
	}
}

// A member that is killed and started again has to wait until the one before is
// removed. Nobody else does.
func groupKilled(t *testing.T, c groupCluster) {
	const n = 6
	topic, id := c.create(t, n), c.name(t)
	one := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, one.now()) })
	cfg := c.config(t, topic, id)
	life := &mortal{RoundTripper: cfg.wire.Transport}
	cfg.wire.Transport = life
	two := startMember(t, cfg, 0)
	eventually(t, 10*time.Second, "shared", func() bool { return len(one.now()) == n/2 && covers(n, one.now(), two.now()) })
	had := one.now()
	life.dead.Store(true)
	two.stop()
	died := time.Now()
	back := startMember(t, c.config(t, topic, id), 0)
	for len(back.now()) == 0 && time.Since(died) < 2*c.session+5*time.Second {
		require.Subset(t, one.now(), had)
		time.Sleep(10 * time.Millisecond)
	}
	eventually(t, 10*time.Second, "shared again", func() bool { return len(one.now()) == n/2 && covers(n, one.now(), back.now()) })
	require.Less(t, time.Since(died), c.session+5*time.Second)
}

// A static member that comes back within its session finds its partitions as
// they were, and nobody else notices.
func groupStaticRestart(t *testing.T, c groupCluster) {
	const n = 4
	topic, id := c.create(t, n), c.name(t)
	start := func(instance string) *testMember {
		cfg := c.config(t, topic, id)
		cfg.session = max(c.session, 5*time.Second)
		cfg.instanceID = instance
		return startMember(t, cfg, 0)
	}
	leader := start("a")
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, leader.now()) })
	follower := start("b")
	eventually(t, 10*time.Second, "shared", func() bool { return len(leader.now()) == n/2 && covers(n, leader.now(), follower.now()) })
	gens, had := len(leader.generations()), follower.now()

	for range 2 {
		took, err := follower.stop()
		require.NoError(t, err)
		require.Less(t, took, time.Second)
		time.Sleep(c.session / 4)
		follower = start("b")
		eventually(t, 10*time.Second, "back", func() bool { return slices.Equal(had, follower.now()) })
	}
	time.Sleep(500 * time.Millisecond) // of heartbeats
	require.Len(t, leader.generations(), gens, "the other member noticed nothing")
	require.True(t, covers(n, leader.now(), follower.now()))
}

// A broker does not tell a static leader that comes back that it leads: growth is
// noticed all the same.
func groupStaticLeader(t *testing.T, c groupCluster) {
	topic, id := c.create(t, 2), c.name(t)
	start := func(instance string) *testMember {
		cfg := c.config(t, topic, id)
		cfg.session = max(c.session, 5*time.Second)
		cfg.instanceID = instance
		return startMember(t, cfg, 0)
	}
	leader := start("a")
	eventually(t, 20*time.Second, "alone", func() bool { return covers(2, leader.now()) })
	follower := start("b")
	eventually(t, 10*time.Second, "shared", func() bool { return len(leader.now()) == 1 && covers(2, leader.now(), follower.now()) })
	_, err := leader.stop()
	require.NoError(t, err)
	leader = start("a")
	eventually(t, 10*time.Second, "back", func() bool { return covers(2, leader.now(), follower.now()) })
	c.grow(t, topic, 6)
	eventually(t, 10*time.Second, "grown", func() bool { return covers(6, leader.now(), follower.now()) && len(leader.now()) == 3 })
}

// Heartbeats go on while a member drains on its way out, so the next owner waits for
// it even if that outlasts the session.
func groupSlowDrain(t *testing.T, c groupCluster) {
	const n = 4
	topic, id := c.create(t, n), c.name(t)
	drain := c.session + c.session/3
	slow := startMember(t, c.config(t, topic, id), drain)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, slow.now()) })
	quick := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 10*time.Second, "shared", func() bool { return len(slow.now()) == n/2 && covers(n, slow.now(), quick.now()) })
	at := time.Now()
	go slow.cancel()
	eventually(t, drain+10*time.Second, "handed over", func() bool { return covers(n, quick.now()) })
	require.GreaterOrEqual(t, time.Since(at), drain)
	<-slow.done
	require.NoError(t, slow.err)
}

// A member need not wait for the others to be asked to stop, nor they for it.
func groupStopsInJoin(t *testing.T, c groupCluster) {
	const n = 4
	topic, id := c.create(t, n), c.name(t)
	slow := startMember(t, c.deaf(t, topic, id), 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, slow.now()) })
	waiting := startMember(t, c.config(t, topic, id), 0)
	time.Sleep(time.Second)
	took, err := waiting.stop()
	require.NoError(t, err)
	require.Less(t, took, time.Second)
	require.Empty(t, waiting.generations())
	time.Sleep(c.session)
	require.True(t, covers(n, slow.now()))
}

// deaf is a config of a member that hears late of a rebalance.
func (c groupCluster) deaf(t *testing.T, topic, id string) groupConfig {
	cfg := c.config(t, topic, id)
	cfg.session = 3 * c.session
	cfg.heartbeat = c.session
	return cfg
}

func (c groupCluster) grow(t *testing.T, topic string, partitions int32) {
	cluster{brokers: c.brokers}.grow(t, topic, partitions)
}

func groupGrowth(t *testing.T, c groupCluster) {
	topic, id := c.create(t, 2), c.name(t)
	one := startMember(t, c.config(t, topic, id), 0)
	two := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 20*time.Second, "shared", func() bool { return covers(2, one.now(), two.now()) && len(one.now()) == 1 })
	c.grow(t, topic, 6)
	eventually(t, 10*time.Second, "grown", func() bool { return covers(6, one.now(), two.now()) && len(one.now()) == 3 })
	gens := len(one.generations())
	time.Sleep(time.Second)
	require.Len(t, one.generations(), gens, "and that is that")
}

// The ecosystem's tools see the members, what they read and how far they are.
func groupOffsets(t *testing.T, c groupCluster) {
	topic, id := c.create(t, 3), c.name(t)
	m := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(3, m.now()) })
	a := m.generations()[0].assignment
	require.NoError(t, m.g.commit(t.Context(), a, map[int32]int64{0: 17, 2: 1 << 40}))

	cl := c.client(t)
	fetch := kmsg.NewPtrOffsetFetchRequest()
	fetch.Group = id
	ft := kmsg.NewOffsetFetchRequestTopic()
	ft.Topic, ft.Partitions = topic, []int32{0, 1, 2}
	fetch.Topics = append(fetch.Topics, ft)
	res, err := fetch.RequestWith(t.Context(), cl)
	require.NoError(t, err)
	got := make(map[int32]int64)
	for _, p := range res.Topics[0].Partitions {
		require.Zero(t, p.ErrorCode)
		got[p.Partition] = p.Offset
	}
	require.Equal(t, map[int32]int64{0: 17, 1: -1, 2: 1 << 40}, got)

	describe := kmsg.NewPtrDescribeGroupsRequest()
	describe.Groups = []string{id}
	desc, err := describe.RequestWith(t.Context(), cl)
	require.NoError(t, err)
	g := desc.Groups[0]
	require.Equal(t, "Stable", g.State)
	require.Equal(t, groupProtocol, g.Protocol)
	require.Len(t, g.Members, 1)
	require.Equal(t, a.memberID, g.Members[0].MemberID)
	require.Equal(t, "tumble-test", g.Members[0].ClientID)
	var shown kmsg.ConsumerMemberAssignment
	require.NoError(t, shown.ReadFrom(g.Members[0].MemberAssignment))
	require.Equal(t, topic, shown.Topics[0].Topic)
	require.Equal(t, []int32{0, 1, 2}, shown.Topics[0].Partitions)

	// What is over can no longer speak for the group.
	a.generation--
	require.ErrorIs(t, m.g.commit(t.Context(), a, map[int32]int64{0: 1}), kafkago.IllegalGeneration)
	_, err = m.stop()
	require.NoError(t, err)
	require.Error(t, m.g.commit(t.Context(), m.generations()[0].assignment, map[int32]int64{0: 1}))
}

// Members beyond the number of partitions stand by: served, with nothing.
func groupMoreMembersThanPartitions(t *testing.T, c groupCluster) {
	topic, id := c.create(t, 2), c.name(t)
	var members []*testMember
	for range 3 {
		members = append(members, startMember(t, c.config(t, topic, id), 0))
	}
	standby := func() (i int) {
		return slices.IndexFunc(members, func(m *testMember) bool {
			gens := m.generations()
			return len(gens) > 0 && gens[len(gens)-1].ended.IsZero() && len(gens[len(gens)-1].partitions) == 0
		})
	}
	settled := func() bool {
		return covers(2, members[0].now(), members[1].now(), members[2].now()) && standby() >= 0
	}
	eventually(t, 20*time.Second, "shared", settled)
	spare := members[standby()]
	i := slices.IndexFunc(members, func(m *testMember) bool { return len(m.now()) > 0 })
	_, err := members[i].stop()
	require.NoError(t, err)
	eventually(t, 10*time.Second, "stands in", func() bool { return len(spare.now()) == 1 })
}

// Of two processes with one instance id the older one is told, and ends.
func groupFenced(t *testing.T, c groupCluster) {
	topic, id := c.create(t, 2), c.name(t)
	cfg := c.config(t, topic, id)
	cfg.instanceID = "pod-1"
	older := startMember(t, cfg, 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(2, older.now()) })
	cfg.wire.Transport = c.config(t, topic, id).wire.Transport
	newer := startMember(t, cfg, 0)
	older.wait(t, 20*time.Second)
	require.ErrorIs(t, older.err, kafkago.FencedInstanceID)
	require.ErrorContains(t, older.err, `"pod-1"`)
	eventually(t, 10*time.Second, "taken over", func() bool { return covers(2, newer.now()) })
}

func groupSessionRefused(t *testing.T, c groupCluster) {
	topic, id := c.create(t, 1), c.name(t)
	cfg := c.config(t, topic, id)
	cfg.session = 50 * time.Millisecond
	m := startMember(t, cfg, 0)
	m.wait(t, 20*time.Second)
	require.ErrorIs(t, m.err, kafkago.InvalidSessionTimeout)
	require.ErrorContains(t, m.err, "50ms is not between")
}
