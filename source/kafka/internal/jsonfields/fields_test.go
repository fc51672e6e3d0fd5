package jsonfields

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/stretchr/testify/require"
)

const click = `{"user_id":"user_123","timestamp":"2023-10-01T12:34:56.789Z","page":"/home"}`

// A plain decoder decodes a key and an RFC 3339 time.
type plain struct{ *Decoder }

func keyTime(key, timestamp string) plain { return plain{New(Query{Key: key, Time: timestamp})} }

func (d plain) Decode(doc []byte, n int64) (string, time.Time, error) {
	r, _, err := d.Decoder.Decode(doc, n)
	return r.Key, r.Time, err
}

// at returns the raw value that a path leads to, nil if there is none.
func at(doc json.RawMessage, path []string) json.RawMessage {
	for _, name := range path {
		var all map[string]json.RawMessage // the last of equal names wins
		if len(doc) == 0 || doc[0] != '{' || json.Unmarshal(doc, &all) != nil {
			return nil
		}
		doc = all[name]
	}
	return doc
}

// text returns what a raw string says, and the raw text of a number or a word.
func text(raw json.RawMessage) (s string) {
	if len(raw) > 0 && raw[0] == '"' {
		if json.Unmarshal(raw, &s) != nil {
			panic("encoding/json refuses a part of a document that it accepted")
		}
		return s
	}
	return string(raw)
}

var whole = regexp.MustCompile(`^-?\d+$`)

// model decodes doc slowly, with encoding/json. ok is what Decode returns.
func model(doc []byte, q Query) (r Result, ok, valid bool) {
	if doc = bytes.TrimLeft(doc, " \t\r\n"); !utf8.Valid(doc) || !json.Valid(doc) || doc[0] != '{' {
		return r, false, false
	}
	for _, c := range q.Where {
		raw := at(doc, path(c.Path))
		if len(raw) == 0 || raw[0] == '{' || raw[0] == '[' || !slices.Contains(c.Values, text(raw)) {
			return r, false, true
		}
	}
	raw := at(doc, path(q.Key))
	if r.Key = text(raw); r.Key == "" || raw[0] != '"' && !whole.Match(raw) {
		return r, false, false
	}
	switch raw := at(doc, path(q.Time)); {
	case q.Unit == None:
	case q.Unit == RFC3339:
		if len(raw) == 0 || raw[0] != '"' {
			return r, false, false
		}
		if r.Time, ok = modelRFC3339(text(raw)); !ok {
			return r, false, false
		}
	default:
		if len(raw) == 0 || !strings.Contains("-0123456789", string(raw[:1])) {
			return r, false, false
		}
		if r.Time, ok = modelUnix(string(raw), q.Unit); !ok {
			return r, false, false
		}
	}
	if r.N = 1; q.N != "" {
		raw := at(doc, path(q.N))
		var err error
		if r.N, err = strconv.ParseInt(string(raw), 10, 64); err != nil || r.N < 0 || r.N > 1<<53-1 {
			return r, false, false
		}
	}
	return r, r.N > 0, true
}

// modelUnix is exact.
func modelUnix(raw string, unit Unit) (time.Time, bool) {
	if m, e, _ := strings.Cut(strings.ToLower(raw), "e"); len(strings.TrimLeft(e, "+-0")) > 3 && len(m) < 100 {
		zero := strings.Trim(m, "-0.") == "" || e[0] == '-'
		return time.Unix(0, 0).UTC(), zero // big.Rat would take long
	}
	x, _ := new(big.Rat).SetString(raw)
	x.Mul(x, new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(digits[unit])), nil)))
	ns := new(big.Int).Quo(x.Num(), x.Denom()) // towards zero
	if !ns.IsInt64() || ns.Int64() == math.MinInt64 {
		return time.Time{}, false
	}
	return time.Unix(0, ns.Int64()).UTC(), true
}

// agree fails t if a Decoder and the model differ on doc.
func agree(t *testing.T, doc []byte, key, timestamp string) {
	t.Helper()
	agreeOn(t, doc, Query{Key: key, Time: timestamp})
}

