package channel_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

func Example() {
	events := make(chan tumble.Event, 1024)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events, Final: true})
	if err != nil {
		panic(err)
	}
	counts := memory.New(memory.Config{})
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: counts, Window: tumble.Window{Size: time.Minute}})
	if err != nil {
		panic(err)
	}

	// The sender closes the channel when it has no more. As this is Final, the
	// last windows close too.
	at := time.Date(2024, 3, 1, 12, 34, 56, 0, time.UTC)
	go func() {
		defer close(events)
		for range 3 {
			events <- tumble.Event{Key: "user_1", Time: at}
		}
	}()

	if err := pipeline.Run(context.Background()); err != nil {
		panic(err)
	}
	c, err := counts.Count(context.Background(), "user_1", at)
	if err != nil {
		panic(err)
	}
	fmt.Printf("%s in the minute of %s: %d, %v\n", c.Key, c.Start.Format("15:04"), c.N, c.State)
	// Output: user_1 in the minute of 12:34: 3, closed
}

// A pipeline reads it like this.
func ExampleSource_Run() {
	events := make(chan tumble.Event, 2)
	events <- tumble.Event{Key: "user_1"}
	events <- tumble.Event{Key: "user_2"}
	close(events)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	if err != nil {
		panic(err)
	}
	err = source.Run(context.Background(), func(ctx context.Context, p tumble.Partition) error {
		for from := int64(0); ; {
			chunk, err := p.Fetch(ctx, tumble.Position{Offset: from})
			if errors.Is(err, tumble.ErrEnded) {
				fmt.Println(p.ID(), "has ended")
				return nil
			} else if err != nil {
				return err
			}
			for _, e := range chunk.Events {
				fmt.Printf("%s@%d: %s\n", p.ID(), e.Offset, e.Key)
			}
			from = chunk.Next
		}
	})
	if err != nil {
		panic(err)
	}
	// Output:
	// clicks@0: user_1
	// clicks@1: user_2
	// clicks has ended
}
