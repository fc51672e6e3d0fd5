package tumble

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	require.NoError(t, err)
	return z
}

func TestFixedWindows(t *testing.T) {
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339Nano, s)
		require.NoError(t, err)
		return v
	}
	for _, c := range []struct {
		w          Window
		at         string
		start, end string
	}{
		{Window{Size: time.Minute}, "2023-10-01T12:34:56.789Z", "2023-10-01T12:34:00Z", "2023-10-01T12:35:00Z"},
		{Window{Size: time.Minute}, "2023-10-01T12:34:00Z", "2023-10-01T12:34:00Z", "2023-10-01T12:35:00Z"},
		{Window{Size: time.Minute}, "1969-12-31T23:59:59.999999999Z", "1969-12-31T23:59:00Z", "1970-01-01T00:00:00Z"},
		{Window{Size: time.Minute}, "1700-01-01T00:00:00Z", "1700-01-01T00:00:00Z", "1700-01-01T00:01:00Z"},
		{Window{Size: time.Hour, Offset: 15 * time.Minute}, "2023-10-01T12:14:59Z", "2023-10-01T11:15:00Z", "2023-10-01T12:15:00Z"},
		// The epoch was a Thursday: weeks begin on it unless they are shifted.
		{Window{Size: 7 * 24 * time.Hour}, "2023-10-01T12:00:00Z", "2023-09-28T00:00:00Z", "2023-10-05T00:00:00Z"},
		{Window{Size: 7 * 24 * time.Hour, Offset: 4 * 24 * time.Hour}, "2023-10-01T12:00:00Z", "2023-09-25T00:00:00Z", "2023-10-02T00:00:00Z"},
	} {
		require.NoError(t, c.w.Validate())
		start, end := c.w.Bounds(at(c.at))
		require.Equal(t, c.start, start.Format(time.RFC3339Nano), "%v of %s", c.w, c.at)
		require.Equal(t, c.end, end.Format(time.RFC3339Nano), "%v of %s", c.w, c.at)
	}
}

func TestCalendarWindows(t *testing.T) {
	for _, c := range []struct {
		calendar       Calendar
		zone           string
		at, start, end string
		hours          float64
	}{
		{Day, "Europe/Berlin", "2024-03-31T10:00:00+02:00", "2024-03-31T00:00:00+01:00", "2024-04-01T00:00:00+02:00", 23},
		{Day, "Europe/Berlin", "2024-10-27T10:00:00+01:00", "2024-10-27T00:00:00+02:00", "2024-10-28T00:00:00+01:00", 25},
		// No midnight: the clock went from 00:00 to 01:00.
		{Day, "America/Sao_Paulo", "2018-11-04T12:00:00-02:00", "2018-11-04T01:00:00-02:00", "2018-11-05T00:00:00-02:00", 23},
		// Midnight twice: the clock went from 24:00 back to 23:00.
		{Day, "America/Sao_Paulo", "2018-02-17T23:30:00-03:00", "2018-02-17T00:00:00-02:00", "2018-02-18T00:00:00-03:00", 25},
		// The clock went from 00:01 back to 23:01: the new day had begun.
		{Day, "America/St_Johns", "2006-10-28T23:30:00-03:30", "2006-10-29T00:00:00-02:30", "2006-10-30T00:00:00-03:30", 25},
		// A day that the calendar left out.
		{Day, "Pacific/Apia", "2011-12-29T12:00:00-10:00", "2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00", 24},
		{Week, "Europe/Berlin", "2024-03-31T23:59:59+02:00", "2024-03-25T00:00:00+01:00", "2024-04-01T00:00:00+02:00", 7*24 - 1},
		{Week, "", "2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z", "2024-01-08T00:00:00Z", 7 * 24},
		{Month, "", "2024-02-29T23:00:00Z", "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z", 29 * 24},
		{Month, "Asia/Tokyo", "2023-12-31T15:00:00Z", "2024-01-01T00:00:00+09:00", "2024-02-01T00:00:00+09:00", 31 * 24},
	} {
		w := Window{Calendar: c.calendar}
		if c.zone != "" {
			w.Zone = zone(t, c.zone)
		}
		require.NoError(t, w.Validate())
		parse := func(s string) time.Time {
			v, err := time.Parse(time.RFC3339, s)
			require.NoError(t, err)
			return v
		}
		start, end := w.Bounds(parse(c.at))
		require.True(t, start.Equal(parse(c.start)), "%v of %s starts %v", w, c.at, start)
		require.True(t, end.Equal(parse(c.end)), "%v of %s ends %v", w, c.at, end)
		require.Equal(t, c.hours, end.Sub(start).Hours())
	}
}

