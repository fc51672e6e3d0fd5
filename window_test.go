package tumble

import (
	"fmt"
	"math"
	"math/big"
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

// A date counts days, so that dates can be compared.
type date int

// dateOf returns the local date at t.
func dateOf(t time.Time, z *time.Location) date {
	y, m, d := t.In(z).Date()
	return date(time.Date(y, m, d, 0, 0, 0, 0, time.UTC).Unix() / 86400)
}

func (d date) midnight() time.Time { return time.Unix(int64(d)*86400, 0).UTC() } // in UTC

// slowStart finds the first instant whose local date is d or later, minute by
// minute and then second by second.
func slowStart(d date, z *time.Location) time.Time {
	at := d.midnight().Add(-50 * time.Hour)
	for dateOf(at.Add(time.Minute), z) < d {
		at = at.Add(time.Minute)
	}
	for dateOf(at, z) < d {
		at = at.Add(time.Second)
	}
	return at
}

// slowBounds finds a calendar's window that holds t by looking at dates.
func slowBounds(c Calendar, z *time.Location, t time.Time) (start, end time.Time) {
	// Clocks that go back over midnight do not bring a day back: t is in the
	// latest that there has been.
	first := dateOf(t, z)
	for back := range 30 * 60 {
		first = max(first, dateOf(t.Add(-time.Duration(back)*time.Minute), z))
	}
	begins := func(d date) bool {
		switch c {
		case Week:
			return d.midnight().Weekday() == time.Monday
		case Month:
			return d.midnight().Day() == 1
		}
		return true
	}
	for !begins(first) {
		first--
	}
	next := first + 1
	for !begins(next) {
		next++
	}
	return slowStart(first, z), slowStart(next, z)
}

var zones = []string{
	"UTC", "Europe/Berlin", "America/Sao_Paulo", "America/St_Johns", "Asia/Gaza", "Pacific/Apia", "Africa/Cairo", "Asia/Tehran",
	"America/Havana", "Atlantic/Azores", "America/Nuuk", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Kwajalein",
	"Africa/Monrovia", "Asia/Manila", "America/Juneau", "Europe/Dublin", "Antarctica/Troll",
}

func FuzzCalendar(f *testing.F) {
	for z := range zones {
		for c := Day; c <= Month; c++ {
			f.Add(int64(1162092600), uint8(c), uint8(z)) // 2006-10-29 in St. John's: the clock went back over midnight
			f.Add(int64(1162089059), uint8(c), uint8(z)) // the second before it did
			f.Add(int64(1162090859), uint8(c), uint8(z)) // and after: the day before, by the clock
			f.Add(int64(1325239200), uint8(c), uint8(z)) // 2011-12-30, which Apia left out
			f.Add(int64(1541332800), uint8(c), uint8(z)) // 2018-11-04, which had no midnight in Sao Paulo
			f.Add(int64(1518921000), uint8(c), uint8(z)) // 2018-02-18 02:30, in the hour there that came twice before midnight
			f.Add(int64(1078012800), uint8(c), uint8(z)) // a 29th of February
			f.Add(int64(-3225223728), uint8(c), uint8(z))
			f.Add(int64(minTime), uint8(c), uint8(z))
			f.Add(int64(maxTime-1), uint8(c), uint8(z))
		}
	}
	f.Fuzz(func(t *testing.T, sec int64, c, z uint8) {
		at := between(sec, 0)
		w := Window{Calendar: Day + Calendar(c%3), Zone: zone(t, zones[int(z)%len(zones)])}
		start, end := w.Bounds(at)
		wantStart, wantEnd := slowBounds(w.Calendar, w.Zone, at)
		require.True(t, start.Equal(wantStart) && end.Equal(wantEnd), "%v of %v is [%v, %v), not [%v, %v)", w, at, start, end, wantStart, wantEnd)
		require.True(t, !at.Before(start) && at.Before(end), "%v: %v is not in [%v, %v)", w, at, start, end)
	})
}

// between returns a time that may be counted, sec if that is one.
func between(sec, nano int64) time.Time {
	if sec < minTime || sec >= maxTime {
		sec = minTime + int64(uint64(sec)%uint64(maxTime-minTime))
	}
	return time.Unix(sec, int64(uint64(nano)%1e9)).UTC()
}

func FuzzFixed(f *testing.F) {
	for _, w := range []Window{
		{Size: time.Minute}, {Size: time.Millisecond}, {Size: maxSize}, {Size: 7 * 24 * time.Hour, Offset: 4 * 24 * time.Hour},
		{Size: time.Hour, Offset: time.Hour - time.Millisecond}, {Size: maxSize, Offset: maxSize - time.Millisecond},
	} {
		for _, sec := range []int64{0, -1, 1696163696, minTime, maxTime - 1} {
			f.Add(sec, int64(0), w.Size.Milliseconds(), w.Offset.Milliseconds())
			f.Add(sec, int64(999_999_999), w.Size.Milliseconds(), w.Offset.Milliseconds())
		}
	}
	f.Fuzz(func(t *testing.T, sec, nano, size, offset int64) {
		at := between(sec, nano)
		w := Window{Size: time.Millisecond * time.Duration(1+uint64(size-1)%uint64(maxSize.Milliseconds()))}
		w.Offset = time.Millisecond * time.Duration(uint64(offset)%uint64(w.Size.Milliseconds()))
		require.NoError(t, w.Validate())
		same, err := ParseWindow(w.String())
		require.NoError(t, err)
		require.Equal(t, w, same)

		// The n-th window from the epoch, of numbers that have no end.
		now := new(big.Int).Add(new(big.Int).Mul(big.NewInt(at.Unix()), big.NewInt(1e9)), big.NewInt(int64(at.Nanosecond())))
		length, shift := big.NewInt(int64(w.Size)), big.NewInt(int64(w.Offset))
		n := new(big.Int).Div(new(big.Int).Sub(now, shift), length) // rounds down, length being positive
		want := n.Mul(n, length).Add(n, shift)
		start, end := w.Bounds(at)
		require.Equal(t, want.String(), big.NewInt(start.UnixNano()).String(), "%v of %v starts %v", w, at, start)
		require.Equal(t, w.Size, end.Sub(start))
		require.True(t, !at.Before(start) && at.Before(end), "%v: %v is not in [%v, %v)", w, at, start, end)
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
		"all ended: the largest":         {[]Checkpoint{ended(10), ended(130)}, at(130)},
		"all ended without any":          {[]Checkpoint{{Ended: true}, {Ended: true}}, time.Time{}},
		"a watermark before the epoch":   {[]Checkpoint{open(-90), open(70)}, at(-90)},
		"ended before the epoch":         {[]Checkpoint{ended(-90)}, at(-90)},
	} {
		t.Run(name, func(t *testing.T) {
			stored := map[string]Checkpoint{}
			for i, c := range c.stored {
				stored[fmt.Sprint(i)] = c
			}
			got := Frontier(stored)
			require.True(t, got.Equal(c.want), "%v, not %v", got, c.want)
		})
	}
}

func TestState(t *testing.T) {
	end := time.Unix(60, 0)
	for _, window := range []Window{{Size: time.Minute}, {Size: 20 * time.Second}} {
		d := Definition{Window: window, Grace: 5 * time.Second, Retention: time.Minute}
		state := func(sec int64) State {
			closed := d.ClosedAt(time.Unix(sec, 0))
			return d.State(closed, d.FloorAt(closed), end)
		}
		for sec, want := range map[int64]State{-1e9: Open, 64: Open, 65: Closed, 124: Closed, 125: Expired, 1e9: Expired} {
			require.Equal(t, want, state(sec), "%d", sec)
		}
		d.DropLate = true
		for sec, want := range map[int64]State{64: Open, 65: Final, 124: Final, 125: Expired} {
			require.Equal(t, want, state(sec), "%d", sec)
		}
		d.Retention = 0
		require.Equal(t, Final, state(1e9))
		require.Equal(t, Open, d.State(d.ClosedAt(time.Time{}), time.Time{}, end))
		require.Equal(t, Expired, d.State(time.Time{}, end, end), "a floor stays where the frontier has gone")
	}
	// No mark lies within a window: of hours kept for 90 minutes those are past
	// retention that end 90 minutes before some hour begins.
	d := Definition{Window: Window{Size: time.Hour}, Grace: time.Minute, Retention: 90 * time.Minute}
	end = time.Unix(3600, 0)
	for after, want := range map[time.Duration]State{time.Minute: Closed, 90 * time.Minute: Closed, 2 * time.Hour: Closed, 121 * time.Minute: Expired} {
		closed := d.ClosedAt(end.Add(after))
		require.Equal(t, want, d.State(closed, d.FloorAt(closed), end), "%v", after)
		all := newSpans(d)
		sp := all.find(0)
		m := markOf(end.Add(after))
		require.Equal(t, want == Expired, m.passed(sp.expired), "%v", after)
		require.True(t, m.passed(sp.closed))
	}
	require.True(t, d.ClosedAt(time.Unix(minTime, 0)).IsZero() || d.ClosedAt(time.Unix(minTime, 0)).Unix() <= minTime)
	require.True(t, Definition{Retention: maxKeep}.FloorAt(time.Unix(minTime, 0)).IsZero(), "nanoseconds would not hold it")
	all := newSpans(Definition{Window: Window{Size: maxSize}, Retention: maxKeep})
	last := all.find(maxTime*1e9 - 1)
	require.Equal(t, int64(math.MaxInt64), last.expired, "beyond what nanoseconds hold")
}

func TestDefinitionSame(t *testing.T) {
	d := Definition{Window: Window{Size: time.Minute}}
	e := d
	e.MaxKey = DefaultMaxKey
	require.True(t, d.Same(e))
	e.MaxKey++
	require.False(t, d.Same(e))
	require.ErrorContains(t, Definition{Window: d.Window, MaxKey: -1}.Validate(), "MaxKey is -1")
	require.ErrorContains(t, Definition{Window: d.Window, MaxKey: 1 << 20}.Validate(), "MaxKey is 1048576")
}

func TestNests(t *testing.T) {
	for _, test := range []struct{ coarse, fine, why string }{
		{"1h", "1m", ""},
		{"1h", "1h", "finest one itself"},
		{"1m", "1h", "must be multiples"},
		{"1h", "7m", "must be multiples"},
		{"1h+15m", "15m", ""},
		{"1h+15m", "30m", "must be multiples"},
		{"1h", "30m+15m", "must be multiples"},
		{"1h+15m", "30m+15m", ""},
		{"1h", "15m+5m", "must be multiples"},
		{"168h+96h", "24h", ""},
		{"24h", "day", "no fixed Size"},
		{"day", "24h", ""},
		{"day", "1h", ""},
		{"day", "7m", "in the midst"},
		{"day", "1m", ""},
		{"week", "24h", ""},
		{"month", "24h", ""},
		{"day Europe/Berlin", "1h", ""},
		{"day Europe/Berlin", "24h", "in the midst"},
		{"day Europe/Berlin", "2h", "in the midst"},
		{"day Asia/Kolkata", "1h", "in the midst"},
		{"day Asia/Kolkata", "30m", ""},
		{"day Asia/Kolkata", "1h+30m", ""},
		{"day Asia/Kathmandu", "1h", "in the midst"},
		{"day Asia/Kathmandu", "15m", ""},
		{"day Australia/Lord_Howe", "1h", "in the midst"},
		{"day Australia/Lord_Howe", "30m", ""},
		{"month Europe/Berlin", "day Europe/Berlin", ""},
		{"week Europe/Berlin", "day Europe/Berlin", ""},
		{"week Europe/Berlin", "day", "two zones"},
		{"month Europe/Berlin", "week Europe/Berlin", "nothing else"},
		{"day", "week", "nothing else"},
	} {
		t.Run(test.coarse+" of "+test.fine, func(t *testing.T) {
			coarse, err := ParseWindow(test.coarse)
			require.NoError(t, err)
			fine, err := ParseWindow(test.fine)
			require.NoError(t, err)
			for range 2 { // the second time from what the first one found
				err = coarse.Nests(fine)
				if test.why != "" {
					require.ErrorContains(t, err, test.why)
					continue
				}
				require.NoError(t, err)
				year := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
				for at := year; at.Before(year.AddDate(1, 0, 0)); {
					start, end := fine.Bounds(at)
					from, to := coarse.Bounds(start)
					require.False(t, end.After(to), "%v to %v lies across the end of %v to %v", start, end, from, to)
					at = end.Add(7 * time.Hour) // no whole number of days
				}
			}
		})
	}
}

func TestFind(t *testing.T) {
	years := Window{Size: 10 * 366 * 24 * time.Hour}
	for at, want := range map[string]bool{ // by the first and the last day that some event has
		"1700-01-01": true, "2199-12-31": true, "1699-12-31": true, "2200-01-01": true, "1680-01-01": false, "2220-01-01": false, "0001-01-01": false, "9999-01-01": false,
	} {
		day, err := time.Parse(time.DateOnly, at)
		require.NoError(t, err)
		start, end, err := years.Find(day)
		require.Equal(t, want, err == nil, "%s: %v", at, err)
		if err == nil {
			require.False(t, day.Before(start) || !day.Before(end), at)
			continue
		}
		require.ErrorContains(t, err, "counted are the years 1700 to 2199")
	}
	minute := Window{Size: time.Minute}
	for _, at := range []int64{minTime - 1, maxTime, minTime - int64(maxSize/time.Second), math.MinInt64, math.MaxInt64} {
		_, _, err := minute.Find(time.Unix(at, 0))
		require.Error(t, err, at)
	}
	for _, at := range []int64{minTime, maxTime - 1} {
		_, _, err := minute.Find(time.Unix(at, 0))
		require.NoError(t, err, at)
	}
}
