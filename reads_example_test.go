package tumble_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

var (
	days   = tumble.Window{Calendar: tumble.Day}
	weeks  = tumble.Window{Calendar: tumble.Week}
	months = tumble.Window{Calendar: tumble.Month}
)

// rolledUp stands for a sink that a pipeline counts into: events of two users over a few
// days, per minute, day, week and month. With sum each event is of some bytes.
func rolledUp(sum bool) tumble.Reader {
	now := time.Date(2023, 10, 12, 15, 30, 0, 0, time.UTC)
	events := make(chan tumble.Event, 1024)
	for hour := range 100 {
		ev := tumble.Event{Key: []string{"user_1", "user_2", "user_1"}[hour%3], Time: now.Add(-time.Duration(hour) * 20 * time.Minute)}
		if sum {
			ev.N = 1000
		}
		events <- ev
	}
	close(events)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events, Final: true})
	if err != nil {
		log.Fatal(err)
	}
	counts := memory.New(memory.Config{})
	pipeline, err := tumble.New(tumble.Config{
		Source: source, Sink: counts,
		Window:  tumble.Window{Size: time.Minute},
		Rollups: []tumble.Rollup{{Window: days}, {Window: weeks}, {Window: months}},
		Sum:     sum,
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := pipeline.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	return counts
}

// How often did a user click within the last hour?
func ExampleSum() {
	ctx, counts := context.Background(), rolledUp(false)
	now := time.Date(2023, 10, 12, 15, 31, 0, 0, time.UTC)

	hour, err := tumble.Sum(ctx, counts, "user_1", now.Add(-time.Hour), now)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(hour.N, "clicks,", hour.State)
	// Output: 2 clicks, closed
}

// How many users came today, and how often did all of them click?
func ExampleReader_windows() {
	ctx, counts := context.Background(), rolledUp(false)
	now := time.Date(2023, 10, 12, 15, 31, 0, 0, time.UTC)

	perDay, err := counts.Rollup(days)
	if err != nil {
		log.Fatal(err)
	}
	start, end := days.Bounds(now)
	today, err := perDay.Windows(ctx, start, end)
	if err != nil {
		log.Fatal(err)
	}
	for _, day := range today { // one, or none if nobody came
		fmt.Println(day.Keys, "users,", day.N, "clicks,", day.State)
	}
	// Output: 2 users, 47 clicks, open
}

// Who clicked most this week?
func ExampleReader_rollup() {
	ctx, counts := context.Background(), rolledUp(false)
	now := time.Date(2023, 10, 12, 15, 31, 0, 0, time.UTC)

	perWeek, err := counts.Rollup(weeks)
	if err != nil {
		log.Fatal(err)
	}
	top, err := perWeek.Top(ctx, now, 10)
	if err != nil {
		log.Fatal(err)
	}
	for i, user := range top.Counts {
		fmt.Println(i+1, user.Key, user.N)
	}
	// Output:
	// 1 user_1 67
	// 2 user_2 33
}

// How many bytes was a customer sent this month? The pipeline has Config.Sum, and the
// events say how many bytes they are of.
func ExampleConfig_sum() {
	ctx, bytes := context.Background(), rolledUp(true)
	now := time.Date(2023, 10, 12, 15, 31, 0, 0, time.UTC)

	perMonth, err := bytes.Rollup(months)
	if err != nil {
		log.Fatal(err)
	}
	sent, err := perMonth.Count(ctx, "user_1", now)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(sent.N, "bytes since", sent.Start.Format(time.DateOnly))
	// Output: 67000 bytes since 2023-10-01
}

// Hand final windows on, each once: to a table, a topic, a webhook.
func ExampleFinals() {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	counts := countedClicks() // with DropLate
	cursor := ""              // as it was stored with the last window

	for window, err := range tumble.Finals(ctx, counts, cursor) {
		var newTerm *tumble.NewTermError
		switch {
		case errors.Is(err, context.Canceled):
			return
		case errors.As(err, &newTerm):
			cursor = newTerm.Cursor // start again from there
			return
		case err != nil:
			log.Fatal(err)
		}
		for count, err := range tumble.All(ctx, counts, window.Start) {
			if err != nil {
				log.Fatal(err) // roll back
			}
			_ = count // insert it
		}
		fmt.Println(window.Start.Format(time.TimeOnly), window.Keys, "users,", window.N, "clicks")
		cursor = window.Cursor // store it in the same transaction
		if window.Start.Minute() == 3 {
			stop()
		}
	}
	// Output:
	// 12:00:00 3 users, 6 clicks
	// 12:01:00 2 users, 6 clicks
	// 12:03:00 1 users, 4 clicks
}

// Wait until an event that was just produced is counted.
func ExampleAwait() {
	counts := countedClicks()
	progress, err := counts.Progress(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	last := progress.Partitions[0] // of Kafka: "TOPIC/PARTITION", and the offset that the producer was told
	if err := tumble.Await(context.Background(), counts, last.ID, "", last.Offset-1); err != nil {
		log.Fatal(err)
	}
	fmt.Println("everything before offset", last.Offset, "of", last.ID, "is counted")
	// Output: everything before offset 16 of clicks is counted
}
