package codecs

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Frame is what clients of a schema registry put before a record's value: a zero byte and
// the number of the schema, in 4 bytes, big-endian. See
// https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format.
type Frame struct {
	Schema  uint32
	Payload []byte
}

// ParseFrame reads a value. An error rejects the record.
func ParseFrame(value []byte) (Frame, error) {
	if len(value) < 5 || value[0] != 0 {
		return Frame{}, errors.New("the value has no frame of a schema registry")
	}
	return Frame{binary.BigEndian.Uint32(value[1:]), value[5:]}, nil
}

// Message skips what stands before a message of protocol buffers: the path to its type in
// the schema, as numbers, of which a single 0 means the first type. Others are refused.
func (f Frame) Message() ([]byte, error) {
	if len(f.Payload) > 0 && f.Payload[0] == 0 {
		return f.Payload[1:], nil
	}
	return nil, fmt.Errorf("schema %d: the message is not of the first type", f.Schema)
}
