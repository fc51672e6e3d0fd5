package web

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tumblestream/tumble"
)

// In other words the API is the same: paths, answers, the description of both, metrics.
func TestWords(t *testing.T) {
	reader := &fakeReader{def: minutes, n: 7, page: tumble.Page{Counts: []tumble.Count{{Key: "users", N: 7}}},
		totals: []tumble.Total{{Start: at1234, Keys: 3, N: 17}}}
	h := handler(t, Config{Counts: reader, Item: "bytes", Key: "host", Keys: "hosts"})
	mounted := http.StripPrefix("/counts", h)
	ask := func(target string) string {
		w := httptest.NewRecorder()
		mounted.ServeHTTP(w, httptest.NewRequest("GET", "/counts"+target, nil))
		require.Equal(t, 200, w.Code, target)
		return w.Body.String()
	}
	for target, want := range map[string]string{
		"/bytes/clicks/2023-10-01T12:34":                         `{"host":"clicks","minute":"2023-10-01T12:34","bytes":7,"state":"open"}`,
		"/bytes/a%2Fb?from=2023-10-01T12:34&to=2023-10-01T12:35": `{"host":"a/b","total":7,"state":"open","bytes":[{"minute":"0001-01-01T00:00","bytes":7,"state":"open"}]}`,
		"/minutes?from=2023-10-01T12:34&to=2023-10-01T12:35":     `{"minutes":[{"minute":"2023-10-01T12:34","hosts":3,"bytes":17,"state":"open"}]}`,
		"/minutes/2023-10-01T12:34/top":                          `{"minute":"2023-10-01T12:34","state":"open","hosts":3,"bytes":17,"top":[{"host":"users","bytes":7}]}`,
		"/minutes/2023-10-01T12:34/hosts":                        `{"minute":"2023-10-01T12:34","hosts":[{"host":"users","bytes":7}],"cursor":""}`,
	} {
		require.Equal(t, want+"\n", ask(target))
	}
	var s schema
	text := ask("/openapi.json?x=y")
	require.NoError(t, json.Unmarshal([]byte(text), &s.doc))
	require.NotRegexp(t, `clicks|user`, text)
	require.Equal(t, "/counts", s.doc["servers"].([]any)[0].(map[string]any)["url"])
	for path, target := range map[string]string{
		"/bytes/{host}/{minute}":  "/bytes/a/2023-10-01T12:34",
		"/minutes/{minute}/hosts": "/minutes/2023-10-01T12:34/hosts",
		"/minutes/{minute}/top":   "/minutes/2023-10-01T12:34/top",
	} {
		rules, example := s.response(path, "200")
		require.NoError(t, s.check(rules, example), path)
		var got any
		require.NoError(t, json.Unmarshal([]byte(ask(target)), &got))
		require.NoError(t, s.check(rules, got), path)
	}
	require.Contains(t, ask("/metrics"), `tumble_http_requests_total{route="/bytes/{host}/{minute}",code="200"} 2`)
	require.Contains(t, ask("/"), `src="page.js"`)
}

// The description names the windows that are counted, while that can be told.
func TestDescribedWindows(t *testing.T) {
	windows := func(reader *fakeReader) map[string]any {
		_, body := get(t, reader, "/openapi.json")
		var s schema
		require.NoError(t, json.Unmarshal([]byte(body), &s.doc))
		return s.at("#/components/parameters/RollupWindow/schema").(map[string]any)
	}
	def := minutes
	def.Rollups = []tumble.Rollup{{Window: tumble.Window{Calendar: tumble.Day}}}
	require.Equal(t, []any{"1m0s", "day UTC"}, windows(&fakeReader{def: def})["enum"])
	unknown := windows(&fakeReader{err: errors.New("refused")})
	require.Equal(t, []any{"1h", "day Europe/Berlin"}, unknown["examples"])
	require.NotContains(t, unknown, "enum")
}

func TestWordsThatAreRefused(t *testing.T) {
	for _, c := range []Config{
		{Item: "Clicks"}, {Item: "a b"}, {Key: "user-id"}, {Keys: `"`}, {Keys: "minutes"}, {Key: "state"}, {Item: "top"},
		{Item: "users"}, {Key: "same", Keys: "same"}, {Item: strings.Repeat("a", 33)}, {Item: "{a}"}, {Item: "minutes"},
	} {
		c.Counts = &fakeReader{}
		_, err := New(c)
		require.ErrorContains(t, err, "web: Config.", "%+v", c)
	}
	_, err := New(Config{})
	require.EqualError(t, err, "web: Config.Counts is nil")
}