func agreeOn(t *testing.T, doc []byte, q Query) {
	t.Helper()
	afterOf(t, doc, doc, q)
	before := string(doc)
	r, ok, err := New(q).Decode(doc, 0)
	want, wantOK, valid := model(doc, q)
	switch {
	case string(doc) != before:
		t.Fatalf("%q was changed to %q", before, doc)
	case (err == nil) != valid:
		t.Fatalf("%q: %v, model accepts: %v", doc, err, valid)
	case !valid && (len(err.Error()) > 600 || !utf8.ValidString(err.Error())):
		t.Fatalf("%q: error is long or not UTF-8: %q", doc, err)
	case ok != wantOK:
		t.Fatalf("%q: counts: %v, want %v", doc, ok, wantOK)
	case ok && (r.Key != want.Key || !r.Time.Equal(want.Time) || r.N != want.N):
		t.Fatalf("%q: %v, want %v", doc, r, want)
	}
}

// after fails t if the result for doc depends on the document seen before it.
func after(t *testing.T, seen, doc []byte, key, timestamp string) {
	t.Helper()
	afterOf(t, seen, doc, Query{Key: key, Time: timestamp})
}

func afterOf(t *testing.T, seen, doc []byte, q Query) {
	t.Helper()
	d := New(q)
	_, _, _ = d.Decode(seen, 0)
	r, ok, err := d.Decode(doc, 1)
	want, wantOK, wantErr := New(q).Decode(doc, 1)
	if ok != wantOK || r != want || fmt.Sprint(err) != fmt.Sprint(wantErr) {
		t.Fatalf("%q after %q: %v, %v, %v; on its own %v, %v, %v", doc, seen, r, ok, err, want, wantOK, wantErr)
	}
}

func TestAccepts(t *testing.T) {
	at := time.Date(2023, 10, 1, 12, 34, 56, 789e6, time.UTC)
	const when = `"t":"2023-10-01T12:34:56.789Z"`
	for _, c := range []struct{ doc, key string }{
		{`{"k":"x",` + when + `}`, "x"},
		{`{` + when + `,"k":"x"}`, "x"},
		{" \t\r\n{ \"k\" :\t\"x\"\r,\n" + when + " } \n\n", "x"},
		{`{"k":"x","t":"2023-10-01t14:34:56.789+02:00"}`, "x"},
		{`{"k":"x","t":"2023-10-01\u005412:34:56\u002e789Z"}`, "x"},
		// Fields of other names and kinds.
		{`{"":0,"K":"no","k ":"no","kk":"no","k":"x",` + when + `,"page":"/home"}`, "x"},
		{`{"a":{"k":"no","t":0},"k":"x",` + when + `,"b":[{"k":"no"}]}`, "x"},
		// The last of equal names, whatever the others hold.
		{`{"k":"no","k":"x",` + when + `}`, "x"},
		{`{"k":7,"k":"","k":"x","t":{},"t":"soon",` + when + `}`, "x"},
		{`{"\u006b":"no",` + when + `,"k":"x"}`, "x"},
		{`{"k":"no",` + when + `,"\u006B":"x"}`, "x"},
		// Escapes in the key.
		{`{"k":"a\"b\\c\/d\be\ff\ng\rh\ti",` + when + `}`, "a\"b\\c/d\be\ff\ng\rh\ti"},
		{`{"k":"\u0000\u0041\u00e9\u6771\uFFFF",` + when + `}`, "\x00Aé東\uffff"},
		{`{"k":"\ud83d\ude00\uD83D\uDE00",` + when + `}`, "😀😀"},
		{`{"k":"\ud83d",` + when + `}`, "\ufffd"},
		{`{"k":"\ude00x",` + when + `}`, "\ufffdx"},
		{`{"k":"\ud83d\n",` + when + `}`, "\ufffd\n"},
		{`{"k":"\ud83d\u0041",` + when + `}`, "\ufffdA"},
		{`{"k":"\ud83d\ud83d\ude00",` + when + `}`, "\ufffd😀"},
		{`{"k":"\ud83dude00",` + when + `}`, "\ufffdude00"},
		// Numbers.
		{`{"k":17,` + when + `}`, "17"},
		{`{"k":-0,` + when + `}`, "-0"},
		{`{"k":123456789012345678901234567890 ,` + when + `}`, "123456789012345678901234567890"},
		// Any character that need not be escaped.
		{"{\"k\":\"\x7f é 東京 😀 \u2028\ufeff\U0010ffff\"," + when + `}`, "\x7f é 東京 😀 \u2028\ufeff\U0010ffff"},
		{`{"k":"` + strings.Repeat("long ", 200_000) + `",` + when + `}`, strings.Repeat("long ", 200_000)},
	} {
		k, got, err := keyTime("k", "t").Decode([]byte(c.doc), 0)
		require.NoError(t, err, c.doc)
		require.Equal(t, c.key, k, c.doc)
		require.Equal(t, at, got, c.doc)
		agree(t, []byte(c.doc), "k", "t")
	}
}

