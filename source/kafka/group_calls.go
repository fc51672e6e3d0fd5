package kafka

import (
	"context"
	"fmt"
	"slices"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// The requests of a member, one function each: what goes out, what comes back,
// how long it may take.

const consumerProtocol = "consumer" // the protocol type of consumer groups

// findCoordinator asks any broker which one coordinates the group.
func (g *group) findCoordinator(ctx context.Context) (int32, error) {
	ctx, cancel := context.WithTimeout(ctx, g.callTimeout())
	defer cancel()
	b := appendString(nil, g.cfg.id)
	b = append(b, 0) // a group, not a transaction
	r, err := groupExchange(ctx, &g.cfg, anyBroker, protocol.FindCoordinator, findCoordinatorVersion, b)
	if err != nil {
		return 0, err
	}
	r.int32() // throttled for
	code := r.int16()
	r.string() // message
	node := r.int32()
	if r.err != nil {
		return 0, r.err
	}
	if code != 0 {
		return 0, kafkago.Error(code)
	}
	if node < 0 {
		return 0, kafkago.GroupCoordinatorNotAvailable
	}
	return node, nil
}

// metadata asks any broker how many partitions topics have; those that do not
// exist are left out and not created.
func (g *group) metadata(ctx context.Context, topics []string) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(ctx, g.callTimeout())
	defer cancel()
	b := appendInt32(nil, int32(len(topics)))
	for _, t := range topics {
		b = appendString(b, t)
	}
	b = append(b, 0) // do not create
	r, err := groupExchange(ctx, &g.cfg, anyBroker, protocol.Metadata, metadataVersion, b)
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	r.int32() // throttled for
	for range r.array(12) {
		r.int32()  // node
		r.string() // host
		r.int32()  // port
		r.string() // rack
	}
	r.string() // cluster
	r.int32()  // controller
	counts := make(map[string]int)
	for range r.array(9) {
		code := kafkago.Error(r.int16())
		name := r.string()
		r.int8() // internal
		n := r.array(22)
		for range n {
			r.int16() // error: a partition without a leader is one all the same
			r.int32() // index
			r.int32() // leader
			r.int32s()
			r.int32s()
			r.int32s()
		}
		switch code {
		case 0:
			counts[name] = n
		case kafkago.UnknownTopicOrPartition, kafkago.TopicAuthorizationFailed, kafkago.InvalidTopic:
			// Not ours: nothing to share out, and no reason to fail the group.
		default:
			return nil, fmt.Errorf("metadata of %s: %w", name, code)
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("metadata: %w", r.err)
	}
	return counts, nil
}

type joinAnswer struct {
	generation int32
	protocol   string
	leader     string
	memberID   string // also with MEMBER_ID_REQUIRED
	members    []joinMember
}

type joinMember struct {
	id, instance string
	subscription []byte
}

// joinGroup returns when all members have joined, or the coordinator has removed
// those that did not.
func (g *group) joinGroup(ctx context.Context, subscription []byte) (joinAnswer, error) {
	// Another member may have asked for more time than we do; then this is
	// asked again, which the coordinator takes for the same.
	ctx, cancel := context.WithTimeout(ctx, g.cfg.rebalance+5*time.Second)
	defer cancel()
	b := appendString(nil, g.cfg.id)
	b = appendInt32(b, int32(g.cfg.session.Milliseconds()))
	b = appendInt32(b, int32(g.cfg.rebalance.Milliseconds()))
	b = appendString(b, g.memberID)
	b = appendNullable(b, g.cfg.instanceID)
	b = appendString(b, consumerProtocol)
	b = appendInt32(b, 2)
	for _, name := range []string{rangeProtocol, roundRobinProtocol} {
		b = appendString(b, name)
		b = appendBytes(b, subscription)
	}
	r, err := g.ask(ctx, protocol.JoinGroup, joinGroupVersion, b)
	if err != nil {
		return joinAnswer{}, fmt.Errorf("join: %w", err)
	}
	var a joinAnswer
	r.int32() // throttled for
	code := r.int16()
	a.generation = r.int32()
	a.protocol = r.string()
	a.leader = r.string()
	a.memberID = r.string()
	a.members = make([]joinMember, r.array(8))
	for i := range a.members {
		a.members[i] = joinMember{r.string(), r.string(), r.bytes()}
	}
	if r.err != nil {
		return joinAnswer{}, fmt.Errorf("join: %w", r.err)
	}
	if err := g.check(code); err != nil {
		if err != kafkago.MemberIDRequired {
			a.memberID = ""
		}
		return a, fmt.Errorf("join: %w", err)
	}
	return a, nil
}

// describe returns the members of the group, none if it does not exist. What they
// want and claim is known only if the group is settled: no rebalance is under
// way.
func (g *group) describe(ctx context.Context) (members []groupMember, settled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.callTimeout())
	defer cancel()
	b := appendInt32(nil, 1)
	b = appendString(b, g.cfg.id)
	b = append(b, 0) // not which operations are allowed
	r, err := g.ask(ctx, protocol.DescribeGroups, describeGroupsVersion, b)
	if err != nil {
		return nil, false, fmt.Errorf("describe: %w", err)
	}
	var code int16
	r.int32() // throttled for
	for range r.array(18) {
		if c := r.int16(); code == 0 {
			code = c
		}
		r.string() // group
		state := r.string()
		settled = state != "PreparingRebalance" && state != "CompletingRebalance"
		r.string() // protocol type
		r.string() // protocol
		for range r.array(16) {
			id, instance := r.string(), r.string()
			r.string() // client id
			r.string() // host
			subscription, assigned := r.bytes(), r.bytes()
			m := groupMember{id: id, instance: instance}
			if known, err := parseMember(id, instance, subscription); err == nil {
				m = known
			}
			_, m.refused = parseRefusal(assigned)
			members = append(members, m)
		}
		r.int32() // operations
	}
	if r.err != nil {
		return nil, false, fmt.Errorf("describe: %w", r.err)
	}
	if err := g.check(code); err != nil {
		return nil, false, fmt.Errorf("describe: %w", err)
	}
	return members, settled, nil
}

