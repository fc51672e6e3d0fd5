package jsonfields

import "math/bits"

// A shape is the part that documents of one program share: all bytes outside of
// string values and of numbers that are digits alone. A document is valid if it has
// the shape of a valid one and its values are plain, so its structure need not be
// scanned (BenchmarkClicks). Documents nearly always have the shape of the one before.
type shape struct{ parts []part }

// A part is a run of bytes that all documents of a shape share. It begins with the
// closing quote of a string value, or behind a number, and ends with the opening quote
// of the next, or before a number.
type part struct {
	text  string
	head  uint64 // the first bytes of text, at most eight
	mask  uint64 // the bits of head that count
	tail  uint64 // the last eight bytes of text, if it is longer than that
	asked uint64 // the fields that the next value is, a bit each
	digit bool   // the next value is a number
}

const (
	shapeValues = 32   // values, half of them numbers; others are part of the shape
	shapeSize   = 4096 // bytes; a longer document has no shape
)

func partOf(text string) part {
	p := part{text: text, head: load([]byte(text), 0), mask: 1<<(8*len(text)) - 1}
	if n := len(text); n > 8 {
		p.tail = load([]byte(text), n-8)
	}
	return p
}

// match reports whether b, which may be any bytes, has the shape. If so it stores
// in found the same fields as find.
func (s *shape) match(b []byte, found []field) bool {
	i := 0
	for n := range s.parts {
		// Most parts are short, and comparing two words is faster than a call.
		// Past the end of b they are zeros, which no part holds.
		p, size := &s.parts[n], len(s.parts[n].text)
		if load(b, i)&p.mask != p.head {
			return false
		}
		if size > 16 && (len(b)-i < size || string(b[i:i+size]) != p.text) {
			return false
		}
		if size > 8 && load(b, i+size-8) != p.tail {
			return false
		}
		if i += size; n == len(s.parts)-1 {
			break
		}
		f := field{start: i, kind: '"'}
		if p.digit {
			if i == len(b) {
				return false
			}
			f.kind = b[i]
			if i++; f.kind != '0' { // which no digit may follow
				if i = scanDigits(b, i-1); i == f.start {
					return false
				}
			}
		} else {
			for {
				if m := unplain(load(b, i)); m != 0 {
					i += bits.TrailingZeros64(m) / 8
					break
				}
				i += 8
			}
		}
		f.end = i // the next part checks that this is the end
		set(found, p.asked, f)
	}
	return i == len(b) && i > 0
}

// unplain is special that also finds bytes from 0x80, which match would have to
// check for UTF-8. At least one of the differences keeps their top bit.
func unplain(w uint64) uint64 {
	const each = 0x0101010101010101
	quote := w ^ each*'"'
	backslash := w ^ each*'\\'
	return ((quote - each) | (backslash - each) | (w - each*0x20)) & (each * 0x80)
}

// shapeOf returns the shape of the valid document b, in which find found these
// fields. A shape without parts matches nothing, as that of a document that lacks a
// field of the mask all.
func shapeOf(b []byte, found []field, all uint64) *shape {
	s := new(shape)
	var asked uint64
	done, numbers := 0, 0
	for i := 0; i < len(b) && len(s.parts) < shapeValues; i++ {
		start, end := i, i
		switch c := b[i]; {
		case c == '"': // quotes are around strings only
			var escaped bool
			start++
			end, escaped, _ = scanString(b, start)
			i = end
			if next := space(b, end+1); escaped || next < len(b) && b[next] == ':' {
				continue
			}
		case c == '-' || c-'0' <= 9:
			end, _ = scanNumber(b, start)
			i = end - 1
			if numbers++; scanDigits(b, start) != end || numbers > shapeValues/2 && fieldsAt(found, start) == 0 {
				continue
			}
		default:
			continue
		}
		p := partOf(string(b[done:start]))
		p.digit = i < end
		p.asked = fieldsAt(found, start)
		asked |= p.asked
		s.parts = append(s.parts, p)
		done = end
	}
	if asked != all || len(b) > shapeSize {
		return new(shape)
	}
	s.parts = append(s.parts, partOf(string(b[done:])))
	return s
}

// fieldsAt returns the bits of the fields that begin at start.
func fieldsAt(found []field, start int) (mask uint64) {
	for a := range found {
		if found[a].start == start {
			mask |= 1 << a
		}
	}
	return mask
}
