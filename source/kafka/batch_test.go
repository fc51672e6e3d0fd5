package kafka

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// plainBatch makes a batch of records by other code than ours; change may
// spoil it before it is sealed.
func plainBatch(base int64, codec int, values []string, change func(*kmsg.RecordBatch)) []byte {
	var records []byte
	for i, v := range values {
		r := kmsg.Record{OffsetDelta: int32(i), TimestampDelta64: int64(i), Key: []byte("key"), Value: []byte(v)}
		if i%2 == 1 {
			r.Key = nil
			r.Headers = []kmsg.Header{{Key: "h", Value: []byte("v")}, {Key: "none"}}
		}
		records = append(records, appendRecord(nil, r)...)
	}
	b := kmsg.RecordBatch{
		FirstOffset: base, PartitionLeaderEpoch: 1, Magic: 2, Attributes: int16(codec),
		LastOffsetDelta: int32(len(values) - 1), FirstTimestamp: 1000, MaxTimestamp: 5000,
		ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1,
		NumRecords: int32(len(values)), Records: pack(codec, records),
	}
	if change != nil {
		change(&b)
	}
	return seal(b)
}

// appendRecord writes r with its length.
func appendRecord(dst []byte, r kmsg.Record) []byte {
	r.Length = 0
	body := r.AppendTo(nil)[1:]
	return append(binary.AppendVarint(dst, int64(len(body))), body...)
}

// seal computes length and checksum.
func seal(b kmsg.RecordBatch) []byte {
	raw := b.AppendTo(nil)
	binary.BigEndian.PutUint32(raw[8:], uint32(len(raw)-12))
	binary.BigEndian.PutUint32(raw[17:], crc32.Checksum(raw[21:], crc32.MakeTable(crc32.Castagnoli)))
	return raw
}

func pack(codec int, p []byte) []byte {
	var b bytes.Buffer
	switch codec {
	case codecGzip:
		w := gzip.NewWriter(&b)
		w.Write(p)
		w.Close()
	case codecSnappy:
		return s2.EncodeSnappy(nil, p)
	case codecLZ4:
		w := lz4.NewWriter(&b)
		w.Write(p)
		w.Close()
	case codecZstd:
		w, _ := zstd.NewWriter(&b)
		w.Write(p)
		w.Close()
	default:
		return p
	}
	return b.Bytes()
}

// readBatches returns all that is in p, as a partition reads it, from offset
// from on.
func readBatches(p []byte, aborted []abortedTxn, from int64, limit int) (all []record, next int64, err error) {
	pool := new(pool)
	r := batchReader{unpack: unpacker{pool: pool, limit: limit}}
	seg := &segment{aborted: aborted, buf: pool.get(1)}
	seg.data, _, seg.err = scan(p, unplaced(from))
	r.begin(seg)
	f := filter{aborted: seg.aborted}
	var spent []*buffer
	next = from
	for {
		var rec record
		st, err := r.next(&rec, &f, next, &spent)
		if err != nil {
			r.close(&spent)
			for _, b := range spent {
				b.free()
			}
			if u := pool.used.Load(); u != 0 {
				err = fmt.Errorf("%d bytes of buffers were lost after: %w", u, err)
			}
			return all, next, err
		}
		switch st {
		case atSegmentEnd:
			return all, next, nil
		case atBatchEnd:
			next = max(next, r.batch.next())
		default:
			rec.Key, rec.Value = slices.Clone(rec.Key), slices.Clone(rec.Value)
			all = append(all, rec)
			next = rec.Offset + 1
		}
	}
}

