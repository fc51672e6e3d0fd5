package tumble

import (
	"hash/maphash"
	"math"
	"strings"
)

// A table holds the increments of a partition's open batches, by key and window:
// open addressing with linear probing from a key's hash to its entry, and from
// there a list of counters. A Go map is no choice here: assigning through a
// borrowed key stores the borrowed string header, even for a key that is present.
// The table also hashes once an event, whatever its window, and needs no pass
// over itself when a batch is sealed (BenchmarkPipeline).
//
// A catch-up runs through many windows of each key. The counters that a sealed
// batch leaves are used again first, so that all that is looked at stays in the
// processor's cache.
type table struct {
	seed     maphash.Seed
	slots    []uint64 // hash, index in entries + 1, 32 bits each; 0: free
	entries  []entry
	counters []counter
	keys     []strings.Builder // of lanes: what the keys of entries are parts of
	free     int32             // id of a counter + 1; 0: none is free
	used     int               // counters that are not free
	far      map[place]int32   // ids of the counters that are in no entry's list

	hashes [atOnce]uint32 // of the events that were prepared
	seen   uint64         // for prepare, which must seem to be of use
}

const (
	maxShards = math.MaxUint16 // an entry has two bytes for its lane

	minSlots = 1 << 10
	maxList  = 64      // counters in the list of an entry: an hour of minutes, as a catch-up may bring at once
	atOnce   = 32      // events that are prepared together
	keyBlock = 512     // bytes
	maxIdle  = 1 << 15 // entries that are kept for their keys to come again
)

// An entry is a key and the lane it belongs to. It outlives the batch, so that a
// key that comes again costs neither a Hash nor a copy.
type entry struct {
	key     string
	last    int32 // id + 1 of the counter that was found last; 0: it has none
	newest  int32 // ... of the one of its newest window
	lane    uint16
	listed  uint8 // counters in its list, from newest to oldest window
	spilled bool  // counters of windows that are older than those are in far
}

// A counter is an increment in the open batch of its entry's lane.
type counter struct {
	window int64 // start
	n      int64
	entry  int32
	next   int32 // id + 1 of the next in the entry's list, or of the next free one; 0: none; -1: in far
}

// A place is what a counter counts.
type place struct {
	entry  int32
	window int64
}

