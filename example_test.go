package tumble_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

func Example() {
	ctx := context.Background()
	events := make(chan tumble.Event, 1024)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	if err != nil {
		log.Fatal(err)
	}
	counts := memory.New()
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: counts, Window: tumble.Window{Size: time.Minute}})
	if err != nil {
		log.Fatal(err)
	}

	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	go func() {
		defer close(events) // nothing more to come: every window becomes final
		for i := range 100 {
			events <- tumble.Event{Key: "user_1", Time: noon.Add(time.Duration(i) * time.Second)}
		}
	}()
	if err := pipeline.Run(ctx); err != nil { // until the channel is closed, or ctx ends
		log.Fatal(err)
	}

	c, err := counts.Count(ctx, "user_1", noon.Add(30*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Key, c.Window.Format(time.TimeOnly), c.N, c.Final)
	// Output: user_1 12:00:00 60 true
}

// Calendar windows follow the local time of a zone: this day has 23 hours.
func ExampleWindow_Bounds() {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		log.Fatal(err)
	}
	day := tumble.Window{Calendar: tumble.Day, Zone: berlin}
	start, end := day.Bounds(time.Date(2024, 3, 31, 12, 0, 0, 0, berlin))
	fmt.Println(start.In(berlin), end.Sub(start))
	// Output: 2024-03-31 00:00:00 +0100 CET 23h0m0s
}

func ExampleParseWindow() {
	for _, s := range []string{"1m", "1h+15m", "week Europe/Berlin", "0s"} {
		w, err := tumble.ParseWindow(s)
		fmt.Println(w, err)
	}
	// Output:
	// 1m0s <nil>
	// 1h0m0s+15m0s <nil>
	// week Europe/Berlin <nil>
	// 0s window "0s": Window.Size is 0s, must be positive (want "1m", "1h+15m", or "day", "week", "month" and a zone: "day Europe/Berlin")
}

func ExampleStats() {
	events := make(chan tumble.Event, 2)
	events <- tumble.Event{Key: "a", Time: time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)}
	events <- tumble.Event{Key: "b"} // no time
	close(events)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	if err != nil {
		log.Fatal(err)
	}
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: memory.New(), Window: tumble.Window{Size: time.Minute}, Logger: quiet})
	if err != nil {
		log.Fatal(err)
	}
	if err := pipeline.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	s := pipeline.Stats()
	fmt.Println(s.Read, s.Counted, s.Rejected)
	// Output: 2 1 1
}
