//go:build servers

package kafka

import (
	"context"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
)

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
			s, err := New(Config{Brokers: c.brokers, Topic: topic, Decode: decode, MaxSkew: -1, UntilEnd: true})
			require.NoError(b, err)
			counts := make([]int, partitions)
			require.NoError(b, s.Run(b.Context(), func(ctx context.Context, p tumble.Partition) error {
				n := p.(*partition).n
				for next := int64(0); ; {
					c, err := p.Fetch(ctx, unplaced(next))
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
