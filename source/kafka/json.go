package kafka

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/jsonfields"
)

// A Unit says how the time of an event is written.
type Unit int

const (
	RFC3339      Unit = iota // text, a date-time of RFC 3339, section 5.6
	Seconds                  // a number, since the Unix epoch like those that follow
	Milliseconds             // a number
	Microseconds             // a number
	Nanoseconds              // a number
	RecordTime               // no field: the record's own timestamp
)

var units = [...]jsonfields.Unit{
	RFC3339: jsonfields.RFC3339, Seconds: jsonfields.Seconds, Milliseconds: jsonfields.Milliseconds,
	Microseconds: jsonfields.Microseconds, Nanoseconds: jsonfields.Nanoseconds, RecordTime: jsonfields.None,
}

// Fields says which fields of a JSON object make an event. Key, Time, N and the keys of
// Where are paths: names with dots between them lead into nested objects, as
// "customer.id" does. A dot that belongs to a name is written `\.`. Two paths may be
// the same.
type Fields struct {
	// Key is the field of the event's Key: a string that is not empty, or a number
	// without fraction and exponent, whose text is the Key.
	Key string

	// Time is the field of the event's Time, written as Unit says.
	Time string

	// Unit is how Time is written. It is never guessed. Digits beyond nanoseconds are
	// dropped. RFC 3339 takes text such as "2023-10-01T12:34:56.789Z" or, with a zone,
	// "2023-10-01t14:34:56+02:00". A leap second becomes the last nanosecond before
	// it, because time.Time has none. So it stays in the minute and the day that it
	// names. Seconds, Milliseconds, Microseconds and Nanoseconds take a number since
	// 1970, with a fraction or an exponent or without; RecordTime takes the record's
	// own, and no field. Defaults to RFC3339.
	Unit Unit

	// N, if it is not empty, is the field of the event's N, for a pipeline with
	// tumble.Config.Sum: a number without fraction and exponent from 0 to 2^53 - 1.
	// A record with 0 is skipped. By default events have no N.
	N string

	// Where leaves records out: for each of its paths the field's text must be one of
	// the values, or the record is skipped. The text is that of a string, or a number,
	// true, false or null as it is written. Objects and arrays have none.
	Where map[string][]string
}

// Decode returns the [Decode] of records whose value is a JSON object. Each record
// becomes one event, with its Time in UTC.
//
// A null value (a tombstone) is skipped. Any other value must be one valid JSON
// object (RFC 8259) with only white space around it. The whole document is checked,
// other fields too, then Where, then the fields. A record is rejected, with an error
// that says why and where, if
//   - its value is not valid JSON, or not an object. It must be UTF-8 without a
//     byte order mark. Objects and arrays may be nested 10,000 deep, as in
//     encoding/json. Numbers of any size are accepted.
//   - a field is missing. Names are compared exactly, after their escapes are
//     replaced. If a name comes more than once in an object, only the last of these
//     fields is used.
//   - a field is not as said above. With RecordTime, if the record has no timestamp.
//
// An escape that is half of a surrogate pair becomes U+FFFD, as in encoding/json.
// Keys that differ only in such halves are counted together.
//
// If the fields change, the counts need a new name: see Config.Decode.
//
// The result depends on the record alone. A Key without escapes is a part of the
// record's value, borrowed like the value itself. Nothing is allocated but for
// escapes in the fields, and for each record if Where has more than 5 paths. It
// panics if Unit is none of those above or if Where has more than 61 paths.
func (f Fields) Decode() Decode {
	if f.Unit < 0 || int(f.Unit) >= len(units) {
		panic(fmt.Sprintf("kafka: Fields.Unit is %d", int(f.Unit)))
	}
	if len(f.Where) > jsonfields.MaxConditions {
		panic(fmt.Sprintf("kafka: Fields.Where has %d paths, must be at most %d", len(f.Where), jsonfields.MaxConditions))
	}
	q := jsonfields.Query{Key: f.Key, Time: f.Time, Unit: units[f.Unit], N: f.N}
	for _, path := range slices.Sorted(maps.Keys(f.Where)) {
		q.Where = append(q.Where, jsonfields.Condition{Path: path, Values: slices.Clone(f.Where[path])})
	}
	d, recordTime, sums := jsonfields.New(q), f.Unit == RecordTime, f.N != ""
	return func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
		if m.Value == nil {
			return dst, nil
		}
		r, ok, err := d.Decode(m.Value, m.Offset)
		if err != nil || !ok {
			return dst, err
		}
		ev := tumble.Event{Key: r.Key, Time: r.Time}
		if sums {
			ev.N = r.N
		}
		if recordTime {
			if ev.Time = m.Time; ev.Time.IsZero() {
				return dst, errNoTimestamp
			}
		}
		return append(dst, ev), nil
	}
}

var errNoTimestamp = errors.New("the record has no timestamp")

// JSON returns the Decode for records whose value is a JSON object with a key and an
// RFC 3339 time. It is short for Fields{Key: key, Time: timestamp}.Decode().
//
//	{"user_id":"user_123","timestamp":"2023-10-01T12:34:56.789Z","page":"/home"}
func JSON(key, timestamp string) Decode { return Fields{Key: key, Time: timestamp}.Decode() }
