package kafka

import (
	"context"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"net"
	"strings"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/describeconfigs"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// client asks the cluster about one topic. It is safe for concurrent use.
type client struct {
	wire.Client
	topic   string
	timeout time.Duration // of one question
	known   sync.Map      // the abilities of brokers, by id, as they were when last asked
}

const dialTimeout = 3 * time.Second

// newTransport returns a Transport for questions about a topic.
func newTransport(brokers []string, clientID, topic string) *kafkago.Transport {
	// The brokers are tried one after the other, in any order. One that is cut
	// off must leave time for the others.
	one := net.Dialer{Timeout: max(500*time.Millisecond, dialTimeout/time.Duration(len(brokers)))}
	return &kafkago.Transport{
		ClientID:       clientID,
		Dial:           one.DialContext,
		DialTimeout:    dialTimeout,
		MetadataTTL:    2 * time.Second,
		MetadataTopics: []string{topic},
	}
}

func (c *client) ask(ctx context.Context, node int32, api wire.API, body wire.Appender) (*wire.Reader, error) {
	return c.Do(ctx, &wire.Request{API: api, Node: node, Timeout: c.timeout, Body: body})
}

// A topicID names one incarnation of a topic. Kafka never gives it twice.
type topicID [16]byte

func (t topicID) String() string { return hex.EncodeToString(t[:]) }

type topicLayout struct {
	id         topicID
	operations int32 // allowed ones, a bit each, or notTold
	partitions map[int32]leadership
}

type leadership struct {
	leader, epoch int32 // leader -1: none at present
}

// The operations of a topicLayout.
const (
	notTold  = math.MinInt32
	mayRead  = 1 << 3
	mayWrite = 1 << 4
)

// layout asks a broker for the topic's id and leaders. A topic that does not
// exist is errNoTopic.
func (c *client) layout(ctx context.Context) (topicLayout, error) {
	r, err := c.ask(ctx, wire.AnyNode, wire.Metadata, metadataRequest(c.topic))
	if err != nil {
		return topicLayout{}, err
	}
	var lay topicLayout
	code := int16(codeUnknownTopic)
	err = readMetadata(r, func(name string, told int16, found topicLayout) {
		if name == c.topic {
			code, lay = told, found
		}
	})
	switch {
	case err != nil:
		return topicLayout{}, fmt.Errorf("metadata: %w", err)
	case code == codeUnknownTopic:
		return topicLayout{}, errNoTopic
	case code != 0:
		return topicLayout{}, fmt.Errorf("metadata of topic %q: %w", c.topic, codeError(code))
	case lay.id == topicID{}:
		return topicLayout{}, fmt.Errorf("the brokers at %v give topic %q no id: Kafka 2.8 or later is needed", c.Addr, c.topic)
	}
	return lay, nil
}

// metadataRequest asks for topics. It never creates one.
func metadataRequest(topics ...string) (b wire.Appender) {
	b.Count(len(topics))
	for _, t := range topics {
		b = append(b, make([]byte, len(topicID{}))...)
		b.Compact(t)
		b.Tags()
	}
	b.Int8(0) // no auto-creation
	b.Int8(0) // not the operations allowed on the cluster
	b.Int8(1) // those allowed on the topics
	b.Tags()
	return b
}

func readMetadata(r *wire.Reader, topic func(name string, code int16, found topicLayout)) error {
	r.Int32() // throttled for
	for range r.CompactArray() {
		r.Int32()   // broker
		r.Compact() // host
		r.Int32()   // port
		r.Compact() // rack
		r.Tags()
	}
	r.Compact() // cluster
	r.Int32()   // controller
	for range r.CompactArray() {
		code, name := r.Int16(), r.Compact()
		found := topicLayout{partitions: map[int32]leadership{}}
		r.Full(found.id[:])
		r.Int8() // internal
		for range r.CompactArray() {
			r.Int16() // an error: the leader is -1 then
			p := r.Int32()
			found.partitions[p] = leadership{r.Int32(), r.Int32()}
			for range 3 { // replicas, in sync, offline
				r.Skip(4 * max(0, r.Size()))
			}
			r.Tags()
		}
		found.operations = r.Int32()
		r.Tags()
		if r.Err() == nil {
			topic(name, code, found)
		}
	}
	return r.Err()
}

// Which offset to list.
const (
	latest   = -1
	earliest = -2
)

// offsets lists the first or the end offset of partitions, as far as broker leads
// them. An end is the high watermark: open transactions are before it. The epoch
// of a first offset is that of the record there, which is as good as that of the
// record before it: a log that is cut before the offset has neither. The epoch of
// an end may be of a leader that has not written anything yet.
func (c *client) offsets(ctx context.Context, broker int32, partitions map[int32]leadership, which int64) (map[int32]tumble.Position, error) {
	var list wire.Appender
	asked := int32(0)
	for p, l := range partitions {
		if l.leader == broker {
			asked++
			list.Int32(p)
			list.Int32(l.epoch)
			list.Int64(which)
		}
	}
	var b wire.Appender
	b.Int32(-1) // not a replica
	b.Int8(0)   // read uncommitted
	b.Int32(1)
	b.Text(c.topic)
	b.Int32(asked)
	r, err := c.ask(ctx, broker, wire.ListOffsets, append(b, list...))
	if err != nil {
		return nil, err
	}
	found := map[int32]tumble.Position{}
	r.Int32() // throttled for
	for range r.Array() {
		r.Text() // topic
		for range r.Array() {
			p, code := r.Int32(), r.Int16()
			r.Int64() // timestamp
			found[p] = tumble.Position{Offset: r.Int64(), Epoch: r.Int32()}
			if code != 0 && err == nil {
				err = fmt.Errorf("offsets of %s/%d: %w", c.topic, p, codeError(code))
			}
		}
	}
	switch {
	case r.Err() != nil:
		return nil, fmt.Errorf("offsets: %w", r.Err())
	case err != nil:
		return nil, err
	case len(found) != int(asked):
		return nil, fmt.Errorf("broker %d answered for %d of %d partitions of topic %q", broker, len(found), asked, c.topic)
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
		maps.Copy(all, some)
	}
	return all, nil
}

// An epochAsk asks the leader of a partition where its log ends an epoch.
type epochAsk struct {
	current int32 // leader epoch of the partition
	epoch   int32
}

// An epochEnd is the answer: the position behind the last record of the epoch
// or, if there is none, of the last epoch before it. Its offset is -1 if the
// leader cannot tell.
type epochEnd struct {
	tumble.Position
	err error
}

// epochEnds asks a broker about partitions that it leads.
func (c *client) epochEnds(ctx context.Context, broker int32, asks map[int32]epochAsk) (map[int32]epochEnd, error) {
	var b wire.Appender
	b.Int32(-1) // not a replica
	b.Int32(1)
	b.Text(c.topic)
	b.Int32(int32(len(asks)))
	for p, a := range asks {
		b.Int32(p)
		b.Int32(a.current)
		b.Int32(a.epoch)
	}
	r, err := c.ask(ctx, broker, wire.OffsetForLeaderEpoch, b)
	if err != nil {
		return nil, err
	}
	found := map[int32]epochEnd{}
	r.Int32() // throttled for
	for range r.Array() {
		r.Text() // topic
		for range r.Array() {
			code, p, epoch := r.Int16(), r.Int32(), r.Int32()
			end := epochEnd{Position: tumble.Position{Offset: r.Int64(), Epoch: epoch}}
			if code != 0 {
				end.err = fmt.Errorf("end of an epoch of %s/%d: %w", c.topic, p, codeError(code))
			}
			found[p] = end
		}
	}
	if r.Err() != nil {
		return nil, fmt.Errorf("end of an epoch: %w", r.Err())
	}
	for p := range asks {
		if _, ok := found[p]; !ok {
			return nil, fmt.Errorf("broker %d does not say where an epoch of %s/%d ends", broker, c.topic, p)
		}
	}
	return found, nil
}

// epochEnd asks the leader of a partition. The offset is -1 also if the broker
// does not understand the question.
func (c *client) epochEnd(ctx context.Context, partition int32, l leadership, epoch int32) (tumble.Position, error) {
	unknown := tumble.Position{Offset: -1, Epoch: -1}
	can, err := c.able(ctx, l.leader)
	if err != nil {
		return unknown, err
	}
	if !can.epochs {
		return unknown, nil
	}
	ends, err := c.epochEnds(ctx, l.leader, map[int32]epochAsk{partition: {l.epoch, epoch}})
	if err == nil {
		err = ends[partition].err
	}
	if err != nil {
		c.doubtAbilities(l.leader)
		return unknown, err
	}
	return ends[partition].Position, nil
}

// abilities are the requests that not every broker understands.
type abilities struct {
	fetch  wire.API // zero: not known yet
	epochs bool     // OffsetForLeaderEpoch
}

// able returns a broker's abilities, as they were when it was asked last.
func (c *client) able(ctx context.Context, broker int32) (abilities, error) {
	if known, ok := c.known.Load(broker); ok {
		return known.(abilities), nil
	}
	found, err := c.abilities(ctx, broker)
	if err == nil {
		c.known.Store(broker, found)
	}
	return found, err
}

// doubtAbilities forgets those of a broker: another one may have its place.
func (c *client) doubtAbilities(broker int32) { c.known.Delete(broker) }

func (c *client) abilities(ctx context.Context, broker int32) (found abilities, err error) {
	r, err := c.ask(ctx, broker, wire.ApiVersions, nil)
	if err != nil {
		return found, err
	}
	code := r.Int16()
	newest := int16(0) // of Fetch
	for range r.Array() {
		key, from, to := protocol.ApiKey(r.Int16()), r.Int16(), r.Int16()
		switch key {
		case wire.Fetch.Key:
			newest = to
		case wire.OffsetForLeaderEpoch.Key:
			v := wire.OffsetForLeaderEpoch.Version
			found.epochs = from <= v && v <= to
		}
	}
	switch {
	case r.Err() != nil:
		err = fmt.Errorf("broker %d: %w", broker, r.Err())
	case code != 0:
		err = codeError(code)
	case newest >= wire.Fetch.Version:
		found.fetch = wire.Fetch
	case newest == wire.FetchByName.Version:
		found.fetch = wire.FetchByName
	default:
		err = fmt.Errorf("broker %d speaks Fetch up to version %d, 12 is needed (Kafka 2.7)", broker, newest)
	}
	return found, err
}

// compacted reports whether the topic's cleanup policy deletes records by key.
func (c *client) compacted(ctx context.Context) (bool, error) {
	const resourceTopic = 2
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	m, err := c.Transport.RoundTrip(ctx, c.Addr, &describeconfigs.Request{Resources: []describeconfigs.RequestResource{{
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
