package kafka

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// A buffer holds the record batches of one partition from one answer, or one
// decompressed batch. Whoever holds it frees it, once.
type buffer struct {
	b    []byte
	pool *pool
}

func (b *buffer) free() {
	b.pool.used.Add(-int64(cap(b.b)))
	b.pool.classes[class(cap(b.b))].Put(b)
}

// A pool hands out buffers by size and knows how much is in use. It is safe for
// concurrent use.
type pool struct {
	classes [bits.UintSize]sync.Pool
	used    atomic.Int64 // bytes
}

const minClass = 12 // 4 KiB: a trickle must not hold much

func class(n int) int { return max(minClass, bits.Len(uint(max(n, 1)-1))) }

// get returns a buffer with room for n bytes, its length n.
func (p *pool) get(n int) *buffer {
	c := class(n)
	p.used.Add(1 << c)
	if b, ok := p.classes[c].Get().(*buffer); ok {
		b.b = b.b[:n]
		return b
	}
	return &buffer{make([]byte, n, 1<<c), p}
}
