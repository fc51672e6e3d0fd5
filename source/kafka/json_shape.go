package kafka

import (
	"math/bits"
	"sync/atomic"
)

// A shape is what documents of one program have in common: all but the strings
// that are values. A document that has the shape of one that was checked, with
// plain text in these places, need not be scanned for its structure
// (BenchmarkJSONClicks). It has nearly always the shape of the one before.
type shape struct{ parts []part }

// A part is what is the same in each document: from the end of a value, or the
// beginning, to the start of the next value, with the quotes of both.
type part struct {
	text  string
	head  uint64 // its first bytes, at most eight
	mask  uint64 // those of a word that head has
	tail  uint64 // its last eight bytes, if it has more than eight
	asked uint8  // which of the fields that were asked for begin after it: bits
}

// shapes is the shape that a decoder has seen last.
type shapes struct{ last atomic.Pointer[shape] }

const (
	shapeEvery  = 64   // records, of which one is looked at if it has another shape
	shapeValues = 32   // that are not constant, at most
	shapeSize   = 4096 // bytes of a document that has a shape, at most
)

func partOf(text string) part {
	p := part{text: text, head: load([]byte(text), 0), mask: 1<<(8*len(text)) - 1}
	if n := len(text); n > 8 {
		p.tail = load([]byte(text), n-8)
	}
	return p
}

// match finds the fields of b, which may be any bytes, if b has the shape. What
// it finds fields finds, too.
func (s *shape) match(b []byte, found *[2]field) bool {
	i := 0
	for n := range s.parts {
		// Most parts are short: two words tell it sooner than a call does. Behind
		// the end of b they are zeros, which no part holds.
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
		for {
			if m := unplain(load(b, i)); m != 0 {
				i += bits.TrailingZeros64(m) / 8
				break
			}
			i += 8
		}
		f.end = i // the next part begins with a quote, or this is no plain string
		if p.asked&1 != 0 {
			found[0] = f
		}
		if p.asked&2 != 0 {
			found[1] = f
		}
	}
	return i == len(b) && i > 0
}

// unplain is special, but that bytes from 0x80 are not plain either, as they would
// have to be UTF-8: one of the differences has their top bit.
func unplain(w uint64) uint64 {
	const each = 0x0101010101010101
	quote := w ^ each*'"'
	backslash := w ^ each*'\\'
	return ((quote - each) | (backslash - each) | (w - each*0x20)) & (each * 0x80)
}

// learn takes the shape of b, in which fields found what was asked for.
func (s *shapes) learn(b []byte, found *[2]field) {
	learned := new(shape)
	var asked uint8
	done := 0
	for i := 0; i < len(b) && len(learned.parts) < shapeValues; i++ {
		if b[i] != '"' {
			continue // quotes are around strings only: b is valid
		}
		start := i + 1
		end, escaped, _ := scanString(b, start)
		i = end
		if next := space(b, end+1); escaped || next < len(b) && b[next] == ':' {
			continue
		}
		p := partOf(string(b[done:start]))
		for a := range found {
			if found[a].start == start {
				p.asked |= 1 << a
			}
		}
		asked |= p.asked
		learned.parts = append(learned.parts, p)
		done = end
	}
	learned.parts = append(learned.parts, partOf(string(b[done:])))
	if asked != 3 || len(b) > shapeSize {
		learned = new(shape) // of no document
	}
	s.last.Store(learned)
}
