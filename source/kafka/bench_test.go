package kafka

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

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
				s, err := New(Config{Brokers: []string{"none:1"}, Topic: "t", Decode: decode.f, MaxAhead: -1})
				require.NoError(b, err)
				p := newFetcher(s, nil).add(0)
				b.SetBytes(int64(len(values[0])))
				b.ReportAllocs()
				b.ResetTimer()
				next := int64(0)
				for n := 0; n < b.N; {
					if next == int64(batches*len(values)) {
						next = 0
					}
					if next == 0 {
						p.seek(0)
						seg := &segment{buf: s.pool.get(len(raw))}
						copy(seg.buf.b, raw)
						seg.data, _, err = scan(seg.buf.b, 0)
						if err != nil {
							b.Fatal(err)
						}
						p.feed.queue = append(p.feed.queue, seg)
					}
					c, err := p.Fetch(b.Context(), next)
					if err != nil {
						b.Fatal(err)
					}
					n += len(c.Events)
					next = c.Next
				}
			})
		}
	}
}

// cpu is what this process has used.
func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// compareCPU reads a topic of total records by Partition.Fetch, without and with
// decoding JSON, and by franz-go, and reports the processor time of each per
// record.
func compareCPU(b *testing.B, c cluster, codec kgo.CompressionCodec, total int) {
	const partitions = 4
	topic := c.create(b, partitions)
	cl := c.client(b, kgo.ProducerBatchCompression(codec), kgo.ProducerBatchMaxBytes(16<<10), kgo.MaxBufferedRecords(1<<20))
	for i, v := range clicks(total) {
		cl.Produce(b.Context(), &kgo.Record{Topic: topic, Partition: int32(i % partitions), Value: []byte(v)}, func(_ *kgo.Record, err error) {
			if err != nil {
				b.Error(err)
			}
		})
	}
	require.NoError(b, cl.Flush(b.Context()))
	cl.Close()

	ours := func(decode Decode) func() int {
		return func() int {
			s, err := New(Config{Brokers: c.brokers, Topic: topic, Decode: decode, MaxAhead: -1, UntilEnd: true})
			require.NoError(b, err)
			counts := make([]int, partitions)
			require.NoError(b, s.Run(b.Context(), func(ctx context.Context, p tumble.Partition) error {
				n := p.(*partition).n
				for next := int64(0); ; {
					c, err := p.Fetch(ctx, next)
					if err != nil {
						return nil // io.EOF
					}
					counts[n] += len(c.Events)
					next = c.Next
				}
			}))
			return counts[0] + counts[1] + counts[2] + counts[3]
		}
	}
	franz := func() int {
		cl, err := kgo.NewClient(kgo.SeedBrokers(c.brokers...), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
		require.NoError(b, err)
		defer cl.Close()
		n := 0
		for n < total {
			f := cl.PollFetches(b.Context())
			require.NoError(b, f.Err())
			f.EachRecord(func(*kgo.Record) { n++ })
		}
		return n
	}
	readers := []struct {
		name string
		read func() int
	}{
		{"franz-go", franz},
		{"fetch", ours(func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
			return append(dst, tumble.Event{Key: "k", Time: m.Time}), nil
		})},
		{"fetch+JSON", ours(JSON("user_id", "timestamp"))},
	}
	used := make([]time.Duration, len(readers))
	for range b.N {
		for i, r := range readers {
			runtime.GC()
			begin := cpu()
			require.Equal(b, total, r.read())
			used[i] += cpu() - begin
		}
	}
	for i, r := range readers {
		perRecord := float64(used[i].Nanoseconds()) / float64(b.N) / float64(total)
		b.ReportMetric(perRecord, r.name+"-ns/record")
		b.ReportMetric(float64(used[i])/float64(used[0]), r.name+"-x")
	}
	b.ReportMetric(0, "ns/op")
	b.Log(topic + ": " + strconv.Itoa(total) + " records")
}
