package web

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
)

func TestCount(t *testing.T) {
	reader := &fakeReader{def: minutes, n: 7}
	code, body := get(t, reader, "/clicks/user_123/2023-10-01T12:34")
	require.Equal(t, 200, code)
	require.Equal(t, `{"user_id":"user_123","minute":"2023-10-01T12:34","clicks":7,"state":"open"}`+"\n", body)
	require.Equal(t, `count "user_123" 2023-10-01T12:34:00Z`, reader.asked)

	reader.n = 0
	for state, word := range map[tumble.State]string{tumble.Closed: "closed", tumble.Final: "final", tumble.Expired: "expired"} {
		reader.states = map[time.Time]tumble.State{at1234: state}
		_, body = get(t, reader, "/clicks/nobody/2023-10-01T12:34")
		require.Equal(t, `{"user_id":"nobody","minute":"2023-10-01T12:34","clicks":0,"state":"`+word+`"}`+"\n", body)
		_, body = get(t, reader, "/minutes/2023-10-01T12:34/top")
		require.Equal(t, `{"minute":"2023-10-01T12:34","state":"`+word+`","users":0,"clicks":0,"top":[]}`+"\n", body)
	}
}

func TestRollup(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	reader := &fakeReader{def: minutes, n: 7, totals: []tumble.Total{{Start: at1234, Keys: 1, N: 8}}}
	reader.def.Rollups = []tumble.Rollup{{Window: tumble.Window{Size: time.Hour, Offset: 15 * time.Minute}}, {Window: tumble.Window{Calendar: tumble.Day, Zone: berlin}}}
	for window, want := range map[string]string{
		"1m":                  `"minute":"2023-10-01T12:34","clicks":7`,
		"60s":                 `"minute":"2023-10-01T12:34","clicks":7`,
		"1h%2B15m":            `"minute":"2023-10-01T12:15","clicks":8`,
		"1h+15m":              `"minute":"2023-10-01T12:15","clicks":8`,
		"day+Europe/Berlin":   `"minute":"2023-09-30T22:00","clicks":8`,
		"day%20Europe/Berlin": `"minute":"2023-09-30T22:00","clicks":8`,
	} {
		code, body := get(t, reader, "/clicks/u/2023-10-01T12:34:56Z?window="+window)
		require.Equal(t, 200, code, body)
		require.Contains(t, body, want)
	}
	for _, target := range []string{"/clicks/u/now", "/clicks/u?from=2023-10-01T12:00&to=2023-10-02T12:00", "/minutes?from=2023-10-01T12:00&to=2023-10-02T12:00", "/minutes/now/top", "/minutes/now/users"} {
		and := "?"
		if strings.Contains(target, "?") {
			and = "&"
		}
		code, body := get(t, reader, target+and+"window=1h%2B15m")
		require.Equal(t, 200, code, body)
		code, body = get(t, reader, target+and+"window=2h")
		require.Equal(t, 400, code, body)
		require.Contains(t, body, "counted are 1m0s, 1h0m0s+15m0s, day Europe/Berlin")
		for _, bad := range []string{"", "x", "1", "-1m", "day%20Nowhere"} {
			code, body = get(t, reader, target+and+"window="+bad)
			require.Equal(t, 400, code, body)
			requireError(t, body)
		}
	}
	reader.err = tumble.ErrNoDefinition
	code, _ := get(t, reader, "/minutes/now/top?window=1m")
	require.Equal(t, 200, code)
	code, body := get(t, reader, "/minutes/now/top?window=1h")
	require.Equal(t, 400, code)
	require.Contains(t, body, "counted are 1m0s")
}

