// Command clickstream is the whole flow in one process: made-up clicks are
// counted per user and minute in memory, and an HTTP API answers how often a
// user clicked. It needs nothing but itself; with Kafka and Redis it is the
// programs in producer, consumer and api.
package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/examples/clickstream/internal/clicks"
	"github.com/tumblestream/tumble/examples/clickstream/internal/program"
	"github.com/tumblestream/tumble/examples/clickstream/internal/simulate"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

func main() {
	program.Main("clickstream", "counts made-up clicks in memory and answers over HTTP how often users clicked.",
		func(f *program.Flags) func(context.Context) error {
			addr := f.Address("addr", "localhost:8000", "`address` to serve on")
			rate := f.Rate("rate", "1000", "`clicks` per second; 0: as fast as possible")
			users := f.Int("users", 3, 1, math.MaxInt32, "how many users click: user_1 to user_`N`")
			window := f.Window("window", "1m", "`length` of a window, such as 1m, 1h+15m or \"day Europe/Berlin\"")
			seed := f.Int("seed", 0, math.MinInt64, math.MaxInt64, "0: other clicks each time; else the same for the same seed `N`")
			return func(ctx context.Context) error {
				clicker := simulate.New(simulate.Config{Users: int(*users), Seed: *seed, Rate: *rate})
				return run(ctx, *addr, *window, clicker)
			}
		})
}

// run serves on addr until ctx ends. Then it counts what was clicked by then,
// and prints the books.
func run(ctx context.Context, addr string, window tumble.Window, clicker *simulate.Clicker) error {
	listener, err := program.Listen(addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	events := make(chan tumble.Event, 1024)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	if err != nil {
		return err
	}
	counts := memory.New(memory.Config{})
	pipeline, err := tumble.New(tumble.Config{
		Source:    source,
		Sink:      counts,
		Window:    window,
		Retention: 24 * time.Hour,
	})
	if err != nil {
		return err
	}
	api := clicks.New(clicks.Config{
		Counts:  counts,
		Metrics: func() []program.Metric { return program.BookMetrics(pipeline.Stats()) },
	})

	// Whichever fails first ends the others. No more clicks come then, the
	// channel is closed, and the pipeline ends when the last is counted. Only if
	// it does not is it told to stop, and then it says how many clicks are lost.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	draining, halt := context.WithCancel(context.WithoutCancel(ctx))
	defer halt()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(5*time.Second, halt) })()
	first := make(chan simulate.Click, 1)
	parts := []func() error{
		func() error { return click(ctx, clicker, events, first) },
		func() error { return pipeline.Run(draining) },
		func() error { return program.Serve(ctx, listener, api) },
		func() error { return announce(ctx, counts, first, program.URL(listener, addr)) },
	}
	ended := make(chan error)
	for _, part := range parts {
		go func() { ended <- part() }()
	}
	err = nil
	for range parts {
		if one := <-ended; one != errAnnounced {
			err = errors.Join(err, one)
			stop()
		}
	}
	return errors.Join(err, program.WriteBooks(os.Stdout, pipeline.Stats()))
}

// click sends clicks to events until ctx ends, and then closes it. The first
// goes to first as well.
func click(ctx context.Context, clicker *simulate.Clicker, events chan<- tumble.Event, first chan<- simulate.Click) error {
	defer close(events)
	for {
		c, err := clicker.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case events <- tumble.Event{Key: c.User, Time: c.Time}:
		case <-ctx.Done():
			return nil
		}
		select {
		case first <- c:
			first = nil
		default: // sending to nil never goes on
		}
	}
}

// errAnnounced says that announce is done, which is no reason to stop.
var errAnnounced = errors.New("announced")

// announce says where the first click can be seen, as soon as it can.
func announce(ctx context.Context, counts tumble.Reader, first <-chan simulate.Click, url string) error {
	var c simulate.Click
	select {
	case c = <-first:
	case <-ctx.Done():
		return errAnnounced
	}
	for {
		count, err := counts.Count(ctx, c.User, c.Time)
		if err != nil && !errors.Is(err, tumble.ErrNoDefinition) {
			return err
		}
		if count.N > 0 {
			fmt.Fprintf(os.Stderr, "clickstream: try curl %s/clicks/%s/%s\n", url, c.User, clicks.FormatMinute(count.Start))
			return errAnnounced
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return errAnnounced
		}
	}
}