func TestBatch(t *testing.T) {
	values := numbered("value", 100)
	for codec, name := range codecs {
		t.Run(name, func(t *testing.T) {
			raw := plainBatch(50, codec, values, nil)
			two := append(slices.Clone(raw), plainBatch(200, codec, values[:3], nil)...)
			for _, from := range []int64{0, 50, 51, 149, 150, 200, 202} {
				all, next, err := readBatches(two, nil, from, 1<<20)
				require.NoError(t, err)
				require.EqualValues(t, 203, next)
				var want []int64
				for o := max(from, 50); o < 203; o++ {
					if o < 150 || o >= 200 {
						want = append(want, o)
					}
				}
				var got []int64
				for _, r := range all {
					got = append(got, r.Offset)
					base, i := int64(50), r.Offset-50
					if r.Offset >= 200 {
						base, i = 200, r.Offset-200
					}
					require.Equal(t, values[i], string(r.Value))
					require.Equal(t, 1000+i, r.ms)
					require.Equal(t, i%2 == 1, r.Key == nil)
					require.Equal(t, r.Offset, base+i)
				}
				require.Equal(t, want, got)
			}
			// A batch that the answer's limit cut off is none.
			for n := range len(raw) {
				all, next, err := readBatches(raw[:n], nil, 50, 1<<20)
				require.Empty(t, all)
				require.EqualValues(t, 50, next)
				if n > 0 {
					require.ErrorIs(t, err, errPartial)
				}
			}
			// No bit of what the checksum covers goes unnoticed.
			for n := 17; n < len(raw); n++ {
				bad := slices.Clone(raw)
				bad[n] ^= 1 << (n % 8)
				_, _, err := readBatches(bad, nil, 50, 1<<20)
				require.Error(t, err, "byte %d", n)
			}
		})
	}
}

func TestBatchHeaders(t *testing.T) {
	raw := plainBatch(0, 0, []string{"a", "b"}, nil)
	all, _, err := readBatches(raw, nil, 0, 1<<20)
	require.NoError(t, err)
	got := map[string][]byte{}
	for k, v := range all[1].Headers() {
		got[k] = v
	}
	require.Equal(t, map[string][]byte{"h": []byte("v"), "none": nil}, got)
	for range all[0].Headers() {
		t.Fatal("a header")
	}
}

// LogAppendTime: what the broker stamped is the time of every record.
func TestBatchTimes(t *testing.T) {
	all, _, err := readBatches(plainBatch(0, 0, []string{"a", "b"}, func(b *kmsg.RecordBatch) { b.Attributes |= attrLogAppend }), nil, 0, 1<<20)
	require.NoError(t, err)
	require.EqualValues(t, 5000, all[0].ms)
	require.EqualValues(t, 5000, all[1].ms)
	all, _, err = readBatches(plainBatch(0, 0, []string{"a"}, func(b *kmsg.RecordBatch) { b.FirstTimestamp = -1 }), nil, 0, 1<<20)
	require.NoError(t, err)
	require.True(t, all[0].Time.IsZero())
}

// Compaction removes records from a batch, and all of them from some.
func TestBatchCompacted(t *testing.T) {
	gaps := plainBatch(10, 0, nil, func(b *kmsg.RecordBatch) {
		b.LastOffsetDelta = 9
		b.NumRecords = 2
		b.Records = appendRecord(appendRecord(nil, kmsg.Record{OffsetDelta: 3, Value: []byte("a")}), kmsg.Record{OffsetDelta: 7, Value: []byte("b")})
	})
	empty := plainBatch(30, 0, nil, func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 4 })
	all, next, err := readBatches(append(gaps, empty...), nil, 0, 1<<20)
	require.NoError(t, err)
	require.EqualValues(t, 35, next)
	require.Len(t, all, 2)
	require.EqualValues(t, 13, all[0].Offset)
	require.EqualValues(t, 17, all[1].Offset)
}

func txnBatch(base, producer int64, value string) []byte {
	return plainBatch(base, 0, []string{value}, func(b *kmsg.RecordBatch) { b.Attributes |= attrTxn; b.ProducerID = producer })
}

func marker(base, producer int64, kind byte) []byte {
	return plainBatch(base, 0, nil, func(b *kmsg.RecordBatch) {
		b.Attributes |= attrTxn | attrControl
		b.ProducerID, b.NumRecords, b.LastOffsetDelta = producer, 1, 0
		b.Records = appendRecord(nil, kmsg.Record{Key: []byte{0, 0, 0, kind}, Value: []byte{0, 0, 0, 0, 0, 0}})
	})
}