func TestNow(t *testing.T) {
	reader := &fakeReader{def: minutes}
	for _, target := range []string{"/clicks/u/now", "/minutes/now/top", "/minutes/now/users"} {
		before := time.Now().UTC().Truncate(time.Minute)
		code, body := get(t, reader, target)
		require.Equal(t, 200, code, body)
		var answer struct{ Minute string }
		require.NoError(t, json.Unmarshal([]byte(body), &answer))
		require.Contains(t, []string{program.ShortMinute(before), program.ShortMinute(before.Add(time.Minute))}, answer.Minute)
	}
	hour := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	code, body := get(t, reader, "/clicks/u?from="+hour+"&to=now")
	require.Equal(t, 200, code, body)
	code, _ = get(t, reader, "/clicks/u?from=now&to=now")
	require.Equal(t, 400, code, "of one now")
	for _, word := range []string{"Now", "now%20", "nowadays"} {
		code, _ = get(t, reader, "/clicks/u/"+word)
		require.Equal(t, 400, code, word)
	}
}

func TestUserIsPathEscaped(t *testing.T) {
	for path, user := range map[string]string{
		"a%2Fb":                   "a/b",
		"a%2fb":                   "a/b",
		"%2F":                     "/",
		"=":                       "=",
		"==":                      "==",
		"%7Buser_id%7D":           "{user_id}",
		"%00":                     "\x00",
		"%2E%2E":                  "..",
		"":                        "",
		"%20%2B+":                 " ++",
		"%25":                     "%",
		"%252F":                   "%2F",
		"a%3Fb%23c":               "a?b#c",
		"j%C3%BCrgen":             "jürgen",
		"\u65e5\u672c":            "日本",
		"%FF":                     "\xff",
		"2023-10-01T12:34":        "2023-10-01T12:34",
		"%22%5C%3Cscript%3E%0A":   "\"\\<script>\n",
		"clicks":                  "clicks",
		strings.Repeat("x", 8000): strings.Repeat("x", 8000),
	} {
		reader := &fakeReader{def: minutes, n: 1}
		code, body := get(t, reader, "/clicks/"+path+"/2023-10-01T12:34")
		require.Equal(t, 200, code, path)
		require.Equal(t, fmt.Sprintf("count %q 2023-10-01T12:34:00Z", user), reader.asked)
		var answer countAnswer
		require.NoError(t, json.Unmarshal([]byte(body), &answer), body)
		require.Equal(t, strings.ToValidUTF8(user, "\ufffd"), answer.UserID)

		code, _ = get(t, reader, "/clicks/"+path+"?from=2023-10-01T12:34&to=2023-10-01T12:35")
		require.Equal(t, 200, code, path)
		require.Equal(t, fmt.Sprintf("range %q 2023-10-01T12:34:00Z 2023-10-01T12:35:00Z", user), reader.ranged)
	}
}

func TestMinute(t *testing.T) {
	reader := &fakeReader{def: minutes}
	described := instantPattern(t)
	for minute, want := range map[string]string{
		"2023-10-01T12:34":                    "2023-10-01T12:34",
		"2023-10-01T12:34:56Z":                "2023-10-01T12:34",
		"2023-10-01T12:34:59.999999999Z":      "2023-10-01T12:34",
		"2023-10-01T14:34:56+02:00":           "2023-10-01T12:34",
		"2023-10-01T14:34:56%2B02:00":         "2023-10-01T12:34",
		"1700-01-01T00:00":                    "1700-01-01T00:00",
		"2199-12-31T23:59:59.999999999-00:00": "2199-12-31T23:59",
		"2000-02-29T00:00":                    "2000-02-29T00:00",
		"2024-02-29T00:00":                    "2024-02-29T00:00",
	} {
		code, body := get(t, reader, "/clicks/u/"+minute)
		require.Equal(t, 200, code, minute+body)
		require.Contains(t, body, `"minute":"`+want+`"`)
		require.Regexp(t, described, strings.ReplaceAll(minute, "%2B", "+"))
	}
	for _, minute := range []string{
		"", "noon", "2023-10-01", "2023-10-01T12", "2023-10-01T12:34Z", "2023-10-01T12:34:56", "2023-10-01T9:05",
		"2023-13-01T00:00", "2023-02-29T00:00", "2100-02-29T00:00", "2023-04-31T00:00", "2023-10-01T24:00", "2023-10-01T12:60", "12023-10-01T12:34", "1696163640",
		"1699-12-31T23:59", "2200-01-01T00:00", "2023-10-01t12:34:56z", "2023-10-01T12:34:56+0200", "2023-10-01T12:34%00", "-", "2023-10-01T1:02:03Z", "2023-10-01T12:34:56,7Z", "2023-10-01T12:34:56%2B24:00", "2023-10-01T12:34:60Z",
	} {
		plain, err := url.PathUnescape(minute)
		require.NoError(t, err)
		require.NotRegexp(t, described, plain)
		for _, target := range []string{
			"/clicks/u/" + minute, "/minutes/" + minute + "/top", "/minutes/" + minute + "/users",
			"/clicks/u?from=2023-10-01T12:34&to=" + minute, "/clicks/u?to=2023-10-01T12:34&from=" + minute,
		} {
			code, body := get(t, reader, target)
			require.Equal(t, 400, code, target)
			requireError(t, body)
		}
	}
	_, body := get(t, reader, "/clicks/u?from=noon&to=midnight")
	require.Contains(t, body, "noon", "the first error is told")
	// A plus sign in a query that was not escaped.
	code, _ := get(t, reader, "/clicks/u?from=2023-10-01T14:34:00+02:00&to=2023-10-01T12:35:00Z")
	require.Equal(t, 200, code)
	require.Equal(t, `range "u" 2023-10-01T12:34:00Z 2023-10-01T12:35:00Z`, reader.ranged)
}

