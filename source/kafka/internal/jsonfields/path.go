package jsonfields

import (
	"math/bits"
	"strings"
)

// path returns the names that text leads through, from the document's object to the
// field: they have dots between them. A dot of a name is written with a backslash
// before it.
func path(text string) (names []string) {
	var name strings.Builder
	for i := 0; i < len(text); i++ {
		switch {
		case text[i] == '.':
			names = append(names, name.String())
			name.Reset()
		case text[i] == '\\' && i+1 < len(text) && text[i+1] == '.':
			i++
			fallthrough
		default:
			name.WriteByte(text[i])
		}
	}
	return append(names, name.String())
}

// A node is a name that paths lead through.
type node struct {
	name     string
	asks     uint64 // bits of the fields that end here
	below    uint64 // bits of those that go on
	children []*node
}

// ask adds a path that leads to the field with a bit.
func (n *node) ask(names []string, bit uint64) {
	if len(names) == 0 {
		n.asks |= bit
		return
	}
	n.below |= bit
	for _, c := range n.children {
		if c.name == names[0] {
			c.ask(names[1:], bit)
			return
		}
	}
	c := &node{name: names[0]}
	n.children = append(n.children, c)
	c.ask(names[1:], bit)
}

// child returns the one with a name, nil if there is none.
func (n *node) child(name []byte) *node {
	for _, c := range n.children {
		if c.name == string(name) {
			return c
		}
	}
	return nil
}

// set stores f as the fields with these bits.
func set(found []field, mask uint64, f field) {
	for ; mask != 0; mask &= mask - 1 {
		found[bits.TrailingZeros64(mask)] = f
	}
}
