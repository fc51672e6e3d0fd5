package channel_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/channel"
)

// sample returns n events of 1,000 keys.
func sample(n int) []tumble.Event {
	now := time.Now()
	events := make([]tumble.Event, n)
	for i := range events {
		events[i] = tumble.Event{Key: fmt.Sprint("user_", i%1000), Time: now}
	}
	return events
}

// filled is how many events lie in the channel when reading begins.
const filled = 1 << 15

var read int64

// BenchmarkReceive is what BenchmarkFetch has to be measured by: both take what
// lies in the channel, nobody sends meanwhile.
func BenchmarkReceive(b *testing.B) {
	b.ReportAllocs()
	events, todo := make(chan tumble.Event, filled), sample(filled)
	for n := b.N; n > 0; n -= filled {
		b.StopTimer()
		for _, e := range todo[:min(n, filled)] {
			events <- e
		}
		b.StartTimer()
		for range min(n, filled) {
			e := <-events
			read += int64(len(e.Key))
		}
	}
}

func BenchmarkFetch(b *testing.B) {
	b.ReportAllocs()
	events, todo := make(chan tumble.Event, filled), sample(filled)
	s, err := channel.New(channel.Config{ID: "clicks", Events: events})
	require.NoError(b, err)
	require.NoError(b, s.Run(b.Context(), func(ctx context.Context, p tumble.Partition) error {
		from := int64(0)
		for n := b.N; n > 0; n -= filled {
			b.StopTimer()
			for _, e := range todo[:min(n, filled)] {
				events <- e
			}
			b.StartTimer()
			for to := from + int64(min(n, filled)); from < to; {
				c, err := p.Fetch(ctx, tumble.Position{Offset: from})
				if err != nil {
					return err
				}
				for i := range c.Events {
					read += int64(len(c.Events[i].Key))
				}
				from = c.Next
			}
			p.(tumble.Committer).Committed(from)
		}
		return nil
	}))
}

// BenchmarkReceiveSent and BenchmarkFetchSent have a sender beside them.
func BenchmarkReceiveSent(b *testing.B) {
	b.ReportAllocs()
	events := make(chan tumble.Event, 1024)
	go send(events, b.N)
	for e := range events {
		read += int64(len(e.Key))
	}
}

func BenchmarkFetchSent(b *testing.B) {
	b.ReportAllocs()
	events := make(chan tumble.Event, 1024)
	s, err := channel.New(channel.Config{ID: "clicks", Events: events})
	require.NoError(b, err)
	go send(events, b.N)
	require.NoError(b, s.Run(b.Context(), func(ctx context.Context, p tumble.Partition) error {
		for from, flushed := int64(0), int64(0); ; {
			c, err := p.Fetch(ctx, tumble.Position{Offset: from})
			if errors.Is(err, tumble.ErrEnded) {
				return nil
			} else if err != nil {
				return err
			}
			for i := range c.Events {
				read += int64(len(c.Events[i].Key))
			}
			if from = c.Next; from-flushed > 50_000 {
				p.(tumble.Committer).Committed(flushed)
				flushed = from
			}
		}
	}))
}

func send(events chan<- tumble.Event, n int) {
	todo := sample(1000)
	for i := range n {
		events <- todo[i%len(todo)]
	}
	close(events)
}
