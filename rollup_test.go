package tumble

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// rolling returns an aggregator of minutes, which are kept for 10 minutes, and hours,
// which are kept for 2, with one lane.
func rolling(dropLate bool) *aggregator {
	a := newAggregator("clicks/0", Definition{
		Window: Window{Size: time.Minute}, Retention: 10 * time.Minute, DropLate: dropLate,
		Rollups: []Rollup{{Window{Size: time.Hour}, 2 * time.Hour}},
	}, 1)
	a.place(a.lanes[0], Checkpoint{Log: "log"}, Checkpoint{Log: "log"}, Position{}, mark{}, kept{})
	a.rewind()
	return a
}

func TestRollupsOfABatch(t *testing.T) {
	a := rolling(false)
	var all []Event
	for i, minute := range []int{0, 59, 3, 60, 61, 59, 0, 125} {
		all = append(all, Event{Key: []string{"x", "y"}[i%2], Time: noon.Add(time.Duration(minute) * time.Minute), Offset: int64(i)})
	}
	a.take(t, chunk(0, all...))
	a.flush(time.Now())
	b := a.lanes[0].queue[0]
	require.Len(t, b.Rollups, 1)
	requireRollups(t, []int64{int64(time.Hour)}, b.Batch)
	require.Contains(t, b.Rollups[0], Delta{noon, "x", 3})
	require.Contains(t, b.Rollups[0], Delta{noon.Add(time.Hour), "x", 1})
	require.Len(t, b.Rollups[0], 5)
}

// An event is left out once its windows of all levels are past retention, by the
// watermark or in the shard.
func TestExpiredInAllLevels(t *testing.T) {
	for _, c := range []struct {
		watermark time.Duration // after noon
		floors    []time.Duration
		expired   bool
	}{
		{watermark: 30 * time.Minute}, // minutes are
		{watermark: 3*time.Hour - time.Minute},
		{watermark: 3 * time.Hour, expired: true},
		{watermark: 30 * time.Minute, floors: []time.Duration{time.Hour, 59 * time.Minute}},
		{watermark: 30 * time.Minute, floors: []time.Duration{time.Hour, time.Hour}, expired: true},
		{watermark: 30 * time.Minute, floors: []time.Duration{0, time.Hour}},
	} {
		a := rolling(false)
		var floors []time.Time
		for _, floor := range c.floors {
			floors = append(floors, noon.Add(floor))
		}
		a.lanes[0].raise(floors)
		a.take(t, chunk(0, Event{Key: "x", Time: noon.Add(c.watermark), Offset: 0}))
		a.take(t, chunk(0, Event{Key: "x", Time: noon.Add(time.Second), Offset: 1}))
		require.Equal(t, c.expired, a.lanes[0].tally.expired == 1, "%v", c)
	}
	a := rolling(true)
	a.take(t, chunk(0, Event{Key: "x", Time: noon.Add(2 * time.Minute), Offset: 0}, Event{Key: "x", Time: noon, Offset: 1}))
	require.EqualValues(t, 1, a.lanes[0].tally.dropped, "late is judged by the finest window")
}

// All levels count towards the size of a batch.
func TestABatchHasRoomForItsRollups(t *testing.T) {
	for levels, want := range map[int]int{1: sealAt, 2: sealAt / 2, 4: sealAt / 4} {
		b := openBatch{levels: levels, counters: make([]counter, want-1)}
		require.False(t, b.full(1))
		b.counters = append(b.counters, counter{})
		require.True(t, b.full(1))
		b = openBatch{levels: levels, bytes: sealBytes / int64(levels)}
		require.True(t, b.full(1))
	}
}

func TestLevels(t *testing.T) {
	day := Window{Calendar: Day}
	def := Definition{Window: Window{Size: time.Minute}, Retention: time.Hour, Rollups: []Rollup{
		{Window{Calendar: Month}, 0}, {day, 30 * 24 * time.Hour}, {Window{Size: 24 * time.Hour}, 0}, {Window{Size: time.Hour}, time.Hour}, {Window{Calendar: Week}, 0},
	}}
	require.NoError(t, def.Validate())
	require.NoError(t, def.nest())
	var names []string
	for _, l := range def.Levels() {
		names = append(names, l.Window.String())
	}
	require.Equal(t, []string{"1m0s", "1h0m0s", "24h0m0s", "day UTC", "week UTC", "month UTC"}, names)
	other := def
	other.Rollups = []Rollup{def.Rollups[4], def.Rollups[0], def.Rollups[2], def.Rollups[3], {day, 0}}
	require.True(t, def.Same(other), "order and retention do not matter")
	changed := def
	changed.Rollups = append([]Rollup{{Window{Size: 2 * time.Hour}, time.Hour}}, def.Rollups[:3]...)
	changed.Rollups = append(changed.Rollups, def.Rollups[4])
	require.False(t, def.Same(changed))
	other.Rollups = other.Rollups[:4]
	require.False(t, def.Same(other))
	i, err := def.LevelOf(day)
	require.NoError(t, err)
	require.Equal(t, 3, i)
	require.Equal(t, Definition{Window: day, Retention: 30 * 24 * time.Hour}, def.Level(i))
	_, err = def.LevelOf(Window{Size: 2 * time.Hour})
	require.ErrorIs(t, err, ErrNoRollup)
	require.ErrorContains(t, err, "counted are 1m0s, 1h0m0s, 24h0m0s, day UTC, week UTC, month UTC")

	for says, change := range map[string]func(d *Definition){
		"comes twice":           func(d *Definition) { d.Rollups = append(d.Rollups, Rollup{day, 0}) },
		"no shorter than":       func(d *Definition) { d.Rollups[1].Retention = time.Minute },
		"at most 8":             func(d *Definition) { d.Rollups = make([]Rollup, 9) },
		"must be positive":      func(d *Definition) { d.Rollups[1].Window = Window{} },
		"at most 50 years":      func(d *Definition) { d.Rollups[1].Retention = math.MaxInt64 },
		"the finest one itself": func(d *Definition) { d.Rollups[1].Window = d.Window },
		"does not nest":         func(d *Definition) { d.Rollups[1].Window = Window{Size: 90 * time.Second} },
		"for ever) or":          func(d *Definition) { d.Retention = 0 },
	} {
		bad := def
		bad.Rollups = append([]Rollup{}, def.Rollups...)
		change(&bad)
		err := bad.Validate()
		if err == nil || says == "the finest one itself" {
			err = bad.nest()
		}
		require.ErrorContains(t, err, says)
	}
}
