package faketest

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tumblestream/tumble"
)

// T0 is where event time begins in tests: the start of a bubble's clock.
var T0 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// At returns an event that happened some seconds after T0.
func At(sec float64, key string) tumble.Event {
	return tumble.Event{Key: key, Time: T0.Add(time.Duration(sec * float64(time.Second)))}
}

// Keyed returns n events of one key, all at T0.
func Keyed(key string, n int) (events []tumble.Event) {
	for range n {
		events = append(events, At(0, key))
	}
	return events
}

// Several returns n events of 20 keys, ten a second from a second on, out of
// order by up to a minute.
func Several(rng *rand.Rand, n int, from float64) []tumble.Event {
	var events []tumble.Event
	for i := range n {
		events = append(events, At(from+float64(i)/10+60*rng.Float64(), fmt.Sprint("key-", rng.IntN(20))))
	}
	return events
}

// A Cell is one window and key.
type Cell struct {
	Start int64 // of the window, Unix nanoseconds
	Key   string
	Level int // of the window, see tumble.Definition.Levels
}

// CellAt returns the cell of a key in the finest window that starts at start.
func CellAt(start time.Time, key string) Cell { return Cell{Start: start.UnixNano(), Key: key} }

// Count is the model that counts are compared with: a plain loop over the logs.
func Count(w tumble.Window, logs ...[]tumble.Event) map[Cell]int64 {
	all := map[Cell]int64{}
	for _, events := range logs {
		for _, e := range events {
			start, _ := w.Bounds(e.Time)
			all[CellAt(start, e.Key)]++
		}
	}
	return all
}
