package kafka

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// Protocols, by preference. The broker picks one that every member knows. Java
// clients know both, and franz-go can be told to. There is no sticky one: a member
// holds no state that would make a partition cheaper to keep than to take over.
const (
	rangeProtocol      = "range"
	roundRobinProtocol = "roundrobin"
)

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

// assignPartitions shares out the partitions of every topic among the members that
// subscribed to it, as the protocol of that name does. The same members and
// counts give the same answer in whatever order they come.
func assignPartitions(protocol string, members []groupMember, counts map[string]int) (map[string]map[string][]int32, error) {
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b groupMember) int {
		// Static members first, by their lasting name: it keeps partitions
		// where they were over a restart.
		if (a.instance == "") != (b.instance == "") {
			return cmp.Compare(b.instance, a.instance)
		}
		return cmp.Or(cmp.Compare(a.instance, b.instance), cmp.Compare(a.id, b.id))
	})
	wanted := make(map[string][]int) // indexes of members, by topic
	plan := make(map[string]map[string][]int32, len(members))
	for i, m := range members {
		plan[m.id] = make(map[string][]int32)
		for _, t := range m.topics {
			if w := wanted[t]; len(w) == 0 || w[len(w)-1] != i { // a topic named twice
				wanted[t] = append(w, i)
			}
		}
	}
	topics := slices.Sorted(maps.Keys(wanted))
	give := func(i int, topic string, partition int) {
		to := plan[members[i].id]
		to[topic] = append(to[topic], int32(partition))
	}
	switch protocol {
	case rangeProtocol:
		for _, t := range topics {
			each, more := counts[t]/len(wanted[t]), counts[t]%len(wanted[t])
			next := 0
			for k, i := range wanted[t] {
				n := each
				if k < more {
					n++
				}
				for range n {
					give(i, t, next)
					next++
				}
			}
		}
	case roundRobinProtocol:
		turn := 0
		for _, t := range topics {
			for p := range counts[t] {
				for !slices.Contains(wanted[t], turn) {
					turn = (turn + 1) % len(members)
				}
				give(turn, t, p)
				turn = (turn + 1) % len(members)
			}
		}
	default:
		return nil, fmt.Errorf("the group's protocol is %q, which no member offered", protocol)
	}
	return plan, nil
}