func TestRejects(t *testing.T) {
	const when = `"t":"2023-10-01T12:34:56Z"`
	const rest = `,"k":"x",` + when + `}`
	for _, c := range []struct{ doc, cause string }{
		// Not an object, or more than one.
		{``, `offset 0: the document ends where an object should be`},
		{" \n", `offset 2: the document ends where an object should be`},
		{`null`, `offset 0: invalid character 'n' where an object should be`},
		{`[{"k":"x",` + when + `}]`, `offset 0: invalid character '[' where an object should be`},
		{`"x"`, `offset 0: invalid character '"' where an object should be`},
		{"\x00{}", `offset 0: invalid character '\x00' where an object should be`},
		{"\ufeff{}", `offset 0: a byte order mark, which JSON does not allow`},
		{" \ufeff{}", `offset 1: invalid character '\ufeff' where an object should be`},
		{`{}x`, `offset 2: invalid character 'x' after the object`},
		{`{} {}`, `offset 3: invalid character '{' after the object`},
		{"{}\x00", `offset 2: invalid character '\x00' after the object`},
		{"{}\v", `offset 2: invalid character '\v' after the object`},
		{"{}\u00a0", `offset 2: invalid character '\u00a0' after the object`},
		// Not UTF-8, wherever.
		{"\xff\xfe{\x00}\x00", `offset 0: not valid UTF-8`},
		{"{\"a\":\"\xc3\"" + rest, `offset 6: not valid UTF-8`},
		{"{\"a\":\"é\xed\xa0\x80\"" + rest, `offset 8: not valid UTF-8`},
		{"{\"a\":\"\xc0\x80\"" + rest, `offset 6: not valid UTF-8`},
		{"{\"a\":\"\xf4\x90\x80\x80\"" + rest, `offset 6: not valid UTF-8`},
		// Objects and arrays.
		{`{`, `offset 1: the document ends where a field name should be`},
		{`{x:1}`, `offset 1: invalid character 'x' where a field name should be`},
		{`{,}`, `offset 1: invalid character ',' where a field name should be`},
		{`{"a":1,}`, `offset 7: invalid character '}' where a field name should be`},
		{`{"a"}`, `offset 4: invalid character '}' where the ':' after a field name should be`},
		{`{"a"`, `offset 4: the document ends where the ':' after a field name should be`},
		{`{"a"=1}`, `offset 4: invalid character '=' where the ':' after a field name should be`},
		{`{"a":}`, `offset 5: invalid character '}' where a value should be`},
		{`{"a":`, `offset 5: the document ends where a value should be`},
		{`{"a":'b'}`, `offset 5: invalid character '\'' where a value should be`},
		{`{"a":/**/1}`, `offset 5: invalid character '/' where a value should be`},
		{`{"a":1`, `offset 6: the document ends after a field, where ',' or '}' should be`},
		{`{"a":1]`, `offset 6: invalid character ']' after a field, where ',' or '}' should be`},
		{`{"a":1 "b":2}`, `offset 7: invalid character '"' after a field, where ',' or '}' should be`},
		{`{"a":[`, `offset 6: the document ends where a value should be`},
		{`{"a":[,1]}`, `offset 6: invalid character ',' where a value should be`},
		{`{"a":[1,]}`, `offset 8: invalid character ']' where a value should be`},
		{`{"a":[1 2]}`, `offset 8: invalid character '2' after an element, where ',' or ']' should be`},
		{`{"a":[1}`, `offset 7: invalid character '}' after an element, where ',' or ']' should be`},
		{`{"a":[1`, `offset 7: the document ends after an element, where ',' or ']' should be`},
		{`{"a":{"b"}}`, `offset 9: invalid character '}' where the ':' after a field name should be`},
		// Strings.
		{`{"a":"b`, `offset 7: the document ends in a string`},
		{`{"a":"b\"}`, `offset 10: the document ends in a string`},
		{`{"a`, `offset 3: the document ends in a string`},
		{"{\"a\":\"12345678\n\"}", `offset 14: invalid character '\n' in a string, where it must be escaped`},
		{"{\"a\":\"\x1f\"}", `offset 6: invalid character '\x1f' in a string, where it must be escaped`},
		{`{"a":"\`, `offset 7: the document ends in an escape`},
		{`{"a":"\x41"}`, `offset 7: invalid character 'x' in an escape`},
		{`{"a":"\U0041"}`, `offset 7: invalid character 'U' in an escape`},
		{`{"a":"\é"}`, `offset 7: invalid character 'é' in an escape`},
		{`{"a":"\u00`, `offset 10: the document ends in a \u escape, where a hexadecimal digit should be`},
		{`{"a":"\u004g"}`, `offset 11: invalid character 'g' in a \u escape, where a hexadecimal digit should be`},
		{`{"a":"\u+041"}`, `offset 8: invalid character '+' in a \u escape, where a hexadecimal digit should be`},
		// Numbers and words.
		{`{"a":-}`, `offset 6: invalid character '}' in a number, where a digit should be`},
		{`{"a":-`, `offset 6: the document ends in a number, where a digit should be`},
		{`{"a":+1}`, `offset 5: invalid character '+' where a value should be`},
		{`{"a":.5}`, `offset 5: invalid character '.' where a value should be`},
		{`{"a":01}`, `offset 6: invalid character '1' after a field, where ',' or '}' should be`},
		{`{"a":-01}`, `offset 7: invalid character '1' after a field, where ',' or '}' should be`},
		{`{"a":1.}`, `offset 7: invalid character '}' in a number, where a digit should be`},
		{`{"a":1e}`, `offset 7: invalid character '}' in a number, where a digit should be`},
		{`{"a":1e+}`, `offset 8: invalid character '}' in a number, where a digit should be`},
		{`{"a":0x10}`, `offset 6: invalid character 'x' after a field, where ',' or '}' should be`},
		{`{"a":NaN}`, `offset 5: invalid character 'N' where a value should be`},
		{`{"a":nul}`, `offset 8: invalid character '}' in null`},
		{`{"a":tru`, `offset 8: the document ends in true`},
		{`{"a":falsE}`, `offset 9: invalid character 'E' in false`},
		{`{"a":nulls}`, `offset 9: invalid character 's' after a field, where ',' or '}' should be`},
		{`{"a":True}`, `offset 5: invalid character 'T' where a value should be`},
		// The whole document is checked, behind the fields too.
		{`{"k":"x",` + when + `,"a":[1,2}`, `offset 44: invalid character '}' after an element, where ',' or ']' should be`},
		// The key.
		{`{}`, `field "k" is missing`},
		{`{` + when + `,"K":"x","a":{"k":"x"}}`, `field "k" is missing`},
		{`{"k":"",` + when + `}`, `field "k" is an empty string, want a string that is not empty or a number without fraction and exponent`},
		{`{"k":0.5,` + when + `}`, `field "k" is a number, want a string that is not empty or a number without fraction and exponent`},
		{`{"k":-1e0,` + when + `}`, `field "k" is a number, want a string that is not empty or a number without fraction and exponent`},
		{`{"k":true,` + when + `}`, `field "k" is a boolean, want a string that is not empty or a number without fraction and exponent`},
		{`{"k":false,` + when + `}`, `field "k" is a boolean, want a string that is not empty or a number without fraction and exponent`},
		{`{"k":null,` + when + `}`, `field "k" is null, want a string that is not empty or a number without fraction and exponent`},
		{`{"k":["x"],` + when + `}`, `field "k" is an array, want a string that is not empty or a number without fraction and exponent`},
		{`{"k":{},` + when + `}`, `field "k" is an object, want a string that is not empty or a number without fraction and exponent`},
		{`{"k":"x",` + when + `,"k":null}`, `field "k" is null, want a string that is not empty or a number without fraction and exponent`},
		// The time.
		{`{"k":"x"}`, `field "t" is missing`},
		{`{"k":"x","t":1696163696}`, `field "t" is a number, want an RFC 3339 string`},
		{`{"k":"x",` + when + `,"t":null}`, `field "t" is null, want an RFC 3339 string`},
		{`{"k":"x","t":""}`, `field "t": "" is not an RFC 3339 time: too short, want one like 2006-01-02T15:04:05Z`},
		{`{"k":"x","t":"2023-13-01T12:34:56Z"}`, `field "t": "2023-13-01T12:34:56Z" is not an RFC 3339 time: month out of range`},
		{`{"k":"x","t":"2023-10-01T12:34:56\n"}`, `field "t": "2023-10-01T12:34:56\n" is not an RFC 3339 time: want Z or a zone like +02:00 after the seconds`},
		{`{"k":"x","t":"` + strings.Repeat("é", 1000) + `"}`,
			`field "t": "` + strings.Repeat("é", 32) + `"... is not an RFC 3339 time: want one like 2006-01-02T15:04:05Z`},
		{`{"k":"x","t":"x` + strings.Repeat("é", 1000) + `"}`,
			`field "t": "x` + strings.Repeat("é", 31) + `"... is not an RFC 3339 time: want one like 2006-01-02T15:04:05Z`},
	} {
		_, _, err := keyTime("k", "t").Decode([]byte(c.doc), 0)
		require.EqualError(t, err, c.cause, c.doc)
		agree(t, []byte(c.doc), "k", "t")
	}
}

// TestValues puts good and bad values where a careless decoder would not look: in
// another field, in an array, in a nested object.
func TestValues(t *testing.T) {
	good := []string{
		`0`, `-0`, `1`, `-12`, `10`, `0.0`, `-0.50`, `1e5`, `1E5`, `1e+05`, `0e-0`, `1.5e300`, `1e99999`, `-123456789012345678901234567890.5`,
		`true`, `false`, `null`, `""`, `"a"`, `"\u0000"`, `"\uD800"`, `"\uDC00\uD800"`, `"\uABCD\uabcd"`, "\"\x7f\"", "\"\u2028\"", `"/\/"`,
		`[]`, `[ ]`, `[[]]`, `[0]`, "[\t1 ,\r\n2 ]", `["a",null,{}]`, `{}`, `{ }`, `{"":0}`, `{"a":{"a":{}}}`, `{"a":1,"a":2}`, `{"k":1,"t":[]}`,
	}
	bad := []string{
		``, ` `, `-`, `+1`, `--1`, `01`, `-01`, `00`, `.1`, `1.`, `-.1`, `1.e1`, `1e`, `1e+`, `1e1.5`, `1_000`, `1 000`, `0x1`, `1f`, `Infinity`, `-Infinity`, `NaN`,
		"\uff11", `1,`, `,1`, `tru`, `truee`, `TRUE`, `nil`, `undefined`, `nullnull`, `"`, `"a`, `a"`, `'a'`, `"\"`, `"\a"`, `"\0"`, `"\'"`, `"\u"`, `"\u12"`, `"\u123"`,
		`"\u12G4"`, `"\u 123"`, `"\ud800\u"`, "\"\x00\"", "\"\t\"", "\"\n\"", "\"\\\n\"", "\"a\x1f\"", "\"\x80\"", "\"\xe9\"", "\"\xed\xa0\x80\"", "\"\xf5\x80\x80\x80\"",
		`[`, `]`, `[1`, `[1,`, `[,]`, `[1,]`, `[,1]`, `[1,,2]`, `[1 2]`, `[1}`, `["a":1]`, `[1]]`, `[[1]`, `{`, `{]`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`,
		`{,}`, `{"a" 1}`, `{"a"::1}`, `{"a":1:2}`, `{"a","b"}`, `{a:1}`, `{1:1}`, `{null:1}`, `{'a':1}`, `{"a":1 "b":2}`, `{"a":1;"b":2}`, `{[]:1}`, `{"a":1}}`,
		"\v", "\f", "\u00a0", "\u200b1", "\ufeff1", `//`, `/**/1`, `1//`, `#`, "`a`", "\x00", "1\x00",
	}
	for _, around := range []string{
		`{"k":"x","t":"2023-10-01T12:34:56Z","v":%s}`,
		`{"v":%s,"k":"x","t":"2023-10-01T12:34:56Z"}`,
		`{"v":[1,%s],"k":"x","t":"2023-10-01T12:34:56Z"}`,
		`{"k":"x","t":"2023-10-01T12:34:56Z","v":{"k": %s }}`,
	} {
		for _, v := range good {
			doc := fmt.Sprintf(around, v)
			_, _, err := keyTime("k", "t").Decode([]byte(doc), 0)
			require.NoError(t, err, doc)
			agree(t, []byte(doc), "k", "t")
		}
		for _, v := range bad {
			doc := fmt.Sprintf(around, v)
			_, _, err := keyTime("k", "t").Decode([]byte(doc), 0)
			require.Error(t, err, doc)
			agree(t, []byte(doc), "k", "t")
		}
	}
}

// TestChanged changes one place of a document, every place in every way: a byte
// less, another byte, a byte more, and the end cut off.
func TestChanged(t *testing.T) {
	for _, doc := range []string{
		click,
		`{"user_id":"a\u00e9\ud83d\ude00","timestamp":"2023-10-01T12:34:56+02:00"}`,
		"{ \"n\":[-0.5e+1,0,{}], \"é\":true,\"user_id\":\"é東😀, and more than 16 bytes\",\n\"timestamp\":\"2024-02-29T23:59:59z\" }\n",
	} {
		agree(t, []byte(doc), "user_id", "timestamp")
		for i := range doc {
			agree(t, []byte(doc[:i]), "user_id", "timestamp")
			agree(t, []byte(doc[:i]+doc[i+1:]), "user_id", "timestamp")
			for c := range 256 {
				agree(t, []byte(doc[:i]+string([]byte{byte(c)})+doc[i+1:]), "user_id", "timestamp")
				agree(t, []byte(doc[:i]+string([]byte{byte(c)})+doc[i:]), "user_id", "timestamp")
			}
		}
	}
}

func TestDepth(t *testing.T) {
	nested := func(open, close string, n int) []byte {
		return []byte(`{"k":"x","t":"2023-10-01T12:34:56Z","v":` + strings.Repeat(open, n) + "0" + strings.Repeat(close, n) + `}`)
	}
	d := keyTime("k", "t")
	for _, c := range []struct{ open, close string }{{"[", "]"}, {`{"k":`, "}"}} {
		// The document itself is one level.
		deepest := nested(c.open, c.close, maxDepth-1)
		_, _, err := d.Decode(deepest, 0)
		require.NoError(t, err)
		agree(t, deepest, "k", "t")

		deeper := nested(c.open, c.close, maxDepth)
		_, _, err = d.Decode(deeper, 0)
		require.ErrorContains(t, err, "objects and arrays nested more than 10000 deep")
		agree(t, deeper, "k", "t")

		_, _, err = d.Decode(nested(c.open, "", 10_000_000), 0)
		require.ErrorContains(t, err, "objects and arrays nested more than 10000 deep")
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("name", 100)
	for _, c := range []struct{ key, timestamp, doc string }{
		{"", "t", `{"":"x","t":"2023-10-01T12:34:56Z"}`},
		{"é\n", "\x00", `{"\u00e9\n":"2023-10-01T12:34:56Z","\u0000":"2023-10-01T12:34:56Z"}`},
		{"é\n", "t", `{"é\n":"x","t":"2023-10-01T12:34:56Z"}`},
		{"\ufffd", "t", `{"\ud800":"x","t":"2023-10-01T12:34:56Z"}`},
		{long, "t", `{"\u006e` + long[1:] + `":"x","t":"2023-10-01T12:34:56Z"}`},
		{"t", "t", `{"t":"2023-10-01T12:34:56Z"}`}, // one field for both
	} {
		_, _, err := keyTime(c.key, c.timestamp).Decode([]byte(c.doc), 0)
		require.NoError(t, err, c.doc)
		agree(t, []byte(c.doc), c.key, c.timestamp)
	}

	_, _, err := keyTime(strings.Repeat("x", 10_000), "t").Decode([]byte(`{}`), 0)
	require.EqualError(t, err, `field "`+strings.Repeat("x", 64)+`"... is missing`)
}

// TestBorrows wants a key that is a part of the document, and no allocation. If
// there are escapes it wants a key of its own.
func TestBorrows(t *testing.T) {
	d := keyTime("user_id", "timestamp")
	doc := []byte(click)
	key, _, err := d.Decode(doc, 0)
	require.NoError(t, err)
	require.Same(t, &doc[strings.Index(click, "user_123")], unsafe.StringData(key))
	require.Zero(t, testing.AllocsPerRun(100, func() { key, _, err = d.Decode(doc, 0) }))

	doc = []byte(`{"\u0075ser_id":"a\tb","timestamp":"2023-10-01T12:34:56Z"}`)
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() { key, _, err = d.Decode(doc, 0) }), 1.0)
	require.NoError(t, err)
	clear(doc)
	require.Equal(t, "a\tb", key)
}

