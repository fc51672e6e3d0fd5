package kafka

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"

	"github.com/tumblestream/tumble"
)

// A topicID names one incarnation of a topic; Kafka never gives it twice.
type topicID [16]byte

func (t topicID) String() string { return hex.EncodeToString(t[:]) }

type topicLayout struct {
	id         topicID
	operations int32 // that are allowed, a bit each; notTold: the broker does not say
	partitions map[int32]leadership
}

type leadership struct {
	leader, epoch int32 // leader -1: none at present
}

var errNoTopic = errors.New("topic does not exist")

// client asks the cluster about one topic.
type client struct {
	transport kafkago.RoundTripper
	addr      net.Addr
	clientID  string
	topic     string
	timeout   time.Duration // of one question

	known *knownAbilities
}

// roundTrip sends c and says on failure whom it asked.
func (c *client) roundTrip(ctx context.Context, r *call) error {
	r.clientID = c.clientID
	asked, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	_, err := c.transport.RoundTrip(asked, c.addr, r)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return c.explain(r, err, asked.Err() != nil)
}

// explain adds to a transport error what a person needs to act on it.
func (c *client) explain(r *call, err error, timeout bool) error {
	whom := c.addr.String()
	if r.broker >= 0 {
		whom = fmt.Sprintf("broker %d (of %s)", r.broker, whom)
	}
	if timeout {
		return fmt.Errorf("%v: no answer from %s within %v: %w", r.key, whom, c.timeout, err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		// All that some brokers say to a wrong password or to TLS where none is.
		return fmt.Errorf("%v: %s closed the connection (do SASL and TLS settings match, and the port?): %w", r.key, whom, err)
	}
	if alert := new(net.OpError); errors.As(err, &alert) && alert.Op == "remote error" { // so crypto/tls names what the other side said
		return fmt.Errorf("%v: %s refuses TLS with this client (does it want a certificate of the client, or another one?): %w", r.key, whom, err)
	}
	return fmt.Errorf("%v: %s: %w", r.key, whom, err)
}

// What a broker says of the operations that are allowed.
const (
	notTold = math.MinInt32
	mayRead = 1 << 3
)

// layout asks a broker for the topic's id and leaders. It never creates the
// topic. A topic that does not exist is errNoTopic.
func (c *client) layout(ctx context.Context) (topicLayout, error) {
	// Version 10 is the first with topic ids (Kafka 2.8).
	var b appender
	b.count(1)
	b = append(b, make([]byte, 16)...)
	b.compact(c.topic)
	b.tags()
	b.int8(0) // no auto-creation
	b.int8(0)
	b.int8(1) // what may be done with the topic
	b.tags()
	lay := topicLayout{partitions: map[int32]leadership{}}
	code := int16(codeUnknownTopic)
	err := c.roundTrip(ctx, &call{broker: -1, key: protocol.Metadata, version: 10, flexible: true, body: b, read: func(r *reader) {
		r.int32() // throttle
		for range max(0, r.size()) {
			r.int32()
			r.compact()
			r.int32()
			r.compact()
			r.tags()
			if r.err != nil {
				return
			}
		}
		r.compact() // cluster id
		r.int32()   // controller
		for range max(0, r.size()) {
			c1, name := r.int16(), r.compact()
			var id topicID
			r.full(id[:])
			r.int8() // internal
			if name == c.topic {
				code, lay.id = c1, id
			}
			for range max(0, r.size()) {
				r.int16() // an error: the leader is -1 then
				p, l, epoch := r.int32(), r.int32(), r.int32()
				for range 3 { // replicas, in sync, offline
					r.skip(4 * max(0, r.size()))
				}
				r.tags()
				if r.err != nil {
					return
				}
				if name == c.topic {
					lay.partitions[p] = leadership{l, epoch}
				}
			}
			if operations := r.int32(); name == c.topic {
				lay.operations = operations
			}
			r.tags()
			if r.err != nil {
				return
			}
		}
	}})
	if err != nil {
		return topicLayout{}, err
	}
	switch {
	case code == codeUnknownTopic:
		return topicLayout{}, errNoTopic
	case code != 0:
		return topicLayout{}, fmt.Errorf("metadata of topic %q: %w", c.topic, codeError(code))
	case lay.id == topicID{}:
		return topicLayout{}, fmt.Errorf("the brokers at %v give topic %q no id: Kafka 2.8 or later is needed", c.addr, c.topic)
	}
	return lay, nil
}

// Which offset to list.
const (
	latest   = -1
	earliest = -2
)

// offsets lists the first or the end offset of partitions, all of which are led
// by broker. An end is the high watermark: open transactions are before it. The
// epoch of a first offset is that of the record there, which is as good as that
// of the record before it: a log that is cut before the offset has neither. The
// epoch of an end may be of a leader that has not written anything yet.
func (c *client) offsets(ctx context.Context, broker int32, partitions map[int32]leadership, which int64) (map[int32]tumble.Position, error) {
	// From version 5 a new leader that does not know its high watermark yet
	// says so, instead of naming one that is too low.
	var b appender
	b.int32(-1) // not a replica
	b.int8(0)   // read uncommitted
	b.int32(1)
	b.string(c.topic)
	n := len(b)
	b.int32(0)
	asked := int32(0)
	for p, l := range partitions {
		if l.leader == broker {
			asked++
			b.int32(p)
			b.int32(l.epoch)
			b.int64(which)
		}
	}
	count := b[n:n]
	count.int32(asked)
	found := map[int32]tumble.Position{}
	var bad error
	err := c.roundTrip(ctx, &call{broker: broker, key: protocol.ListOffsets, version: 5, body: b, read: func(r *reader) {
		r.int32() // throttle
		for topics := r.int32(); topics > 0 && r.err == nil; topics-- {
			r.string()
			for parts := r.int32(); parts > 0 && r.err == nil; parts-- {
				p, code := r.int32(), r.int16()
				r.int64() // timestamp
				at := tumble.Position{Offset: r.int64(), Epoch: r.int32()}
				if code != 0 {
					bad = fmt.Errorf("offsets of %s/%d: %w", c.topic, p, codeError(code))
				} else if r.err == nil {
					found[p] = at
				}
			}
		}
	}})
	if err == nil {
		err = bad
	}
	if err == nil && len(found) != int(asked) {
		err = fmt.Errorf("broker %d answered for %d of %d partitions of topic %q", broker, len(found), asked, c.topic)
	}
	if err != nil {
		return nil, err
	}
	return found, nil
}

// allOffsets lists the offsets of every partition in lay.
func (c *client) allOffsets(ctx context.Context, lay topicLayout, which int64) (map[int32]tumble.Position, error) {
	all := map[int32]tumble.Position{}
	asked := map[int32]bool{}
	for p, l := range lay.partitions {
		if l.leader < 0 {
			return nil, fmt.Errorf("%s/%d: %w", c.topic, p, errNoLeader)
		}
		if asked[l.leader] {
			continue
		}
		asked[l.leader] = true
		some, err := c.offsets(ctx, l.leader, lay.partitions, which)
		if err != nil {
			return nil, err
		}
		for p, o := range some {
			all[p] = o
		}
	}
	return all, nil
}

// abilities are what a broker understands of what is asked here.
type abilities struct {
	fetch  int16 // version of Fetch: 13 names topics by id, 12 by name; 0: not known yet
	epochs bool  // OffsetForLeaderEpoch
}

// abilities asks a broker for its own.
func (c *client) abilities(ctx context.Context, broker int32) (abilities, error) {
	var found abilities
	var code int16
	err := c.roundTrip(ctx, &call{broker: broker, key: protocol.ApiVersions, read: func(r *reader) {
		code = r.int16()
		for n := r.int32(); n > 0 && r.err == nil; n-- {
			key, from, to := protocol.ApiKey(r.int16()), r.int16(), r.int16()
			switch {
			case r.err != nil:
			case key == protocol.Fetch:
				found.fetch = min(to, 13)
			case key == protocol.OffsetForLeaderEpoch:
				found.epochs = from <= epochsVersion && epochsVersion <= to
			}
		}
	}})
	if err == nil {
		err = codeError(code)
	}
	if err == nil && found.fetch < 12 {
		err = fmt.Errorf("broker %d speaks Fetch up to version %d, 12 is needed (Kafka 2.7)", broker, found.fetch)
	}
	return found, err
}

// compacted reports whether the topic's cleanup policy deletes records by key.
func (c *client) compacted(ctx context.Context) (bool, error) {
	const resourceTopic = 2
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	m, err := c.transport.RoundTrip(ctx, c.addr, &describeconfigs.Request{Resources: []describeconfigs.RequestResource{{
		ResourceType: resourceTopic, ResourceName: c.topic, ConfigNames: []string{"cleanup.policy"},
	}}})
	if err != nil {
		return false, err
	}
	for _, r := range m.(*describeconfigs.Response).Resources {
		if r.ErrorCode != 0 {
			return false, codeError(r.ErrorCode)
		}
		for _, e := range r.ConfigEntries {
			if e.ConfigName == "cleanup.policy" {
				return strings.Contains(e.ConfigValue, "compact"), nil
			}
		}
	}
	return false, nil
}
