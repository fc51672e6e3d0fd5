package kafka

import (
	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/jsonfields"
)

// JSON returns the Decode for records whose value is a JSON object. Each record
// becomes one event. Its Key is the string in the field named key, and its Time is
// the RFC 3339 time in the field named timestamp, in UTC. Both may be the same field.
//
//	{"user_id":"user_123","timestamp":"2023-10-01T12:34:56.789Z","page":"/home"}
//
// A null value (a tombstone) is skipped. Any other value must be one valid JSON
// object (RFC 8259) with only white space around it. The whole document is checked,
// other fields too. A record is rejected, with an error that says why and where, if
//   - its value is not valid JSON, or not an object. It must be UTF-8 without a
//     byte order mark. Objects and arrays may be nested 10,000 deep, as in
//     encoding/json. Numbers of any size are accepted.
//   - a field is missing. Names are compared exactly, after their escapes are
//     replaced. Fields of nested objects do not count. If a name comes more than
//     once, only the last of these fields is used.
//   - key is not a string, or is empty.
//   - timestamp is not a string with a date-time of RFC 3339, section 5.6, such as
//     "2023-10-01T12:34:56.789Z" or, with a zone, "2023-10-01t14:34:56+02:00".
//     Digits beyond nanoseconds are dropped. A leap second becomes the last
//     nanosecond before it, because time.Time has none. So it stays in the minute
//     and the day that it names.
//
// An escape that is half of a surrogate pair becomes U+FFFD, as in encoding/json.
// Keys that differ only in such halves are counted together.
//
// If the fields change, the counts need a new name: see Config.Decode.
//
// The result depends on the record alone. A Key without escapes is a part of the
// record's value, borrowed like the value itself, and needs no allocation. Only
// escapes in the key or in the time cost one.
func JSON(key, timestamp string) Decode {
	fields := jsonfields.New(key, timestamp)
	return func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
		if m.Value == nil {
			return dst, nil
		}
		k, t, err := fields.Decode(m.Value, m.Offset)
		if err != nil {
			return dst, err
		}
		return append(dst, tumble.Event{Key: k, Time: t}), nil
	}
}