func TestBatchTransactions(t *testing.T) {
	log := slices.Concat(
		txnBatch(0, 1, "1 aborted"), txnBatch(1, 2, "2 committed"), txnBatch(2, 1, "1 aborted"),
		marker(3, 1, 0), txnBatch(4, 1, "1 again"), marker(5, 2, 1), txnBatch(6, 2, "2 aborted"), marker(7, 1, 1),
		marker(8, 2, 0), plainBatch(9, 0, []string{"none"}, nil), txnBatch(10, 2, "2 again"), marker(11, 2, 1),
	)
	aborted := []abortedTxn{{1, 0}, {2, 6}}
	keys := []string{1: "2 committed", 4: "1 again", 9: "none", 10: "2 again", 11: ""}
	for from := range int64(len(keys)) {
		all, next, err := readBatches(log, aborted, from, 1<<20)
		require.NoError(t, err)
		require.EqualValues(t, 12, next)
		var got, want []string
		for _, r := range all {
			got = append(got, string(r.Value))
		}
		for _, k := range keys[from:] {
			if k != "" {
				want = append(want, k)
			}
		}
		require.Equal(t, want, got, "from %d", from)
	}
}

// What is garbled is refused with a reason, also where the checksum is right.
func TestBatchGarbled(t *testing.T) {
	huge := binary.AppendVarint(nil, math.MaxInt64)
	record := func(change func(r *kmsg.Record)) []byte {
		r := kmsg.Record{Value: []byte("v")}
		change(&r)
		return appendRecord(nil, r)
	}
	one := func(records []byte) func(*kmsg.RecordBatch) {
		return func(b *kmsg.RecordBatch) { b.Records = records }
	}
	body := func(parts ...[]byte) []byte {
		p := slices.Concat(append([][]byte{{0, 0, 0}}, parts...)...) // attributes, deltas
		return append(binary.AppendVarint(nil, int64(len(p))), p...)
	}
	null, none := []byte{1}, []byte{0}
	for name, c := range map[string]struct {
		change func(*kmsg.RecordBatch)
		want   string
	}{
		"version 0":        {func(b *kmsg.RecordBatch) { b.Magic = 0 }, "message format version 0"},
		"version 1":        {func(b *kmsg.RecordBatch) { b.Magic = 1 }, "message format version 1"},
		"version 3":        {func(b *kmsg.RecordBatch) { b.Magic = 3 }, "version 3 is unknown"},
		"codec 5":          {func(b *kmsg.RecordBatch) { b.Attributes = 5 }, "codec 5 is unknown"},
		"negative offset":  {func(b *kmsg.RecordBatch) { b.FirstOffset = -1 }, "base offset -1"},
		"offset overflow":  {func(b *kmsg.RecordBatch) { b.FirstOffset = math.MaxInt64 }, "base offset"},
		"negative delta":   {func(b *kmsg.RecordBatch) { b.LastOffsetDelta = -1 }, "last delta -1"},
		"negative count":   {func(b *kmsg.RecordBatch) { b.NumRecords = -1 }, "-1 records"},
		"too few records":  {func(b *kmsg.RecordBatch) { b.NumRecords = math.MaxInt32 }, "0 are left"},
		"too many records": {func(b *kmsg.RecordBatch) { b.NumRecords = 0 }, "bytes follow the last record"},
		"huge record":      {one(append(huge, 0)), "a record of 9223372036854775807 bytes"},
		"endless length":   {one(bytes.Repeat([]byte{0xff}, 11)), "a record of"},
		"negative record":  {one([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0}), "a record of -1 bytes"},
		"huge key":         {one(body(huge, null, none, none)), "does not fit"},
		"huge value":       {one(body(null, huge, none, none)), "does not fit"},
		"huge count":       {one(body(null, null, huge)), "does not fit"},
		"negative headers": {one(body(null, null, null)), "does not fit"},
		"header key":       {one(body(null, null, []byte{2}, huge)), "does not fit"},
		"header value":     {one(body(null, null, []byte{2, 2, 'k'}, huge)), "does not fit"},
		"header missing":   {one(body(null, null, []byte{4, 0, 0})), "does not fit"},
		"rest in record":   {one(body(null, null, none, none)), "does not fit"},
		"offset beyond":    {one(record(func(r *kmsg.Record) { r.OffsetDelta = 7 })), "offset 7 follows -1, the last is 0"},
		"offset before":    {one(record(func(r *kmsg.Record) { r.OffsetDelta = -1 })), "offset -1"},
		"offsets not apart": {func(b *kmsg.RecordBatch) {
			b.LastOffsetDelta = 1
			b.NumRecords = 2
			b.Records = append(b.Records, b.Records...)
		}, "offset 0 follows 0"},
		"gzip":   {func(b *kmsg.RecordBatch) { b.Attributes = codecGzip }, "gzip: "},
		"snappy": {func(b *kmsg.RecordBatch) { b.Attributes = codecSnappy }, "snappy: "},
		"lz4":    {func(b *kmsg.RecordBatch) { b.Attributes = codecLZ4 }, "lz4: "},
		"zstd":   {func(b *kmsg.RecordBatch) { b.Attributes = codecZstd }, "zstd: "},
		"snappy claim": {func(b *kmsg.RecordBatch) {
			b.Attributes = codecSnappy
			b.Records = []byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0}
		}, "claims more"},
		"xerial cut off": {func(b *kmsg.RecordBatch) {
			b.Attributes = codecSnappy
			b.Records = append(slices.Clone(xerial), 0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 1)
		}, "unexpected EOF"},
		"zstd claim": {func(b *kmsg.RecordBatch) {
			b.Attributes = codecZstd
			b.Records = []byte{0x28, 0xb5, 0x2f, 0xfd, 0xa0, 0xff, 0xff, 0xff, 0x00, 1, 0, 0}
		}, "MaxBatchBytes"},
		"compressed marker": {func(b *kmsg.RecordBatch) { b.Attributes = attrTxn | attrControl | codecGzip }, "control batch is compressed"},
	} {
		t.Run(name, func(t *testing.T) {
			raw := plainBatch(0, 0, []string{"v"}, c.change)
			all, _, err := readBatches(raw, nil, 0, 1<<20)
			require.ErrorContains(t, err, c.want)
			require.LessOrEqual(t, len(all), 1)
			require.NotContains(t, err.Error(), "were lost")
		})
	}
	short := plainBatch(0, 0, []string{"v"}, nil)
	binary.BigEndian.PutUint32(short[8:], 48)
	_, _, err := readBatches(short, nil, 0, 1<<20)
	require.ErrorContains(t, err, "its length is 48")
	binary.BigEndian.PutUint32(short[8:], math.MaxUint32)
	_, _, err = readBatches(short, nil, 0, 1<<20)
	require.ErrorContains(t, err, "its length is -1")
	// A broker that goes back would be read in circles.
	_, _, err = readBatches(plainBatch(0, 0, []string{"v"}, nil), nil, 5, 1<<20)
	require.ErrorContains(t, err, "5 was to follow")
}

