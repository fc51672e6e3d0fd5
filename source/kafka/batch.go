package kafka

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/tumblestream/tumble"
)

// Errors of record batches. They stop reading at the batch. Fetching it again
// helps if it was damaged on the way, and nothing else does.
var (
	errPartial  = errors.New("record batch is cut off")
	errCRC      = errors.New("record batch does not match its checksum (CRC-32C)")
	errTooLarge = errors.New("record batch is larger than Config.MaxBatchBytes when decompressed")
)

func garbled(format string, args ...any) error {
	return fmt.Errorf("record batch is garbled: "+format, args...)
}

const (
	batchHeader = 61 // bytes before the records
	batchPrefix = 12 // base offset and length, which the length does not include
	epochAt     = 12
	magicAt     = 16 // also in the formats before version 2

	attrCodec     = 0x07
	attrLogAppend = 0x08
	attrTxn       = 0x10
	attrControl   = 0x20

	// A record is its length, attributes, two deltas, two lengths and a count.
	minRecord = 7
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A batch is the header of a record batch, format version 2, and its records,
// perhaps compressed.
type batch struct {
	base       int64
	epoch      int32 // of the leader that wrote it, -1 if unknown
	lastDelta  int32
	attributes int16
	baseTime   int64 // milliseconds from the epoch, -1 for none
	maxTime    int64
	producer   int64
	count      int32

	data    []byte // covered by the checksum: from the attributes on
	crc     uint32
	records []byte
}

// next is the offset after the batch. Compaction may have removed its last
// records, but the header still counts them.
func (b *batch) next() int64 { return b.base + int64(b.lastDelta) + 1 }

func (b *batch) codec() int  { return int(b.attributes & attrCodec) }
func (b *batch) txn() bool   { return b.attributes&attrTxn != 0 }
func (b *batch) marks() bool { return b.attributes&attrControl != 0 }

// parse reads the batch at the start of p and returns the bytes after it.
func (b *batch) parse(p []byte) (rest []byte, err error) {
	if len(p) <= magicAt {
		return nil, errPartial
	}
	if magic := p[magicAt]; magic < 2 {
		return nil, fmt.Errorf("record batch has message format version %d, written before Kafka 0.11: only version 2 is read; have the topic rewritten", magic)
	} else if magic > 2 {
		return nil, garbled("message format version %d is unknown", magic)
	}
	length := int(int32(binary.BigEndian.Uint32(p[8:])))
	if length < batchHeader-batchPrefix {
		return nil, garbled("its length is %d", length)
	}
	if length > len(p)-batchPrefix {
		return nil, errPartial
	}
	p, rest = p[:batchPrefix+length], p[batchPrefix+length:]
	*b = batch{
		base:       int64(binary.BigEndian.Uint64(p)),
		epoch:      int32(binary.BigEndian.Uint32(p[epochAt:])),
		crc:        binary.BigEndian.Uint32(p[17:]),
		data:       p[21:],
		attributes: int16(binary.BigEndian.Uint16(p[21:])),
		lastDelta:  int32(binary.BigEndian.Uint32(p[23:])),
		baseTime:   int64(binary.BigEndian.Uint64(p[27:])),
		maxTime:    int64(binary.BigEndian.Uint64(p[35:])),
		producer:   int64(binary.BigEndian.Uint64(p[43:])),
		count:      int32(binary.BigEndian.Uint32(p[57:])),
		records:    p[batchHeader:],
	}
	if b.base < 0 || b.lastDelta < 0 || b.next() < 0 || b.count < 0 {
		return nil, garbled("base offset %d, last delta %d, %d records", b.base, b.lastDelta, b.count)
	}
	return rest, nil
}

// parts reports whether the batch, which reaches beyond a position, cannot follow
// the record before it: epochs do not fall, and a batch has but one.
func (b *batch) parts(at tumble.Position) bool {
	return at.Epoch >= 0 && b.epoch >= 0 && (b.epoch < at.Epoch || b.base < at.Offset && b.epoch != at.Epoch)
}

// batchSize returns how many bytes the batch at the start of p has.
func batchSize(p []byte) (int, bool) {
	if len(p) <= magicAt {
		return 0, false
	}
	return batchPrefix + int(binary.BigEndian.Uint32(p[8:])), true
}

// batchEpoch returns the leader epoch of the batch at the start of p.
func batchEpoch(p []byte) (int32, bool) {
	if len(p) < batchHeader {
		return -1, false
	}
	return int32(binary.BigEndian.Uint32(p[epochAt:])), true
}

func (b *batch) check() error {
	if crc32.Checksum(b.data, castagnoli) != b.crc {
		return errCRC
	}
	return nil
}

// aborts reports whether b is the marker that ends an aborted transaction of
// its producer.
func (b *batch) aborts() (bool, error) {
	if b.codec() != 0 {
		return false, garbled("a control batch is compressed")
	}
	var rec record
	w := walk(b, b.records)
	ok, err := w.next(&rec)
	if err != nil {
		return false, err
	}
	// A version and a type: 0 abort, 1 commit, others are not of transactions.
	if !ok || len(rec.Key) < 4 {
		return false, nil // compaction leaves such batches empty
	}
	return binary.BigEndian.Uint16(rec.Key[2:]) == 0, nil
}

// A record is a Message whose parts lie in its batch. A walker sets neither its
// Topic nor its Partition.
type record struct {
	Message
	ms int64 // its Time: milliseconds from the epoch, negative for none
}

// A walker goes over the records of a batch in place. It believes no length
// before it has checked it, and allocates nothing.
type walker struct {
	p      []byte // not read yet
	left   int32  // records to come
	base   int64
	last   int64 // largest offset that may come
	before int64 // offset of the record before
	time   int64 // base
	append int64 // the timestamp of a log that stamps records itself, else -1
}

func walk(b *batch, records []byte) walker {
	w := walker{p: records, left: b.count, base: b.base, last: b.base + int64(b.lastDelta), before: b.base - 1, time: b.baseTime, append: -1}
	if b.attributes&attrLogAppend != 0 {
		w.append = b.maxTime
	}
	return w
}

var errRecord = garbled("a record does not fit its length")

// next sets r to the next record, and reports whether there is one.
func (w *walker) next(r *record) (ok bool, err error) {
	if w.left == 0 {
		if len(w.p) != 0 {
			return false, garbled("%d bytes follow the last record", len(w.p))
		}
		return false, nil
	}
	size, start := varint(w.p, 0)
	if start < 0 || size < minRecord-1 || size > int64(len(w.p)-start) {
		return false, garbled("a record of %d bytes, %d are left", size, len(w.p))
	}
	p := w.p[start : start+int(size)]
	deltaTime, i := varint(p, 1) // after the attributes, of which none is in use
	delta, i := varint(p, i)
	n, i := varint(p, i)
	if i < 0 || n > int64(len(p)-i) {
		return false, errRecord
	}
	r.Key, r.Value, r.headers, r.count = nil, nil, nil, 0
	if n >= 0 {
		r.Key = p[i : i+int(n) : i+int(n)]
		i += int(n)
	}
	n, i = varint(p, i)
	if i < 0 || n > int64(len(p)-i) {
		return false, errRecord
	}
	if n >= 0 {
		r.Value = p[i : i+int(n) : i+int(n)]
		i += int(n)
	}
	n, i = varint(p, i)
	if i < 0 || n < 0 || n > int64(len(p)-i) {
		return false, errRecord
	}
	if n > 0 {
		r.headers, r.count = p[i:], n
		for range 2 * n {
			var size int64
			if size, i = varint(p, i); i < 0 || size > int64(len(p)-i) {
				return false, errRecord
			}
			i += int(max(0, size))
		}
	}
	if i != len(p) {
		return false, errRecord
	}
	r.Offset = w.base + delta
	if r.Offset <= w.before || r.Offset > w.last {
		return false, garbled("offset %d follows %d, the last is %d", r.Offset, w.before, w.last)
	}
	ms := w.append
	if ms < 0 && w.time >= 0 {
		ms = w.time + deltaTime
	}
	if ms != r.ms || r.Time.IsZero() { // records of a batch often have the same
		r.ms, r.Time = ms, time.Time{}
		if ms >= 0 {
			r.Time = time.UnixMilli(ms).UTC()
		}
	}
	w.before = r.Offset
	w.left--
	w.p = w.p[start+int(size):]
	return true, nil
}

// varint reads a zigzag varint at p[i] and returns the index behind it, -1 if it
// is cut off or i was -1.
func varint(p []byte, i int) (int64, int) {
	if uint(i) < uint(len(p)) {
		if b := p[i]; b < 0x80 { // nearly all of them
			return int64(b>>1) ^ -int64(b&1), i + 1
		}
	}
	return longVarint(p, i)
}

func longVarint(p []byte, i int) (int64, int) {
	if i < 0 {
		return 0, -1
	}
	var u uint64
	for shift := 0; i < len(p) && shift < 64; shift += 7 {
		b := p[i]
		i++
		u |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if shift == 63 && b > 1 {
				break // more than 64 bits
			}
			return int64(u>>1) ^ -int64(u&1), i
		}
	}
	return 0, -1
}
