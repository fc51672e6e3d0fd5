package tumble_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

// prepared is a source that hands out the same chunk again and again.
type prepared struct {
	events []tumble.Event // one chunk after the other
	left   int            // events yet to hand out
}

func (s *prepared) Partitions(context.Context, map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	return map[string]tumble.Checkpoint{"p": {Log: "l"}}, nil
}

func (s *prepared) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return consume(ctx, s)
}

func (s *prepared) ID() string { return "p" }

func (s *prepared) Resume(_ context.Context, c tumble.Checkpoint) (tumble.Checkpoint, error) {
	return c, nil
}

const chunkSize = 4096

func (s *prepared) Fetch(ctx context.Context, at tumble.Position) (tumble.Chunk, error) {
	from := at.Offset
	if s.left <= 0 {
		return tumble.Chunk{}, tumble.ErrEnded
	}
	next := int(from) % len(s.events)
	chunk := s.events[next:min(next+chunkSize, len(s.events), next+s.left)]
	for i := range chunk {
		chunk[i].Offset = from + int64(i)
	}
	s.left -= len(chunk)
	return tumble.Chunk{Events: chunk, Next: from + int64(len(chunk)), End: -1}, nil
}

// clicks returns events of an hour in order but for some jitter.
func clicks(n, keys int) []tumble.Event {
	rng := rand.New(rand.NewPCG(1, 1))
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprint("user_", i)
	}
	events := make([]tumble.Event, n)
	for i := range events {
		sec := float64(i)/float64(n)*3600 + 5*rng.Float64()
		events[i] = tumble.Event{Key: names[rng.IntN(keys)], Time: t0.Add(time.Duration(sec * float64(time.Second)))}
	}
	return events
}

// BenchmarkPipeline is the way of an event from a source that costs nothing to
// a map; BenchmarkLoop is what it is compared with.
func BenchmarkPipeline(b *testing.B) {
	for _, keys := range []int{3, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			events := clicks(1<<21, keys)
			b.ReportAllocs()
			b.ResetTimer()
			p, err := tumble.New(tumble.Config{
				Source: &prepared{events: events, left: b.N}, Sink: memory.New(memory.Config{}),
				Window: tumble.Window{Size: time.Minute}, Logger: quiet,
			})
			require.NoError(b, err)
			require.NoError(b, p.Run(b.Context()))
			require.EqualValues(b, b.N, p.Stats().Counted)
		})
	}
}

func BenchmarkLoop(b *testing.B) {
	type key struct {
		win int64
		key string
	}
	for _, keys := range []int{3, 10_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			events := clicks(1<<21, keys)
			b.ReportAllocs()
			b.ResetTimer()
			counts := map[key]int64{}
			for i := range b.N {
				e := &events[i%len(events)]
				ns := e.Time.UnixNano()
				counts[key{ns - ns%int64(time.Minute), e.Key}]++
			}
			require.NotEmpty(b, counts)
		})
	}
}

// BenchmarkChannel sends events through source/channel; BenchmarkReceive
// through the bare channel.
func BenchmarkChannel(b *testing.B) {
	events := clicks(1<<20, 10_000)
	ch := make(chan tumble.Event, 1024)
	source, err := channel.New(channel.Config{ID: "bench", Events: ch})
	require.NoError(b, err)
	p, err := tumble.New(tumble.Config{Source: source, Sink: memory.New(memory.Config{}), Window: tumble.Window{Size: time.Minute}, Logger: quiet})
	require.NoError(b, err)
	b.ReportAllocs()
	go func() {
		for i := range b.N {
			ch <- events[i%len(events)]
		}
		close(ch)
	}()
	require.NoError(b, p.Run(b.Context()))
	require.EqualValues(b, b.N, p.Stats().Counted)
}

func BenchmarkReceive(b *testing.B) {
	events := clicks(1<<20, 10_000)
	ch := make(chan tumble.Event, 1024)
	b.ReportAllocs()
	go func() {
		for i := range b.N {
			ch <- events[i%len(events)]
		}
		close(ch)
	}()
	n := 0
	for range ch {
		n++
	}
	require.Equal(b, b.N, n)
}
