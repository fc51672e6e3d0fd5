package kafka

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// clicks returns n JSON documents of about 85 bytes, of 10,000 users.
func clicks(n int) (values []string) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range n {
		values = append(values, fmt.Sprintf(`{"user_id":"user_%d","timestamp":"%s","page":"/p/%d"}`,
			i*7919%10000, at.Add(time.Duration(i)*time.Millisecond).Format(time.RFC3339Nano), i%100))
	}
	return values
}

// BenchmarkDecode is the way of records through Partition.Fetch, from batches
// that are there already: checksum, decompression, walk, Decode. An op is an
// event.
func BenchmarkDecode(b *testing.B) {
	values := clicks(200)
	for _, decode := range []struct {
		name string
		f    Decode
	}{
		{"walk", func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
			return append(dst, tumble.Event{Key: "k", Time: m.Time}), nil
		}},
		{"JSON", JSON("user_id", "timestamp")},
	} {
		for codec, name := range codecs {
			b.Run(decode.name+"/"+name, func(b *testing.B) {
				const batches = 60 // about what an answer holds
				var raw []byte
				for i := range batches {
					raw = append(raw, plainBatch(int64(i*len(values)), codec, values, nil)...)
				}
				s, err := New(Config{Brokers: []string{"none:1"}, Topic: "t", Decode: decode.f, MaxSkew: -1})
				require.NoError(b, err)
				p := newFetcher(s, nil).add(0)
				b.SetBytes(int64(len(values[0])))
				b.ReportAllocs()
				b.ResetTimer()
				at := unplaced(0)
				for n := 0; n < b.N; {
					if at.Offset == int64(batches*len(values)) {
						at = unplaced(0)
					}
					if at.Offset == 0 {
						p.seek(unplaced(0))
						seg := &segment{buf: s.pool.get(len(raw))}
						copy(seg.buf.b, raw)
						seg.data, _, err = scan(seg.buf.b, unplaced(0))
						if err != nil {
							b.Fatal(err)
						}
						p.feed.queue = append(p.feed.queue, seg)
					}
					c, err := p.Fetch(b.Context(), at)
					if err != nil {
						b.Fatal(err)
					}
					n += len(c.Events)
					at = tumble.Position{Offset: c.Next, Epoch: c.Epoch}
				}
			})
		}
	}
}
