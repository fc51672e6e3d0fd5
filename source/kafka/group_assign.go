package kafka

import (
	"cmp"
	"fmt"
	"slices"
)

// Protocols, by preference. The broker picks one that every member knows; Java
// knows both, franz-go may be told to. There is no sticky one: a member holds no
// state that would make a partition cheaper to keep than to take over.
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

// subscription is what this member tells the leader, in version 0 of the
// consumer protocol: what it wants to read. With it goes its claim, in the user
// data, and in that how many partitions it knows of: so the broker sees a changed
// member when the topic has grown, and begins a rebalance when that one asks to
// join. A follower that did not change would be told again what it has.
func subscription(topic string, c claim) []byte {
	b := []byte{0, 0, 0, 0, 0, 1}
	b = appendString(b, topic)
	return appendBytes(b, appendJSON(nil, c))
}

func parseMember(id, instance string, subscription []byte) (groupMember, error) {
	m := groupMember{id: id, instance: instance}
	r := groupAnswer{b: subscription}
	r.int16() // later versions only append
	for range r.array(2) {
		m.topics = append(m.topics, r.string())
	}
	if r.err != nil {
		return m, fmt.Errorf("subscription of member %s: %w", id, r.err)
	}
	m.claim = parseClaim(r.bytes())
	return m, nil
}

// appendAssignment writes what the leader tells a member.
func appendAssignment(b []byte, assigned map[string][]int32) []byte {
	b = append(b, 0, 0)
	topics := make([]string, 0, len(assigned))
	for t := range assigned {
		topics = append(topics, t)
	}
	slices.Sort(topics)
	b = appendInt32(b, int32(len(topics)))
	for _, t := range topics {
		b = appendString(b, t)
		b = appendInt32(b, int32(len(assigned[t])))
		for _, p := range assigned[t] {
			b = appendInt32(b, p)
		}
	}
	return appendInt32(b, -1)
}

// parseAssignment returns the partitions of topic, ascending. An empty
// assignment has none.
func parseAssignment(b []byte, topic string) (partitions []int32, err error) {
	if len(b) == 0 {
		return nil, nil
	}
	r := groupAnswer{b: b}
	r.int16()
	for range r.array(6) {
		name, ps := r.string(), r.int32s()
		if name == topic {
			partitions = append(partitions, ps...)
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("assignment: %w", r.err)
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
	topics := make([]string, 0, len(wanted))
	for t := range wanted {
		topics = append(topics, t)
	}
	slices.Sort(topics)

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
