package kafka

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Codecs, as the attributes of a batch number them.
const (
	codecNone = iota
	codecGzip
	codecSnappy
	codecLZ4
	codecZstd
)

var codecs = [...]string{"none", "gzip", "snappy", "lz4", "zstd"}

// An unpacker decompresses batches into buffers of a pool. It is used by one
// goroutine at a time.
type unpacker struct {
	pool  *pool
	limit int // of a decompressed batch, in bytes
	guess int // how large the next one will be: as the one before

	src  bytes.Reader
	gzip *gzip.Reader
	lz4  *lz4.Reader
}

// unpack decompresses src. Memory follows the bytes that come out, not the size
// that the data claims.
func (u *unpacker) unpack(codec int, src []byte) (*buffer, error) {
	var b *buffer
	var err error
	u.src.Reset(src)
	switch codec {
	case codecGzip:
		if u.gzip == nil {
			u.gzip = new(gzip.Reader)
		}
		if err = u.gzip.Reset(&u.src); err == nil {
			b, err = u.readAll(u.gzip, len(src))
		}
	case codecSnappy:
		b, err = u.snappy(src)
	case codecLZ4:
		if u.lz4 == nil {
			u.lz4 = lz4.NewReader(nil)
		}
		u.lz4.Reset(&u.src)
		b, err = u.readAll(u.lz4, len(src))
	case codecZstd:
		b, err = u.zstd(src)
	default:
		return nil, garbled("codec %d is unknown", codec)
	}
	if err != nil {
		if errors.Is(err, errTooLarge) {
			return nil, fmt.Errorf("%w (%d bytes)", err, u.limit)
		}
		return nil, garbled("%s: %w", codecs[codec], err)
	}
	u.guess = len(b.b) + len(b.b)/4
	return b, nil
}

// room returns a buffer for the likely result of n compressed bytes.
func (u *unpacker) room(n int) *buffer {
	return u.pool.get(min(max(u.guess, 2*n, 1<<minClass), u.limit))
}

func (u *unpacker) readAll(r io.Reader, n int) (*buffer, error) {
	b := u.room(n)
	b.b = b.b[:0]
	for {
		if len(b.b) == cap(b.b) {
			more := u.pool.get(2 * cap(b.b))
			more.b = more.b[:copy(more.b, b.b)]
			b.free()
			b = more
		}
		n, err := r.Read(b.b[len(b.b):cap(b.b)])
		b.b = b.b[:len(b.b)+n]
		if len(b.b) > u.limit {
			err = errTooLarge
		}
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			b.free()
			return nil, err
		}
	}
}

// Shared: a decoder keeps as many block decoders as there are processors.
var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true))
})

func (u *unpacker) zstd(src []byte) (*buffer, error) {
	d, err := zstdDecoder()
	if err != nil {
		return nil, err
	}
	for b := u.room(4 * len(src)); ; {
		out, err := d.DecodeAll(src, b.b[:0])
		if err == nil && len(out) <= u.limit {
			b.b = out
			return b, nil
		}
		size := cap(b.b)
		b.free()
		// In a buffer that is too small the decoder may fail in several ways,
		// so other errors count only where there was room enough: no byte can
		// become more than a block of 128 KiB.
		switch {
		case err == nil, size >= u.limit && errors.Is(err, zstd.ErrDecoderSizeExceeded):
			return nil, errTooLarge
		case size >= u.limit:
			return nil, fmt.Errorf("%w, or more than Config.MaxBatchBytes (%d) comes of it", err, u.limit)
		case size/(128<<10) > len(src):
			return nil, err
		}
		b = u.pool.get(2 * size)
	}
}

// xerial is how the Java library frames snappy: this, two versions, then
// blocks with their lengths before them.
var xerial = []byte{0x82, 'S', 'N', 'A', 'P', 'P', 'Y', 0}

func (u *unpacker) snappy(src []byte) (*buffer, error) {
	framed := len(src) >= 16 && bytes.HasPrefix(src, xerial)
	if framed {
		src = src[16:]
	}
	size := 0
	for rest := src; len(rest) > 0; {
		block := rest
		if framed {
			var err error
			if block, err = xerialBlock(rest); err != nil {
				return nil, err
			}
			rest = rest[4+len(block):]
		} else {
			rest = nil
		}
		n, err := snappy.DecodedLen(block)
		if err != nil {
			return nil, err
		}
		// A copy of 3 bytes makes at most 64.
		if n > 32*len(block) {
			return nil, errors.New("claims more than it can hold")
		}
		if size += n; size > u.limit {
			return nil, errTooLarge
		}
	}
	b := u.pool.get(size)
	at := 0
	for len(src) > 0 {
		block := src
		if framed {
			block, _ = xerialBlock(src)
			src = src[4+len(block):]
		} else {
			src = nil
		}
		out, err := snappy.Decode(b.b[at:at:size], block)
		if err != nil {
			b.free()
			return nil, err
		}
		at += len(out)
	}
	return b, nil
}

func xerialBlock(p []byte) ([]byte, error) {
	if len(p) < 4 {
		return nil, io.ErrUnexpectedEOF
	}
	n := binary.BigEndian.Uint32(p)
	if uint64(n) > uint64(len(p)-4) {
		return nil, io.ErrUnexpectedEOF
	}
	return p[4 : 4+n], nil
}