// TestShape lets a decoder learn a shape. It must tell apart documents of this shape
// with all kinds of strings, those of nearly this shape, and those cut short.
func TestShape(t *testing.T) {
	const doc = `{"user_id":"ann","a":[1,"x"],"timestamp":"2023-10-01T12:34:56Z","b":{"user_id":""}}`
	for i := range doc {
		after(t, []byte(doc), []byte(doc[:i]), "user_id", "timestamp")
		for c := range 256 {
			changed := []byte(doc)
			changed[i] = byte(c)
			after(t, []byte(doc), changed, "user_id", "timestamp")
			after(t, []byte(doc), slices.Insert([]byte(doc), i, byte(c)), "user_id", "timestamp")
		}
		after(t, []byte(doc), slices.Delete([]byte(doc), i, i+1), "user_id", "timestamp")
	}
	for _, value := range []string{"", "é", strings.Repeat("x", 100), "seven-7", "eight-8!", `\\`, `\"`, "\x7f", "\x80", "\x1f", "\x00"} {
		after(t, []byte(doc), []byte(strings.Replace(doc, "ann", value, 1)), "user_id", "timestamp")
		after(t, []byte(doc), []byte(strings.Replace(doc, `"x"`, `"`+value+`"`, 1)), "user_id", "timestamp")
	}
	root := keyTime("user_id", "timestamp").root
	learn := func(doc string) (*shape, []field) {
		found := make([]field, 2)
		require.NoError(t, find([]byte(doc), &root, found))
		return shapeOf([]byte(doc), found, root.below), found
	}
	many := strings.Repeat(`"",`, shapeValues-3)
	for _, doc := range []string{
		doc, click,
		`{"a":[` + many + `""],` + click[1:],
		`{"a":"` + strings.Repeat("x", shapeSize-len(click)-7) + `",` + click[1:],
	} {
		known, found := learn(doc)
		matched := make([]field, 2)
		require.True(t, known.match([]byte(strings.Replace(doc, "12:34", "12:35", 1)), matched))
		require.Equal(t, found, matched)
	}
	for _, none := range []string{
		strings.Replace(click, "user_123", `user\u0031`, 1),
		`{"a":[` + many + `"",""],` + click[1:],
		`{"a":"` + strings.Repeat("x", shapeSize-len(click)-6) + `",` + click[1:],
	} {
		known, found := learn(none)
		require.False(t, known.match([]byte(none), found))
		require.False(t, known.match(nil, found))
	}
}

