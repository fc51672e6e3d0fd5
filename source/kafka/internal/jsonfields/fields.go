// Package jsonfields decodes a key, a time and a number from fields of a JSON object.
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

// A Query says what to decode. Key, Time, N and those of Where are paths, see path.
type Query struct {
	Key   string
	Time  string
	Unit  Unit
	N     string // "": documents have no number
	Where []Condition
}

// A Condition wants the text in a field to be one of Values.
type Condition struct {
	Path   string
	Values []string
}

// A Unit says how a time is written.
type Unit int

const (
	RFC3339 Unit = iota
	Seconds      // since the epoch, like the others
	Milliseconds
	Microseconds
	Nanoseconds
	None // documents have no time
)

// digits are those of a nanosecond, by unit.
var digits = [...]int{Seconds: 9, Milliseconds: 6, Microseconds: 3, Nanoseconds: 0}

// Fields of a Query, by bit and index.
const (
	keyField = iota
	timeField
	numberField
	whereField // and those after it

	fewFields = 8  // more need an allocation
	maxFields = 64 // bits of a mask
)

// MaxConditions is how many conditions a Query may have.
const MaxConditions = maxFields - whereField

// A Decoder decodes documents. It may be used by several goroutines at once.
type Decoder struct {
	q     Query
	root  node
	count int
	last  atomic.Pointer[shape]
}

// New returns the Decoder of a Query. Two of its paths may be the same.
func New(q Query) *Decoder {
	d := &Decoder{q: q, count: whereField + len(q.Where)}
	d.root.ask(path(q.Key), 1<<keyField)
	if q.Unit != None {
		d.root.ask(path(q.Time), 1<<timeField)
	}
	if q.N != "" {
		d.root.ask(path(q.N), 1<<numberField)
	}
	for i, c := range q.Where {
		d.root.ask(path(c.Path), 1<<(whereField+i))
	}
	return d
}

// learnEvery is how often a document of an unknown shape is learned: once in 64.
const learnEvery = 64

// A Result is what a document holds.
type Result struct {
	Key  string    // without escapes it is a part of the document
	Time time.Time // UTC. Zero if the Query has none
	N    int64     // 1 if the Query has none
}

// Decode returns what doc holds, which is document number n of the caller, and false
// if its number is 0 or a condition does not hold. The result does not depend on n or
// on earlier documents.
func (d *Decoder) Decode(doc []byte, n int64) (r Result, ok bool, err error) {
	var few [fewFields]field
	found := few[:]
	if d.count > fewFields {
		found = make([]field, d.count)
	}
	if known := d.last.Load(); known == nil || !known.match(doc, found) {
		clear(found)
		if err = find(doc, &d.root, found); err != nil {
			return r, false, err
		}
		if known == nil || n%learnEvery == learnEvery-1 {
			d.last.Store(shapeOf(doc, found, d.root.below))
		}
	}
	for i, c := range d.q.Where {
		if !found[whereField+i].among(doc, c.Values) {
			return r, false, nil
		}
	}
	if r.Key, err = found[keyField].key(doc, d.q.Key); err != nil {
		return r, false, err
	}
	if d.q.Unit != None {
		if r.Time, err = found[timeField].time(doc, d.q.Time, d.q.Unit); err != nil {
			return r, false, err
		}
	}
	if r.N = 1; d.q.N != "" {
		if r.N, err = found[numberField].number(doc, d.q.N); err != nil {
			return r, false, err
		}
	}
	return r, r.N > 0, nil
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

// key returns the text of a string that is not empty, or of a whole number.
func (f *field) key(doc []byte, name string) (string, error) {
	if f.kind != '"' && !f.whole(doc) || f.start == f.end {
		return "", f.unfit(name, "a string that is not empty or a number without fraction and exponent")
	}
	text := f.bytes(doc)
	return unsafe.String(unsafe.SliceData(text), len(text)), nil // only the owner of doc can change it
}

// whole reports whether f is a number without fraction and exponent.
func (f *field) whole(doc []byte) bool {
	return f.numeric() && scanDigits(doc[:f.end], f.start+1) == f.end
}

func (f *field) numeric() bool { return f.kind == '-' || f.kind-'0' <= 9 }

// time returns the instant, in UTC.
func (f *field) time(doc []byte, name string, unit Unit) (at time.Time, err error) {
	if unit != RFC3339 {
		if !f.numeric() {
			return at, f.unfit(name, "a number")
		}
		at, ok := parseUnix(doc[f.start:f.end], digits[unit])
		if !ok {
			return at, fmt.Errorf("field %s: %s is not within the years 1678 to 2261", quote(name), quote(string(doc[f.start:f.end])))
		}
		return at, nil
	}
	if f.kind != '"' {
		return at, f.unfit(name, "an RFC 3339 string")
	}
	text := f.bytes(doc)
	at, problem := parseRFC3339(text)
	if problem != "" {
		return at, fmt.Errorf("field %s: %s is not an RFC 3339 time: %s", quote(name), quote(string(text)), problem)
	}
	return at, nil
}

// number returns a whole number from 0 to 2^53 - 1.
func (f *field) number(doc []byte, name string) (n int64, err error) {
	const most = 1<<53 - 1
	fits := f.whole(doc)
	for i := f.start; fits && i < f.end; i++ {
		if doc[i] != '-' {
			n = 10*n + int64(doc[i]-'0')
		}
		fits = n <= most
	}
	if !fits || f.kind == '-' && n != 0 {
		if f.numeric() {
			return 0, fmt.Errorf("field %s: %s is not a whole number from 0 to %d", quote(name), quote(string(doc[f.start:f.end])), int64(most))
		}
		return 0, f.unfit(name, fmt.Sprintf("a whole number from 0 to %d", int64(most)))
	}
	return n, nil
}

// among reports whether the text of f, which an object or an array does not have, is
// one of values.
func (f *field) among(doc []byte, values []string) bool {
	if f.kind == 0 || f.kind == '{' || f.kind == '[' {
		return false
	}
	text := f.bytes(doc)
	for _, v := range values {
		if string(text) == v {
			return true
		}
	}
	return false
}

// unfit returns the error of a field that is not as wanted.
func (f *field) unfit(name, want string) error {
	is := "a number"
	switch f.kind {
	case 0:
		return fmt.Errorf("field %s is missing", quote(name))
	case '"':
		if is = "a string"; f.start == f.end {
			is = "an empty string"
		}
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

// find checks the document b, which must be one object, and finds the fields that
// root asks for.
func find(b []byte, root *node, found []field) error {
	if !utf8.Valid(b) {
		return notUTF8(b)
	}
	i := space(b, 0)
	if i == len(b) || b[i] != '{' {
		return notObject(b, i)
	}
	i, err := scanObject(b, i, 1, root, found)
	if err != nil {
		return err
	}
	if i = space(b, i); i != len(b) {
		return syntax(b, i, "after the object")
	}
	return nil
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
