package kafka

import (
	"encoding/binary"
	"iter"
	"time"

	"github.com/tumblestream/tumble"
)

// A Message is one Kafka record, as a [Decode] sees it. Its slices are borrowed:
// their bytes are overwritten after the next Fetch of the partition.
type Message struct {
	Topic     string
	Partition int32
	Offset    int64
	Time      time.Time // the record's timestamp, UTC, or the broker's if the topic has LogAppendTime; zero if there is none
	Key       []byte    // nil: null
	Value     []byte    // nil: null, a tombstone

	headers []byte // as they lie in the record: checked to be whole before Decode is called
	count   int64  // of headers
}

// Headers yields the record's headers in order. A null value is nil. They are read
// only as far as they are ranged over.
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

// Decode appends the events of one record to dst and returns it. It sets Key and
// Time, the source sets Offset. A record without an event or an error is skipped,
// as it holds nothing to count. One with an error is rejected, and its events are
// dropped. A Key may alias m's slices.
//
// Decode is called from several goroutines at once, and again for a record that is
// read again. It must return the same each time.
type Decode func(dst []tumble.Event, m Message) ([]tumble.Event, error)
