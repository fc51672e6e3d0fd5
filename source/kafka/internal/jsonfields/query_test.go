package jsonfields

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestPath(t *testing.T) {
	for text, want := range map[string][]string{
		"":          {""},
		"a":         {"a"},
		"a.b":       {"a", "b"},
		".":         {"", ""},
		"a..b.":     {"a", "", "b", ""},
		`a\.b`:      {"a.b"},
		`a\.b.c\.d`: {"a.b", "c.d"},
		`a\`:        {`a\`},
		`a\b`:       {`a\b`},
		`a\\.b`:     {`a\.b`},
	} {
		require.Equal(t, want, path(text), text)
	}
}

// queries ask for nested fields, in each unit.
func queries() (all []Query) {
	for unit := RFC3339; unit <= None; unit++ {
		for _, q := range []Query{
			{Key: "k", Time: "t"},
			{Key: "u.k", Time: "u.t", N: "n"},
			{Key: "u", Time: "u", N: "u"},
			{Key: "u.k", Time: "t", N: "u.n", Where: []Condition{{"u", []string{"x", "1"}}}},
			{Key: "k", Time: "t", N: "u.v.n", Where: []Condition{{"u.v.k", []string{"x", "true"}}, {"w", []string{"1", "null", "e"}}}},
			{Key: `u\.k`, Time: "t", Where: []Condition{{"a", []string{"1"}}, {"b", []string{"1"}}, {"c", []string{"1"}}, {"d", []string{"1"}}, {"e", []string{"1"}}, {"f", []string{"1"}}}},
		} {
			q.Unit = unit
			all = append(all, q)
		}
	}
	return all
}

var nested = []string{
	`{"k":"x","t":"2023-10-01T12:34:56Z","n":7}`,
	`{"k":12,"t":1696163696,"n":0,"u":{"v":{"n":5,"k":true}},"w":null}`,
	`{"u":{"k":"a","t":"2023-10-01T12:34:56Z","n":1},"t":1696163696.789,"n":12}`,
	`{"u":{"k":"a","t":17},"u":{"t":1.5e3,"k":"b"},"n":3}`,
	`{"u":{"k":"a"},"u":5,"t":5,"n":1}`,
	`{"u":1,"u":{"k":"a","n":2},"t":-5.9}`,
	`{"u":{"k":"a","k":{"k":"z"},"t":1},"n":1,"t":1}`,
	`{"u":[{"k":"a"}],"k":"x","t":0,"n":1}`,
	`{"u.k":"dot","u":{"k":"no"},"t":3,"a":1,"b":1,"c":1,"d":"1","e":1,"f":1}`,
	`{"u":{"v":{"k":"x","n":9007199254740991}},"w":"\u0065","k":"x","t":0.000000001}`,
	`{"u":{"v":{"k":"x","n":9007199254740992}},"w":1,"k":"x","t":"2023-10-01T12:34:56Z"}`,
	`{"u":{"v":{"k":"x","n":-0}},"w":1,"k":"x","t":9e9}`,
	`{"u":{"v":{"k":"x"},"v":{}},"w":1,"k":"x","t":9e9}`,
}

// TestQueries compares with the model, and every document after every other one.
func TestQueries(t *testing.T) {
	for _, q := range queries() {
		for _, doc := range nested {
			agreeOn(t, []byte(doc), q)
			for _, other := range nested {
				afterOf(t, []byte(other), []byte(doc), q)
			}
			for i := range doc {
				for n, c := range `"{}[],.:0159-+e \\` {
					if (i+n)%3 > 0 {
						continue // or it takes 8 s
					}
					changed := doc[:i] + string(c) + doc[i+1:]
					agreeOn(t, []byte(changed), q)
					afterOf(t, []byte(doc), []byte(changed), q)
					afterOf(t, []byte(doc), []byte(doc[:i]+string(c)+doc[i:]), q)
				}
			}
		}
	}
}