// instantPattern returns the pattern of the description's Instant.
func instantPattern(t *testing.T) *regexp.Regexp {
	t.Helper()
	var doc struct {
		Components struct {
			Schemas struct{ Instant struct{ Pattern string } }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(description), &doc))
	return regexp.MustCompile(doc.Components.Schemas.Instant.Pattern)
}

func requireError(t *testing.T, body string) {
	t.Helper()
	var answer map[string]string
	require.NoError(t, json.Unmarshal([]byte(body), &answer), body)
	require.Len(t, answer, 1, body)
	require.NotEmpty(t, answer["error"])
}

func TestWindowOfOtherSizes(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	for want, w := range map[string]tumble.Window{
		"2023-10-01T12:00":     {Size: time.Hour},
		"2023-10-01T12:34:50Z": {Size: 10 * time.Second}, // the short form would name another window
		"2023-09-30T22:00":     {Calendar: tumble.Day, Zone: berlin},
	} {
		reader := &fakeReader{def: tumble.Definition{Window: w}}
		_, body := get(t, reader, "/clicks/u/2023-10-01T12:34:56Z")
		require.Contains(t, body, `"minute":"`+want+`"`)
		_, body = get(t, reader, "/minutes/2023-10-01T12:34:56Z/top")
		require.Contains(t, body, `"minute":"`+want+`"`)
		// What it answers names the same window again.
		_, body = get(t, reader, "/clicks/u/"+want)
		require.Contains(t, body, `"minute":"`+want+`"`)
	}
}

func TestHistory(t *testing.T) {
	reader := &fakeReader{def: minutes, page: tumble.Page{Counts: []tumble.Count{
		{Key: "u", Start: at1234, N: 7, State: tumble.Closed}, {Key: "u", Start: at1234.Add(2 * time.Minute), N: 1},
	}}}
	code, body := get(t, reader, "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T13:00:00Z")
	require.Equal(t, 200, code)
	require.Equal(t, `{"user_id":"u","total":8,"state":"open","clicks":[{"minute":"2023-10-01T12:34","clicks":7,"state":"closed"},{"minute":"2023-10-01T12:36","clicks":1,"state":"open"}]}`+"\n", body)

	reader.page.Counts = nil
	_, body = get(t, reader, "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:35")
	require.Equal(t, `{"user_id":"u","total":0,"state":"open","clicks":[]}`+"\n", body)
	for _, query := range []string{
		"", "?from=2023-10-01T12:34", "?to=2023-10-01T12:34", "?from=2023-10-01T12:34&to=%zz",
		// No window starts in these.
		"?from=2023-10-01T12:34&to=2023-10-01T12:34", "?from=2023-10-01T12:34&to=2023-10-01T12:33", "?from=2023-10-01T12:34:01Z&to=2023-10-01T12:34:59Z",
		"?from=2023-10-01T12:34:01Z&to=2023-10-01T12:35", "?from=1700-01-01T00:00&to=1700-01-01T00:00", "?from=2199-12-31T23:59:01Z&to=2199-12-31T23:59:59Z",
	} {
		code, body = get(t, reader, "/clicks/u"+query)
		require.Equal(t, 400, code, query)
		requireError(t, body)
	}
}

