package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
)

// An Appender writes Kafka's primitive types.
type Appender []byte

func (a *Appender) Int8(v int8)   { *a = append(*a, byte(v)) }
func (a *Appender) Int16(v int16) { *a = binary.BigEndian.AppendUint16(*a, uint16(v)) }
func (a *Appender) Int32(v int32) { *a = binary.BigEndian.AppendUint32(*a, uint32(v)) }
func (a *Appender) Int64(v int64) { *a = binary.BigEndian.AppendUint64(*a, uint64(v)) }

// Text writes as much of s as the format can hold. No name of a group, member or
// topic comes near the limit.
func (a *Appender) Text(s string) {
	s = s[:min(len(s), math.MaxInt16)]
	a.Int16(int16(len(s)))
	*a = append(*a, s...)
}

// Nullable writes "" as null.
func (a *Appender) Nullable(s string) {
	if s == "" {
		a.Int16(-1)
		return
	}
	a.Text(s)
}

// Bytes writes a length of 32 bits and v.
func (a *Appender) Bytes(v []byte) {
	a.Int32(int32(len(v)))
	*a = append(*a, v...)
}

// Compact writes s in the flexible encoding.
func (a *Appender) Compact(s string) { a.Count(len(s)); *a = append(*a, s...) }

// Count writes the length of a string or array in the flexible encoding.
func (a *Appender) Count(n int) { *a = binary.AppendUvarint(*a, uint64(n)+1) }

// Tags writes that there are no tagged fields.
func (a *Appender) Tags() { *a = append(*a, 0) }

// A Reader reads Kafka's primitive types from a message of known length. The
// first error sticks: later reads return zeros, and arrays end. No length is
// believed that goes beyond the message.
type Reader struct {
	src     io.Reader
	left    int
	err     error
	scratch [8]byte
}

// ErrShort is the error of a message that ends too soon or that holds a length
// beyond its end.
var ErrShort = errors.New("message ends in the middle of a field")

// NewReader reads b, a part of a message or one that did not come from a broker.
func NewReader(b []byte) *Reader { return &Reader{src: bytes.NewReader(b), left: len(b)} }

// Err returns the first error.
func (r *Reader) Err() error { return r.err }

// End makes bytes that nobody has read an error.
func (r *Reader) End() {
	if r.left != 0 {
		r.fail(errors.New("message is longer than it should be"))
	}
}

func (r *Reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// claim reports whether n bytes can be read, and takes them off the message.
func (r *Reader) claim(n int) bool {
	if n < 0 || n > r.left {
		r.fail(ErrShort)
	}
	if r.err != nil {
		return false
	}
	r.left -= n
	return true
}

// Full fills b.
func (r *Reader) Full(b []byte) {
	if r.claim(len(b)) {
		_, r.err = io.ReadFull(r.src, b)
	}
}

// Skip passes over n bytes.
func (r *Reader) Skip(n int) {
	if r.claim(n) {
		_, r.err = io.CopyN(io.Discard, r.src, int64(n))
	}
}

func (r *Reader) take(n int) []byte {
	b := r.scratch[:n]
	if r.Full(b); r.err != nil {
		clear(b)
	}
	return b
}

func (r *Reader) Int8() int8   { return int8(r.take(1)[0]) }
func (r *Reader) Int16() int16 { return int16(binary.BigEndian.Uint16(r.take(2))) }
func (r *Reader) Int32() int32 { return int32(binary.BigEndian.Uint32(r.take(4))) }
func (r *Reader) Int64() int64 { return int64(binary.BigEndian.Uint64(r.take(8))) }

// bytes returns nil for null, which is -1.
func (r *Reader) bytes(n int) []byte {
	if n == -1 || !r.claim(n) {
		return nil
	}
	b := make([]byte, n)
	_, r.err = io.ReadFull(r.src, b)
	return b
}

// Bytes reads a byte string with a length of 32 bits, nil for null.
func (r *Reader) Bytes() []byte { return r.bytes(int(r.Int32())) }

// Text reads a string with a length of 16 bits, "" for null.
func (r *Reader) Text() string { return string(r.bytes(int(r.Int16()))) }

// Compact reads a string in the flexible encoding, "" for null.
func (r *Reader) Compact() string { return string(r.bytes(r.Size())) }

// Size reads the length of a string or array in the flexible encoding, -1 for null.
// Every element takes at least a byte, so the message bounds it.
func (r *Reader) Size() int {
	n := r.uvarint()
	if n > uint64(r.left)+1 {
		r.fail(ErrShort)
	}
	if r.err != nil {
		return -1
	}
	return int(n) - 1
}

func (r *Reader) uvarint() (v uint64) {
	for shift := 0; shift < 64; shift += 7 {
		b := r.take(1)[0]
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return v
		}
	}
	r.fail(errors.New("message holds a varint that does not end"))
	return 0
}

// Array reads the length of an array, and yields once for each element until one
// of them cannot be read.
func (r *Reader) Array() func(yield func() bool) { return r.each(int(r.Int32())) }

// CompactArray is Array in the flexible encoding.
func (r *Reader) CompactArray() func(yield func() bool) { return r.each(r.Size()) }

func (r *Reader) each(n int) func(yield func() bool) {
	if n > r.left {
		r.fail(ErrShort)
	}
	return func(yield func() bool) {
		for ; n > 0 && r.err == nil && yield(); n-- {
		}
	}
}

// Int32s reads an array of numbers.
func (r *Reader) Int32s() (vs []int32) {
	for range r.Array() {
		vs = append(vs, r.Int32())
	}
	return vs
}

// Tags passes over tagged fields.
func (r *Reader) Tags() { r.Tagged(math.MaxUint64) }

// Tagged passes over tagged fields and reports whether one has this tag.
func (r *Reader) Tagged(tag uint64) (found bool) {
	for n := r.uvarint(); n > 0 && r.err == nil; n-- {
		found = r.uvarint() == tag || found
		r.Skip(int(min(r.uvarint(), math.MaxInt)))
	}
	return found && r.err == nil
}
