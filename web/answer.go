package web

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// An answer is a JSON object whose names are known only when the program runs. Its
// members keep their order.
type answer []member

type member struct {
	name  string // needs no escape in JSON
	value any
}

// MarshalJSON returns the object.
func (a answer) MarshalJSON() ([]byte, error) {
	b := append(make([]byte, 0, 32*len(a)), '{')
	for i, m := range a {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), m.name...), `":`...)
		switch v := m.value.(type) {
		case int64: // most are
			b = strconv.AppendInt(b, v, 10)
		default:
			text, err := marshal(v)
			if err != nil {
				return nil, err
			}
			b = append(b, text...)
		}
	}
	return append(b, '}'), nil
}

// marshal is json.Marshal without the escapes that HTML needs.
func marshal(x any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(x)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
