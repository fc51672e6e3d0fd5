package kafka

import (
	"math/bits"
	"sync/atomic"
)

// A shape is what documents of one program have in common: all but the strings
// that are values. A document that has the shape of one that was checked, with
// plain text in these places, need not be scanned for its structure
// (BenchmarkJSONClicks). It has nearly always the shape of the one before.
type shape struct {
	constant []string // before each value, with its first quote, and after the last one
	asked    [2]int   // which of the values are those of the fields that were asked for
}

// shapes is the shape that a decoder has seen last.
type shapes struct{ last atomic.Pointer[shape] }

const (
	shapeEvery  = 64   // records, of which one is looked at if it has another shape
	shapeValues = 32   // that are not constant, at most
	shapeSize   = 4096 // bytes of a document that has a shape, at most
)

// match finds the fields of b, which may be any bytes, if b has the shape. What
// it finds fields finds, too.
func (s *shape) match(b []byte) (found [2]field, ok bool) {
	i := 0
	for n, c := range s.constant {
		if len(b)-i < len(c) || string(b[i:i+len(c)]) != c {
			return found, false
		}
		if i += len(c); n == len(s.constant)-1 {
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
		f.end = i // the constant begins with a quote, or this is no plain string
		for a, index := range s.asked {
			if index == n {
				found[a] = f
			}
		}
	}
	return found, i == len(b) && i > 0
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
	learned := &shape{asked: [2]int{-1, -1}}
	done := 0
	for i := 0; i < len(b) && len(learned.constant) < shapeValues; i++ {
		if b[i] != '"' {
			continue // quotes are around strings only: b is valid
		}
		start := i + 1
		end, escaped, _ := scanString(b, start)
		i = end
		if next := space(b, end+1); escaped || next < len(b) && b[next] == ':' {
			continue
		}
		for a := range found {
			if found[a].start == start {
				learned.asked[a] = len(learned.constant)
			}
		}
		learned.constant = append(learned.constant, string(b[done:start]))
		done = end
	}
	learned.constant = append(learned.constant, string(b[done:]))
	if learned.asked[0] < 0 || learned.asked[1] < 0 || len(b) > shapeSize {
		learned = &shape{} // of no document
	}
	s.last.Store(learned)
}