// TestLearns wants the first shape learned at once, and a change of shape with one
// document of 64, so that documents of two shapes by turns cost little.
func TestLearns(t *testing.T) {
	d := keyTime("k", "t")
	learned := func(n int64, doc string) bool {
		before := d.last.Load()
		_, _, err := d.Decode([]byte(doc), n)
		require.NoError(t, err)
		return d.last.Load() != before
	}
	const one, two = `{"k":"x","t":"2023-10-01T12:34:56Z"}`, `{"t":"2023-10-01T12:34:56Z","k":"x"}`
	require.True(t, learned(0, one))
	for n := range int64(64) {
		require.Equal(t, n == 63, learned(n, two), n)
	}
	for n := range int64(64) {
		require.False(t, learned(n, two), n)
	}
}

func TestConcurrent(t *testing.T) {
	d := keyTime("k", "t")
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			key := strings.Repeat("é", n+1)
			good := fmt.Appendf(nil, `{"k":"\u00e9%s","t":"2023-10-01T12:34:0%dZ"}`, key[2:], n)
			bad := fmt.Appendf(nil, `{"k":"%s"}`, key)
			for i := range int64(1000) {
				k, at, err := d.Decode(good, i)
				if err != nil || k != key || at.Second() != n {
					t.Errorf("%q, %v, %v", k, at, err)
				}
				if _, _, err := d.Decode(bad, i); err == nil || err.Error() != `field "t" is missing` {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzDecoder compares with encoding/json, on whether a document is valid, and on the
// key and the time of valid ones.
func FuzzDecoder(f *testing.F) {
	for _, doc := range []string{
		click,
		"{ \"a\" : [ 1, -0.5e+1, true, false, null, {\"user_id\":[]} ],\r\n\t\"user_id\":\"é\\ud83d\\ude00\",\"timestamp\":\"2023-10-01t12:34:56+02:00\"}",
		`{"user_id":1,"user_id":"x","\u0074imestamp":"2023-10-01T12:34:56\u005a","timestamp":"2016-12-31T23:59:60Z"}`,
		`{"user_id":"\ud800\ud800\udc00\n","timestamp":"2023-10-01T12:34:56.1234567891Z"} {}`,
		"\ufeff{\"user_id\":\"\xed\xa0\x80\"}", `[{}]`, `{"a":01}`, `{"a":"\x"}`, "{\"a\":\"\x1f\"}",
	} {
		f.Add([]byte(doc), []byte(click), "user_id", "timestamp")
	}
	f.Add([]byte(`{"k":"x","t":"2023-10-01T12:34:56Z"}`), []byte(`{"k":"","t":"2023-10-01T12:34:56Z"}`), "k", "t")
	f.Add([]byte(`{"k":"x","k":"y","n":1,"t":"2023-10-01T12:34:56Z"}`), []byte(`{"k":"\"","k":"yy","n":2,"t":"2023-10-01T12:34:56Z"}`), "k", "t")
	f.Add([]byte(`{"":"2023-10-01T12:34:56Z"}`), []byte(`{"":"2023-10-01T12:34:56+01:00"}`), "", "")
	f.Add([]byte(`{"\ud800":"x","t":"2023-10-01T12:34:56Z"}`), []byte{}, "\ufffd", "t")
	f.Fuzz(func(t *testing.T, doc, other []byte, key, timestamp string) {
		agree(t, doc, key, timestamp)
		after(t, doc, other, key, timestamp)
		after(t, other, doc, key, timestamp)
		// Most of the fuzzer's documents lack a field, so validity is compared
		// on its own.
		found := make([]field, 2)
		root := keyTime(key, timestamp).root
		err := find(doc, &root, found)
		if valid := utf8.Valid(doc) && json.Valid(doc) && doc[space(doc, 0)] == '{'; (err == nil) != valid {
			t.Fatalf("%q: %v, encoding/json finds it an object: %v", doc, err, valid)
		}
		if err == nil && found[0] != found[1] && key == timestamp {
			t.Fatalf("%q: one name, two fields: %v", doc, found)
		}
	})
}
