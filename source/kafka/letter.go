package kafka

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// A letter is a record to write.
type letter struct {
	key, value   []byte // nil: null
	headers, own []letterHeader
}

type letterHeader struct {
	key   string
	value []byte // nil: null
}

const maxCause = 1 << 10

func newLetter(r Rejected) letter {
	l := letter{key: r.Message.Key, value: r.Message.Value}
	for k, v := range r.Message.Headers() {
		l.headers = append(l.headers, letterHeader{k, v})
	}
	cause := "unknown"
	if r.Cause != nil {
		cause = r.Cause.Error()
	}
	if len(cause) > maxCause {
		cause = cause[:maxCause]
	}
	l.add(HeaderTopic, r.Topic)
	l.add(HeaderPartition, strconv.Itoa(int(r.Partition)))
	l.add(HeaderOffset, strconv.FormatInt(r.Offset, 10))
	l.add(HeaderCause, strings.ToValidUTF8(cause, ""))
	if at := r.Message.Time; !at.IsZero() {
		l.add(HeaderTime, at.UTC().Format(time.RFC3339Nano))
	}
	return l
}

func (l *letter) add(key, value string) { l.own = append(l.own, letterHeader{key, []byte(value)}) }

// size is about how many bytes the letter takes, if it is not compressed.
func (l *letter) size() int { return len(l.key) + len(l.value) + sizeOf(l.headers) + sizeOf(l.own) }

func sizeOf(headers []letterHeader) (n int) {
	for _, h := range headers {
		n += len(h.key) + len(h.value) + 4
	}
	return n
}

// least reports whether there is nothing left to cut.
func (l *letter) least() bool { return len(l.key) == 0 && len(l.value) == 0 && len(l.headers) == 0 }

// cut returns a letter of at most limit bytes that has the beginning of l's value
// and, if these fit, its key and headers. The headers that locate the record are
// always in it, even if the limit is less.
func (l *letter) cut(limit int) letter {
	c := letter{own: slices.Clone(l.own)}
	c.add(HeaderSize, strconv.Itoa(len(l.value)))
	room := limit - sizeOf(c.own) - len(HeaderDropped) - 16
	var dropped []string
	if len(l.key) <= max(room, 0) {
		c.key = l.key
		room -= len(l.key)
	} else {
		dropped = append(dropped, "key")
	}
	if n := sizeOf(l.headers); n <= room/2 {
		c.headers = l.headers
		room -= n
	} else if n > 0 {
		dropped = append(dropped, "headers")
	}
	if len(dropped) > 0 {
		c.add(HeaderDropped, strings.Join(dropped, " "))
	}
	c.value = l.value[:min(len(l.value), max(room, 0))]
	return c
}

var letterEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		panic(err) // of options that never change
	}
	return e
})

// batch returns a record batch, format version 2, that holds l alone.
func (l *letter) batch(at time.Time) []byte {
	var r wire.Appender
	r.Int8(0)           // attributes
	r = append(r, 0, 0) // deltas of time and offset
	r = appendVarbytes(r, l.key)
	r = appendVarbytes(r, l.value)
	r = binary.AppendVarint(r, int64(len(l.headers)+len(l.own)))
	for _, h := range slices.Concat(l.headers, l.own) {
		r = appendVarbytes(r, []byte(h.key))
		r = appendVarbytes(r, h.value)
	}
	records := binary.AppendVarint(make([]byte, 0, len(r)+binary.MaxVarintLen64), int64(len(r)))
	records = append(records, r...)
	attributes := int16(codecNone)
	if len(records) > compressAbove {
		records, attributes = letterEncoder().EncodeAll(records, nil), codecZstd
	}
	b := make(wire.Appender, 0, batchHeader+len(records))
	b.Int64(0) // base offset
	b.Int32(int32(batchHeader - batchPrefix + len(records)))
	b.Int32(-1) // leader epoch: the broker's to set
	b.Int8(2)   // magic
	b.Int32(0)  // checksum, below
	covered := len(b)
	b.Int16(attributes)
	b.Int32(0) // last delta
	b.Int64(at.UnixMilli())
	b.Int64(at.UnixMilli())
	b.Int64(-1) // no producer id
	b.Int16(-1)
	b.Int32(-1)
	b.Int32(1) // records
	b = append(b, records...)
	binary.BigEndian.PutUint32(b[covered-4:], crc32.Checksum(b[covered:], castagnoli))
	return b
}

// appendVarbytes writes nil as null.
func appendVarbytes(b, v []byte) []byte {
	if v == nil {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(v))), v...)
}
