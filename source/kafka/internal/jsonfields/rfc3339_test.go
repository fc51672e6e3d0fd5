package jsonfields

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var rfc3339Grammar = regexp.MustCompile(
	`^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$`)

// modelRFC3339 is time.Parse held to the grammar of RFC 3339, section 5.6, with the
// RFC's lower case and leap seconds.
func modelRFC3339(s string) (time.Time, bool) {
	if !rfc3339Grammar.MatchString(s) {
		return time.Time{}, false
	}
	s = strings.ToUpper(s)
	leap := s[17:19] == "60"
	if leap {
		zone := strings.IndexAny(s[19:], "Z+-")
		s = s[:17] + "59.999999999" + s[19+zone:]
	}
	at, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}, false
	}
	at = at.UTC()
	if leap {
		next := at.Add(time.Nanosecond)
		if h, m, s := next.Clock(); next.Day() != 1 || h+m+s != 0 {
			return time.Time{}, false
		}
	}
	return at, true
}

func TestRFC3339(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"2023-10-01T12:34:56Z", "2023-10-01T12:34:56Z"},
		{"2023-10-01t12:34:56z", "2023-10-01T12:34:56Z"},
		{"2023-10-01T12:34:56.7Z", "2023-10-01T12:34:56.7Z"},
		{"2023-10-01T12:34:56.123456789Z", "2023-10-01T12:34:56.123456789Z"},
		{"2023-10-01T12:34:56.1234567899999999999999999999Z", "2023-10-01T12:34:56.123456789Z"},
		{"2023-10-01T12:34:56.000000000000000000000000001Z", "2023-10-01T12:34:56Z"},
		{"2023-10-01T14:34:56+02:00", "2023-10-01T12:34:56Z"},
		{"2023-10-01T12:34:56-00:00", "2023-10-01T12:34:56Z"},
		{"2023-10-01T12:34:56.5-23:59", "2023-10-02T12:33:56.5Z"},
		{"1996-12-19T16:39:57-08:00", "1996-12-20T00:39:57Z"},
		{"1937-01-01T12:00:27.87+00:20", "1937-01-01T11:40:27.87Z"},
		{"1969-12-31T23:59:59.25Z", "1969-12-31T23:59:59.25Z"},
		{"0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"},
		{"0000-02-29T00:00:00Z", "0000-02-29T00:00:00Z"},
		{"9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999999999Z"},
		{"2024-02-29T00:00:00Z", "2024-02-29T00:00:00Z"},
		{"2000-02-29T00:00:00Z", "2000-02-29T00:00:00Z"},
		// Leap seconds, the RFC's own examples first.
		{"1990-12-31T23:59:60Z", "1990-12-31T23:59:59.999999999Z"},
		{"1990-12-31T15:59:60-08:00", "1990-12-31T23:59:59.999999999Z"},
		{"2015-06-30T23:59:60.75Z", "2015-06-30T23:59:59.999999999Z"},
		{"2017-01-01T08:59:60+09:00", "2016-12-31T23:59:59.999999999Z"},
	} {
		at, problem := parseRFC3339([]byte(c.text))
		require.Empty(t, problem, c.text)
		require.Equal(t, c.want, at.Format(time.RFC3339Nano), c.text)
		require.Equal(t, time.UTC, at.Location(), c.text)
		model, ok := modelRFC3339(c.text)
		require.True(t, ok && model.Equal(at), c.text)
	}

	const shape = "want one like 2006-01-02T15:04:05Z"
	const zone = "want Z or a zone like +02:00 after the seconds"
	for _, c := range []struct{ text, problem string }{
		{"", "too short, " + shape},
		{"2023-10-01", "too short, " + shape},
		{"2023-10-01T12:34:56", "too short, " + shape},
		{"1696163696", "too short, " + shape},
		{"2023-10-01 12:34:56Z", shape},
		{"2023/10/01T12:34:56Z", shape},
		{"20231001T123456.000Z", shape},
		{"2023-10-01T12.34.56Z", shape},
		{"2023-10-01T1:02:03.0Z", shape},
		{"Sun, 01 Oct 2023 12:34:56 GMT", shape},
		{"+023-10-01T12:34:56Z", "year out of range"},
		{"20a3-10-01T12:34:56Z", "year out of range"},
		{"2023-00-01T12:34:56Z", "month out of range"},
		{"2023-13-01T12:34:56Z", "month out of range"},
		{"2023-1x-01T12:34:56Z", "month out of range"},
		{"2023-10-00T12:34:56Z", "day out of range"},
		{"2023-10-32T12:34:56Z", "day out of range"},
		{"2023-10-/1T12:34:56Z", "day out of range"},
		{"2023-04-31T12:34:56Z", "day out of range"},
		{"2023-02-29T12:34:56Z", "day out of range"},
		{"1900-02-29T12:34:56Z", "day out of range"},
		{"2024-02-30T12:34:56Z", "day out of range"},
		{"2023-10-01T24:00:00Z", "hour out of range"},
		{"2023-10-01T12:60:00Z", "minute out of range"},
		{"2023-10-01T12:34:61Z", "second out of range"},
		{"2023-10-01T12:34:5:Z", "second out of range"},
		{"2023-10-01T12:34:60Z", "second out of range: not a time of leap seconds"},
		{"2023-10-01T23:59:60Z", "second out of range: not a time of leap seconds"},
		{"2016-12-31T23:59:60+01:00", "second out of range: not a time of leap seconds"},
		{"2023-10-01T12:34:56.Z", "no digit after the point"},
		{"2023-10-01T12:34:56.", "no digit after the point"},
		{"2023-10-01T12:34:56,789Z", zone},
		{"2023-10-01T12:34:56.789", zone},
		{"2023-10-01T12:34:56ZZ", zone},
		{"2023-10-01T12:34:56Z ", zone},
		{"2023-10-01T12:34:56+0200", zone},
		{"2023-10-01T12:34:56+02", zone},
		{"2023-10-01T12:34:56+02:00Z", zone},
		{"2023-10-01T12:34:56*02:00", zone},
		{"2023-10-01T12:34:56Europe/Berlin", zone},
		{"2023-10-01T12:34:56+24:00", "zone out of range"},
		{"2023-10-01T12:34:56+02:60", "zone out of range"},
		{"2023-10-01T12:34:56+0x:00", "zone out of range"},
	} {
		at, problem := parseRFC3339([]byte(c.text))
		require.Equal(t, c.problem, problem, c.text)
		require.True(t, at.IsZero(), c.text)
		_, ok := modelRFC3339(c.text)
		require.False(t, ok, c.text)
	}
}