func TestUnix(t *testing.T) {
	for _, raw := range []string{
		"0", "-0", "1", "-1", "1.5", "-1.5", "0.9", "-0.9", "1.999999999999", "-1.9999999999", "1e3", "1E+3", "1e-3", "1.25e1", "12345e-10", "0e999999999999999999999", "0.0e5",
		"9223372036", "9223372036.854775807", "9223372036.854775808", "9223372037", "-9223372036.854775807", "-9223372036.854775808", "-9223372036.854775809",
		"9223372036854775807", "9223372036854775808", "9223372036854775807.999", "9223372036854.775807", "1e18", "1e19", "1e300", "1e-300", "000", "0.000000000000000000000000001e27",
	} {
		for unit := range digits {
			if unit == int(RFC3339) || raw == "000" {
				continue
			}
			got, ok := parseUnix([]byte(raw), digits[unit])
			if strings.HasPrefix(raw, "0e9") {
				require.True(t, ok && got.UnixNano() == 0)
				continue
			}
			want, wantOK := modelUnix(raw, Unit(unit))
			require.Equal(t, wantOK, ok, raw)
			if ok {
				require.Equal(t, want, got, raw)
			}
		}
	}
	_, ok := parseUnix([]byte("1e999999999999999999999"), 0)
	require.False(t, ok)
	at, ok := parseUnix([]byte("1e-999999999999999999999"), 9)
	require.True(t, ok && at.UnixNano() == 0)
}

func TestQueryErrors(t *testing.T) {
	for _, c := range []struct{ doc, cause string }{
		{`{"a":{"k":"x"},"t":"2023-10-01T12:34:56Z","n":1}`, `field "t" is a string, want a number`},
		{`{"a":{"k":"x"},"t":1e99,"n":1}`, `field "t": "1e99" is not within the years 1678 to 2261`},
		{`{"a":{"k":"x"},"n":1}`, `field "t" is missing`},
		{`{"a":{"k":"x"},"t":1}`, `field "n" is missing`},
		{`{"a":{"k":"x"},"t":1,"n":null}`, `field "n" is null, want a whole number from 0 to 9007199254740991`},
		{`{"a":{"k":"x"},"t":1,"n":"1"}`, `field "n" is a string, want a whole number from 0 to 9007199254740991`},
		{`{"a":{"k":"x"},"t":1,"n":-1}`, `field "n": "-1" is not a whole number from 0 to 9007199254740991`},
		{`{"a":{"k":"x"},"t":1,"n":1.0}`, `field "n": "1.0" is not a whole number from 0 to 9007199254740991`},
		{`{"a":{"k":"x"},"t":1,"n":9007199254740992}`, `field "n": "9007199254740992" is not a whole number from 0 to 9007199254740991`},
		{`{"a":{"k":"x"},"t":1,"n":99999999999999999999999999}`, `field "n": "99999999999999999999999999" is not a whole number from 0 to 9007199254740991`},
		{`{"a":{"k":""},"t":1,"n":1}`, `field "a.k" is an empty string, want a string that is not empty or a number without fraction and exponent`},
		{`{"a":"x","t":1,"n":1}`, `field "a.k" is missing`},
	} {
		_, _, err := New(Query{Key: "a.k", Time: "t", Unit: Seconds, N: "n"}).Decode([]byte(c.doc), 0)
		require.EqualError(t, err, c.cause, c.doc)
	}
}

// TestNumbersHaveAShape wants documents with other numbers and nested fields found by
// the shape of the first, without an allocation.
func TestNumbersHaveAShape(t *testing.T) {
	d := New(Query{Key: "u.id", Time: "at", Unit: Milliseconds, N: "bytes", Where: []Condition{{"kind", []string{"view"}}}})
	doc := func(n int) []byte {
		return fmt.Appendf(nil, `{"u":{"id":"user_%d"},"kind":"view","at":%d,"bytes":%d,"other":%d}`, n, 1696163696000+int64(n), n, n*n)
	}
	_, _, err := d.Decode(doc(1), 0)
	require.NoError(t, err)
	for _, n := range []int{0, 7, 10, 12345} {
		found := make([]field, d.count)
		require.True(t, d.last.Load().match(doc(n), found), n)
		r, ok, err := d.Decode(doc(n), 0)
		require.NoError(t, err)
		require.Equal(t, n > 0, ok)
		require.Equal(t, int64(n), r.N)
		text := doc(n)
		require.Zero(t, testing.AllocsPerRun(100, func() { r, ok, err = d.Decode(text, 0) }))
	}
}

// FuzzQueries compares with the model.
func FuzzQueries(f *testing.F) {
	for i, doc := range nested {
		f.Add([]byte(doc), []byte(nested[len(nested)-1-i]), byte(i))
	}
	f.Fuzz(func(t *testing.T, doc, other []byte, n byte) {
		all := queries()
		q := all[int(n)%len(all)]
		afterOf(t, doc, other, q)
		agreeOn(t, doc, q)
	})
}
