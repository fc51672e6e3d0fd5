package kafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// The requests of a member, one function each. kafka-go's own Heartbeat and
// LeaveGroup misread the answers, its group requests look the coordinator up each
// time and drop the error of that, and its Metadata request is answered from a
// cache that holds our topic only.

const consumerProtocol = "consumer" // the protocol type of consumer groups

// findCoordinator asks any broker which one coordinates the group.
func (g *group) findCoordinator(ctx context.Context) (int32, error) {
	ctx, cancel := context.WithTimeout(ctx, g.callTimeout())
	defer cancel()
	var b wire.Appender
	b.Text(g.cfg.id)
	b.Int8(0) // a group, not a transaction
	r, err := g.cfg.wire.Do(ctx, &wire.Request{API: wire.FindCoordinator, Node: wire.AnyNode, Body: b})
	if err != nil {
		return 0, err
	}
	r.Int32() // throttled for
	code := r.Int16()
	r.Text() // message
	node := r.Int32()
	switch {
	case r.Err() != nil:
		return 0, r.Err()
	case code != 0:
		return 0, kafkago.Error(code)
	case node < 0:
		return 0, kafkago.GroupCoordinatorNotAvailable
	}
	return node, nil
}

// metadata returns how many partitions those of the topics have that exist and
// may be seen.
func (g *group) metadata(ctx context.Context, topics []string) (map[string]int, error) {
	r, err := g.cfg.wire.Do(ctx, &wire.Request{API: wire.Metadata, Node: wire.AnyNode, Body: metadataRequest(topics...)})
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	counts := make(map[string]int)
	var failed error
	err = readMetadata(r, func(name string, code int16, found topicLayout) {
		switch code := kafkago.Error(code); code {
		case 0:
			counts[name] = len(found.partitions) // one without a leader is one all the same
		case kafkago.UnknownTopicOrPartition, kafkago.TopicAuthorizationFailed, kafkago.InvalidTopic:
			// Not ours: nothing to share out, and no reason to fail the group.
		default:
			failed = fmt.Errorf("metadata of %s: %w", name, code)
		}
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("metadata: %w", err)
	case failed != nil:
		return nil, failed
	}
	return counts, nil
}

// call asks the coordinator, looking it up when it has to. read takes the answer
// from after its throttle time and returns its error code. The transport notices
// only by using it that a connection has died, so a request that got no answer is
// repeated at once. Every one here may be.
func (g *group) call(ctx context.Context, name string, api wire.API, body wire.Appender, read func(*wire.Reader) (code int16)) error {
	var r *wire.Reader
	var err error
	for try := 1; ; try++ {
		r, err = g.ask(ctx, api, body)
		if err == nil || ctx.Err() != nil || try == 3 || errors.As(err, new(kafkago.Error)) || errors.Is(err, wire.ErrOld) {
			break
		}
	}
	if err == nil {
		r.Int32() // throttled for
		code := read(r)
		if err = r.Err(); err == nil {
			err = g.check(code)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (g *group) ask(ctx context.Context, api wire.API, body wire.Appender) (*wire.Reader, error) {
	node := g.node.Load()
	if node == wire.AnyNode {
		var err error
		if node, err = g.findCoordinator(ctx); err != nil {
			return nil, fmt.Errorf("find coordinator: %w", err)
		}
		g.node.Store(node)
	}
	r, err := g.cfg.wire.Do(ctx, &wire.Request{API: api, Node: node, Body: body})
	if err != nil && !errors.Is(err, context.Canceled) {
		g.node.CompareAndSwap(node, wire.AnyNode)
	}
	return r, err
}

// check turns the code of a coordinator's answer into an error.
func (g *group) check(code int16) error {
	err := kafkago.Error(code)
	switch err {
	case 0:
		return nil
	case kafkago.NotCoordinatorForGroup, kafkago.GroupCoordinatorNotAvailable:
		g.node.Store(wire.AnyNode)
	}
	return err
}

// callTimeout bounds a request that the coordinator answers at once, so that a
// session outlives two that hang.
func (g *group) callTimeout() time.Duration { return min(g.cfg.session/3, 10*time.Second) }

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
	// Another member may have asked for more time than we do. Then this is asked
	// again, which the coordinator takes for the same.
	ctx, cancel := context.WithTimeout(ctx, g.cfg.rebalance+5*time.Second)
	defer cancel()
	var b wire.Appender
	b.Text(g.cfg.id)
	b.Int32(int32(g.cfg.session.Milliseconds()))
	b.Int32(int32(g.cfg.rebalance.Milliseconds()))
	b.Text(g.memberID)
	b.Nullable(g.cfg.instanceID)
	b.Text(consumerProtocol)
	b.Int32(1)
	b.Text(groupProtocol)
	b.Bytes(subscription)
	var a joinAnswer
	err := g.call(ctx, "join", wire.JoinGroup, b, func(r *wire.Reader) (code int16) {
		code = r.Int16()
		a = joinAnswer{generation: r.Int32(), protocol: r.Text(), leader: r.Text(), memberID: r.Text()}
		for range r.Array() {
			a.members = append(a.members, joinMember{r.Text(), r.Text(), r.Bytes()})
		}
		return code
	})
	if err != nil && !errors.Is(err, kafkago.MemberIDRequired) {
		return joinAnswer{}, err
	}
	return a, err
}

// describe returns the members of the group, none if it does not exist. Their
// subscriptions and claims are known only if the group is settled: no rebalance
// is under way.
func (g *group) describe(ctx context.Context) (members []groupMember, settled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.callTimeout())
	defer cancel()
	var b wire.Appender
	b.Int32(1)
	b.Text(g.cfg.id)
	b.Int8(0) // not the allowed operations
	err = g.call(ctx, "describe", wire.DescribeGroups, b, func(r *wire.Reader) (code int16) {
		for range r.Array() {
			code = cmp.Or(code, r.Int16())
			r.Text() // group
			state := r.Text()
			settled = state != "PreparingRebalance" && state != "CompletingRebalance"
			r.Text() // protocol type
			r.Text() // protocol
			for range r.Array() {
				id, instance := r.Text(), r.Text()
				r.Text() // client id
				r.Text() // host
				subscription, assigned := r.Bytes(), r.Bytes()
				m := groupMember{id: id, instance: instance}
				if known, err := parseMember(id, instance, subscription); err == nil {
					m = known
				}
				_, m.refused = parseRefusal(assigned)
				members = append(members, m)
			}
			r.Int32() // operations
		}
		return code
	})
	if err != nil {
		return nil, false, err
	}
	return members, settled, nil
}

type memberAssignment struct {
	memberID   string
	assignment []byte
}

// syncGroup returns this member's assignment once the leader has sent plan, which
// is nil for all others.
func (g *group) syncGroup(ctx context.Context, a assignment, plan []memberAssignment) (mine []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.rebalance+5*time.Second)
	defer cancel()
	b := g.identified(a)
	b.Int32(int32(len(plan)))
	for _, m := range plan {
		b.Text(m.memberID)
		b.Bytes(m.assignment)
	}
	err = g.call(ctx, "sync", wire.SyncGroup, b, func(r *wire.Reader) (code int16) {
		code, mine = r.Int16(), r.Bytes()
		return code
	})
	return mine, err
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
	return g.call(ctx, "heartbeat", wire.Heartbeat, g.identified(a), (*wire.Reader).Int16)
}

func (g *group) leaveGroup(ctx context.Context, memberID string) error {
	var b wire.Appender
	b.Text(g.cfg.id)
	b.Int32(1)
	b.Text(memberID)
	b.Nullable("") // instance
	return g.call(ctx, "leave", wire.LeaveGroup, b, func(r *wire.Reader) (code int16) {
		code = r.Int16()
		for range r.Array() {
			r.Text() // member
			r.Text() // instance
			code = cmp.Or(code, r.Int16())
		}
		return code
	})
}

// commit shows offsets, the next to read, to the tools of the ecosystem. Nothing
// here reads them. It may be called from any goroutine while serve runs, also
// while it drains, and returns once the coordinator has answered, ctx ended, or
// callTimeout has passed. It fails when the generation is over.
func (g *group) commit(ctx context.Context, a assignment, offsets map[int32]int64) error {
	if len(offsets) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, g.callTimeout())
	defer cancel()
	b := g.identified(a)
	b.Int32(1)
	b.Text(g.cfg.topic)
	b.Int32(int32(len(offsets)))
	for _, p := range slices.Sorted(maps.Keys(offsets)) {
		b.Int32(p)
		b.Int64(offsets[p])
		b.Int32(-1)    // leader epoch: unknown
		b.Nullable("") // metadata
	}
	const name = "commit offsets"
	var failed error
	err := g.call(ctx, name, wire.OffsetCommit, b, func(r *wire.Reader) int16 {
		for range r.Array() {
			r.Text() // topic
			for range r.Array() {
				p := r.Int32()
				if err := g.check(r.Int16()); err != nil && failed == nil {
					failed = fmt.Errorf("%s: %s/%d: %w", name, g.cfg.topic, p, err)
				}
			}
		}
		return 0
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("kafka: group %s: %w", g.cfg.id, err)
	}
	return nil
}

// identified begins a request with the group and the member that asks.
func (g *group) identified(a assignment) (b wire.Appender) {
	b.Text(g.cfg.id)
	b.Int32(a.generation)
	b.Text(a.memberID)
	b.Nullable(g.cfg.instanceID)
	return b
}
