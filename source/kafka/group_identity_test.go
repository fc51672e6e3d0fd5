package kafka

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
)

// idOf is the identity of counts per minute.
func idOf(name, store string) tumble.Identity {
	return tumble.Identity{Name: name, Store: store, Definition: tumble.Definition{Window: tumble.Window{Size: time.Minute}}}
}

// always is a sink's Identity.
func always(id tumble.Identity) func(context.Context) (tumble.Identity, error) {
	return func(context.Context) (tumble.Identity, error) { return id, nil }
}

// A sinkID is a sink's Identity that changes.
type sinkID struct {
	mu  sync.Mutex
	id  tumble.Identity
	err error
}

func (s *sinkID) set(id tumble.Identity, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id, s.err = id, err
}

func (s *sinkID) get(context.Context) (tumble.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id, s.err
}

func TestClaims(t *testing.T) {
	other := idOf("a", "s1")
	other.Definition.Grace = time.Second
	kept := idOf("a", "s1")
	kept.Definition.Retention = time.Hour
	own := newClaim(idOf("a", "s1"))
	for what, tc := range map[string]struct {
		theirs claim
		want   difference
	}{
		"the same":              {newClaim(idOf("a", "s1")), sameCounts},
		"kept for another time": {newClaim(kept), sameCounts},
		"another name":          {newClaim(idOf("b", "s1")), otherCounts},
		"another definition":    {newClaim(other), otherCounts},
		"another store":         {newClaim(idOf("a", "s2")), otherStore},
		"no store yet":          {newClaim(idOf("a", "")), sameCounts},
		"both":                  {newClaim(idOf("b", "s2")), otherCounts},
		"an older version":      {parseClaim([]byte("3 partitions")), sameCounts},
		"no identity":           {parseClaim(toJSON(claim{Version: 1, Partitions: 3})), sameCounts},
		"another make":          {parseClaim([]byte(`{"name":"b","store":"x","definition":"d"}`)), sameCounts},
		"nothing":               {parseClaim(nil), sameCounts},
		"a later version":       {parseClaim([]byte(`{"tumble":2,"name":"b","definition":"d","more":[1]}`)), otherCounts},
	} {
		require.Equal(t, tc.want, own.differs(tc.theirs), what)
		require.Equal(t, tc.want, tc.theirs.differs(own), what)
	}
}

func TestRefusalSaysWhatToDo(t *testing.T) {
	ours := newClaim(idOf("ours", "s1"))
	theirs := newClaim(idOf("theirs", "s1"))
	require.EqualError(t, &refusal{ours, theirs}, `its members count under the name "theirs", this process under "ours": each would see a part of the events only (a new name needs a new Config.Group)`)

	hourly := idOf("ours", "s1")
	hourly.Definition.Window.Size = time.Hour
	text := (&refusal{ours, newClaim(hourly)}).Error()
	require.Contains(t, text, "window 1h")
	require.Contains(t, text, "window 1m")
	require.Contains(t, text, "a new name needs a new Config.Group")

	text = (&refusal{ours, newClaim(idOf("ours", "s2"))}).Error()
	require.Contains(t, text, "s1")
	require.Contains(t, text, "s2")
	require.Contains(t, text, "need a new Config.Group")
}

