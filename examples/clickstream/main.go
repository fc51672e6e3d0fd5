// Command clickstream is the whole flow in one process: made-up clicks are counted
// per user and minute in memory, and an HTTP API answers how often a user clicked. It
// needs nothing but itself. With Kafka and Redis it is the programs in producer,
// consumer and api.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"sync"
	"time"
	_ "time/tzdata" // in a container there may be none

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/examples/clickstream/internal/simulate"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
	"github.com/tumblestream/tumble/web"
)

var (
	addr     = program.Flag("addr", "localhost:8000", "`address` to serve on", program.Address)
	rate     = program.Flag("rate", "1000", "`clicks` per second; 0: as fast as possible", program.Rate)
	numUsers = program.Flag("users", "3", "how many users click: user_1 to user_`N`", program.Int(1, math.MaxInt32))
	window   = program.Flag("window", "1m", "`length` of a window, such as 1m, 1h+15m or \"day Europe/Berlin\"", tumble.ParseWindow)
	seed     = flag.Int64("seed", 0, "0: other clicks each time; else the same for the same seed `N`")
)

func main() {
	program.Main("clickstream", "counts made-up clicks in memory and answers over HTTP how often users clicked.", run)
}

// run serves until ctx ends. Then it counts the clicks that were made by then, and
// prints the books.
func run(ctx context.Context) error {
	listener, err := program.Listen(*addr)
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
		Window:    *window,
		Retention: 24 * time.Hour,
	})
	if err != nil {
		return err
	}
	api, err := web.New(web.Config{Counts: counts, Stats: pipeline.Stats})
	if err != nil {
		return err
	}

	// Whichever part ends first ends the others. The clicker closes the channel, and
	// the pipeline ends once it has counted the last click. Only if it hangs is it
	// stopped, and then it says how many clicks are lost.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	draining, halt := context.WithCancel(context.WithoutCancel(ctx))
	defer halt()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(5*time.Second, halt) })()
	parts := []func() error{
		func() error { return click(ctx, events) },
		func() error { return pipeline.Run(draining) },
		func() error { return program.Serve(ctx, listener, api) },
	}
	errs := make([]error, len(parts))
	var running sync.WaitGroup
	for i, part := range parts {
		running.Go(func() {
			defer stop()
			errs[i] = part()
		})
	}
	running.Go(func() { announce(ctx, counts, program.URL(listener, *addr)) })
	running.Wait()
	return errors.Join(append(errs, program.WriteBooks(os.Stdout, pipeline.Stats()))...)
}

// click sends clicks to events until ctx ends, and then closes it.
func click(ctx context.Context, events chan<- tumble.Event) error {
	defer close(events)
	clicker := simulate.New(simulate.Config{Users: int(*numUsers), Seed: *seed, Rate: *rate})
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
	}
}

// announce prints where a count can be seen, once there is one.
func announce(ctx context.Context, counts tumble.Reader, url string) {
	for ctx.Err() == nil {
		page, err := counts.Top(ctx, time.Now(), 1) // fails before the first count
		if err == nil && len(page.Counts) > 0 {
			fmt.Fprintf(os.Stderr, "clickstream: try curl %s/clicks/%s/%s\n", url, page.Counts[0].Key, program.ShortMinute(page.Start))
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}
