package clicks

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/examples/clickstream/internal/program"
)

// fakeReader answers with what it is told and remembers what it was asked.
type fakeReader struct {
	def  tumble.Definition
	err  error // of every method
	n    int64
	page tumble.Page

	asked string
}

func (f *fakeReader) Definition(context.Context) (tumble.Definition, error) { return f.def, f.err }

func (f *fakeReader) Count(_ context.Context, key string, at time.Time) (tumble.Count, error) {
	f.asked = fmt.Sprintf("count %q %s", key, at.UTC().Format(time.RFC3339Nano))
	if f.err != nil {
		return tumble.Count{}, f.err
	}
	start, _ := f.def.Window.Bounds(at)
	return tumble.Count{Key: key, Window: start, N: f.n, Final: f.n > 0}, nil
}

func (f *fakeReader) Range(_ context.Context, key string, from, to time.Time) ([]tumble.Count, error) {
	f.asked = fmt.Sprintf("range %q %s %s", key, from.UTC().Format(time.RFC3339), to.UTC().Format(time.RFC3339))
	return f.page.Counts, f.err
}

func (f *fakeReader) Top(_ context.Context, at time.Time, n int) (tumble.Page, error) {
	f.asked = fmt.Sprintf("top %s %d", at.UTC().Format(time.RFC3339), n)
	return f.page, f.err
}

func (f *fakeReader) Scan(_ context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	f.asked = fmt.Sprintf("scan %s %q %d", at.UTC().Format(time.RFC3339), cursor, limit)
	return f.page, f.err
}

var minutes = tumble.Definition{Window: tumble.Window{Size: time.Minute}}

// get asks a real server, so that paths arrive as the wire has them.
func get(t *testing.T, reader tumble.Reader, target string) (int, string) {
	t.Helper()
	return request(t, reader, "GET", target)
}

func request(t *testing.T, reader tumble.Reader, method, target string) (int, string) {
	t.Helper()
	server := httptest.NewServer(New(Config{Counts: reader}))
	defer server.Close()
	r, err := http.NewRequest(method, server.URL+target, nil)
	require.NoError(t, err)
	answer, err := server.Client().Do(r)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	return answer.StatusCode, string(body)
}

func TestCount(t *testing.T) {
	reader := &fakeReader{def: minutes, n: 7}
	code, body := get(t, reader, "/clicks/user_123/2023-10-01T12:34")
	require.Equal(t, 200, code)
	require.Equal(t, `{"user_id":"user_123","minute":"2023-10-01T12:34","clicks":7,"final":true}`+"\n", body)
	require.Equal(t, `count "user_123" 2023-10-01T12:34:00Z`, reader.asked)

	reader.n = 0
	_, body = get(t, reader, "/clicks/nobody/2023-10-01T12:34")
	require.Equal(t, `{"user_id":"nobody","minute":"2023-10-01T12:34","clicks":0,"final":false}`+"\n", body)
}

func TestUserIsPathEscaped(t *testing.T) {
	for path, user := range map[string]string{
		"a%2Fb":                   "a/b",
		"a%2fb":                   "a/b",
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
		require.Equal(t, fmt.Sprintf("range %q 2023-10-01T12:34:00Z 2023-10-01T12:35:00Z", user), reader.asked)
	}
}