func TestOutvoted(t *testing.T) {
	member := func(id, name string, generation int32, held int) groupMember {
		c := newClaim(idOf(name, "s"))
		c.Generation = generation
		if held > 0 {
			c.Held = "0"
		}
		return groupMember{id: id, claim: c}
	}
	for what, tc := range map[string]struct {
		members []groupMember
		losers  string
	}{
		"all alike":                      {[]groupMember{member("1", "a", 0, 0), member("2", "a", 7, 2)}, ""},
		"nobody is checked":              {[]groupMember{{id: "1"}, {id: "2"}}, ""},
		"one is not checked":             {[]groupMember{{id: "1"}, member("2", "a", 0, 0)}, ""},
		"two new ones: the smaller name": {[]groupMember{member("1", "b", 0, 0), member("2", "a", 0, 0)}, "1"},
		"new ones: the larger side":      {[]groupMember{member("1", "b", 0, 0), member("2", "a", 0, 0), member("3", "b", 0, 0)}, "2"},
		"who was there, however few":     {[]groupMember{member("1", "a", 0, 0), member("2", "a", 0, 0), member("3", "b", 3, 1)}, "1 2"},
		"who was there, without a share": {[]groupMember{member("1", "a", 0, 0), member("2", "b", 3, 0)}, "1"},
		"not who was there long ago":     {[]groupMember{member("1", "a", 3, 5), member("2", "b", 8, 1)}, "1"},
		"side by side: who has more":     {[]groupMember{member("1", "a", 3, 0), member("2", "a", 3, 1), member("3", "b", 3, 1), member("4", "b", 3, 1)}, "1 2"},
		"newcomers do not help them":     {[]groupMember{member("1", "b", 3, 1), member("2", "a", 3, 0), member("3", "a", 0, 0), member("4", "a", 2, 9)}, "2 3 4"},
		"three of a kind, one unchecked": {[]groupMember{member("1", "c", 0, 0), member("2", "b", 0, 0), member("3", "a", 0, 0), {id: "4"}}, "1 2"},
	} {
		for range tc.members { // in any order
			tc.members = append(tc.members[1:], tc.members[0])
			var losers []string
			lost := outvoted(tc.members)
			for _, m := range tc.members {
				if winner, ok := lost[m.id]; ok {
					losers = append(losers, m.id)
					require.NotEqual(t, m.claim.Name, winner.Name, what)
				}
			}
			require.ElementsMatch(t, strings.Fields(tc.losers), losers, what)
		}
	}
}

// described answers DescribeGroups with members of these claims.
func described(state string, members ...groupMember) *kmsg.DescribeGroupsResponse {
	res := kmsg.NewPtrDescribeGroupsResponse()
	g := kmsg.NewDescribeGroupsResponseGroup()
	g.Group, g.State, g.ProtocolType, g.Protocol = "g", state, "consumer", "range"
	for _, m := range members {
		d := kmsg.NewDescribeGroupsResponseGroupMember()
		d.MemberID, d.ClientID, d.ClientHost = m.id, "c", "h"
		if m.instance != "" {
			d.InstanceID = &m.instance
		}
		if state == "Stable" {
			d.ProtocolMetadata = subscription("clicks", m.claim)
			d.MemberAssignment = assignmentOf(map[string][]int32{"clicks": {1}})
			if m.refused {
				d.MemberAssignment = refusalOf(newClaim(idOf("a", "s1")))
			}
		}
		g.Members = append(g.Members, d)
	}
	res.Groups = append(res.Groups, g)
	return res
}

