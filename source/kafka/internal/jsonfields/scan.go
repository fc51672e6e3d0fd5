package jsonfields

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unicode/utf16"
	"unicode/utf8"
)

// The scanners below check JSON (RFC 8259) in one pass. Each takes the index of the
// first byte of its part of b and returns the index after it. b is valid UTF-8.

// maxDepth limits the nesting of objects and arrays, since scanValue recurses.
const maxDepth = 10_000

// scanObject scans the object at b[i]. If n is not nil it stores in found the fields
// that n asks for. The last of several fields with one name wins.
func scanObject(b []byte, i, depth int, n *node, found []field) (int, error) {
	if depth > maxDepth {
		return i, fmt.Errorf("offset %d: objects and arrays nested more than %d deep", i, maxDepth)
	}
	i = space(b, i+1)
	if i < len(b) && b[i] == '}' {
		return i + 1, nil
	}
	for {
		if i >= len(b) || b[i] != '"' {
			return i, syntax(b, i, "where a field name should be")
		}
		start := i + 1
		end, escaped, err := scanString(b, start)
		if err != nil {
			return end, err
		}
		i = space(b, end+1)
		if i >= len(b) || b[i] != ':' {
			return i, syntax(b, i, "where the ':' after a field name should be")
		}
		i = space(b, i+1)

		var asked *node
		if n != nil {
			name := b[start:end]
			if escaped {
				var buf [64]byte
				name = unescape(buf[:0], name)
			}
			if asked = n.child(name); asked != nil && asked.below != 0 {
				set(found, asked.below, field{}) // of an earlier field of this name
			}
		}
		f := field{start: i}
		switch {
		case i < len(b) && b[i] == '"':
			// scanValue does not return escaped.
			f.kind, f.start = '"', i+1
			if f.end, f.escaped, err = scanString(b, i+1); err != nil {
				return f.end, err
			}
			i = f.end + 1
		case asked != nil && asked.below != 0 && i < len(b) && b[i] == '{':
			f.kind = '{'
			if i, err = scanObject(b, i, depth+1, asked, found); err != nil {
				return i, err
			}
		default:
			if f.end, err = scanValue(b, i, depth); err != nil {
				return f.end, err
			}
			f.kind = b[i]
			i = f.end
		}
		if asked != nil {
			set(found, asked.asks, f)
		}

		i = space(b, i)
		if i >= len(b) || b[i] != ',' {
			if i < len(b) && b[i] == '}' {
				return i + 1, nil
			}
			return i, syntax(b, i, "after a field, where ',' or '}' should be")
		}
		i = space(b, i+1)
	}
}

// scanArray scans the array at b[i].
func scanArray(b []byte, i, depth int) (int, error) {
	if depth > maxDepth {
		return i, fmt.Errorf("offset %d: objects and arrays nested more than %d deep", i, maxDepth)
	}
	i = space(b, i+1)
	if i < len(b) && b[i] == ']' {
		return i + 1, nil
	}
	for {
		var err error
		if i, err = scanValue(b, i, depth); err != nil {
			return i, err
		}
		i = space(b, i)
		if i >= len(b) || b[i] != ',' {
			if i < len(b) && b[i] == ']' {
				return i + 1, nil
			}
			return i, syntax(b, i, "after an element, where ',' or ']' should be")
		}
		i = space(b, i+1)
	}
}

// scanValue scans the value at b[i], which lies in depth objects and arrays.
func scanValue(b []byte, i, depth int) (int, error) {
	if i < len(b) {
		switch b[i] {
		case '"':
			end, _, err := scanString(b, i+1)
			return end + 1, err
		case '{':
			return scanObject(b, i, depth+1, nil, nil)
		case '[':
			return scanArray(b, i, depth+1)
		case 't':
			return scanWord(b, i, "true")
		case 'f':
			return scanWord(b, i, "false")
		case 'n':
			return scanWord(b, i, "null")
		case '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9':
			return scanNumber(b, i)
		}
	}
	return i, syntax(b, i, "where a value should be")
}

func scanWord(b []byte, i int, word string) (int, error) {
	for n := range len(word) {
		if i+n >= len(b) || b[i+n] != word[n] {
			return i, syntax(b, i+n, "in "+word)
		}
	}
	return i + len(word), nil
}

