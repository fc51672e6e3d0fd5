package web

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/sink/memory"
)

// Event times are in [firstTime, lastTime).
var (
	firstTime = time.Date(1700, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// The answers in the standard words.
type (
	countAnswer struct {
		UserID string       `json:"user_id"`
		Minute string       `json:"minute"`
		Clicks int64        `json:"clicks"`
		State  tumble.State `json:"state"`
	}
	historyAnswer struct {
		UserID string        `json:"user_id"`
		Total  int64         `json:"total"`
		State  tumble.State  `json:"state"`
		Clicks []minuteCount `json:"clicks"`
	}
	minuteCount struct {
		Minute string       `json:"minute"`
		Clicks int64        `json:"clicks"`
		State  tumble.State `json:"state"`
	}
	userCount struct {
		UserID string `json:"user_id"`
		Clicks int64  `json:"clicks"`
	}
	topAnswer struct {
		Minute string       `json:"minute"`
		State  tumble.State `json:"state"`
		Users  int64        `json:"users"`
		Clicks int64        `json:"clicks"`
		Top    []userCount  `json:"top"`
	}
	usersAnswer struct {
		Minute string      `json:"minute"`
		Users  []userCount `json:"users"`
		Cursor string      `json:"cursor"`
	}
)

// counted returns the API over counts in which user clicked clicks times in the
// window that holds at, and others in the same and the next.
func counted(t *testing.T, w tumble.Window, user string, at time.Time, clicks int64) http.Handler {
	sink := memory.New(memory.Config{})
	def := tumble.Definition{Window: w}
	shards, err := sink.Open(t.Context(), def)
	require.NoError(t, err)
	start, end := w.Bounds(at)
	for i, sh := range shards {
		all, err := sh.Load(t.Context(), tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"p/0": {Log: "log"}}})
		require.NoError(t, err)
		b := tumble.Batch{Partition: "p/0", Writer: 1, From: all.Checkpoints["p/0"], To: all.Checkpoints["p/0"]}
		b.To.Offset++
		b.To.Watermark = end
		for _, d := range []tumble.Delta{{Start: start, Key: user, N: clicks}, {Start: end, Key: user, N: clicks + 1}, {Start: start, Key: user + "x", N: 1}} {
			if tumble.Hash(d.Key)%uint64(len(shards)) == uint64(i) {
				b.Deltas = append(b.Deltas, d)
			}
		}
		require.NoError(t, sh.Apply(t.Context(), b))
	}
	return handler(t, Config{Counts: sink})
}