// TestRFC3339Days tries every day there is, and one more in each month.
func TestRFC3339Days(t *testing.T) {
	for year := uint(0); year <= 9999; year++ {
		for month := uint(1); month <= 12; month++ {
			first := time.Date(int(year), time.Month(month), 1, 0, 0, 0, 0, time.UTC)
			in := uint(first.AddDate(0, 1, -1).Day())
			if got := daysIn(year, month); got != in {
				t.Fatalf("%d-%d has %d days, not %d", year, month, in, got)
			}
			for day := uint(1); day <= in; day++ {
				want := first.Unix()/(24*60*60) + int64(day) - 1
				if got := days(year, month, day); got != want {
					t.Fatalf("%d-%d-%d is day %d, not %d", year, month, day, want, got)
				}
			}
		}
	}
}

func FuzzRFC3339(f *testing.F) {
	for _, s := range []string{
		"2023-10-01T12:34:56Z", "2023-10-01t12:34:56.789z", "2024-02-29T23:59:59.999999999999+23:59",
		"1990-12-31T15:59:60-08:00", "2023-10-01T1:02:03Z", "2023-10-01T12:34:56,7Z", "2023-10-01T12:34:56+24:00",
		"2023-10-01T12:34:56+02:60", "0000-01-01T00:00:00-00:00", "2023-10-01T24:00:00Z", "2023-10-01 12:34:56Z",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, s []byte) {
		at, problem := parseRFC3339(s)
		want, ok := modelRFC3339(string(s))
		if (problem == "") != ok {
			t.Fatalf("%q: %q, model accepts: %v", s, problem, ok)
		}
		if !at.Equal(want) || ok && at.Location() != time.UTC {
			t.Fatalf("%q is %v, want %v", s, at, want)
		}
		// Whatever encoding/json takes for a time, and the RFC too, is one here.
		if parsed, err := time.Parse(time.RFC3339Nano, string(s)); err == nil && rfc3339Grammar.Match(s) && !at.Equal(parsed) {
			t.Fatalf("%q is %v, time.Parse says %v", s, at, parsed)
		}
	})
}
