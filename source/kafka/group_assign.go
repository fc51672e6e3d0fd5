package kafka

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// groupProtocol is what the members of a group agree on. Those of another make know no
// such protocol, so the coordinator lets only one of the two kinds into a group:
// partitions that another consumer reads would not be counted.
const groupProtocol = "tumble"

// A groupMember is a process of the group, as its leader sees it.
type groupMember struct {
	id       string
	instance string // "": dynamic
	topics   []string
	claim    claim
	refused  bool // as describe finds it: it is about to go
}

// subscription names the topic that this member wants to read, in version 0 of the
// consumer protocol, with its claim as user data. The claim holds the number of
// partitions: when the topic has grown, the broker sees a member that changed, and
// begins a rebalance when that one asks to join. An unchanged follower would get
// its old assignment again.
func subscription(topic string, c claim) (b wire.Appender) {
	b.Int16(0) // version
	b.Int32(1)
	b.Text(topic)
	b.Bytes(toJSON(c))
	return b
}

func parseMember(id, instance string, subscription []byte) (groupMember, error) {
	m := groupMember{id: id, instance: instance}
	r := wire.NewReader(subscription)
	r.Int16() // later versions only append
	for range r.Array() {
		m.topics = append(m.topics, r.Text())
	}
	if r.Err() != nil {
		return m, fmt.Errorf("subscription of member %s: %w", id, r.Err())
	}
	m.claim = parseClaim(r.Bytes())
	return m, nil
}

// assignmentOf is the leader's message to a member.
func assignmentOf(assigned map[string][]int32) (b wire.Appender) {
	b.Int16(0) // version
	b.Int32(int32(len(assigned)))
	for _, t := range slices.Sorted(maps.Keys(assigned)) {
		b.Text(t)
		b.Int32(int32(len(assigned[t])))
		for _, p := range assigned[t] {
			b.Int32(p)
		}
	}
	b.Int32(-1) // no user data
	return b
}

// parseAssignment returns the partitions of topic, ascending. An empty
// assignment has none.
func parseAssignment(b []byte, topic string) (partitions []int32, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	r := wire.NewReader(b)
	r.Int16() // version
	for range r.Array() {
		name, ps := r.Text(), r.Int32s()
		if name == topic {
			partitions = append(partitions, ps...)
		}
	}
	if r.Err() != nil {
		return nil, fmt.Errorf("assignment: %w", r.Err())
	}
	slices.Sort(partitions)
	return slices.Compact(partitions), nil
}

// shares is a list of partitions as text, ascending: "0-3,7". It is a claim about
// thousands of them in a subscription that a coordinator stores for each member.
type shares string

func sharesOf(partitions []int32) shares {
	var b strings.Builder
	for i := 0; i < len(partitions); {
		j := i
		for j+1 < len(partitions) && partitions[j+1] == partitions[j]+1 {
			j++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprint(&b, partitions[i])
		if j > i {
			fmt.Fprintf(&b, "-%d", partitions[j])
		}
		i = j + 1
	}
	return shares(b.String())
}

// partitions returns those below n.
func (s shares) partitions(n int) []int32 {
	var all []int32
	for part := range strings.SplitSeq(string(s), ",") {
		first, last, ok := strings.Cut(part, "-")
		if !ok {
			last = first
		}
		from, err1 := strconv.ParseInt(first, 10, 32)
		to, err2 := strconv.ParseInt(last, 10, 32)
		if err1 != nil || err2 != nil || from < 0 {
			continue
		}
		for p := from; p <= to && p < int64(n); p++ {
			all = append(all, int32(p))
		}
	}
	return all
}

// assignPartitions shares out the partitions of every topic evenly among the members
// that subscribed to it. Each keeps what it has, as far as that is even; of two that
// say they have one it is the member of the later generation. The same members and
// counts give the same answer in whatever order they come.
func assignPartitions(members []groupMember, counts map[string]int) map[string]map[string][]int32 {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b groupMember) int {
		// Static members first, by their lasting name: it keeps partitions
		// where they were if all start afresh.
		if (a.instance == "") != (b.instance == "") {
			return cmp.Compare(b.instance, a.instance)
		}
		return cmp.Or(cmp.Compare(a.instance, b.instance), cmp.Compare(a.id, b.id))
	})
	plan := make(map[string]map[string][]int32, len(members))
	wanted := map[string][]groupMember{}
	for _, m := range members {
		plan[m.id] = map[string][]int32{}
		for _, t := range slices.Compact(slices.Sorted(slices.Values(m.topics))) {
			wanted[t] = append(wanted[t], m)
		}
	}
	for topic, members := range wanted {
		for i, partitions := range assignTopic(members, topic, counts[topic]) {
			if len(partitions) > 0 {
				plan[members[i].id][topic] = partitions
			}
		}
	}
	return plan
}

// assignTopic is assignPartitions for one topic. It returns the partitions by member.
func assignTopic(members []groupMember, topic string, n int) [][]int32 {
	owner := make([]int, n) // of each partition, -1 for none
	for p := range owner {
		owner[p] = -1
	}
	for i, m := range members {
		if len(m.topics) != 1 || m.topics[0] != topic {
			continue // what it has is not said of this topic
		}
		for _, p := range m.claim.Held.partitions(n) {
			if had := owner[p]; had < 0 || members[had].claim.Generation < m.claim.Generation {
				owner[p] = i
			}
		}
	}
	each, more := n/len(members), n%len(members) // more members get one more than each
	shares := make([][]int32, len(members))
	for p, i := range owner {
		switch {
		case i < 0:
		case len(shares[i]) < each:
			shares[i] = append(shares[i], int32(p))
		case len(shares[i]) == each && more > 0:
			shares[i] = append(shares[i], int32(p))
			more--
		default:
			owner[p] = -1
		}
	}
	free := make([]int32, 0, n)
	for p, i := range owner {
		if i < 0 {
			free = append(free, int32(p))
		}
	}
	for i := range shares {
		quota := each
		if more > 0 && len(shares[i]) <= each {
			quota++
			more--
		}
		if take := quota - len(shares[i]); take > 0 {
			shares[i] = append(shares[i], free[:take]...)
			free = free[take:]
			slices.Sort(shares[i])
		}
	}
	return shares
}