// What decompresses to more than the limit is refused before it is there.
func TestBatchTooLarge(t *testing.T) {
	value := strings.Repeat("x", 3<<20)
	for codec, name := range codecs[1:] {
		raw := plainBatch(0, codec+1, []string{value}, nil)
		_, _, err := readBatches(raw, nil, 0, 1<<20)
		require.ErrorIs(t, err, errTooLarge, name)
		all, _, err := readBatches(raw, nil, 0, 4<<20)
		require.NoError(t, err, name)
		require.Len(t, all, 1)
	}
}

func TestSnappyXerial(t *testing.T) {
	var records []byte
	for i, v := range numbered("value", 3000) {
		records = appendRecord(records, kmsg.Record{OffsetDelta: int32(i), Value: []byte(v)})
	}
	framed := append(slices.Clone(xerial), 0, 0, 0, 1, 0, 0, 0, 1)
	for block := range slices.Chunk(records, 1000) {
		p := s2.EncodeSnappy(nil, block)
		framed = append(binary.BigEndian.AppendUint32(framed, uint32(len(p))), p...)
	}
	raw := plainBatch(0, 0, nil, func(b *kmsg.RecordBatch) {
		b.Attributes, b.NumRecords, b.LastOffsetDelta, b.Records = codecSnappy, 3000, 2999, framed
	})
	all, _, err := readBatches(raw, nil, 0, 1<<20)
	require.NoError(t, err)
	require.Len(t, all, 3000)
	require.Equal(t, "value2999", string(all[2999].Value))
}
