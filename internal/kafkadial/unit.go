package kafkadial

import (
	"errors"

	"github.com/tumblestream/tumble/source/kafka"
)

// Unit parses how times are written, a flag's value.
func Unit(s string) (kafka.Unit, error) {
	for unit, word := range []string{kafka.RFC3339: "rfc3339", kafka.Seconds: "s", kafka.Milliseconds: "ms", kafka.Microseconds: "us", kafka.Nanoseconds: "ns", kafka.RecordTime: "record"} {
		if s == word {
			return kafka.Unit(unit), nil
		}
	}
	return 0, errors.New("must be rfc3339, s, ms, us, ns or record")
}