// The state of a range is expired if one of its windows is, else that of the
// last, whether they hold a count or not.
func TestStateOfRange(t *testing.T) {
	const closed, final, expired = tumble.Closed, tumble.Final, tumble.Expired
	minute := func(i int) time.Time { return at1234.Add(time.Duration(i) * time.Minute) }
	for name, c := range map[string]struct {
		query  string // from 12:34 to 12:37 unless it says else
		states map[time.Time]tumble.State
		terms  []uint64
		change func(*fakeReader)
		want   string
	}{
		"all open":             {want: "open"},
		"last open":            {states: map[time.Time]tumble.State{minute(0): closed, minute(1): closed}, want: "open"},
		"last closed":          {states: map[time.Time]tumble.State{minute(0): closed, minute(1): closed, minute(2): closed}, want: "closed"},
		"last final":           {states: map[time.Time]tumble.State{minute(0): final, minute(1): final, minute(2): final}, want: "final"},
		"first expired":        {states: map[time.Time]tumble.State{minute(0): expired, minute(1): final, minute(2): final}, want: "expired"},
		"first expired, open":  {states: map[time.Time]tumble.State{minute(0): expired}, want: "expired"},
		"before it expired":    {states: map[time.Time]tumble.State{minute(-1): expired, minute(0): final, minute(1): final, minute(2): final}, want: "final"},
		"begins in a window":   {query: "from=2023-10-01T12:33:30Z&to=2023-10-01T12:37", states: map[time.Time]tumble.State{minute(-1): expired, minute(2): closed}, want: "closed"},
		"ends in a window":     {query: "from=2023-10-01T12:34&to=2023-10-01T12:36:30Z", states: map[time.Time]tumble.State{minute(2): closed}, want: "closed"},
		"ends at a window":     {query: "from=2023-10-01T12:34&to=2023-10-01T12:36", states: map[time.Time]tumble.State{minute(1): closed}, want: "closed"},
		"closed meanwhile":     {change: func(f *fakeReader) { f.states = map[time.Time]tumble.State{minute(2): final} }, want: "open"},
		"expired meanwhile":    {states: map[time.Time]tumble.State{minute(2): final}, change: func(f *fakeReader) { f.states[minute(0)] = expired }, want: "expired"},
		"reopened meanwhile":   {states: map[time.Time]tumble.State{minute(2): final}, change: func(f *fakeReader) { f.states[minute(2)] = tumble.Open }, want: "open"},
		"a term that changed":  {states: map[time.Time]tumble.State{minute(2): final}, terms: []uint64{1, 2, 2, 2, 2, 2}, want: "final"},
		"terms that differ":    {states: map[time.Time]tumble.State{minute(2): final}, terms: []uint64{1, 2, 2, 3, 4, 4, 5, 6, 6}, want: "open"},
		"the term of the same": {states: map[time.Time]tumble.State{minute(2): final}, terms: []uint64{1, 1, 1}, want: "final"},
	} {
		t.Run(name, func(t *testing.T) {
			reader := &fakeReader{def: minutes, states: c.states, terms: c.terms}
			if c.change != nil {
				reader.change = func() { c.change(reader) }
			}
			code, body := get(t, reader, "/clicks/u?"+cmp.Or(c.query, "from=2023-10-01T12:34&to=2023-10-01T12:37"))
			require.Equal(t, 200, code, body)
			require.Equal(t, `{"user_id":"u","total":0,"state":"`+c.want+`","clicks":[]}`+"\n", body)
		})
	}
}

