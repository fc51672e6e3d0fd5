package kafka

import "github.com/tumblestream/tumble"

// Unmarshal returns the Decode for records whose value unmarshal reads into a T, such
// as json.Unmarshal does, or a function around that of another codec. events appends
// what a value holds, several events perhaps, or none for a record to be skipped. An
// error of either rejects the record. A null value (a tombstone) is skipped.
//
// It is simpler than [Fields] for values that are no JSON, or hold several keys, and
// slower: each record needs a T of its own, whose strings may be kept.
func Unmarshal[T any](unmarshal func(data []byte, v any) error, events func(dst []tumble.Event, v *T) ([]tumble.Event, error)) Decode {
	return func(dst []tumble.Event, m Message) ([]tumble.Event, error) {
		if m.Value == nil {
			return dst, nil
		}
		v := new(T)
		if err := unmarshal(m.Value, v); err != nil {
			return dst, err
		}
		return events(dst, v)
	}
}