// asWritten has h answer a request whose target arrives as it is; false: a
// server would not have taken it.
func asWritten(h http.Handler, target string) (*httptest.ResponseRecorder, bool) {
	r, err := http.ReadRequest(bufio.NewReader(io.MultiReader(
		strings.NewReader("GET "), strings.NewReader(target), strings.NewReader(" HTTP/1.1\r\nHost: localhost\r\n\r\n"),
	)))
	if err != nil {
		return nil, false
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w, true
}

// requireSound wants one line of JSON that a terminal can show, with a code that
// says whose fault it was: never the server's.
func requireSound(t *testing.T, target string, w *httptest.ResponseRecorder) {
	body := w.Body.String()
	require.Contains(t, []int{200, 400, 404}, w.Code, "%q: %s", target, body)
	require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
	if strings.HasPrefix(w.Header().Get("Content-Type"), "text/plain") {
		require.Contains(t, target, "/metrics")
		return
	}
	if w.Header().Get("Content-Security-Policy") != "" {
		return // a file of the page
	}
	require.Equal(t, "application/json", w.Header().Get("Content-Type"))
	require.True(t, json.Valid(w.Body.Bytes()), "%q: %q", target, body)
	require.True(t, utf8.ValidString(body), "%q: %q", target, body)
	if w.Code != 200 {
		requireError(t, body)
	}
	if w.Header().Get("Cache-Control") == "" {
		return // the description, which is written as a person reads it
	}
	line, found := strings.CutSuffix(body, "\n")
	require.True(t, found)
	require.False(t, strings.ContainsFunc(line, func(r rune) bool { return r < ' ' }), "%q: %q", target, body)
}

// FuzzPath asks for any target, and for a user by any name who was counted at
// any time: each is found under the escaped name, and under no other.
func FuzzPath(f *testing.F) {
	for _, target := range []string{
		"/clicks/a/2023-10-01T12:34", "/clicks/a%2Fb/2023-10-01T12:34", "/clicks//2023-10-01T12:34:56.789Z", "/clicks/%2E%2E/2023-10-01T12:34:00%2B02:00",
		"/clicks/a?from=2023-10-01T12:34&to=2023-10-01T12:36", "/clicks/%FF%00%22?from=1700-01-01T00:00&to=2199-12-31T23:59", "/clicks/a?from=%ZZ&to=;",
		"/minutes/2023-10-01T12:34/top?n=3", "/minutes/2023-10-01T12:34/top?n=-1", "/minutes/2023-10-01T12:34/users?limit=1&cursor=%22%0d%0a",
		"/healthz", "/metrics", "/openapi.json", "/", "*", "//clicks/a/2023-10-01T12:34", "http://elsewhere/clicks/a/2023-10-01T12:34",
		"/clicks/a/9999-99-99T99:99", "/clicks/a/2200-01-01T00:00", "/clicks/%1b[2J/<script>", "/clicks/../metrics", "/%2e%2e/%63licks/a",
	} {
		for i, user := range []string{"a", "a/b", "", "..", "%2F", "\xff\xfe", "<b>\"\\\r\n\x00\x1b\u2028"} {
			f.Add(target, user, int64(1696163640+i*86400*365*30), uint8(i))
		}
	}
	f.Add("/", "?#", int64(-8520336000), uint8(3)) // 1700-01-01
	f.Add("/", "+ ", int64(7258118399), uint8(4))  // the last second of 2199
	windows := []tumble.Window{
		{Size: time.Minute}, {Size: time.Second}, {Size: 36 * time.Hour, Offset: 90 * time.Minute},
		{Calendar: tumble.Day}, {Calendar: tumble.Month}, {Size: 1500 * time.Millisecond},
	}
	f.Fuzz(func(t *testing.T, target, user string, sec int64, kind uint8) {
		if span := lastTime.Unix() - firstTime.Unix(); sec < firstTime.Unix() || sec >= lastTime.Unix() {
			sec = firstTime.Unix() + int64(uint64(sec)%uint64(span))
		}
		at := time.Unix(sec, 0).UTC()
		window := windows[int(kind)%len(windows)]
		clicks := 1 + int64(kind)
		h := counted(t, window, user, at, clicks)
		if w, ok := asWritten(h, target); ok {
			requireSound(t, target, w)
		}

		start, _ := window.Bounds(at)
		want := string([]rune(user)) // JSON has no other bytes
		ask := func(target string, answer any) {
			w, ok := asWritten(h, target)
			require.True(t, ok, "%q", target)
			requireSound(t, target, w)
			require.Equal(t, 200, w.Code, "%q: %s", target, w.Body)
			d := json.NewDecoder(w.Body)
			d.DisallowUnknownFields()
			require.NoError(t, d.Decode(answer), "%q", target)
		}
		escaped := url.PathEscape(user)
		minute := at.Format(time.RFC3339)
		for _, form := range []string{minute, url.PathEscape(minute), at.Format(program.MinuteLayout)} {
			if form == at.Format(program.MinuteLayout) && window.Size%time.Minute != 0 {
				continue // it names another window
			}
			var count countAnswer
			ask("/clicks/"+escaped+"/"+form, &count)
			require.Equal(t, countAnswer{want, program.ShortMinute(start), clicks, tumble.Closed}, count)
		}
		var other countAnswer
		ask("/clicks/"+escaped+"y/"+minute, &other)
		require.Zero(t, other.Clicks)

		// The window's start may lie before the first time that can be asked for.
		if !start.Before(firstTime) {
			var history historyAnswer
			ask("/clicks/"+escaped+"?from="+start.Format(time.RFC3339Nano)+"&to="+start.Add(time.Nanosecond).Format(time.RFC3339Nano), &history)
			require.Equal(t, historyAnswer{want, clicks, tumble.Closed, []minuteCount{{program.ShortMinute(start), clicks, tumble.Closed}}}, history)
		}

		var top topAnswer
		ask("/minutes/"+minute+"/top", &top)
		require.Equal(t, program.ShortMinute(start), top.Minute)
		require.Contains(t, top.Top, userCount{want, clicks})
		require.Len(t, top.Top, 2)

		var users usersAnswer
		var seen []userCount
		for more := true; more; more = users.Cursor != "" {
			target := "/minutes/" + minute + "/users?limit=1&cursor=" + url.QueryEscape(users.Cursor)
			users = usersAnswer{}
			ask(target, &users)
			seen = append(seen, users.Users...)
		}
		require.ElementsMatch(t, top.Top, seen)
	})
}
