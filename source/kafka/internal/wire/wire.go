// Package wire speaks Kafka's protocol where kafka-go's own types cannot: topic
// ids, a Fetch answer that is read straight into the caller's buffers, the error
// codes of a group's coordinator. kafka-go's Transport connects, authenticates
// and picks the connection.
package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// An API is a kind of request in the one version that is spoken here.
type API struct {
	Key      protocol.ApiKey
	Version  int16
	flexible bool // compact strings and arrays, tagged fields
}

// All are in the last version before the flexible encoding, which Kafka 2.4 and
// Kafka 4 both understand, where no comment says otherwise.
var (
	ApiVersions          = API{Key: protocol.ApiVersions}             // the version that every broker answers
	Metadata             = API{protocol.Metadata, 10, true}           // the first with topic ids: Kafka 2.8
	Fetch                = API{protocol.Fetch, 13, true}              // names topics by id, so that a recreated one is refused
	FetchByName          = API{protocol.Fetch, 12, true}              // the newest of Kafka 2.8 to 3.0
	ListOffsets          = API{Key: protocol.ListOffsets, Version: 5} // a new leader admits that it does not know its end yet
	OffsetForLeaderEpoch = API{Key: protocol.OffsetForLeaderEpoch, Version: 3}
	Produce              = API{Key: protocol.Produce, Version: 8} // the first that explains errors
	FindCoordinator      = API{Key: protocol.FindCoordinator, Version: 2}
	JoinGroup            = API{Key: protocol.JoinGroup, Version: 5}
	SyncGroup            = API{Key: protocol.SyncGroup, Version: 3}
	Heartbeat            = API{Key: protocol.Heartbeat, Version: 3}
	LeaveGroup           = API{Key: protocol.LeaveGroup, Version: 3}
	DescribeGroups       = API{Key: protocol.DescribeGroups, Version: 4}
	OffsetCommit         = API{Key: protocol.OffsetCommit, Version: 7}
)

const (
	// AnyNode is the Node of a request that every broker can answer.
	AnyNode = -1
	// MaxStream bounds an answer that goes to Request.Into. Kafka's own limit is
	// a signed 32-bit length.
	MaxStream = 1 << 30
	// maxBuffered bounds any other answer. The largest holds the subscriptions of
	// a whole group.
	maxBuffered = 64 << 20
	// correlation is that of every request: the transport puts one at a time on a
	// connection, and closes it after an error.
	correlation = 0x746d626c
)

// ErrOld is returned for a broker that does not speak the version of the API.
var ErrOld = errors.New("the broker is older than Kafka 2.8")

// A Client sends requests to the brokers of a cluster. It is safe for concurrent
// use.
type Client struct {
	Transport kafkago.RoundTripper
	Addr      net.Addr // of the cluster
	ID        string   // names this process in the brokers' logs and quotas
}

// A Request is sent once.
type Request struct {
	API
	Node    int32         // of the broker, or AnyNode
	Timeout time.Duration // bounds the exchange, as ctx does. 0 is no bound
	Body    Appender
	// Into reads the answer as it comes in, on a goroutine of the transport,
	// perhaps even after Do has returned. If it is nil, Do returns a Reader.
	Into interface{ ReadAnswer(*Reader) }

	client string
	old    bool // the broker lacks the version
}

// Do sends q and returns its answer, nil if that went to q.Into. Once ctx has
// ended the error is ctx's. Any other one names the broker, and the remedy where
// that is known.
func (c *Client) Do(ctx context.Context, q *Request) (*Reader, error) {
	q.client = c.ID
	asked := ctx
	if q.Timeout > 0 {
		var cancel context.CancelFunc
		asked, cancel = context.WithTimeout(ctx, q.Timeout)
		defer cancel()
	}
	res, err := c.Transport.RoundTrip(asked, c.Addr, q)
	switch {
	case err == nil:
		if a, ok := res.(*answer); ok {
			return a.Reader, nil
		}
		return nil, fmt.Errorf("the transport answered %v with %T", q.Key, res)
	case ended(ctx, err):
		return nil, ctx.Err()
	}
	return nil, c.explain(q, err, asked.Err() != nil)
}