func newTable(lanes int) table {
	return table{seed: maphash.MakeSeed(), slots: make([]uint64, minSlots), keys: make([]strings.Builder, lanes), far: make(map[place]int32)}
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

// find returns the index of the entry of a key, whose hash is h.
func (t *table) find(h uint32, key string) int32 {
	mask := uint32(len(t.slots) - 1)
	at := h & mask
	for ; t.slots[at] != 0; at = (at + 1) & mask {
		if slot := t.slots[at]; uint32(slot>>32) == h {
			if index := uint32(slot) - 1; t.entries[index].key == key {
				return int32(index)
			}
		}
	}
	index := int32(len(t.entries))
	lane := uint16(Hash(key) % uint64(len(t.keys)))
	t.entries = append(t.entries, entry{key: t.keep(lane, key), lane: lane})
	t.slots[at] = uint64(h)<<32 | uint64(index+1)
	if 2*len(t.entries) > len(t.slots) {
		old := t.slots
		t.slots = make([]uint64, 2*len(old))
		for _, slot := range old {
			if slot != 0 {
				t.take(slot)
			}
		}
	}
	return index
}

// keep copies a borrowed key to where the keys of its lane lie side by side, as
// they go into a batch (BenchmarkPipeline/keys=1000000).
func (t *table) keep(lane uint16, key string) string {
	if len(key) > keyBlock/8 {
		return strings.Clone(key)
	}
	b := &t.keys[lane]
	if b.Cap()-b.Len() < len(key) {
		*b = strings.Builder{} // the old one lives as long as a key in it
		b.Grow(keyBlock)
	}
	start := b.Len()
	b.WriteString(key)
	return b.String()[start:]
}

// take gives a slot of an earlier table its place.
func (t *table) take(slot uint64) {
	mask := uint32(len(t.slots) - 1)
	at := uint32(slot>>32) & mask
	for t.slots[at] != 0 {
		at = (at + 1) & mask
	}
	t.slots[at] = slot
}

// add counts an event of an entry's key in a window. It returns the id of the
// counter, and whether it is a new one.
func (t *table) add(index int32, window int64) (id int32, fresh bool) {
	e := &t.entries[index]
	if e.last > 0 { // nearly always the window of the key's event before
		if c := &t.counters[e.last-1]; c.window == window {
			c.n++
			return e.last - 1, false
		}
	}
	if id, fresh = t.search(index, window); !fresh {
		t.counters[id].n++
	}
	t.entries[index].last = id + 1
	return id, fresh
}

// search returns the counter of an entry and a window, or a new one. A window
// that is newer than all of the list is known to be new at once.
func (t *table) search(index int32, window int64) (id int32, fresh bool) {
	e := &t.entries[index]
	before, at := int32(-1), e.newest-1
	for at >= 0 {
		c := &t.counters[at]
		if c.window == window {
			return at, false
		}
		if c.window < window {
			break
		}
		before, at = at, c.next-1
	}
	far := at < 0 && e.spilled
	if far {
		if id, ok := t.far[place{index, window}]; ok {
			return id, false
		}
	}
	t.used++
	if id = t.free - 1; id >= 0 {
		t.free = t.counters[id].next
	} else {
		id = int32(len(t.counters))
		t.counters = append(t.counters, counter{})
	}
	t.counters[id] = counter{window: window, n: 1, entry: index, next: at + 1}
	switch {
	case far:
		t.setFar(id)
		return id, true
	case before < 0:
		e.newest = id + 1
	default:
		t.counters[before].next = id + 1
	}
	if e.listed++; e.listed == maxList {
		t.spill(e)
	}
	return id, true
}

// spill moves the older half of a list to far.
func (t *table) spill(e *entry) {
	at := e.newest - 1
	for range maxList/2 - 1 {
		at = t.counters[at].next - 1
	}
	rest := t.counters[at].next - 1
	t.counters[at].next = 0
	for rest >= 0 {
		id := rest
		rest = t.counters[id].next - 1
		t.setFar(id)
	}
	e.listed, e.spilled = maxList/2, true
}

func (t *table) setFar(id int32) {
	c := &t.counters[id]
	c.next = -1
	t.far[place{c.entry, c.window}] = id
}

// release frees a counter. All counters of an entry are in one batch, and so are
// released together.
func (t *table) release(id int32) {
	c := &t.counters[id]
	if c.next < 0 {
		delete(t.far, place{c.entry, c.window})
	}
	e := &t.entries[c.entry]
	e.last, e.newest, e.listed, e.spilled = 0, 0, 0, false
	*c = counter{next: t.free}
	t.free = id + 1
	t.used--
}

// shrink forgets the entries that have no counters, once they are many.
func (t *table) shrink() {
	if len(t.entries) < max(maxIdle, 4*t.used) {
		return
	}
	moved := make([]int32, len(t.entries)) // new index + 1
	kept := t.entries[:0]
	for i := range t.entries {
		e := t.entries[i]
		if e.newest == 0 {
			continue
		}
		for at := e.newest; at > 0; at = t.counters[at-1].next {
			t.counters[at-1].entry = int32(len(kept))
		}
		e.key = t.keep(e.lane, e.key) // or it would hold on to all keys beside it
		kept = append(kept, e)
		moved[i] = int32(len(kept))
	}
	clear(t.entries[len(kept):])
	far := t.far
	t.far = make(map[place]int32)
	for p, id := range far {
		p.entry = moved[p.entry] - 1
		t.counters[id].entry = p.entry
		t.far[p] = id
	}
	slots := make([]uint64, 0, len(kept))
	for _, slot := range t.slots {
		if index := uint32(slot); index > 0 && moved[index-1] > 0 {
			slots = append(slots, slot>>32<<32|uint64(moved[index-1]))
		}
	}
	size := minSlots
	for size < 2*max(maxIdle, 4*len(kept)) {
		size *= 2
	}
	if size < len(t.slots)/2 { // there were far more keys than there are now
		t.entries, t.slots = append(make([]entry, 0, size/2), kept...), make([]uint64, size)
	} else {
		t.entries = kept
		clear(t.slots)
	}
	for _, slot := range slots {
		t.take(slot)
	}
}
