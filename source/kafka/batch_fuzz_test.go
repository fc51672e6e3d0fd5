package kafka

import (
	"cmp"
	"encoding/binary"
	"hash/crc32"
	"math"
	"runtime/metrics"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// corrected returns raw with lengths and checksums made right, or next to
// nothing would be tested, and the batches it begins with.
func corrected(raw []byte) ([]byte, []batch) {
	raw = slices.Clone(raw)
	var parts []batch
	for rest := raw; len(rest) > 0; {
		var b batch
		after, err := b.parse(rest)
		if err != nil {
			break
		}
		binary.BigEndian.PutUint32(rest[17:], crc32.Checksum(b.data, castagnoli))
		parts = append(parts, b)
		rest = after
	}
	return raw, parts
}

// abortedIn returns what a broker would say of the transactions in a log; false:
// no broker has such batches.
func abortedIn(parts []batch) (aborted []abortedTxn, ok bool) {
	begun := map[int64]int64{} // by producer
	for i := range parts {
		b := &parts[i]
		switch {
		case !b.txn() && b.marks(), b.attributes&attrLogAppend != 0 && b.maxTime < 0:
			return nil, false
		case !b.txn():
		case !b.marks():
			if _, inside := begun[b.producer]; !inside {
				begun[b.producer] = b.base
			}
		default:
			abort, err := b.aborts()
			if err != nil || b.count > 1 {
				return nil, false
			}
			if first, inside := begun[b.producer]; inside && abort {
				aborted = append(aborted, abortedTxn{b.producer, first})
			}
			delete(begun, b.producer)
		}
	}
	slices.SortFunc(aborted, func(a, b abortedTxn) int { return int(a.first - b.first) })
	return aborted, true
}

// franzRecords returns what franz-go reads in p, and how many records of all
// batches it could decode. An error is also what ends the reading early.
func franzRecords(p []byte, aborted []abortedTxn, from int64) (records []*kgo.Record, decoded int, err error) {
	answer := kmsg.NewFetchResponseTopicPartition()
	answer.RecordBatches = p
	for _, a := range aborted {
		answer.AbortedTransactions = append(answer.AbortedTransactions, kmsg.FetchResponseTopicPartitionAbortedTransaction{ProducerID: a.producer, FirstOffset: a.first})
	}
	unpacks := honest{kgo.DefaultDecompressor(), nil}
	got, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Offset: from, IsolationLevel: kgo.ReadCommitted()}, &answer,
		&unpacks, func(m kgo.FetchBatchMetrics) { decoded += m.NumRecords })
	return got.Records, decoded, cmp.Or(got.Err, unpacks.err)
}

// honest keeps the error of a decompressor, of which franz-go does not tell
// behind the first batch.
type honest struct {
	kgo.Decompressor
	err error
}

func (h *honest) Decompress(src []byte, codec kgo.CompressionCodecType) ([]byte, error) {
	p, err := h.Decompressor.Decompress(src, codec)
	h.err = cmp.Or(h.err, err)
	return p, err
}

// allocated returns how many bytes this process has ever allocated.
func allocated() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// FuzzBatch spoils batches in any way that keeps the checksum right. What is
// read without an error is what franz-go reads: of all codecs, with transactions
// committed and aborted. And no length is believed that would cost memory.
func FuzzBatch(f *testing.F) {
	for codec := range codecs {
		f.Add(plainBatch(7, codec, numbered("value", 5), nil), int64(0))
		f.Add(slices.Concat(plainBatch(7, codec, numbered("value", 5), nil), plainBatch(12, codec, numbered("", 70), nil)), int64(9))
		f.Add(plainBatch(0, codec, nil, nil), int64(0))
	}
	f.Add(slices.Concat(txnBatch(0, 1, "a"), marker(1, 1, 0), txnBatch(2, 1, "b"), marker(3, 1, 1)), int64(2))
	f.Add(slices.Concat(txnBatch(0, 1, "a"), txnBatch(1, 2, "b"), marker(2, 1, 0), txnBatch(3, 1, "c"), marker(4, 2, 0), marker(5, 1, 1)), int64(0))
	f.Add(plainBatch(1, 0, []string{"a", "b"}, func(b *kmsg.RecordBatch) { b.Attributes = attrLogAppend }), int64(1))
	f.Add(plainBatch(1, codecSnappy, nil, func(b *kmsg.RecordBatch) {
		b.Records = append(slices.Clone(xerial), 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0)
	}), int64(0))
	f.Add(plainBatch(1, codecSnappy, []string{""}, func(b *kmsg.RecordBatch) { // 4 GB, it says
		b.Records = append([]byte{0xff, 0xff, 0xff, 0xff, 0x0f}, b.Records...)
	}), int64(0))
	f.Add(plainBatch(1, 0, []string{"a"}, func(b *kmsg.RecordBatch) { b.NumRecords = math.MaxInt32 }), int64(0))
	f.Add(plainBatch(1, 0, []string{"a"}, func(b *kmsg.RecordBatch) { b.Attributes = 0x80 }), int64(0))
	const limit = 1 << 20
	f.Fuzz(func(t *testing.T, raw []byte, from int64) {
		from &= math.MaxInt64
		raw, parts := corrected(raw)
		aborted, plausible := abortedIn(parts)

		before := allocated()
		all, next, err := readBatches(raw, aborted, from, limit)
		most := uint64(4<<20 + 64*len(raw)) // others allocate too, and are counted late
		for i := range parts {
			if parts[i].codec() != codecNone {
				most += 16 * limit // buffers that double, and the decoders' own
			}
		}
		require.LessOrEqual(t, allocated()-before, most)
		require.GreaterOrEqual(t, next, from)
		if err != nil {
			require.NotContains(t, err.Error(), "were lost")
			return
		}

		claimed, timeless := 0, false
		for i := range parts {
			b := &parts[i]
			timeless = timeless || b.attributes&0x80 != 0 // a bit that Kafka leaves free, and franz-go has a use for
			if b.next() <= from {
				return // a broker does not send it
			}
			claimed += int(b.count)
		}
		want, decoded, err := franzRecords(raw, aborted, from)
		if !plausible || err != nil && len(aborted) > 0 {
			return // it looks into what was aborted, too
		}
		require.NoError(t, err)
		if decoded < claimed {
			return // it takes no number that is written longer than it need be
		}
		require.Len(t, all, len(want))
		for i, w := range want {
			r := all[i]
			require.Equal(t, w.Offset, r.Offset)
			require.Equal(t, w.Key, r.Key)
			require.Equal(t, w.Value, r.Value)
			n := 0
			for k, v := range r.Headers() {
				require.Equal(t, w.Headers[n], kgo.RecordHeader{Key: k, Value: v})
				n++
			}
			require.Len(t, w.Headers, n)
			if r.ms >= 0 && !timeless { // franz-go has no time that is none
				require.Equal(t, w.Timestamp, time.Unix(0, r.ms*1e6))
			}
		}
	})
}
