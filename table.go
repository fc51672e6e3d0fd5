package tumble

import (
	"hash/maphash"
	"strings"
)

// A table finds the counter of a window and key: open addressing with linear
// probing, entries apart from slots. A Go map is no choice here: assigning
// through a borrowed key stores the borrowed string header, even for a key that
// is present. The table also hashes once an event, whatever its window, and
// needs no pass over itself when a batch is sealed (BenchmarkPipeline).
type table struct {
	lanes   uint64
	seed    maphash.Seed
	entries []entry
	slots   []uint64 // hash, index in entries + 1, 32 bits each; 0: free

	hashes [atOnce]uint32 // of the events that were prepared
	seen   uint64         // for prepare, which must seem to be of use
}

const (
	minSlots = 1 << 10
	perEntry = 4       // windows that a key is counted in before it takes more room: those of a flush in a catch-up
	atOnce   = 32      // events that are prepared together
	maxIdle  = 1 << 15 // entries that are kept for their keys to come again
)

// An entry is a key, the lane it belongs to, and its increments in that lane's
// open batch, for some windows. It outlives the batch, so that a key that comes
// again costs neither a Hash nor a copy.
type entry struct {
	key      string
	lane     int32
	counters [perEntry]counter
}

type counter struct {
	window int64 // start
	n      int64 // 0: free
}

func newTable(lanes int) table {
	return table{lanes: uint64(lanes), seed: maphash.MakeSeed(), slots: make([]uint64, minSlots)}
}

func (t *table) hash(key string) uint32 { return uint32(maphash.String(t.seed, key)) }

// prepare hashes the keys of up to atOnce events for find, and looks at what find
// will look at. These looks do not wait for one another, as those of one find
// after the other do, so that what is not in the processor's cache comes at the
// price of one look (BenchmarkPipeline/keys=100000).
func (t *table) prepare(events []Event) {
	var slots [atOnce]uint32
	mask := uint32(len(t.slots) - 1)
	for i := range events {
		h := t.hash(events[i].Key)
		t.hashes[i%atOnce], slots[i%atOnce] = h, uint32(t.slots[h&mask])
	}
	for _, index := range slots[:len(events)] {
		if index > 0 {
			if e := &t.entries[index-1]; e.key != "" {
				t.seen += uint64(e.key[0])
			}
		}
	}
}

// find returns the counter of window and key, whose hash is h, its id, and the
// key's lane. The counter is free if the open batch has none of them yet.
//
// A key has an entry that its hash leads to. While all counters of that are
// taken by other windows, which in a catch-up may be many, further ones have an
// entry that the hash of key and window leads to. All counters of a key become
// free at once, when its lane is sealed, so a window that has a counter there
// does not find a free one in the first entry.
func (t *table) find(h uint32, window int64, key string) (c *counter, id int32, lane int32) {
	mask := uint32(len(t.slots) - 1)
	at := h & mask
	lane = -1
	for t.slots[at] != 0 {
		slot := t.slots[at]
		at = (at + 1) & mask
		if uint32(slot>>32) != h {
			continue
		}
		index := int32(uint32(slot) - 1)
		e := &t.entries[index]
		if e.key != key {
			continue
		}
		free := -1
		for i := range e.counters {
			switch c := &e.counters[i]; {
			case c.n == 0:
				free = i
			case c.window == window:
				return c, perEntry*index + int32(i), e.lane
			}
		}
		if free >= 0 {
			c := &e.counters[free]
			c.window = window
			return c, perEntry*index + int32(free), e.lane
		}
		if lane < 0 {
			key, lane = e.key, e.lane
			h ^= uint32(uint64(window) * 0x9e3779b97f4a7c15 >> 32)
			at = h & mask
		}
	}
	if lane < 0 {
		key, lane = strings.Clone(key), int32(Hash(key)%t.lanes)
	}
	index := int32(len(t.entries))
	t.entries = append(t.entries, entry{key: key, lane: lane})
	t.slots[at] = uint64(h)<<32 | uint64(index+1)
	if 2*len(t.entries) > len(t.slots) {
		old := t.slots
		t.slots = make([]uint64, 2*len(old))
		for _, slot := range old {
			t.take(slot)
		}
	}
	c = &t.entries[index].counters[0]
	c.window = window
	return c, perEntry * index, lane
}

// take gives a slot of an earlier table, if it is not free, its place.
func (t *table) take(slot uint64) {
	if slot == 0 {
		return
	}
	mask := uint32(len(t.slots) - 1)
	at := uint32(slot>>32) & mask
	for t.slots[at] != 0 {
		at = (at + 1) & mask
	}
	t.slots[at] = slot
}

// counter returns the counter with an id.
func (t *table) counter(id int32) *counter { return &t.entries[id/perEntry].counters[id%perEntry] }

// shrink forgets the entries that are in no open batch, once they are many.
func (t *table) shrink(lanes []*lane) {
	if len(t.entries) < maxIdle {
		return
	}
	live := 0
	for _, ln := range lanes {
		live += len(ln.open)
	}
	if len(t.entries) < 4*live {
		return
	}
	moved := make([]int32, len(t.entries)) // new index + 1
	kept := make([]entry, 0, max(2*live, minSlots))
	for _, ln := range lanes {
		for i, id := range ln.open {
			to := &moved[id/perEntry]
			if *to == 0 {
				kept = append(kept, t.entries[id/perEntry])
				*to = int32(len(kept))
			}
			ln.open[i] = perEntry*(*to-1) + id%perEntry
		}
	}
	slots, size := t.slots, minSlots
	for size < 4*live {
		size *= 2
	}
	t.entries, t.slots = kept, make([]uint64, size)
	for _, slot := range slots {
		if index := uint32(slot); index > 0 && moved[index-1] > 0 {
			t.take(slot>>32<<32 | uint64(moved[index-1]))
		}
	}
}