func TestHistoryIsBounded(t *testing.T) {
	reader := &fakeReader{def: minutes}
	code, _ := get(t, reader, "/clicks/u?from=2023-10-01T00:00&to=2023-11-01T00:00")
	require.Equal(t, 200, code, "a month of minutes")
	for _, to := range []string{"2024-10-01T00:00", "2199-12-31T00:00"} {
		reader.asked = ""
		code, body := get(t, reader, "/clicks/u?from=1700-10-01T00:00&to="+to)
		require.Equal(t, 400, code)
		require.Contains(t, body, "at most 50000")
		require.Empty(t, reader.asked)
	}
	reader.def.Window = tumble.Window{Calendar: tumble.Month}
	code, _ = get(t, reader, "/clicks/u?from=2000-01-01T00:00&to=2100-01-01T00:00")
	require.Equal(t, 200, code)
}

func TestTopAndUsers(t *testing.T) {
	reader := &fakeReader{def: minutes, states: map[time.Time]tumble.State{at1234: tumble.Final}, page: tumble.Page{Cursor: "c/2", Counts: []tumble.Count{{Key: "a", N: 9}, {Key: `"<&`, N: 3}}}}
	code, body := get(t, reader, "/minutes/2023-10-01T12:34:56Z/top")
	require.Equal(t, 200, code)
	require.Equal(t, `{"minute":"2023-10-01T12:34","state":"final","users":0,"clicks":0,"top":[{"user_id":"a","clicks":9},{"user_id":"\"<&","clicks":3}]}`+"\n", body)
	require.Equal(t, "top 2023-10-01T12:34:56Z 10", reader.asked)
	code, body = get(t, reader, "/minutes/2023-10-01T12:34/users")
	require.Equal(t, 200, code)
	require.Equal(t, `{"minute":"2023-10-01T12:34","users":[{"user_id":"a","clicks":9},{"user_id":"\"<&","clicks":3}],"cursor":"c/2"}`+"\n", body)
	require.Equal(t, `scan 2023-10-01T12:34:00Z "" 1000`, reader.asked)

	_, _ = get(t, reader, "/minutes/2023-10-01T12:34/top?n=10000")
	require.Equal(t, "top 2023-10-01T12:34:00Z 10000", reader.asked)
	_, _ = get(t, reader, "/minutes/2023-10-01T12:34/users?limit=5&cursor=c%2F2")
	require.Equal(t, `scan 2023-10-01T12:34:00Z "c/2" 5`, reader.asked)
	reader.page = tumble.Page{}
	_, body = get(t, reader, "/minutes/2023-10-01T12:34/top")
	require.Equal(t, `{"minute":"2023-10-01T12:34","state":"final","users":0,"clicks":0,"top":[]}`+"\n", body)
	_, body = get(t, reader, "/minutes/2023-10-01T12:34/users")
	require.Equal(t, `{"minute":"2023-10-01T12:34","users":[],"cursor":""}`+"\n", body)

	for _, number := range []string{"0", "-1", "10001", "ten", "1e3", "99999999999999999999", "", "%2B5", "05"} {
		for _, target := range []string{"top?n=", "users?limit="} {
			code, body = get(t, reader, "/minutes/2023-10-01T12:34/"+target+number)
			require.Equal(t, 400, code, target+number)
			requireError(t, body)
		}
	}
	reader.err = fmt.Errorf("redis at 10.1.2.3: %w", tumble.ErrCursor)
	code, body = get(t, reader, "/minutes/2023-10-01T12:34/users?cursor=made-up")
	require.Equal(t, 400, code)
	requireError(t, body)
	require.Contains(t, body, "cursor")
	require.NotContains(t, body, "10.1.2.3")
}

