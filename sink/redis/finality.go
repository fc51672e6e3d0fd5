package redis

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/tumblestream/tumble"
)

// finality is what a shard says of all its windows: those that end at or before
// closed are closed, those at or before floor past retention.
type finality struct {
	closed, floor int64 // milliseconds since the epoch; noMark: none
	term          uint64
	shards        int
	id            string // of the shard's definition; "": it has said nothing yet
}

// noMark is before the end of every window.
const noMark = math.MinInt64

// nothing is the finality of a shard that has said nothing yet.
var nothing = finality{closed: noMark, floor: noMark}

// parseFinality reads a finality key. "" is one that does not exist.
func parseFinality(s string) (finality, error) {
	if s == "" {
		return nothing, nil
	}
	f := nothing
	bad := func() (finality, error) { return nothing, fmt.Errorf("finality %q: %w", s, errSyntax) }
	words := strings.SplitN(s, " ", 6) // a later version may append to it
	if len(words) < 5 || words[3] == "" {
		return bad()
	}
	var err error
	for i, mark := range map[int]*int64{0: &f.closed, 4: &f.floor} {
		if words[i] == "-" {
			continue
		}
		if *mark, err = strconv.ParseInt(words[i], 10, 64); err != nil || *mark == noMark {
			return bad()
		}
	}
	if words[1] != "-" {
		if f.term, err = strconv.ParseUint(words[1], 16, 64); err != nil {
			return bad()
		}
	}
	if f.shards, err = strconv.Atoi(words[2]); err != nil {
		return bad()
	}
	f.id = words[3]
	return f, nil
}

// state returns what f says of the window that ends at end.
func (f finality) state(def tumble.Definition, end int64) tumble.State {
	switch {
	case end <= f.floor:
		return tumble.Expired
	case end > f.closed:
		return tumble.Open
	case def.DropLate:
		return tumble.Final
	}
	return tumble.Closed
}

// with returns what f and a later look at the same shard say together: closed is
// what both call closed. It reports false if they are not of one history, so
// that what was read in between belongs to neither.
func (f finality) with(later finality) (finality, bool) {
	same := f.id == later.id && f.term == later.term
	// The first words of a shard and its first term come with the first
	// windows that close, which the earlier look does not know to be closed.
	fresh := f.closed == noMark && (f.id == later.id || f.id == "")
	later.closed = min(f.closed, later.closed)
	return later, same || fresh
}
