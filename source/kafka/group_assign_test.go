package kafka

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Every partition goes to one member that wants it, evenly, and to the same one
// that another client would give it to.
func TestAssignPartitions(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 0))
			counts := make(map[string]int)
			var names []string
			for i := range 1 + rng.IntN(4) {
				names = append(names, fmt.Sprintf("t%d", i))
				counts[names[i]] = rng.IntN(12)
			}
			var members []groupMember
			var theirs []kmsg.JoinGroupResponseMember
			for i := range 1 + rng.IntN(7) {
				m := groupMember{id: fmt.Sprintf("m%d", i)}
				if rng.IntN(3) == 0 {
					m.instance = fmt.Sprintf("i%d", rng.IntN(1000))
				}
				for _, n := range names {
					if rng.IntN(3) > 0 {
						m.topics = append(m.topics, n)
					}
				}
				members = append(members, m)
				meta := kmsg.NewConsumerMemberMetadata()
				meta.Topics = m.topics
				jm := kmsg.NewJoinGroupResponseMember()
				jm.MemberID, jm.ProtocolMetadata = m.id, meta.AppendTo(nil)
				if m.instance != "" {
					jm.InstanceID = &m.instance
				}
				theirs = append(theirs, jm)
			}
			rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })

			for _, b := range []kgo.GroupBalancer{kgo.RangeBalancer(), kgo.RoundRobinBalancer()} {
				plan, err := assignPartitions(b.ProtocolName(), members, counts)
				require.NoError(t, err)
				require.Len(t, plan, len(members), "also those that get nothing")

				owners := make(map[string]int)
				for _, m := range members {
					for topic, ps := range plan[m.id] {
						require.Contains(t, m.topics, topic)
						for _, p := range ps {
							owners[fmt.Sprint(topic, "/", p)]++
						}
					}
				}
				for topic, n := range counts {
					wanted := slices.ContainsFunc(members, func(m groupMember) bool { return slices.Contains(m.topics, topic) })
					for p := range n {
						if wanted {
							require.Equal(t, 1, owners[fmt.Sprint(topic, "/", p)])
						}
					}
				}

				slices.SortFunc(theirs, func(a, b kmsg.JoinGroupResponseMember) int { // as franz-go promises its balancers
					switch {
					case a.InstanceID != nil && b.InstanceID == nil:
						return -1
					case a.InstanceID == nil && b.InstanceID != nil:
						return 1
					case a.InstanceID != nil && *a.InstanceID != *b.InstanceID:
						if *a.InstanceID < *b.InstanceID {
							return -1
						}
						return 1
					case a.MemberID < b.MemberID:
						return -1
					}
					return 1
				})
				counts32 := make(map[string]int32)
				for topic, n := range counts {
					counts32[topic] = int32(n)
				}
				cb, err := kgo.NewConsumerBalancer(b.(kgo.ConsumerBalancerBalance), theirs)
				require.NoError(t, err)
				balanced, err := cb.BalanceOrError(counts32)
				require.NoError(t, err)
				for _, a := range balanced.IntoSyncAssignment() {
					var want kmsg.ConsumerMemberAssignment
					require.NoError(t, want.ReadFrom(a.MemberAssignment))
					got := 0
					for _, wt := range want.Topics {
						require.ElementsMatch(t, wt.Partitions, plan[a.MemberID][wt.Topic], "%s: %s of %s", b.ProtocolName(), a.MemberID, wt.Topic)
						got += len(wt.Partitions)
					}
					have := 0
					for _, ps := range plan[a.MemberID] {
						have += len(ps)
					}
					require.Equal(t, got, have)
				}
			}
		})
	}
	_, err := assignPartitions("sticky", []groupMember{{id: "m"}}, nil)
	require.ErrorContains(t, err, `"sticky"`)
}

// What members tell each other is in the form that other clients read and write.
func TestMemberMetadata(t *testing.T) {
	var meta kmsg.ConsumerMemberMetadata
	own := claim{Version: 1, Partitions: 12, Name: "a\"b", Store: "s", Definition: "d", Generation: 4, Held: 3}
	require.NoError(t, meta.ReadFrom(subscription("clicks", own)))
	require.Equal(t, []string{"clicks"}, meta.Topics)
	require.JSONEq(t, `{"tumble":1,"partitions":12,"name":"a\"b","store":"s","definition":"d","generation":4,"held":3}`, string(meta.UserData))

	m, err := parseMember("m1", "pod", subscription("clicks", own))
	require.NoError(t, err)
	require.Equal(t, groupMember{id: "m1", instance: "pod", topics: []string{"clicks"}, claim: own}, m)

	foreign := kmsg.NewConsumerMemberMetadata()
	foreign.Version, foreign.Topics, foreign.UserData = 3, []string{"a", "b"}, []byte{1, 2, 3}
	foreign.OwnedPartitions = append(foreign.OwnedPartitions, kmsg.ConsumerMemberMetadataOwnedPartition{Topic: "a", Partitions: []int32{4}})
	m, err = parseMember("m2", "", foreign.AppendTo(nil))
	require.NoError(t, err)
	require.Equal(t, groupMember{id: "m2", topics: []string{"a", "b"}}, m)

	var theirs kmsg.ConsumerMemberAssignment
	b := assignmentOf(map[string][]int32{"clicks": {3, 1}, "a": {0}})
	require.NoError(t, theirs.ReadFrom(b))
	require.Len(t, theirs.Topics, 2)
	require.Equal(t, "clicks", theirs.Topics[1].Topic)
	require.Equal(t, []int32{3, 1}, theirs.Topics[1].Partitions)
	require.Empty(t, theirs.UserData, "with any a broker does not admit members of the newer protocol")
	partitions, err := parseAssignment(b, "clicks")
	require.NoError(t, err)
	require.Equal(t, []int32{1, 3}, partitions)

	theirs.Version, theirs.UserData = 1, []byte{9}
	partitions, err = parseAssignment(theirs.AppendTo(nil), "a")
	require.NoError(t, err)
	require.Equal(t, []int32{0}, partitions)
	partitions, err = parseAssignment(nil, "clicks")
	require.NoError(t, err)
	require.Empty(t, partitions)

	_, err = parseAssignment(b[:len(b)-5], "clicks")
	require.Error(t, err)
	_, err = parseMember("m3", "", []byte{0, 0, 0x7f, 0xff, 0xff, 0xff})
	require.ErrorContains(t, err, "member m3")
}

// A member that sends garbage gets an error of ours, not a panic, and no more
// memory than it sent.
func FuzzMemberMetadata(f *testing.F) {
	f.Add([]byte(subscription("clicks", claim{Version: 1, Partitions: 12, Name: "n", Definition: "d"})))
	f.Add([]byte(refusalOf(claim{Version: 1, Name: "n", Definition: "d"})))
	f.Add([]byte(assignmentOf(map[string][]int32{"clicks": {3, 1}})))
	f.Add([]byte{0, 0, 0xff, 0xff, 0xff, 0xff, 0x80, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseMember("m", "", b); err == nil {
			var theirs kmsg.ConsumerMemberMetadata
			if theirs.ReadFrom(b) == nil {
				require.Equal(t, len(theirs.Topics), len(m.topics))
			}
		}
		if ps, err := parseAssignment(b, "clicks"); err == nil {
			require.LessOrEqual(t, 4*len(ps), len(b))
			require.True(t, slices.IsSorted(ps))
		}
		if winner, refused := parseRefusal(b); refused {
			require.True(t, winner.checked())
		}
	})
}