func TestMinutes(t *testing.T) {
	reader := &fakeReader{def: minutes, totals: []tumble.Total{
		{Start: at1234, End: at1234.Add(time.Minute), Keys: 3, N: 17, State: tumble.Closed},
		{Start: at1234.Add(30 * time.Second), Keys: 1, N: 2},
	}}
	code, body := get(t, reader, "/minutes?from=2023-10-01T12:34&to=2023-10-01T13:00%2B00:00")
	require.Equal(t, 400, code, body)
	code, body = get(t, reader, "/minutes?from=2023-10-01T12:34&to=2023-10-01T13:00")
	require.Equal(t, 200, code, body)
	require.Equal(t, `{"minutes":[{"minute":"2023-10-01T12:34","users":3,"clicks":17,"state":"closed"},{"minute":"2023-10-01T12:34:30Z","users":1,"clicks":2,"state":"open"}]}`+"\n", body)
	require.Equal(t, "windows 2023-10-01T12:34:00Z 2023-10-01T13:00:00Z", reader.ranged)
	for _, query := range []string{"", "?from=2023-10-01T12:34", "?from=2023-10-01T12:34&to=2023-10-01T12:34", "?from=1700-10-01T00:00&to=2000-10-01T00:00"} {
		code, body = get(t, reader, "/minutes"+query)
		require.Equal(t, 400, code, query)
		requireError(t, body)
	}
}

func TestProgress(t *testing.T) {
	reader := &fakeReader{def: minutes, progress: tumble.Progress{Partitions: []tumble.PartitionProgress{
		{ID: "clicks/0", Offset: 118, Watermark: at1234.Add(5 * time.Millisecond).In(time.FixedZone("there", 3600))}, {ID: "clicks/1"},
	}}}
	code, body := get(t, reader, "/progress")
	require.Equal(t, 200, code)
	require.Equal(t, `{"partitions":[{"partition":"clicks/0","offset":118,"watermark":"2023-10-01T12:34:00.005Z"},{"partition":"clicks/1","offset":0,"watermark":null}],"frontier":null}`+"\n", body)
	reader.progress.Frontier = at1234
	_, body = get(t, reader, "/progress")
	require.Contains(t, body, `"frontier":"2023-10-01T12:34:00Z"}`)
}

// What is said to be final must hold of the total, too: it is read after the counts.
func TestTotalBesideTheTop(t *testing.T) {
	for name, c := range map[string]struct {
		page, total tumble.State
		terms       [2]uint64
		want        string
	}{
		"both":           {tumble.Final, tumble.Final, [2]uint64{5, 5}, "final"},
		"a loss between": {tumble.Final, tumble.Final, [2]uint64{5, 6}, "open"},
		"expired since":  {tumble.Final, tumble.Expired, [2]uint64{5, 5}, "expired"},
		"closed since":   {tumble.Open, tumble.Final, [2]uint64{5, 5}, "open"},
	} {
		t.Run(name, func(t *testing.T) {
			reader := &fakeReader{def: minutes, states: map[time.Time]tumble.State{at1234: c.page}, page: tumble.Page{Term: c.terms[0]},
				totals: []tumble.Total{{Start: at1234, Keys: 3, N: 17, State: c.total, Term: c.terms[1]}}}
			_, body := get(t, reader, "/minutes/2023-10-01T12:34/top")
			require.Equal(t, `{"minute":"2023-10-01T12:34","state":"`+c.want+`","users":3,"clicks":17,"top":[]}`+"\n", body)
		})
	}
}

func TestNothingStored(t *testing.T) {
	reader := &fakeReader{err: fmt.Errorf("store: %w", tumble.ErrNoDefinition)}
	for target, want := range map[string]string{
		"/clicks/u/2023-10-01T12:34:56Z":                      `{"user_id":"u","minute":"2023-10-01T12:34","clicks":0,"state":"open"}`,
		"/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:40": `{"user_id":"u","total":0,"state":"open","clicks":[]}`,
		"/minutes/2023-10-01T12:34:56Z/top":                   `{"minute":"2023-10-01T12:34","state":"open","users":0,"clicks":0,"top":[]}`,
		"/minutes?from=2023-10-01T12:34&to=2023-10-01T12:40":  `{"minutes":[]}`,
		"/progress":                       `{"partitions":[],"frontier":null}`,
		"/minutes/2023-10-01T12:34/users": `{"minute":"2023-10-01T12:34","users":[],"cursor":""}`,
		"/healthz":                        `{"status":"ok"}`,
		"/readyz":                         `{"status":"ok"}`,
	} {
		code, body := get(t, reader, target)
		require.Equal(t, 200, code, target)
		require.Equal(t, want+"\n", body)
	}
}

