package kafka

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// identified is a config of a member that counts into a place.
func (c groupCluster) identified(t *testing.T, topic, id, name, store string) groupConfig {
	cfg := c.config(t, topic, id)
	cfg.identity = always(idOf(name, store))
	return cfg
}

// One that counts elsewhere is refused without disturbing anyone, whatever the
// difference is.
func groupOtherCounts(t *testing.T, c groupCluster) {
	const n = 4
	topic, id := c.create(t, n), c.name(t)
	one := startMember(t, c.identified(t, topic, id, "clicks", "s1"), 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, one.now()) })
	two := startMember(t, c.identified(t, topic, id, "clicks", "s1"), 0)
	eventually(t, 20*time.Second, "shared", func() bool { return len(one.now()) == n/2 && covers(n, one.now(), two.now()) })
	gens := len(one.generations())

	start := time.Now()
	stranger := startMember(t, c.identified(t, topic, id, "views", "s1"), 0)
	stranger.wait(t, 10*time.Second)
	require.ErrorContains(t, stranger.err, "kafka: group "+id+": ")
	require.ErrorContains(t, stranger.err, `under the name "clicks", this process under "views"`)
	require.Less(t, time.Since(start), 5*time.Second)

	hourly := idOf("clicks", "s1")
	hourly.Definition.Window.Size = time.Hour
	cfg := c.config(t, topic, id)
	cfg.identity = always(hourly)
	stranger = startMember(t, cfg, 0)
	stranger.wait(t, 10*time.Second)
	require.ErrorContains(t, stranger.err, "another definition")

	static := c.identified(t, topic, id, "views", "s1")
	static.instanceID = "pod-9"
	stranger = startMember(t, static, 0)
	stranger.wait(t, 10*time.Second)

	time.Sleep(time.Second) // of heartbeats
	require.Len(t, one.generations(), gens, "nobody noticed")
	require.True(t, covers(n, one.now(), two.now()))
}

// Of those that come at one time one side wins, all of it, and goes on.
func groupRace(t *testing.T, c groupCluster) {
	const n = 6
	for round := range 3 {
		topic, id := c.create(t, n), c.name(t)
		members := []*testMember{startMember(t, c.identified(t, topic, id, "clicks", "s1"), 0)}
		sides := []string{"clicks"}
		for i := range 4 {
			name := "views"
			if i == 3 {
				name = "clicks"
			}
			cfg := c.identified(t, topic, id, name, "s1")
			if round == 2 && i == 0 {
				cfg.instanceID = "pod-1"
			}
			members, sides = append(members, startMember(t, cfg, 0)), append(sides, name)
		}
		over := func(m *testMember) bool {
			select {
			case <-m.done:
				return true
			default:
				return false
			}
		}
		eventually(t, 30*time.Second, "decided", func() bool {
			var shares [][]int32
			var winners []string
			for i, m := range members {
				if !over(m) {
					shares, winners = append(shares, m.now()), append(winners, sides[i])
				}
			}
			slices.Sort(winners)
			return len(slices.Compact(winners)) == 1 && covers(n, shares...)
		})
		for i, m := range members {
			if over(m) {
				require.ErrorContains(t, m.err, "a new name needs a new Config.Group")
				require.ErrorContains(t, m.err, fmt.Sprintf("this process under %q", sides[i]))
				require.Empty(t, m.now())
			}
		}
		for _, m := range members {
			m.cancel()
		}
	}
}

