package redis

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/tumblestream/tumble"
)

// finality holds a shard's marks for all its windows: those that end at or before
// closed are closed, those at or before floor past retention.
type finality struct {
	closed, floor int64                        // milliseconds since the epoch, noMark for none. The floor is that of the level that is read
	floors        [1 + tumble.MaxRollups]int64 // of all levels
	term          uint64
	shards        int
	id            string // of the shard's definition, "" if it has published nothing yet
}

// at returns what f says of a level.
func (f finality) at(level int) finality {
	f.floor = f.floors[level]
	return f
}

// noMark is before the end of every window.
const noMark = math.MinInt64

// nothing is the finality of a shard that has said nothing yet.
var nothing = func() finality {
	f := finality{closed: noMark, floor: noMark}
	for i := range f.floors {
		f.floors[i] = noMark
	}
	return f
}()

// parseFinality reads a finality key. "" is one that does not exist.
func parseFinality(s string) (finality, error) {
	if s == "" {
		return nothing, nil
	}
	f := nothing
	bad := func() (finality, error) { return nothing, fmt.Errorf("finality %q: %w", s, errSyntax) }
	words := strings.Split(s, " ")
	if len(words) < 5 || words[3] == "" || len(words)-4 > len(f.floors) {
		return bad()
	}
	var err error
	if f.closed, err = parseMark(words[0]); err != nil {
		return bad()
	}
	for i, word := range words[4:] {
		if f.floors[i], err = parseMark(word); err != nil {
			return bad()
		}
	}
	f.floor = f.floors[0]
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

// parseMark reads a mark, "-" as none.
func parseMark(s string) (int64, error) {
	if s == "-" {
		return noMark, nil
	}
	mark, err := strconv.ParseInt(s, 10, 64)
	if err == nil && mark == noMark {
		err = errSyntax
	}
	return mark, err
}

// state returns the state of the window that ends at end.
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