type memberAssignment struct {
	memberID   string
	assignment []byte
}

// syncGroup returns this member's assignment once the leader has sent plan, which
// is nil for all others.
func (g *group) syncGroup(ctx context.Context, a assignment, plan []memberAssignment) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.rebalance+5*time.Second)
	defer cancel()
	b := g.appendMember(nil, a)
	b = appendInt32(b, int32(len(plan)))
	for _, m := range plan {
		b = appendString(b, m.memberID)
		b = appendBytes(b, m.assignment)
	}
	r, err := g.ask(ctx, protocol.SyncGroup, syncGroupVersion, b)
	if err != nil {
		return nil, fmt.Errorf("sync: %w", err)
	}
	r.int32() // throttled for
	code := r.int16()
	mine := r.bytes()
	if r.err != nil {
		return nil, fmt.Errorf("sync: %w", r.err)
	}
	if err := g.check(code); err != nil {
		return nil, fmt.Errorf("sync: %w", err)
	}
	return mine, nil
}

// heartbeat takes no longer than until expiry, when the session is over, unless
// that has passed.
func (g *group) heartbeat(ctx context.Context, a assignment, expiry time.Time) error {
	deadline := time.Now().Add(g.callTimeout())
	if expiry.Before(deadline) && time.Now().Before(expiry) {
		deadline = expiry
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	r, err := g.ask(ctx, protocol.Heartbeat, heartbeatVersion, g.appendMember(nil, a))
	if err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	r.int32() // throttled for
	code := r.int16()
	if r.err != nil {
		return fmt.Errorf("heartbeat: %w", r.err)
	}
	if err := g.check(code); err != nil {
		return fmt.Errorf("heartbeat: %w", err)
	}
	return nil
}

func (g *group) leaveGroup(ctx context.Context, memberID string) error {
	b := appendString(nil, g.cfg.id)
	b = appendInt32(b, 1)
	b = appendString(b, memberID)
	b = appendNullable(b, "")
	r, err := g.ask(ctx, protocol.LeaveGroup, leaveGroupVersion, b)
	if err != nil {
		return err
	}
	r.int32() // throttled for
	code := r.int16()
	for range r.array(6) {
		r.string() // member
		r.string() // instance
		if c := r.int16(); code == 0 {
			code = c
		}
	}
	if r.err != nil {
		return r.err
	}
	return g.check(code)
}

func (g *group) offsetCommit(ctx context.Context, a assignment, offsets map[int32]int64) error {
	ctx, cancel := context.WithTimeout(ctx, g.callTimeout())
	defer cancel()
	partitions := make([]int32, 0, len(offsets))
	for p := range offsets {
		partitions = append(partitions, p)
	}
	slices.Sort(partitions)
	b := g.appendMember(nil, a)
	b = appendInt32(b, 1)
	b = appendString(b, g.cfg.topic)
	b = appendInt32(b, int32(len(partitions)))
	for _, p := range partitions {
		b = appendInt32(b, p)
		b = appendInt64(b, offsets[p])
		b = appendInt32(b, -1)    // leader epoch: unknown
		b = appendNullable(b, "") // metadata
	}
	r, err := g.ask(ctx, protocol.OffsetCommit, offsetCommitVersion, b)
	if err != nil {
		return err
	}
	r.int32() // throttled for
	var failed error
	for range r.array(6) {
		r.string() // topic
		for range r.array(6) {
			p := r.int32()
			if err := g.check(r.int16()); err != nil && failed == nil {
				failed = fmt.Errorf("%s/%d: %w", g.cfg.topic, p, err)
			}
		}
	}
	if r.err != nil {
		return r.err
	}
	return failed
}

// appendMember writes what most requests begin with: who asks.
func (g *group) appendMember(b []byte, a assignment) []byte {
	b = appendString(b, g.cfg.id)
	b = appendInt32(b, a.generation)
	b = appendString(b, a.memberID)
	return appendNullable(b, g.cfg.instanceID)
}
