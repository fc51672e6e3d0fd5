package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/segmentio/kafka-go/protocol"
)

// Kafka's own limit on a request or response is a signed 32-bit length; no
// answer that is asked for here comes near this one.
const maxFrame = 1 << 30

// A call is one request written by hand, for what kafka-go's own types cannot
// say: topic ids, a Fetch answer read straight into our buffers, real error
// codes. kafka-go's Transport connects, authenticates and picks the connection.
type call struct {
	broker   int32 // -1: any
	key      protocol.ApiKey
	version  int16
	flexible bool // headers with tagged fields
	clientID string
	body     []byte
	// read takes the answer from after its header. It runs on a goroutine of
	// the transport, and may still do so when RoundTrip has given up.
	read func(*reader)

	fetch *fetchRequest // if that is what it is
}

func (c *call) ApiKey() protocol.ApiKey { return c.key }

func (c *call) Broker(protocol.Cluster) (protocol.Broker, error) {
	return protocol.Broker{ID: c.broker}, nil
}

func (c *call) Required(map[protocol.ApiKey]int16) bool { return true }

func (c *call) RawExchange(rw io.ReadWriter) (protocol.Message, error) {
	// The transport puts one request at a time on a connection.
	const correlation = 0x746d626c
	b := make(appender, 4, 64+len(c.body))
	b.int16(int16(c.key))
	b.int16(c.version)
	b.int32(correlation)
	b.string(c.clientID)
	if c.flexible {
		b.tags()
	}
	b = append(b, c.body...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	if _, err := rw.Write(b); err != nil {
		return nil, err
	}
	r := reader{src: rw, left: 4}
	size := r.int32()
	if r.err == nil && (size < 4 || size > maxFrame) {
		r.err = fmt.Errorf("answer to %v says that it is %d bytes long", c.key, size)
	}
	r.left = int(size)
	if id := r.int32(); r.err == nil && id != correlation {
		r.err = fmt.Errorf("answer to %v belongs to another request", c.key)
	}
	if c.flexible && c.key != protocol.ApiVersions {
		r.tags()
	}
	if r.err == nil {
		c.read(&r)
	}
	r.skip(r.left)
	if r.err != nil {
		if errors.Is(r.err, io.EOF) {
			r.err = io.ErrUnexpectedEOF
		}
		return nil, r.err // the transport closes the connection
	}
	return c, nil
}

var (
	_ protocol.RawExchanger  = (*call)(nil)
	_ protocol.BrokerMessage = (*call)(nil)
)

// An appender writes Kafka's primitive types.
type appender []byte

func (a *appender) int8(v int8)      { *a = append(*a, byte(v)) }
func (a *appender) int16(v int16)    { *a = binary.BigEndian.AppendUint16(*a, uint16(v)) }
func (a *appender) int32(v int32)    { *a = binary.BigEndian.AppendUint32(*a, uint32(v)) }
func (a *appender) int64(v int64)    { *a = binary.BigEndian.AppendUint64(*a, uint64(v)) }
func (a *appender) string(s string)  { a.int16(int16(len(s))); *a = append(*a, s...) }
func (a *appender) compact(s string) { a.count(len(s)); *a = append(*a, s...) }
func (a *appender) tags()            { *a = append(*a, 0) }

// count writes the length of a compact string or array.
func (a *appender) count(n int) { *a = binary.AppendUvarint(*a, uint64(n)+1) }

// A reader reads Kafka's primitive types from an answer of known length. The
// first error sticks; what is read after it is zero.
type reader struct {
	src     io.Reader
	left    int
	err     error
	scratch [16]byte
}

var errShort = errors.New("answer ends in the middle of a field")

func (r *reader) take(n int) []byte {
	b := r.scratch[:n]
	r.full(b)
	if r.err != nil {
		clear(b)
	}
	return b
}

// full fills b.
func (r *reader) full(b []byte) {
	if r.err != nil {
		return
	}
	if len(b) > r.left {
		r.err = errShort
		return
	}
	r.left -= len(b)
	_, r.err = io.ReadFull(r.src, b)
}

func (r *reader) int8() int8   { return int8(r.take(1)[0]) }
func (r *reader) int16() int16 { return int16(binary.BigEndian.Uint16(r.take(2))) }
func (r *reader) int32() int32 { return int32(binary.BigEndian.Uint32(r.take(4))) }
func (r *reader) int64() int64 { return int64(binary.BigEndian.Uint64(r.take(8))) }

func (r *reader) uvarint() uint64 {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		b := r.take(1)[0]
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	if r.err == nil {
		r.err = errors.New("answer holds a varint that does not end")
	}
	return 0
}

// size reads the length of a compact string, byte string or array; -1: null.
// It is at most what is left, because every element takes at least a byte.
func (r *reader) size() int {
	n := r.uvarint()
	if n > uint64(r.left)+1 {
		if r.err == nil {
			r.err = errShort
		}
		return -1
	}
	return int(n) - 1
}

func (r *reader) text(n int) string {
	if n <= 0 || r.err != nil {
		return ""
	}
	if n > r.left {
		r.err = errShort
		return ""
	}
	b := make([]byte, n)
	r.full(b)
	return string(b)
}

func (r *reader) string() string  { return r.text(int(r.int16())) }
func (r *reader) compact() string { return r.text(r.size()) }

func (r *reader) skip(n int) {
	if n > len(r.scratch) && r.err == nil {
		if n > r.left {
			r.err = errShort
			return
		}
		r.left -= n
		_, r.err = io.CopyN(io.Discard, r.src, int64(n))
		return
	}
	for n > 0 && r.err == nil {
		k := min(n, len(r.scratch))
		r.take(k)
		n -= k
	}
}

// tags skips tagged fields.
func (r *reader) tags() { r.tagged(-1) }

// tagged skips tagged fields and reports whether one has this tag.
func (r *reader) tagged(tag int64) (found bool) {
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		found = r.uvarint() == uint64(tag) || found
		size := r.uvarint()
		if size > uint64(r.left) && r.err == nil {
			r.err = errShort
		}
		r.skip(int(size))
	}
	return found && r.err == nil
}