// A process reads who is in the group before it joins.
func TestGroupReadsBeforeItJoins(t *testing.T) {
	claimed := func(name, store string) groupMember {
		return groupMember{id: "other", claim: newClaim(idOf(name, store))}
	}
	for what, tc := range map[string]struct {
		found   []*kmsg.DescribeGroupsResponse // second by second, the last one for ever
		refused string                         // "": it joins
		after   time.Duration
	}{
		"nobody":        {[]*kmsg.DescribeGroupsResponse{described("Dead")}, "", 0},
		"members alike": {[]*kmsg.DescribeGroupsResponse{described("Stable", claimed("a", "s1"))}, "", 0},
		"another make":  {[]*kmsg.DescribeGroupsResponse{described("Stable", groupMember{id: "other"})}, "", 0},
		"another name":  {[]*kmsg.DescribeGroupsResponse{described("Stable", claimed("a", "s1"), claimed("b", "s1"))}, `under the name "b", this process under "a"`, 0},
		"another name and store": {[]*kmsg.DescribeGroupsResponse{described("Stable", claimed("a", "s2"), claimed("b", "s1"))},
			`under the name "b"`, 0},
		"a rebalance":   {[]*kmsg.DescribeGroupsResponse{described("PreparingRebalance", claimed("b", "s1"))}, "", 0},
		"another store": {[]*kmsg.DescribeGroupsResponse{described("Stable", claimed("a", "s2"))}, "into another store", 30 * time.Second},
		"another for a while": {[]*kmsg.DescribeGroupsResponse{described("Stable", claimed("a", "s2")), described("Stable", claimed("a", "s2")),
			described("Stable", claimed("a", "s1"))}, "", 2 * time.Second},
		"doubt, then a rebalance": {[]*kmsg.DescribeGroupsResponse{described("Stable", claimed("a", "s2")),
			described("PreparingRebalance", claimed("a", "s2")), described("CompletingRebalance", claimed("a", "s2")),
			described("Stable", claimed("a", "s1"))}, "", 3 * time.Second},
		"one that is about to go": {[]*kmsg.DescribeGroupsResponse{described("Stable", claimed("a", "s1"),
			groupMember{id: "lost", claim: newClaim(idOf("b", "s1")), refused: true})}, "", 0},
		"itself before": {[]*kmsg.DescribeGroupsResponse{described("Stable",
			groupMember{id: "old", instance: "pod-1", claim: newClaim(idOf("b", "s1"))})}, "", 0},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCoordinator(t)
				start := time.Now()
				on(c, func(_ context.Context, n int, _ *kmsg.DescribeGroupsRequest) (*kmsg.DescribeGroupsResponse, error) {
					return tc.found[min(n, len(tc.found)-1)], nil
				})
				cfg := testConfig(c)
				cfg.instanceID = "pod-1"
				cfg.identity = always(idOf("a", "s1"))
				m := startMember(t, cfg, 0)
				if tc.refused == "" {
					time.Sleep(tc.after + 500*time.Millisecond)
					gens := m.generations()
					require.Len(t, gens, 1)
					require.Equal(t, tc.after, gens[0].from.Sub(start))
					return
				}
				m.wait(t, time.Minute)
				require.Equal(t, tc.after, time.Since(start))
				require.ErrorContains(t, m.err, "kafka: group g: ")
				require.ErrorContains(t, m.err, tc.refused)
				require.Empty(t, c.requests(kmsg.JoinGroup), "it does not disturb the others")
				require.Empty(t, c.requests(kmsg.LeaveGroup))
			})
		})
	}
}

// Neither the coordinator's silence nor the sink's is a reason to join unread.
func TestGroupReadsUntilItCan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		start := time.Now()
		on(c, func(context.Context, int, *kmsg.DescribeGroupsRequest) (*kmsg.DescribeGroupsResponse, error) {
			if time.Since(start) < 20*time.Second {
				res := described("")
				res.Groups[0].ErrorCode = int16(kafkago.GroupLoadInProgress)
				return res, nil
			}
			return described("Stable", groupMember{id: "other", claim: newClaim(idOf("b", "s1"))}), nil
		})
		id := &sinkID{err: errors.New("away")}
		cfg := testConfig(c)
		cfg.identity = id.get
		m := startMember(t, cfg, 0)
		time.Sleep(10 * time.Second)
		require.Empty(t, c.requests(kmsg.DescribeGroups))
		require.Empty(t, c.requests(kmsg.JoinGroup))
		id.set(idOf("a", "s1"), nil)
		m.wait(t, time.Minute)
		require.InDelta(t, 20, time.Since(start).Seconds(), 2)
		require.ErrorContains(t, m.err, `"b"`)
		require.Empty(t, c.requests(kmsg.JoinGroup))
	})
}