// slowDay walks back from t, second by second where it must, to the first
// instant of which no earlier one had a local date as late.
func slowDay(t time.Time, z *time.Location) time.Time {
	date := func(t time.Time) string { return t.In(z).Format("2006-01-02") }
	// The latest date that any instant up to t has had is the day that t is in.
	day := date(t)
	for back := time.Duration(0); back < 30*time.Hour; back += 15 * time.Minute {
		day = max(day, date(t.Add(-back)))
	}
	at := t.Add(-50 * time.Hour)
	for _, step := range []time.Duration{time.Hour, time.Minute, time.Second} {
		for date(at.Add(step)) < day {
			at = at.Add(step)
		}
	}
	return at.Add(time.Second).Truncate(time.Second)
}

var zones = []string{
	"UTC", "Europe/Berlin", "America/Sao_Paulo", "America/St_Johns", "Asia/Gaza", "Pacific/Apia", "Africa/Cairo", "Asia/Tehran",
	"America/Havana", "Atlantic/Azores", "America/Nuuk", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Kwajalein",
}

func FuzzCalendarDay(f *testing.F) {
	for i := range zones {
		f.Add(int64(1162092600), uint8(i)) // 2006-10-29 in St. John's
		f.Add(int64(1325239200), uint8(i))
	}
	f.Fuzz(func(t *testing.T, sec int64, z uint8) {
		sec %= 4e9
		loc := zone(t, zones[int(z)%len(zones)])
		at := time.Unix(sec, 0)
		start, end := Window{Calendar: Day, Zone: loc}.Bounds(at)
		require.True(t, !at.Before(start) && at.Before(end), "%v is not in [%v, %v)", at, start, end)
		if sec > 0 { // offsets were no whole minutes before standard time
			require.True(t, start.Equal(slowDay(at, loc)), "%v in %v: %v, not %v", at, loc, start, slowDay(at, loc))
		}
	})
}