// Clients are told that the store cannot be read, and not where it is.
func TestStoreUnreachable(t *testing.T) {
	reader := &fakeReader{err: errors.New("dial tcp 127.0.0.1:6379:\nconnection refused")}
	for _, target := range []string{
		"/clicks/u/2023-10-01T12:34", "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:40",
		"/minutes/2023-10-01T12:34/top", "/minutes/2023-10-01T12:34/users", "/healthz", "/readyz",
		"/minutes?from=2023-10-01T12:34&to=2023-10-01T12:40", "/progress",
	} {
		code, body := get(t, reader, target)
		require.Equal(t, 503, code, target)
		require.Equal(t, `{"error":"the counts cannot be read now, try again"}`+"\n", body)
	}
	code, _ := get(t, reader, "/metrics")
	require.Equal(t, 200, code)
}

// The operator is told why, once, and when it is over.
func TestOutageIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		reader := &fakeReader{def: minutes}
		h := handler(t, Config{Counts: reader, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		ask := func(ctx context.Context, target string, err error) {
			reader.err = err
			h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, "GET", target, nil))
		}
		refused := errors.New("dial tcp 127.0.0.1:6379: connection refused")
		lines := func(want ...string) {
			t.Helper()
			got := strings.Split(strings.TrimSuffix(log.String(), "\n"), "\n")
			log.Reset()
			if len(want) == 0 {
				want = []string{""}
				require.Equal(t, want, got)
			}
			require.Len(t, got, len(want), "%q", got)
			for i := range want {
				require.Contains(t, got[i], want[i])
			}
		}
		for range 15 {
			ask(t.Context(), "/healthz", refused)
			ask(t.Context(), "/metrics", nil) // reads nothing
			ask(t.Context(), "/clicks/u/noon", nil)
			time.Sleep(time.Second)
		}
		lines(`level=ERROR msg="reading the store failed" error="dial tcp 127.0.0.1:6379: connection refused"`)
		ask(t.Context(), "/clicks/u/2023-10-01T12:34", nil)
		lines(`level=INFO msg="reading the store works again" after=15s requests=15`)

		for range 8 { // by turns: a line in 10 seconds
			ask(t.Context(), "/healthz", refused)
			ask(t.Context(), "/healthz", nil)
			time.Sleep(time.Second)
		}
		lines("store failed", "works again")

		time.Sleep(time.Minute)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		ask(gone, "/healthz", context.Canceled)
		lines()
	})
}

func TestUnknownRouteAndMethod(t *testing.T) {
	reader := &fakeReader{def: minutes}
	for _, target := range []string{"/page", "/clicks", "/click/u/2023-10-01T12:34", "/clicks/a/b/2023-10-01T12:34", "/clicks/u/2023-10-01T12:34/", "/minutes/2023-10-01T12:34",
		"/minutes/2023-10-01T12:34/bottom", "/healthz/", "//healthz", "/favicon.ico"} {
		code, body := get(t, reader, target)
		require.Equal(t, 404, code, target)
		requireError(t, body)
	}
	_, body := get(t, reader, "/click/u/=x?y=z")
	require.Equal(t, `{"error":"no such resource: /click/u/=x"}`+"\n", body)
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "OPTIONS"} {
		for _, target := range []string{"/clicks/u/2023-10-01T12:34", "/metrics"} {
			code, body := request(t, reader, method, target)
			require.Equal(t, 405, code, method)
			requireError(t, body)
		}
	}
	code, body := request(t, reader, "HEAD", "/clicks/u/2023-10-01T12:34")
	require.Equal(t, 200, code)
	require.Empty(t, body)
}