// A member says so when the store has lost everything and has another id: within
// seconds, and without being refused by those that do not know yet.
func TestGroupTellsOfANewStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCoordinator(t)
		var rebalance atomic.Bool
		on(c, func(context.Context, int, *kmsg.HeartbeatRequest) (*kmsg.HeartbeatResponse, error) {
			if !rebalance.CompareAndSwap(true, false) {
				return nil, nil
			}
			return failWith(kmsg.NewPtrHeartbeatResponse(), kafkago.RebalanceInProgress)
		})
		start := time.Now()
		id := &sinkID{id: idOf("a", "s1")}
		cfg := testConfig(c)
		cfg.identity = id.get
		m := startMember(t, cfg, 0)
		time.Sleep(12 * time.Second)
		id.set(tumble.Identity{}, errors.New("away"))
		time.Sleep(20 * time.Second)
		require.Len(t, m.generations(), 1, "a sink that is away is no reason to join again")
		id.set(idOf("a", ""), nil)
		time.Sleep(20 * time.Second)
		require.Len(t, m.generations(), 1, "nor one that holds nothing yet")
		id.set(idOf("a", "s2"), nil)
		time.Sleep(20 * time.Second)
		gens := m.generations()
		require.Len(t, gens, 2)
		require.Equal(t, 55*time.Second, gens[0].ended.Sub(start))
		require.Equal(t, gens[0].ended, gens[1].from)
		require.Equal(t, []int32{0, 1, 2}, gens[1].partitions)
		joins := c.requests(kmsg.JoinGroup)
		said := func(i int) claim {
			m, err := parseMember("", "", joins[i].Request.(*kmsg.JoinGroupRequest).Protocols[0].Metadata)
			require.NoError(t, err)
			return m.claim
		}
		first, last := said(1), said(len(joins)-1)
		require.Equal(t, "s1", first.Store)
		require.Zero(t, first.Generation)
		require.Equal(t, "s2", last.Store)
		require.Equal(t, gens[0].generation, last.Generation, "others know by that who was here before")
		require.Equal(t, shares("0-2"), last.Held)
		require.Equal(t, 3, last.Partitions)

		// A rebalance while the sink is away, or holds nothing: it says what it
		// said last.
		for i, err := range []error{errors.New("away"), nil} {
			id.set(idOf("a", ""), err)
			rebalance.Store(true)
			time.Sleep(2 * time.Second)
			require.Len(t, m.generations(), 3+i)
			joins = c.requests(kmsg.JoinGroup)
			require.Equal(t, "s2", said(len(joins)-1).Store)
		}
		require.Len(t, c.requests(kmsg.DescribeGroups), 1, "only who starts reads the others")
	})
}

// joinedBy has the member lead a group with others in it.
func joinedBy(req *kmsg.JoinGroupRequest, generation int32, others ...groupMember) *kmsg.JoinGroupResponse {
	res := kmsg.NewPtrJoinGroupResponse()
	res.MemberID, res.LeaderID, res.Protocol, res.Generation = req.MemberID, req.MemberID, kmsg.StringPtr(groupProtocol), generation
	m := kmsg.NewJoinGroupResponseMember()
	m.MemberID, m.ProtocolMetadata = req.MemberID, req.Protocols[0].Metadata
	res.Members = append(res.Members, m)
	for _, o := range others {
		m := kmsg.NewJoinGroupResponseMember()
		m.MemberID, m.ProtocolMetadata = o.id, subscription("clicks", o.claim)
		res.Members = append(res.Members, m)
	}
	return res
}

