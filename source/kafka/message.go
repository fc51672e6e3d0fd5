package kafka

import (
	"encoding/binary"
	"iter"
	"time"

	"github.com/tumblestream/tumble"
)

// A Message is one Kafka record, as a [Decode] sees it. What its slices point
// to is borrowed: it is overwritten after the next Fetch of the partition.
type Message struct {
	Topic     string
	Partition int32
	Offset    int64
	Time      time.Time // the record's timestamp, UTC; of a topic with LogAppendTime the broker's; zero: none
	Key       []byte    // nil: null
	Value     []byte    // nil: null, a tombstone

	headers []byte // as they lie in the record: checked to be whole before Decode is called
	count   int64  // of headers
}

// Headers yields the record's headers in order; a null value is nil. Nothing is
// read of them until it is ranged over.
func (m Message) Headers() iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		b := m.headers
		field := func() []byte {
			n, w := binary.Varint(b)
			if w <= 0 || n > int64(len(b)-w) {
				b = nil
				return nil
			}
			b = b[w:]
			if n < 0 {
				return nil
			}
			v := b[:n:n]
			b = b[n:]
			return v
		}
		for range m.count {
			k := field()
			if !yield(string(k), field()) {
				return
			}
		}
	}
}

// Decode appends the events of one record to dst and returns it. It sets Key
// and Time; the source sets Offset. No event and no error: the record holds
// nothing to count and is skipped. An error: it is rejected, and what was
// appended is dropped. A Key may alias m's slices.
//
// It is called from several goroutines at once, and more than once for a record
// that is read again; it must answer the same each time.
type Decode func(dst []tumble.Event, m Message) ([]tumble.Event, error)
