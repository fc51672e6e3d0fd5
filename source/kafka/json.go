package kafka

import (
	"errors"
	"fmt"
	"unicode/utf8"
	"unsafe"

	"github.com/tumblestream/tumble"
)

// JSON returns the Decode of records whose value is a JSON object: one event,
// with the string in the field named key as its Key and the RFC 3339 time in
// the field named timestamp as its Time, in UTC. The two may be one field.
//
//	{"user_id":"user_123","timestamp":"2023-10-01T12:34:56.789Z","page":"/home"}
//
// A null value, a tombstone, is skipped. Every other value must be one valid
// JSON object (RFC 8259) with nothing but white space around it; all of it is
// checked, fields that are not asked for too. A record is rejected, with a
// cause that says what and where, if
//   - its value is not valid JSON, or not an object. It must be UTF-8 without a
//     byte order mark, and objects and arrays may be nested 10,000 deep, as in
//     encoding/json. The range of a number is not checked;
//   - a field is missing: names are compared exactly, after their escapes are
//     replaced, and fields of nested objects are not the record's. Of a field
//     that comes more than once the last one counts, whatever the others hold;
//   - key is not a string, or is empty;
//   - timestamp is not a string with a date and time of RFC 3339, section 5.6:
//     "2023-10-01T12:34:56.789Z", or with a zone, "2023-10-01t14:34:56+02:00".
//     Digits beyond nanoseconds are dropped. A leap second, which the clocks of
//     most computers do not have, is taken as the last nanosecond before it, so
//     that it falls in the minute and the day that it names.
//
// An escape that is half of a surrogate pair becomes U+FFFD, as in
// encoding/json, so keys that differ only in such halves are counted together.
//
// Other fields than those that a name was counted by before need a new name: see
// Config.Decode.
//
// What the Decode returns depends on the record alone. A Key without escapes is part of the value, as
// borrowed as that is, and costs no allocation; escapes in the key or in the
// time cost one each.
func JSON(key, timestamp string) Decode {
	names := [2]string{key, timestamp}
	var seen shapes
	return func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
		if m.Value == nil {
			return dst, nil
		}
		known := seen.last.Load()
		var found [2]field
		if known == nil || !known.match(m.Value, &found) {
			var err error
			if found, err = fields(m.Value, &names); err != nil {
				return dst, err
			}
			if known == nil || m.Offset%shapeEvery == shapeEvery-1 {
				seen.learn(m.Value, &found)
			}
		}
		k, t := &found[0], &found[1]
		if k.kind != '"' || k.start == k.end {
			return dst, k.unfit(key, "a string that is not empty")
		}
		if t.kind != '"' {
			return dst, t.unfit(timestamp, "an RFC 3339 string")
		}
		text := t.bytes(m.Value)
		at, problem := parseRFC3339(text)
		if problem != "" {
			return dst, fmt.Errorf("field %s: %s is not an RFC 3339 time: %s", quote(timestamp), quote(string(text)), problem)
		}
		name := k.bytes(m.Value)
		return append(dst, tumble.Event{
			Key:  unsafe.String(unsafe.SliceData(name), len(name)), // name never changes, but by the owner of m.Value
			Time: at,
		}), nil
	}
}

// A field is where a document holds the value of a field that was asked for;
// of a string, what lies between its quotes.
type field struct {
	start, end int
	kind       byte // the value's first character; 0: there is no such field
	escaped    bool // a string that holds escapes
}

// bytes returns the string that f is: a part of b if it holds no escapes.
func (f *field) bytes(b []byte) []byte {
	s := b[f.start:f.end]
	if f.escaped {
		return unescape(make([]byte, 0, len(s)), s)
	}
	return s
}

// unfit is the cause of a rejection for what f is.
func (f *field) unfit(name, want string) error {
	is := "a number"
	switch f.kind {
	case 0:
		return fmt.Errorf("field %s is missing", quote(name))
	case '"':
		is = "an empty string"
	case '{':
		is = "an object"
	case '[':
		is = "an array"
	case 't', 'f':
		is = "a boolean"
	case 'n':
		is = "null"
	}
	return fmt.Errorf("field %s is %s, want %s", quote(name), is, want)
}

// fields checks the document b, which must be one object, and finds the fields
// of that object that are called names.
func fields(b []byte, names *[2]string) (found [2]field, err error) {
	if !utf8.Valid(b) {
		return found, notUTF8(b)
	}
	i := space(b, 0)
	if i == len(b) || b[i] != '{' {
		return found, notObject(b, i)
	}
	if i, err = scanObject(b, i, 1, names, &found); err != nil {
		return found, err
	}
	if i = space(b, i); i != len(b) {
		return found, syntax(b, i, "after the object")
	}
	return found, nil
}

func notUTF8(b []byte) error {
	i := 0
	for {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size <= 1 {
			return fmt.Errorf("offset %d: not valid UTF-8", i)
		}
		i += size
	}
}

func notObject(b []byte, i int) error {
	const want = "where an object should be"
	switch {
	case i == len(b):
		return syntax(b, i, want)
	case i == 0 && len(b) >= 3 && string(b[:3]) == "\uFEFF":
		return errors.New("offset 0: a byte order mark, which JSON does not allow")
	}
	return syntax(b, i, want)
}

// quote quotes the beginning of s: a cause must not be as long as a record.
func quote(s string) string {
	const most = 64
	if len(s) <= most {
		return fmt.Sprintf("%q", s)
	}
	n := most
	for n > most-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return fmt.Sprintf("%q...", s[:n])
}