// The leader gives nothing to those that lose, and tells them; itself included.
func TestGroupLeaderRefuses(t *testing.T) {
	for _, loses := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			name, winner := "a", "a" // smaller
			if loses {
				name, winner = "c", "b"
			}
			c := newCoordinator(t)
			on(c, func(_ context.Context, _ int, req *kmsg.JoinGroupRequest) (*kmsg.JoinGroupResponse, error) {
				if req.MemberID == "" {
					return nil, nil
				}
				return joinedBy(req, 1, groupMember{id: "other", claim: newClaim(idOf("b", "s1"))}, groupMember{id: "foreign"}), nil
			})
			cfg := testConfig(c)
			cfg.identity = always(idOf(name, "s1"))
			m := startMember(t, cfg, 0)
			time.Sleep(500 * time.Millisecond)
			plan := map[string][]byte{}
			for _, a := range c.requests(kmsg.SyncGroup)[0].Request.(*kmsg.SyncGroupRequest).GroupAssignment {
				plan[a.MemberID] = a.MemberAssignment
			}
			require.Len(t, plan, 3)
			shares := map[string]int{}
			for id, b := range plan {
				ps, err := parseAssignment(b, "clicks")
				require.NoError(t, err)
				shares[id] = len(ps)
				if said, refused := parseRefusal(b); refused {
					require.Equal(t, winner, said.Name)
					shares[id] = -1
				}
			}
			if !loses {
				require.Equal(t, map[string]int{"m1": 1, "other": -1, "foreign": 2}, shares)
				require.Len(t, m.generations(), 1)
				return
			}
			require.Equal(t, map[string]int{"m1": -1, "other": 1, "foreign": 2}, shares)
			m.wait(t, time.Second)
			require.ErrorContains(t, m.err, `under the name "b", this process under "c"`)
			require.Empty(t, m.generations())
			require.Len(t, c.requests(kmsg.LeaveGroup), 1, "the winners need not wait for it")
		})
	}
}

// A member that was refused for its store's id alone reads again. One that is new
// does so for 30 seconds, one that was a member for as long as it takes.
func TestGroupRefusedForTheStore(t *testing.T) {
	for _, former := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			c := newCoordinator(t)
			var refused atomic.Pointer[time.Time] // when it was
			on(c, func(_ context.Context, n int, req *kmsg.SyncGroupRequest) (*kmsg.SyncGroupResponse, error) {
				now := time.Now()
				if former && n == 0 || !refused.CompareAndSwap(nil, &now) {
					return nil, nil
				}
				res := kmsg.NewPtrSyncGroupResponse()
				res.MemberAssignment = refusalOf(newClaim(idOf("a", "s2")))
				return res, nil
			})
			on(c, func(context.Context, int, *kmsg.HeartbeatRequest) (*kmsg.HeartbeatResponse, error) {
				if refused.Load() == nil {
					return failWith(kmsg.NewPtrHeartbeatResponse(), kafkago.RebalanceInProgress)
				}
				return nil, nil
			})
			var theirs atomic.Pointer[claim]
			others := newClaim(idOf("a", "s2"))
			theirs.Store(&others)
			on(c, func(context.Context, int, *kmsg.DescribeGroupsRequest) (*kmsg.DescribeGroupsResponse, error) {
				if refused.Load() == nil {
					return described("Dead"), nil
				}
				return described("Stable", groupMember{id: "other", claim: *theirs.Load()}), nil
			})
			cfg := testConfig(c)
			cfg.identity = always(idOf("a", "s1"))
			m := startMember(t, cfg, 0)
			if !former {
				m.wait(t, time.Minute)
				require.Equal(t, 30*time.Second, time.Since(*refused.Load()))
				require.ErrorContains(t, m.err, "into another store")
				require.Len(t, c.requests(kmsg.LeaveGroup), 1)
				return
			}
			time.Sleep(2 * time.Minute)
			require.Len(t, m.generations(), 2)
			require.Empty(t, m.now())
			require.Len(t, c.requests(kmsg.LeaveGroup), 1, "meanwhile the others share out all")
			ours := newClaim(idOf("a", "s1"))
			theirs.Store(&ours)
			time.Sleep(2 * time.Second)
			require.Len(t, m.generations(), 3)
			require.Equal(t, []int32{0, 1, 2}, m.now())
		})
	}
}