// A store that lost everything and is counted anew moves the ids of all, one
// after the other: nobody is refused, neither who was there nor who comes.
func groupStoreAnew(t *testing.T, c groupCluster) {
	const n = 4
	topic, id := c.create(t, n), c.name(t)
	one, two := &sinkID{id: idOf("clicks", "s1")}, &sinkID{id: idOf("clicks", "s1")}
	start := func(s *sinkID) *testMember {
		cfg := c.config(t, topic, id)
		cfg.identity = s.get
		return startMember(t, cfg, 0)
	}
	a := start(one)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, a.now()) })
	b := start(two)
	eventually(t, 20*time.Second, "shared", func() bool { return len(a.now()) == n/2 && covers(n, a.now(), b.now()) })

	late := start(&sinkID{id: idOf("clicks", "s2")})
	time.Sleep(2 * time.Second)
	require.Empty(t, late.generations(), "it waits for them to notice")
	one.set(idOf("clicks", "s2"), nil)
	time.Sleep(time.Second) // a knows, b does not: the leader leaves one of them out
	two.set(idOf("clicks", "s2"), nil)
	eventually(t, 20*time.Second, "shared by three", func() bool {
		return len(late.now()) > 0 && covers(n, a.now(), b.now(), late.now())
	})
	for _, m := range []*testMember{a, b, late} {
		select {
		case <-m.done:
			require.NoError(t, m.err)
			require.Fail(t, "a member ended")
		default:
		}
	}
}

// One that says nothing of itself is not asked.
func groupUnchecked(t *testing.T, c groupCluster) {
	const n = 6
	topic, id := c.create(t, n), c.name(t)
	silent := startMember(t, c.config(t, topic, id), 0)
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, silent.now()) })
	a := startMember(t, c.identified(t, topic, id, "clicks", "s1"), 0)
	eventually(t, 10*time.Second, "shared", func() bool { return len(a.now()) == n/2 && covers(n, a.now(), silent.now()) })
	stranger := startMember(t, c.identified(t, topic, id, "views", "s1"), 0)
	stranger.wait(t, 10*time.Second)
	require.ErrorContains(t, stranger.err, `"views"`)
}

// A static member that was here for generations comes back as one that is new,
// and nobody notices.
func groupStaticClaims(t *testing.T, c groupCluster) {
	const n = 4
	topic, id := c.create(t, n), c.name(t)
	start := func(instance string) *testMember {
		cfg := c.identified(t, topic, id, "clicks", "s1")
		cfg.session = max(c.session, 5*time.Second)
		cfg.instanceID = instance
		return startMember(t, cfg, 0)
	}
	follower := start("b")
	eventually(t, 20*time.Second, "alone", func() bool { return covers(n, follower.now()) })
	leader := start("a")
	eventually(t, 10*time.Second, "shared", func() bool { return len(leader.now()) == n/2 && covers(n, leader.now(), follower.now()) })
	gens, had := len(leader.generations()), follower.now()
	_, err := follower.stop()
	require.NoError(t, err)
	time.Sleep(c.session / 4)
	follower = start("b")
	eventually(t, 10*time.Second, "back", func() bool { return slices.Equal(had, follower.now()) && len(leader.now()) > 0 })
	time.Sleep(500 * time.Millisecond)
	if !c.fake { // kfake compares subscriptions, Kafka protocols
		require.Len(t, leader.generations(), gens, "the other member noticed nothing")
	}
	require.True(t, covers(n, leader.now(), follower.now()))

	// Under another name it does not come back: another member is there.
	_, err = follower.stop()
	require.NoError(t, err)
	cfg := c.identified(t, topic, id, "views", "s1")
	cfg.instanceID = "b"
	stranger := startMember(t, cfg, 0)
	stranger.wait(t, 10*time.Second)
	require.ErrorContains(t, stranger.err, `"views"`)
	// The last of its kind may.
	_, err = leader.stop()
	require.NoError(t, err)
	eventually(t, 2*cfg.session+10*time.Second, "both are gone or replaced", func() bool {
		cfg := c.identified(t, topic, id, "views", "s1")
		cfg.instanceID = "a"
		cfg.session = max(c.session, 5*time.Second)
		m := startMember(t, cfg, 0)
		defer m.cancel()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for ctx.Err() == nil && !covers(n, m.now()) {
			select {
			case <-m.done:
				return false
			case <-time.After(50 * time.Millisecond):
			}
		}
		return covers(n, m.now())
	})
}
