package kafka

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Every partition goes to one member that wants it, evenly, and stays where it is as far
// as that is even.
func TestAssignPartitions(t *testing.T) {
	for seed := range uint64(1000) {
		rng := rand.New(rand.NewPCG(seed, 0))
		counts := map[string]int{"a": rng.IntN(40), "b": rng.IntN(12), "missing": 0}
		var members []groupMember
		for i := range 1 + rng.IntN(7) {
			m := groupMember{id: fmt.Sprintf("m%d", i), topics: []string{[]string{"a", "a", "b", "missing"}[rng.IntN(4)]}}
			if rng.IntN(3) == 0 {
				m.instance = fmt.Sprintf("i%d", rng.IntN(1000))
			}
			if rng.IntN(2) == 0 { // some have the same ones, some more than there are
				m.claim.Generation = int32(1 + rng.IntN(3))
				var had []int32
				for p := range int32(45) {
					if rng.IntN(3) == 0 {
						had = append(had, p)
					}
				}
				m.claim.Held = sharesOf(had)
			}
			members = append(members, m)
		}
		plan := assignPartitions(members, counts)
		require.Len(t, plan, len(members), "also those that get nothing")
		for topic, n := range counts {
			var wanting []groupMember
			owner := map[int32]string{}
			least, most := n, 0
			for _, m := range members {
				if m.topics[0] != topic {
					require.Empty(t, plan[m.id][topic])
					continue
				}
				wanting = append(wanting, m)
				ps := plan[m.id][topic]
				require.True(t, slices.IsSorted(ps))
				least, most = min(least, len(ps)), max(most, len(ps))
				for _, p := range ps {
					require.Empty(t, owner[p], "seed %d: %s/%d has two owners", seed, topic, p)
					owner[p] = m.id
				}
			}
			if len(wanting) == 0 {
				continue
			}
			require.Len(t, owner, n)
			require.LessOrEqual(t, most-least, 1, "seed %d: %s", seed, topic)
			for _, m := range wanting {
				if had := m.claim.Held.partitions(n); unique(wanting, m, n) {
					kept := 0
					for _, p := range had {
						if owner[p] == m.id {
							kept++
						}
					}
					require.GreaterOrEqual(t, kept, min(len(had), n/len(wanting)), "seed %d: what %s had of %s", seed, m.id, topic)
				}
			}
		}
		for range 3 {
			rng.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
			require.Equal(t, plan, assignPartitions(members, counts), "in whatever order they come")
		}

		// Once more, with what each was given: nothing moves.
		for i, m := range members {
			members[i].claim.Generation, members[i].claim.Held = 9, sharesOf(plan[m.id][m.topics[0]])
		}
		require.Equal(t, plan, assignPartitions(members, counts))
	}
}

// unique reports whether no other member says that it has something that m has.
func unique(members []groupMember, m groupMember, n int) bool {
	for _, o := range members {
		if o.id == m.id {
			continue
		}
		for _, p := range o.claim.Held.partitions(n) {
			if slices.Contains(m.claim.Held.partitions(n), p) {
				return false
			}
		}
	}
	return true
}

func TestShares(t *testing.T) {
	for text, list := range map[shares][]int32{
		"":              nil,
		"0":             {0},
		"0-3,7,9-10":    {0, 1, 2, 3, 7, 9, 10},
		"2,4,6":         {2, 4, 6},
		"1998-1999":     {1998, 1999},
		"0-4294967":     nil,
		"x,3-,-2,5-4,8": {8},
	} {
		got := text.partitions(2000)
		if text == "0-4294967" { // only those that there are
			require.Len(t, got, 2000)
			continue
		}
		require.Equal(t, list, got, text)
		if text[:min(1, len(text))] != "x" {
			require.Equal(t, text, sharesOf(list))
		}
	}
}

// What members tell each other is in the form that other clients read and write.
func TestMemberMetadata(t *testing.T) {
	var meta kmsg.ConsumerMemberMetadata
	own := claim{Version: 1, Partitions: 12, Name: "a\"b", Store: "s", Definition: "d", Generation: 4, Held: "0-2"}
	require.NoError(t, meta.ReadFrom(subscription("clicks", own)))
	require.Equal(t, []string{"clicks"}, meta.Topics)
	require.JSONEq(t, `{"tumble":1,"partitions":12,"name":"a\"b","store":"s","definition":"d","generation":4,"held":"0-2"}`, string(meta.UserData))

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