// scanNumber scans the number at b[i], which is '-' or a digit.
func scanNumber(b []byte, i int) (int, error) {
	if b[i] == '-' {
		i++
	}
	if i < len(b) && b[i] == '0' {
		i++ // no digit may follow
	} else if digits := scanDigits(b, i); digits > i {
		i = digits
	} else {
		return i, syntax(b, i, "in a number, where a digit should be")
	}
	if i < len(b) && b[i] == '.' {
		digits := scanDigits(b, i+1)
		if digits == i+1 {
			return i, syntax(b, digits, "in a number, where a digit should be")
		}
		i = digits
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		digits := scanDigits(b, i)
		if digits == i {
			return i, syntax(b, i, "in a number, where a digit should be")
		}
		i = digits
	}
	return i, nil
}

func scanDigits(b []byte, i int) int {
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	return i
}

// scanString scans the string whose opening quote is before b[i]. It returns the
// index of the closing quote, and whether the string holds escapes.
func scanString(b []byte, i int) (end int, escaped bool, err error) {
	for {
		// Eight bytes a step: BenchmarkDecoder/click.
		m := special(load(b, i))
		if m == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(m) / 8
		if i >= len(b) {
			return i, escaped, syntax(b, i, "in a string")
		}
		switch b[i] {
		case '"':
			return i, escaped, nil
		case '\\':
			escaped = true
			if i, err = scanEscape(b, i+1); err != nil {
				return i, escaped, err
			}
		default:
			return i, escaped, syntax(b, i, "in a string, where it must be escaped")
		}
	}
}

// load returns the eight bytes from b[i] on, with zeros past the end of b.
func load(b []byte, i int) uint64 {
	if i+8 <= len(b) {
		return binary.LittleEndian.Uint64(b[i:])
	}
	return loadLast(b, i)
}

func loadLast(b []byte, i int) uint64 {
	if len(b) >= 8 {
		return binary.LittleEndian.Uint64(b[len(b)-8:]) >> (8 * uint(i+8-len(b)))
	}
	var last [8]byte
	copy(last[:], b[i:])
	return binary.LittleEndian.Uint64(last[:])
}

// special finds the first byte of w that is a quote, a backslash or a control
// character. The lowest set bit of the result lies in that byte. The result is 0 if
// there is none.
func special(w uint64) uint64 {
	const each = 0x0101010101010101
	// The subtraction sets the top bit of a byte that is 0 (or less than 0x20). Its
	// borrow may reach the bytes after that, but never those before. Bytes from
	// 0x80 have the top bit already and are plain.
	quote := w ^ each*'"'
	backslash := w ^ each*'\\'
	return ((quote - each) | (backslash - each) | (w - each*0x20)) &^ w & (each * 0x80)
}

// scanEscape scans the escape whose backslash is before b[i]. It accepts halves of
// surrogate pairs, as RFC 8259 does.
func scanEscape(b []byte, i int) (int, error) {
	if i < len(b) {
		switch b[i] {
		case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			return i + 1, nil
		case 'u':
			for n := i + 1; n <= i+4; n++ {
				if n >= len(b) || unhex(b[n]) < 0 {
					return n, syntax(b, n, `in a \u escape, where a hexadecimal digit should be`)
				}
			}
			return i + 5, nil
		}
	}
	return i, syntax(b, i, "in an escape")
}

// unhex returns the value of a hexadecimal digit, -1 for any other character.
func unhex(c byte) rune {
	switch {
	case c-'0' <= 9:
		return rune(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return rune(c|0x20-'a') + 10
	}
	return -1
}

// unescape appends s, the inside of a scanned string, to dst with its escapes
// replaced. It appends len(s) bytes at most.
func unescape(dst, s []byte) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			dst = append(dst, s[i])
			continue
		}
		i++
		switch s[i] {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := codeUnit(s[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if next := s[i+1:]; len(next) >= 6 && next[0] == '\\' && next[1] == 'u' {
					low = codeUnit(next[2:])
				}
				// If the two are no pair, this one becomes U+FFFD and the
				// second is read again on its own.
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					i += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
		default: // ", \ and /
			dst = append(dst, s[i])
		}
	}
	return dst
}

func codeUnit(s []byte) rune {
	return unhex(s[0])<<12 | unhex(s[1])<<8 | unhex(s[2])<<4 | unhex(s[3])
}

// space returns the index of the first byte from i on that is no white space, or
// len(b).
func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\n' || b[i] == '\r') {
		i++
	}
	return i
}

// syntax returns the error at b[i].
func syntax(b []byte, i int, where string) error {
	if i >= len(b) {
		return fmt.Errorf("offset %d: the document ends %s", len(b), where)
	}
	r, _ := utf8.DecodeRune(b[i:])
	return fmt.Errorf("offset %d: invalid character %q %s", i, r, where)
}
