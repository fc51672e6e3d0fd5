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
	noted    bool // it is one of ours: its assignment may carry a note
}

// subscription is what this member tells the leader, in version 0 of the
// consumer protocol: what it wants to read. The note with it makes the broker see
// a changed member when the topic has grown, so that asking to join again begins
// a rebalance; else it would answer a follower with what it has already.
func subscription(topic string, partitions int) []byte {
	b := []byte{0, 0, 0, 0, 0, 1}
	b = appendString(b, topic)
	return appendBytes(b, appendNote(nil, partitions))
}

func parseMember(id, instance string, subscription []byte) (groupMember, error) {
	m := groupMember{id: id, instance: instance}
	r := groupAnswer{b: subscription}
	r.int16() // later versions only append
	for range r.array(2) {
		m.topics = append(m.topics, r.string())
	}
	_, m.noted = parseNote(r.bytes())
	if r.err != nil {
		return m, fmt.Errorf("subscription of member %s: %w", id, r.err)
	}
	return m, nil
}

// appendAssignment writes what the leader tells a member; partitions is how many
// it found in the topic that the member shares with us, < 0: no note.
func appendAssignment(b []byte, assigned map[string][]int32, partitions int) []byte {
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
	if partitions < 0 {
		return appendInt32(b, -1)
	}
	return appendBytes(b, appendNote(nil, partitions))
}

// parseAssignment returns the partitions of topic, ascending, and how many the
// leader found in it, -1: it did not say. An empty assignment has none.
func parseAssignment(b []byte, topic string) (partitions []int32, count int, err error) {
	if len(b) == 0 {
		return nil, -1, nil
	}
	r := groupAnswer{b: b}
	r.int16()
	for range r.array(6) {
		name, ps := r.string(), r.int32s()
		if name == topic {
			partitions = append(partitions, ps...)
		}
	}
	count, ok := parseNote(r.bytes())
	if !ok {
		count = -1
	}
	if r.err != nil {
		return nil, -1, fmt.Errorf("assignment: %w", r.err)
	}
	slices.Sort(partitions)
	return slices.Compact(partitions), count, nil
}

// A note says how many partitions its writer knew the topic to have. It lies in
// the user data, which other clients carry and do not read.
func appendNote(b []byte, partitions int) []byte {
	return fmt.Appendf(b, "tumble/1 %d", partitions)
}

func parseNote(b []byte) (partitions int, ok bool) {
	_, err := fmt.Sscanf(string(b), "tumble/1 %d", &partitions)
	return partitions, err == nil && partitions >= 0
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