// Windows follow each other without gap or overlap, whatever their kind.
func TestWindowsTile(t *testing.T) {
	windows := []Window{{Size: time.Minute}, {Size: 7 * time.Hour, Offset: 3 * time.Hour}, {Size: 366 * 24 * time.Hour}, {Size: time.Millisecond}}
	for _, name := range zones {
		for c := Day; c <= Month; c++ {
			windows = append(windows, Window{Calendar: c, Zone: zone(t, name)})
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for _, w := range windows {
		for range 300 {
			at := time.Unix(minTime+rng.Int64N(maxTime-minTime), rng.Int64N(1e9))
			start, end := w.Bounds(at)
			require.True(t, !at.Before(start) && at.Before(end), "%v: %v is not in [%v, %v)", w, at, start, end)
			same, _ := w.Bounds(start)
			require.True(t, same.Equal(start), "%v: %v starts at %v, not %v", w, start, same, start)
			before, until := w.Bounds(start.Add(-1))
			require.True(t, until.Equal(start) && before.Before(start), "%v: [%v, %v) is before %v", w, before, until, start)
			after, _ := w.Bounds(end)
			require.True(t, after.Equal(end), "%v: %v starts at %v", w, end, after)
		}
	}
}

func TestWindowText(t *testing.T) {
	for text, w := range map[string]Window{
		"1m0s":                 {Size: time.Minute},
		"1h0m0s+15m0s":         {Size: time.Hour, Offset: 15 * time.Minute},
		"day UTC":              {Calendar: Day},
		"week Europe/Berlin":   {Calendar: Week, Zone: zone(t, "Europe/Berlin")},
		"month America/Havana": {Calendar: Month, Zone: zone(t, "America/Havana")},
	} {
		require.Equal(t, text, w.String())
		back, err := ParseWindow(text)
		require.NoError(t, err)
		require.Equal(t, text, back.String())
		require.True(t, Definition{Window: back}.Same(Definition{Window: w}))
	}
	w, err := ParseWindow("1m")
	require.NoError(t, err)
	require.Equal(t, Window{Size: time.Minute}, w)
	for _, bad := range []string{"", "0s", "-1m", "1x", "1h+", "1h+2h", "1ns", "day Nowhere/City", "day Local", "year", "day  UTC", "100000h"} {
		_, err := ParseWindow(bad)
		require.ErrorContains(t, err, fmt.Sprintf("window %q", bad))
	}
}

func TestWindowValidate(t *testing.T) {
	for want, w := range map[string]Window{
		"Window.Size is 0s":                      {},
		"Window.Size is -1m0s":                   {Size: -time.Minute},
		"whole milliseconds and at most":         {Size: time.Millisecond + 1},
		"Window.Offset is 1m0s":                  {Size: time.Minute, Offset: time.Minute},
		"do not go with a Window.Calendar":       {Calendar: Day, Size: time.Hour},
		"Window.Calendar is 7":                   {Calendar: 7},
		"Window.Zone is Local":                   {Calendar: Day, Zone: time.Local},
		"must be an IANA name":                   {Calendar: Day, Zone: time.FixedZone("Mine", 3600)},
		"Window.Zone goes with a Window.Calenda": {Size: time.Hour, Zone: time.UTC},
	} {
		require.ErrorContains(t, w.Validate(), want)
	}
}

func TestFrontier(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	d := Definition{Window: Window{Size: time.Minute}, Grace: 5 * time.Second}
	open, ended := func(s int) Checkpoint { return Checkpoint{Watermark: at(s)} }, func(s int) Checkpoint { return Checkpoint{Watermark: at(s), Ended: true} }
	for name, c := range map[string]struct {
		stored []Checkpoint
		want   time.Time
	}{
		"nothing stored":                 {nil, time.Time{}},
		"smallest of the open":           {[]Checkpoint{open(90), open(70), open(80)}, at(70)},
		"one has none":                   {[]Checkpoint{open(90), {}}, time.Time{}},
		"an ended one is not waited for": {[]Checkpoint{open(90), ended(10)}, at(90)},
		"nor one that ended without":     {[]Checkpoint{open(90), {Ended: true}}, at(90)},
		"all ended: the largest's end":   {[]Checkpoint{ended(10), ended(130)}, at(185)},
		"all ended without any":          {[]Checkpoint{{Ended: true}, {Ended: true}}, time.Time{}},
		"a watermark before the epoch":   {[]Checkpoint{open(-90), open(70)}, at(-90)},
		"ended before the epoch":         {[]Checkpoint{ended(-90)}, at(-55)},
	} {
		t.Run(name, func(t *testing.T) {
			stored := map[string]Checkpoint{}
			for i, c := range c.stored {
				stored[fmt.Sprint(i)] = c
			}
			got := d.Frontier(stored)
			require.True(t, got.Equal(c.want), "%v, not %v", got, c.want)
		})
	}
}

func TestFinality(t *testing.T) {
	end := time.Unix(60, 0)
	d := Definition{Window: Window{Size: time.Minute}, Grace: 5 * time.Second, Retention: 10 * time.Second}
	for sec, want := range map[int64][2]bool{64: {false, false}, 65: {true, false}, 74: {true, false}, 75: {false, true}} {
		final, expired := d.Finality(time.Unix(sec, 0), end)
		require.Equal(t, want, [2]bool{final, expired}, "%d", sec)
	}
	d.Retention = 0
	final, expired := d.Finality(time.Unix(1e9, 0), end)
	require.True(t, final && !expired)
	final, expired = d.Finality(time.Time{}, end)
	require.False(t, final || expired)
}

func TestHashIsStable(t *testing.T) {
	// Computed by hand from the definitions that Hash names.
	require.Equal(t, uint64(0xefd01f60ba992926), Hash(""))
	counts := make([]int, 16)
	for i := range 16_000 {
		counts[Hash(fmt.Sprint("user_", i))%16]++
	}
	for _, n := range counts {
		require.InDelta(t, 1000, n, 150)
	}
}