// TestDescription checks that the description and the router name the same
// endpoints, and that what it points to is there.
func TestDescription(t *testing.T) {
	code, body := get(t, &fakeReader{}, "/openapi.json")
	require.Equal(t, 200, code)
	var doc map[string]any
	require.NoError(t, json.Unmarshal([]byte(body), &doc))
	require.Equal(t, "3.1.0", doc["openapi"])
	var described, served []string
	for path := range doc["paths"].(map[string]any) {
		described = append(described, path)
	}
	for path := range handler(t, Config{Counts: &fakeReader{}}).seen.routes {
		// Neither what is not served nor the page, whose events have no end.
		if !slices.Contains([]string{"", "/", "/page.js", "/page.css", "/events"}, path) {
			served = append(served, path)
		}
	}
	require.ElementsMatch(t, served, described)
	var walk func(any)
	refs := 0
	walk = func(x any) {
		switch x := x.(type) {
		case []any:
			for _, y := range x {
				walk(y)
			}
		case map[string]any:
			for name, y := range x {
				if name != "$ref" {
					walk(y)
					continue
				}
				refs++
				var at any = doc
				for _, part := range strings.Split(strings.TrimPrefix(y.(string), "#/"), "/") {
					at = at.(map[string]any)[part]
				}
				require.NotNil(t, at, y)
			}
		}
	}
	walk(doc)
	require.Positive(t, refs)
	require.Contains(t, body, fmt.Sprintf("At most %d windows", maxWindows))
}

func TestMetrics(t *testing.T) {
	h := handler(t, Config{Counts: &fakeReader{def: minutes, n: 1}, Stats: func() tumble.Stats { return tumble.Stats{Counted: 12345678901} }})
	for _, target := range []string{"/clicks/a/2023-10-01T12:34", "/clicks/b/2023-10-01T12:34", "/clicks/b/noon", "/x"} {
		h.ServeHTTP(httptest.NewRecorder(), &http.Request{Method: "GET", URL: &url.URL{Path: target}})
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, "text/plain; version=0.0.4; charset=utf-8", w.Header().Get("Content-Type"))
	lines := map[string]bool{}
	for s := bufio.NewScanner(w.Body); s.Scan(); {
		lines[s.Text()] = true
	}
	for _, want := range []string{
		`tumble_http_requests_total{route="/clicks/{user_id}/{minute}",code="200"} 2`,
		`tumble_http_requests_total{route="/clicks/{user_id}/{minute}",code="400"} 1`,
		`tumble_http_requests_total{route="",code="404"} 1`,
		`tumble_http_request_seconds_bucket{route="/clicks/{user_id}/{minute}",le="+Inf"} 3`,
		`tumble_http_request_seconds_count{route="/clicks/{user_id}/{minute}"} 3`,
		`# TYPE tumble_http_request_seconds histogram`,
		`# TYPE tumble_counted_total counter`,
		`tumble_counted_total 12345678901`,
		`tumble_http_requests_total{route="/minutes/{minute}/top",code="200"} 0`,
		`tumble_http_requests_total{route="/minutes/{minute}/top",code="503"} 0`,
		`tumble_http_requests_total{route="/healthz",code="503"} 0`,
		`tumble_http_request_seconds_count{route="/minutes/{minute}/top"} 0`,
	} {
		require.True(t, lines[want], "%s in %v", want, lines)
	}
}

// The limit of a range counts windows as they are: never too few, and few too many.
func TestWindowsBetween(t *testing.T) {
	from := time.Date(1890, 1, 1, 0, 0, 0, 0, time.UTC)
	zone, err := time.LoadLocation("Europe/Berlin")
	require.NoError(t, err)
	for _, w := range []tumble.Window{
		{Size: time.Hour}, {Calendar: tumble.Day, Zone: zone}, {Calendar: tumble.Week, Zone: zone}, {Calendar: tumble.Month, Zone: zone},
	} {
		for _, days := range []int{1, 30, 400, 30_000} {
			to := from.AddDate(0, 0, days)
			n := int64(0)
			for at := from; at.Before(to); n++ {
				_, at = w.Bounds(at)
			}
			got := windowsBetween(w, from, to)
			require.GreaterOrEqual(t, got, n, "%v, %d days", w, days)
			require.LessOrEqual(t, got, n+n/8+2, "%v, %d days", w, days)
		}
	}
}