func TestMinute(t *testing.T) {
	reader := &fakeReader{def: minutes}
	for minute, want := range map[string]string{
		"2023-10-01T12:34":                    "2023-10-01T12:34",
		"2023-10-01T12:34:56Z":                "2023-10-01T12:34",
		"2023-10-01T12:34:59.999999999Z":      "2023-10-01T12:34",
		"2023-10-01T14:34:56+02:00":           "2023-10-01T12:34",
		"2023-10-01T14:34:56%2B02:00":         "2023-10-01T12:34",
		"1700-01-01T00:00":                    "1700-01-01T00:00",
		"2199-12-31T23:59:59.999999999-00:00": "2199-12-31T23:59",
	} {
		code, body := get(t, reader, "/clicks/u/"+minute)
		require.Equal(t, 200, code, minute+body)
		require.Contains(t, body, `"minute":"`+want+`"`)
	}
	for _, minute := range []string{
		"", "noon", "2023-10-01", "2023-10-01T12", "2023-10-01T12:34Z", "2023-10-01T12:34:56", "2023-10-01T9:05",
		"2023-13-01T00:00", "2023-02-29T00:00", "2023-10-01T24:00", "2023-10-01T12:60", "12023-10-01T12:34", "1696163640",
		"1699-12-31T23:59", "2200-01-01T00:00", "2023-10-01t12:34:56z", "2023-10-01T12:34:56+0200", "2023-10-01T12:34%00", "-", "2023-10-01T1:02:03Z", "2023-10-01T12:34:56,7Z", "2023-10-01T12:34:56%2B24:00", "2023-10-01T12:34:60Z",
	} {
		for _, target := range []string{
			"/clicks/u/" + minute, "/minutes/" + minute + "/top", "/minutes/" + minute + "/users",
			"/clicks/u?from=2023-10-01T12:34&to=" + minute, "/clicks/u?to=2023-10-01T12:34&from=" + minute,
		} {
			code, body := get(t, reader, target)
			require.Equal(t, 400, code, target)
			requireError(t, body)
		}
	}
	// A plus sign in a query that was not escaped.
	code, _ := get(t, reader, "/clicks/u?from=2023-10-01T14:34:00+02:00&to=2023-10-01T12:35:00Z")
	require.Equal(t, 200, code)
	require.Equal(t, `range "u" 2023-10-01T12:34:00Z 2023-10-01T12:35:00Z`, reader.asked)
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
	at := time.Date(2023, 10, 1, 12, 34, 0, 0, time.UTC)
	reader := &fakeReader{def: minutes, page: tumble.Page{Counts: []tumble.Count{
		{Key: "u", Window: at, N: 7, Final: true}, {Key: "u", Window: at.Add(2 * time.Minute), N: 1},
	}}}
	code, body := get(t, reader, "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T13:00:00Z")
	require.Equal(t, 200, code)
	require.Equal(t, `{"user_id":"u","clicks":[{"minute":"2023-10-01T12:34","clicks":7,"final":true},{"minute":"2023-10-01T12:36","clicks":1,"final":false}]}`+"\n", body)
	require.Equal(t, `range "u" 2023-10-01T12:34:00Z 2023-10-01T13:00:00Z`, reader.asked)

	reader.page.Counts = nil
	_, body = get(t, reader, "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:34")
	require.Equal(t, `{"user_id":"u","clicks":[]}`+"\n", body)
	for _, query := range []string{"", "?from=2023-10-01T12:34", "?to=2023-10-01T12:34", "?from=2023-10-01T12:34&to=%zz"} {
		code, body = get(t, reader, "/clicks/u"+query)
		require.Equal(t, 400, code, query)
		requireError(t, body)
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
	reader := &fakeReader{def: minutes, page: tumble.Page{Final: true, Cursor: "c/2", Counts: []tumble.Count{{Key: "a", N: 9}, {Key: `"<&`, N: 3}}}}
	code, body := get(t, reader, "/minutes/2023-10-01T12:34:56Z/top")
	require.Equal(t, 200, code)
	require.Equal(t, `{"minute":"2023-10-01T12:34","final":true,"top":[{"user_id":"a","clicks":9},{"user_id":"\"<&","clicks":3}]}`+"\n", body)
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
	require.Equal(t, `{"minute":"2023-10-01T12:34","final":false,"top":[]}`+"\n", body)
	_, body = get(t, reader, "/minutes/2023-10-01T12:34/users")
	require.Equal(t, `{"minute":"2023-10-01T12:34","users":[],"cursor":""}`+"\n", body)

	for _, number := range []string{"0", "-1", "10001", "ten", "1e3", "99999999999999999999"} {
		for _, target := range []string{"top?n=", "users?limit="} {
			code, body = get(t, reader, "/minutes/2023-10-01T12:34/"+target+number)
			require.Equal(t, 400, code, target+number)
			requireError(t, body)
		}
	}
	reader.err = fmt.Errorf("store: %w", tumble.ErrCursor)
	reader.def = minutes
	code, body = get(t, &cursorReader{reader}, "/minutes/2023-10-01T12:34/users?cursor=made-up")
	require.Equal(t, 400, code)
	requireError(t, body)
}

// cursorReader fails where a cursor is read, and nowhere else.
type cursorReader struct{ *fakeReader }

func (c *cursorReader) Definition(context.Context) (tumble.Definition, error) { return c.def, nil }

func TestNothingStored(t *testing.T) {
	reader := &fakeReader{err: fmt.Errorf("store: %w", tumble.ErrNoDefinition)}
	for target, want := range map[string]string{
		"/clicks/u/2023-10-01T12:34:56Z":                      `{"user_id":"u","minute":"2023-10-01T12:34","clicks":0,"final":false}`,
		"/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:40": `{"user_id":"u","clicks":[]}`,
		"/minutes/2023-10-01T12:34:56Z/top":                   `{"minute":"2023-10-01T12:34","final":false,"top":[]}`,
		"/minutes/2023-10-01T12:34/users":                     `{"minute":"2023-10-01T12:34","users":[],"cursor":""}`,
		"/healthz":                                            `{"status":"ok"}`,
	} {
		code, body := get(t, reader, target)
		require.Equal(t, 200, code, target)
		require.Equal(t, want+"\n", body)
	}
}

func TestStoreUnreachable(t *testing.T) {
	reader := &fakeReader{err: errors.New("dial tcp 127.0.0.1:6379:\nconnection refused")}
	for _, target := range []string{
		"/clicks/u/2023-10-01T12:34", "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:40",
		"/minutes/2023-10-01T12:34/top", "/minutes/2023-10-01T12:34/users", "/healthz",
	} {
		code, body := get(t, reader, target)
		require.Equal(t, 503, code, target)
		require.Equal(t, `{"error":"dial tcp 127.0.0.1:6379: connection refused"}`+"\n", body)
	}
	code, _ := get(t, reader, "/metrics")
	require.Equal(t, 200, code)
}

func TestUnknownRouteAndMethod(t *testing.T) {
	reader := &fakeReader{def: minutes}
	for _, target := range []string{"/", "/clicks", "/click/u/2023-10-01T12:34", "/clicks/a/b/2023-10-01T12:34", "/clicks/u/2023-10-01T12:34/", "/minutes/2023-10-01T12:34",
		"/minutes/2023-10-01T12:34/bottom", "/healthz/", "//healthz", "/favicon.ico"} {
		code, body := get(t, reader, target)
		require.Equal(t, 404, code, target)
		requireError(t, body)
	}
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
	for _, e := range endpoints {
		served = append(served, e.pattern)
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
	h := New(Config{Counts: &fakeReader{def: minutes, n: 1}, Metrics: func() []program.Metric {
		return []program.Metric{program.Counter("more_total", "More.", 12345678901)}
	}})
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
		`clicks_http_requests_total{route="/clicks/{user_id}/{minute}",code="200"} 2`,
		`clicks_http_requests_total{route="/clicks/{user_id}/{minute}",code="400"} 1`,
		`clicks_http_requests_total{route="",code="404"} 1`,
		`clicks_http_request_seconds_bucket{route="/clicks/{user_id}/{minute}",le="+Inf"} 3`,
		`clicks_http_request_seconds_count{route="/clicks/{user_id}/{minute}"} 3`,
		`# TYPE clicks_http_request_seconds histogram`,
		`# TYPE more_total counter`,
		`more_total 12345678901`,
	} {
		require.True(t, lines[want], "%s in %v", want, lines)
	}
}
