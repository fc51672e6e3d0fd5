package kafka

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync/atomic"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// What a group member asks, each in one fixed version: the last before the
// protocol's flexible encoding, which brokers have understood since Kafka 2.4
// and Kafka 4 still does. They are written here, because kafka-go's own
// Heartbeat and LeaveGroup misread the answers, because its group requests look
// the coordinator up each time and drop the error of that, and because its
// Metadata request is answered from a cache that holds our topic only.
const (
	metadataVersion        = 5
	offsetCommitVersion    = 7
	findCoordinatorVersion = 2
	joinGroupVersion       = 5
	heartbeatVersion       = 3
	describeGroupsVersion  = 4
	leaveGroupVersion      = 3
	syncGroupVersion       = 3
)

// maxGroupAnswer bounds an answer, so that a garbled length fills no memory. A
// leader's holds the subscriptions of the whole group.
const maxGroupAnswer = 64 << 20

// anyBroker is the node of a request that every broker can answer.
const anyBroker = -1

var errOldBroker = errors.New("the broker is older than Kafka 2.4")

// groupExchange sends one request to a node and returns the body of its answer. id
// names the request on the connection; the answer must repeat it.
func groupExchange(ctx context.Context, cfg *groupConfig, node int32, key protocol.ApiKey, version int16, body []byte) (*groupAnswer, error) {
	var req kafkago.Request
	base := groupRequest{key: key, version: version, clientID: cfg.clientID, body: body}
	if node == anyBroker {
		req = &base
	} else {
		req = &groupBrokerRequest{base, node}
	}
	res, err := cfg.transport.RoundTrip(ctx, cfg.addr, req)
	if err != nil {
		return nil, err
	}
	answer, ok := res.(*groupAnswer)
	if !ok {
		return nil, fmt.Errorf("the transport answered %v with %T", key, res)
	}
	return answer, nil
}

// groupRequest goes through kafka-go's Transport, which hands it the connection
// once TLS, SASL and the versions are settled.
type groupRequest struct {
	key      protocol.ApiKey
	version  int16
	clientID string
	body     []byte
	old      bool // the broker lacks version
}

// groupBrokerRequest is a groupRequest to one broker.
type groupBrokerRequest struct {
	groupRequest
	node int32
}

var (
	_ protocol.RawExchanger  = (*groupRequest)(nil)
	_ protocol.RawExchanger  = (*groupBrokerRequest)(nil)
	_ protocol.BrokerMessage = (*groupBrokerRequest)(nil)
)

func (r *groupRequest) ApiKey() protocol.ApiKey { return r.key }

func (r *groupBrokerRequest) Broker(c protocol.Cluster) (protocol.Broker, error) {
	b, ok := c.Brokers[r.node]
	if !ok {
		return b, fmt.Errorf("broker %d: %w", r.node, kafkago.BrokerNotAvailable)
	}
	return b, nil
}

// Required is called just before RawExchange, on its goroutine.
func (r *groupRequest) Required(versions map[protocol.ApiKey]int16) bool {
	v, known := versions[r.key]
	r.old = known && v < r.version
	return true
}

var groupCorrelation atomic.Int32

func (r *groupRequest) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if r.old {
		return nil, errOldBroker
	}
	id := groupCorrelation.Add(1)
	b := make([]byte, 4, 14+len(r.clientID)+len(r.body))
	b = binary.BigEndian.AppendUint16(b, uint16(r.key))
	b = binary.BigEndian.AppendUint16(b, uint16(r.version))
	b = appendInt32(b, id)
	b = appendString(b, r.clientID)
	b = append(b, r.body...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	if _, err := rw.Write(b); err != nil {
		return nil, err
	}

	var head [8]byte
	if _, err := io.ReadFull(rw, head[:]); err != nil {
		return nil, fmt.Errorf("%v: %w", r.key, err)
	}
	size := int64(int32(binary.BigEndian.Uint32(head[:])))
	if size < 4 || size > maxGroupAnswer {
		return nil, fmt.Errorf("%v: answer of %d bytes", r.key, size)
	}
	if got := int32(binary.BigEndian.Uint32(head[4:])); got != id {
		return nil, fmt.Errorf("%v: answer to request %d, want %d", r.key, got, id)
	}
	var answer bytes.Buffer // grows by what arrives, not by what was announced
	if _, err := io.CopyN(&answer, rw, size-4); err != nil {
		return nil, fmt.Errorf("%v: %w", r.key, err)
	}
	return &groupAnswer{key: r.key, b: answer.Bytes()}, nil
}

func appendInt32(b []byte, v int32) []byte { return binary.BigEndian.AppendUint32(b, uint32(v)) }

func appendInt64(b []byte, v int64) []byte { return binary.BigEndian.AppendUint64(b, uint64(v)) }

// appendString writes at most what the format can hold; no id of a group or
// member, and no topic, comes near.
func appendString(b []byte, s string) []byte {
	s = s[:min(len(s), math.MaxInt16)]
	b = binary.BigEndian.AppendUint16(b, uint16(len(s)))
	return append(b, s...)
}

// appendNullable writes "" as null.
func appendNullable(b []byte, s string) []byte {
	if s == "" {
		return append(b, 0xff, 0xff)
	}
	return appendString(b, s)
}

func appendBytes(b, v []byte) []byte {
	b = appendInt32(b, int32(len(v)))
	return append(b, v...)
}

// groupAnswer reads an answer, or what members tell each other, from its
// beginning. After an error it yields zeros, and err says what was wrong.
type groupAnswer struct {
	key protocol.ApiKey
	b   []byte
	err error
}

func (r *groupAnswer) ApiKey() protocol.ApiKey { return r.key }

func (r *groupAnswer) take(n int) []byte {
	if r.err == nil && (n < 0 || n > len(r.b)) {
		r.err = fmt.Errorf("%w: %d bytes of %d left", io.ErrUnexpectedEOF, n, len(r.b))
	}
	if r.err != nil {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *groupAnswer) int8() int8 {
	if v := r.take(1); v != nil {
		return int8(v[0])
	}
	return 0
}

func (r *groupAnswer) int16() int16 {
	if v := r.take(2); v != nil {
		return int16(binary.BigEndian.Uint16(v))
	}
	return 0
}

func (r *groupAnswer) int32() int32 {
	if v := r.take(4); v != nil {
		return int32(binary.BigEndian.Uint32(v))
	}
	return 0
}

// string returns "" for null.
func (r *groupAnswer) string() string {
	if n := int(r.int16()); n > 0 {
		return string(r.take(n))
	} else if n < -1 {
		r.take(n)
	}
	return ""
}

// bytes returns nil for null.
func (r *groupAnswer) bytes() []byte {
	if n := int(r.int32()); n >= 0 {
		return r.take(n)
	} else if n < -1 {
		r.take(n)
	}
	return nil
}

// array returns the number of elements that follow, 0 for null. Each of them
// takes size bytes at least, so what is left bounds it.
func (r *groupAnswer) array(size int) int {
	n := int(r.int32())
	if n < 0 {
		return 0
	}
	if r.err == nil && n > len(r.b)/size {
		r.err = fmt.Errorf("%w: %d elements in %d bytes", io.ErrUnexpectedEOF, n, len(r.b))
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *groupAnswer) int32s() []int32 {
	vs := make([]int32, r.array(4))
	for i := range vs {
		vs[i] = r.int32()
	}
	return vs
}
