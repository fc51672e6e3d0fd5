package web

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/tumblestream/tumble"
)

// A schema checks values against the part of JSON Schema that the description
// uses; a keyword that it does not know is an error.
type schema struct{ doc map[string]any }

func (s schema) at(ref string) any {
	var at any = s.doc
	for _, part := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
		at = at.(map[string]any)[part]
	}
	return at
}

func (s schema) check(rules map[string]any, x any) error {
	for keyword, rule := range rules {
		var err error
		switch keyword {
		case "description", "examples", "default", "format":
		case "$ref":
			err = s.check(s.at(rule.(string)).(map[string]any), x)
		case "type":
			err = checkType(rule, x)
		case "const":
			if x != rule {
				err = fmt.Errorf("%v is not %v", x, rule)
			}
		case "enum":
			if !slices.Contains(rule.([]any), x) {
				err = fmt.Errorf("%v is none of %v", x, rule)
			}
		case "minimum":
			if n, ok := x.(float64); ok && n < rule.(float64) {
				err = fmt.Errorf("%v is below %v", x, rule)
			}
		case "pattern":
			if text, ok := x.(string); ok && !regexp.MustCompile(rule.(string)).MatchString(text) {
				err = fmt.Errorf("%q does not match %v", text, rule)
			}
		case "items":
			for _, one := range x.([]any) {
				if err == nil {
					err = s.check(rule.(map[string]any), one)
				}
			}
		case "required":
			for _, name := range rule.([]any) {
				if _, ok := x.(map[string]any)[name.(string)]; !ok {
					err = fmt.Errorf("%v has no %q", x, name)
				}
			}
		case "properties":
			for name, one := range rule.(map[string]any) {
				if value, ok := x.(map[string]any)[name]; ok && err == nil {
					err = s.check(one.(map[string]any), value)
				}
			}
		case "additionalProperties":
			for name := range x.(map[string]any) {
				if _, ok := rules["properties"].(map[string]any)[name]; !ok {
					err = fmt.Errorf("%v has %q, which is not described", x, name)
				}
			}
		default:
			err = fmt.Errorf("unknown keyword %s", keyword)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func checkType(rule, x any) error {
	names, several := rule.([]any)
	if !several {
		names = []any{rule}
	}
	for _, name := range names {
		if isType(name.(string), x) {
			return nil
		}
	}
	return fmt.Errorf("%v is no %v", x, rule)
}

func isType(name string, x any) (ok bool) {
	switch x := x.(type) {
	case nil:
		ok = name == "null"
	case string:
		ok = name == "string"
	case float64:
		ok = name == "integer" && x == float64(int64(x))
	case []any:
		ok = name == "array"
	case map[string]any:
		ok = name == "object"
	}
	return ok
}

// response returns the schema and the example of one response of an endpoint.
func (s schema) response(path, code string) (rules map[string]any, example any) {
	get := s.doc["paths"].(map[string]any)[path].(map[string]any)["get"].(map[string]any)
	response := get["responses"].(map[string]any)[code].(map[string]any)
	if ref, ok := response["$ref"]; ok {
		response = s.at(ref.(string)).(map[string]any)
	}
	content := response["content"].(map[string]any)["application/json"].(map[string]any)
	return content["schema"].(map[string]any), content["example"]
}

// TestAnswersAreAsDescribed checks real answers, and the examples of the
// description, against its schemas.
func TestAnswersAreAsDescribed(t *testing.T) {
	var s schema
	require.NoError(t, json.Unmarshal([]byte(description), &s.doc))
	unreachable := &fakeReader{err: fmt.Errorf("refused")}
	nothing := &fakeReader{err: tumble.ErrNoDefinition}
	for _, c := range []struct {
		path, target string
		code         int
		reader       *fakeReader // nil: one in each state
	}{
		{"/clicks/{user_id}/{minute}", "/clicks/u/2023-10-01T12:34", 200, nil},
		{"/clicks/{user_id}", "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:35", 200, nil},
		{"/minutes/{minute}/top", "/minutes/2023-10-01T12:34/top", 200, nil},
		{"/minutes/{minute}/users", "/minutes/2023-10-01T12:34/users", 200, nil},
		{"/minutes/{minute}/users", "/minutes/2023-10-01T12:34/users", 200, nothing},
		{"/minutes/{minute}/users", "/minutes/2023-10-01T12:34/users?cursor=x", 400, nothing},
		{"/minutes", "/minutes?from=2023-10-01T12:34&to=2023-10-01T12:35", 200, nil},
		{"/minutes", "/minutes?from=2023-10-01T12:34&to=2023-10-01T12:35", 200, nothing},
		{"/minutes", "/minutes?from=2023-10-01T12:34&to=2023-10-01T12:35", 503, unreachable},
		{"/minutes", "/minutes", 400, nil},
		{"/progress", "/progress", 200, nil},
		{"/progress", "/progress", 200, nothing},
		{"/progress", "/progress", 503, unreachable},
		{"/healthz", "/healthz", 200, nil},
		{"/readyz", "/readyz", 200, nil},
		{"/clicks/{user_id}/{minute}", "/clicks/u/2023-10-01T12:34", 200, nothing},
		{"/clicks/{user_id}", "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:35", 200, nothing},
		{"/minutes/{minute}/top", "/minutes/now/top", 200, nothing},
		{"/minutes/{minute}/users", "/minutes/now/users", 200, nothing},
		{"/clicks/{user_id}/{minute}", "/clicks/u/noon", 400, nil},
		{"/clicks/{user_id}", "/clicks/u", 400, nil},
		{"/minutes/{minute}/top", "/minutes/now/top?n=0", 400, nil},
		{"/minutes/{minute}/users", "/minutes/now/users?limit=0", 400, nil},
		{"/clicks/{user_id}/{minute}", "/clicks/u/2023-10-01T12:34", 503, unreachable},
		{"/clicks/{user_id}", "/clicks/u?from=2023-10-01T12:34&to=2023-10-01T12:35", 503, unreachable},
		{"/minutes/{minute}/top", "/minutes/now/top", 503, unreachable},
		{"/minutes/{minute}/users", "/minutes/now/users", 503, unreachable},
		{"/healthz", "/healthz", 503, unreachable},
		{"/readyz", "/readyz", 503, unreachable},
	} {
		rules, example := s.response(c.path, fmt.Sprint(c.code))
		require.NoError(t, s.check(rules, example), "the example of %s, %d", c.path, c.code)
		for state := tumble.Open; state <= tumble.Expired; state++ {
			reader := c.reader
			if reader == nil {
				reader = &fakeReader{def: minutes, n: 7, states: map[time.Time]tumble.State{at1234: state}, page: tumble.Page{
					Cursor: "c/2", Counts: []tumble.Count{{Key: "u", Start: at1234, N: 7, State: state}},
				}}
				reader.totals = []tumble.Total{{Start: at1234, Keys: 1, N: 7, State: state}}
				reader.progress = tumble.Progress{Partitions: []tumble.PartitionProgress{{ID: "clicks/0", Offset: 7}, {ID: "clicks/1", Watermark: at1234}}}
			}
			code, body := get(t, reader, c.target)
			require.Equal(t, c.code, code, c.target)
			var answer any
			require.NoError(t, json.Unmarshal([]byte(body), &answer))
			require.NoError(t, s.check(rules, answer), "%s: %s", c.target, body)
		}
	}
}
