package redis

import (
	"encoding/binary"
	"strconv"

	"github.com/redis/rueidis"
)

// packed is an array in MessagePack for apply.lua, of numbers and strings
// (https://github.com/msgpack/msgpack/blob/master/spec.md). Sent as one argument
// it costs client and server less than its elements would, each as one of its
// own (BenchmarkCatchUp).
type packed struct {
	bytes []byte
	n     uint32
}

// newPacked returns one with room for about size bytes.
func newPacked(size int) packed {
	const head = 5 // that of an array, which array sets
	return packed{bytes: make([]byte, head, head+size)}
}

// number appends a number.
func (p *packed) number(n uint32) {
	p.n++
	if n < 0x80 {
		p.bytes = append(p.bytes, byte(n))
		return
	}
	p.bytes = binary.BigEndian.AppendUint32(append(p.bytes, 0xce), n)
}

// digits appends a number as a string. Lua writes numbers as text slowly, so
// those that it only passes on are text already.
func (p *packed) digits(n int64) {
	p.n++
	head := len(p.bytes)
	p.bytes = strconv.AppendInt(append(p.bytes, 0xa0), n, 10)
	p.bytes[head] += byte(len(p.bytes) - head - 1) // at most 20
}

// text appends a string.
func (p *packed) text(s string) {
	p.n++
	switch n := len(s); {
	case n < 32:
		p.bytes = append(p.bytes, 0xa0|byte(n))
	case n < 1<<16:
		p.bytes = binary.BigEndian.AppendUint16(append(p.bytes, 0xda), uint16(n))
	default:
		p.bytes = binary.BigEndian.AppendUint32(append(p.bytes, 0xdb), uint32(n))
	}
	p.bytes = append(p.bytes, s...)
}

// array returns the array. Nothing may be appended after it.
func (p *packed) array() string {
	p.bytes[0] = 0xdd
	binary.BigEndian.PutUint32(p.bytes[1:], p.n)
	return rueidis.BinaryString(p.bytes)
}