// ended reports whether ctx has ended. The deadline of a connection or a dial, which is
// ctx's, may pass a moment before.
func ended(ctx context.Context, err error) bool {
	var timeout net.Error
	if at, ok := ctx.Deadline(); ok && errors.As(err, &timeout) && timeout.Timeout() && !time.Now().Before(at) {
		<-ctx.Done()
	}
	return ctx.Err() != nil
}

// explain adds to a transport error the details that a person needs to act on it.
func (c *Client) explain(q *Request, err error, timeout bool) error {
	whom := c.Addr.String()
	if q.Node >= 0 {
		whom = fmt.Sprintf("broker %d (of %s)", q.Node, whom)
	}
	if timeout {
		return fmt.Errorf("%v: no answer from %s within %v: %w", q.Key, whom, q.Timeout, err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		// Some brokers say no more than that to a wrong password, or to TLS where none is.
		return fmt.Errorf("%v: %s closed the connection (do SASL and TLS settings match, and the port?): %w", q.Key, whom, err)
	}
	if alert := new(net.OpError); errors.As(err, &alert) && alert.Op == "remote error" { // crypto/tls names the other side's alerts so
		return fmt.Errorf("%v: %s refuses TLS with this client (does it want a certificate of the client, or another one?): %w", q.Key, whom, err)
	}
	return fmt.Errorf("%v: %s: %w", q.Key, whom, err)
}

// ApiKey implements [protocol.Message].
func (q *Request) ApiKey() protocol.ApiKey { return q.Key }

// Broker implements [protocol.BrokerMessage].
func (q *Request) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: q.Node}, nil
}

// Required implements [protocol.RawExchanger]. It is called just before
// RawExchange, on the same goroutine. Versions are the newest that both the
// broker and kafka-go know.
func (q *Request) Required(versions map[protocol.ApiKey]int16) bool {
	v, known := versions[q.Key]
	q.old = known && v < min(q.Version, q.Key.MaxVersion())
	return true
}

// An answer is the transport's Response to a Request.
type answer struct {
	*Reader
	key protocol.ApiKey
}

func (a *answer) ApiKey() protocol.ApiKey { return a.key }

// RawExchange implements [protocol.RawExchanger]. After an error the transport
// closes the connection.
func (q *Request) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	if q.old {
		return nil, ErrOld
	}
	b := make(Appender, 4, 64+len(q.Body))
	b.Int16(int16(q.Key))
	b.Int16(q.Version)
	b.Int32(correlation)
	b.Text(q.client)
	if q.flexible {
		b.Tags()
	}
	b = append(b, q.Body...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	if _, err := rw.Write(b); err != nil {
		return nil, err
	}
	r := &Reader{src: rw, left: 8}
	size, id := r.Int32(), r.Int32()
	limit := int32(maxBuffered)
	if q.Into != nil {
		limit = MaxStream
	}
	switch {
	case r.err != nil:
		return nil, cutOff(r.err)
	case size < 4 || size > limit:
		return nil, fmt.Errorf("answer of %d bytes", size)
	case id != correlation:
		return nil, fmt.Errorf("answer to request %d, not to %d", id, correlation)
	}
	r.left = int(size) - 4
	if q.Into == nil {
		var body bytes.Buffer // grows by the bytes that arrive, not by the announced length
		if _, err := io.CopyN(&body, rw, int64(r.left)); err != nil {
			return nil, cutOff(err)
		}
		r.src = &body
	}
	if q.flexible {
		r.Tags()
	}
	if q.Into != nil && r.err == nil {
		q.Into.ReadAnswer(r)
		r.Skip(r.left)
	}
	if r.err != nil {
		return nil, cutOff(r.err)
	}
	return &answer{r, q.Key}, nil
}

// cutOff keeps the transport from taking the end of a connection in the middle of
// an exchange for a peaceful one.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

var (
	_ protocol.RawExchanger  = (*Request)(nil)
	_ protocol.BrokerMessage = (*Request)(nil)
)
