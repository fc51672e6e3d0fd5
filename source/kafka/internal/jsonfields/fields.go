// Package jsonfields decodes a key and a time from two fields of a JSON object.
// It checks the whole document (RFC 8259) and allocates nothing unless the fields
// hold escapes.
package jsonfields

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
	"unicode/utf8"
	"unsafe"
)

// A Decoder decodes documents. It may be used by several goroutines at once.
type Decoder struct {
	names [2]string // of the key and the time
	last  atomic.Pointer[shape]
}

// New returns the Decoder of the fields named key and timestamp, which may be one
// field.
func New(key, timestamp string) *Decoder {
	return &Decoder{names: [2]string{key, timestamp}}
}

// learnEvery is how often a document of an unknown shape is learned: once in 64.
const learnEvery = 64

// Decode returns the key and the time, in UTC, of doc, which is document number n
// of the caller. The result does not depend on n or on earlier documents. A key
// without escapes is a part of doc.
func (d *Decoder) Decode(doc []byte, n int64) (key string, at time.Time, err error) {
	var found [2]field
	if known := d.last.Load(); known == nil || !known.match(doc, &found) {
		if found, err = find(doc, &d.names); err != nil {
			return "", at, err
		}
		if known == nil || n%learnEvery == learnEvery-1 {
			d.last.Store(shapeOf(doc, &found))
		}
	}
	k, t := &found[0], &found[1]
	if k.kind != '"' || k.start == k.end {
		return "", at, k.unfit(d.names[0], "a string that is not empty")
	}
	if t.kind != '"' {
		return "", at, t.unfit(d.names[1], "an RFC 3339 string")
	}
	text := t.bytes(doc)
	at, problem := parseRFC3339(text)
	if problem != "" {
		return "", at, fmt.Errorf("field %s: %s is not an RFC 3339 time: %s", quote(d.names[1]), quote(string(text)), problem)
	}
	name := k.bytes(doc)
	return unsafe.String(unsafe.SliceData(name), len(name)), at, nil // only the owner of doc can change name
}

// A field is the place of a field's value in a document. For a string it is the
// place between the quotes.
type field struct {
	start, end int
	kind       byte // the value's first character; 0: there is no such field
	escaped    bool // a string with escapes
}

// bytes returns the string f. It is a part of doc if it holds no escapes.
func (f *field) bytes(doc []byte) []byte {
	s := doc[f.start:f.end]
	if f.escaped {
		return unescape(make([]byte, 0, len(s)), s)
	}
	return s
}

// unfit returns the error of a field that is not as wanted.
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

// quote quotes the beginning of s, so that an error is not as long as a record.
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

// find checks the document b, which must be one object, and finds its fields
// called names.
func find(b []byte, names *[2]string) (found [2]field, err error) {
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
	if i == 0 && len(b) >= 3 && string(b[:3]) == "\uFEFF" {
		return errors.New("offset 0: a byte order mark, which JSON does not allow")
	}
	return syntax(b, i, "where an object should be")
}
