package tumble

import (
	"hash/maphash"
	"math"
	"strings"
)

// A table holds the keys of a partition: open addressing with linear probing from
// a key's hash to its entry, and from there a list of counters in the open batch
// of its lane. A Go map is no choice here: assigning through a borrowed key stores
// the borrowed string header, even for a key that is present. The table also
// hashes once an event, whatever its window, and needs no pass over itself when a
// batch is sealed (BenchmarkPipeline).
type table struct {
	seed    maphash.Seed
	slots   []uint64 // hash, index in entries + 1, 32 bits each. 0 is free
	entries []entry
	bytes   int         // of the entries' keys
	open    []openBatch // batches of the lanes

	hashes [atOnce]uint32 // of the prefetched events
	seen   uint64         // keeps the compiler from removing the reads of prefetch
}

const (
	maxShards = math.MaxUint16 // an entry has two bytes for its lane

	minSlots = 1 << 10
	maxList  = 64      // counters in the list of an entry: an hour of minutes, as a catch-up may bring at once
	atOnce   = 32      // events that are prepared together
	keyBlock = 512     // bytes
	maxIdle  = 1 << 15 // entries that are kept for their keys to come again
	maxKept  = 1 << 20 // bytes of their keys
)

// An entry is a key and the lane it belongs to. It outlives the batch, so that a
// key that comes again costs neither a Hash nor a copy.
type entry struct {
	key     string
	batch   uint32 // number of the open batch that the fields below are about
	last    int32  // index of the counter that was found last
	newest  int32  // ... of the one of its newest window, + 1
	lane    uint16
	listed  uint8 // counters in its list, from newest to oldest window
	spilled bool  // counters of windows that are older than those are in far
}

// An openBatch holds the increments of a lane since it last sealed one. Its counters
// lie in the order in which they came, and those of the next one in their places,
// so that a batch of keys that came once is written and read in order
// (BenchmarkPipeline/keys=1000000).
type openBatch struct {
	number   uint32 // another one for each batch, from 1
	counters []counter
	bytes    int64           // of their keys
	levels   int             // each counter may become as many increments
	filled   bool            // see fills
	far      map[place]int32 // indexes of the counters that are in no entry's list
	keys     strings.Builder // the block that holds the newest keys of the lane's entries
}

// A counter is an increment.
type counter struct {
	window int64 // start
	n      int64
	key    string
	next   int32 // index + 1 of the next in the entry's list, 0 for none
}

// A place is the key and window of a counter.
type place struct {
	key    string
	window int64
}

func newTable(lanes, levels int) table {
	t := table{seed: maphash.MakeSeed(), slots: make([]uint64, minSlots), open: make([]openBatch, lanes)}
	for i := range t.open {
		t.open[i].number, t.open[i].levels = 1, levels
	}
	return t
}

func (t *table) hash(key string) uint32 { return uint32(maphash.String(t.seed, key)) }

// prefetch hashes the keys of up to 32 events and touches their slots and entries,
// so that the cache misses of the following finds overlap
// (BenchmarkPipeline/keys=100000).
func (t *table) prefetch(events []Event) {
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

// find returns the entry of a key, whose hash is h. It is valid until the next call.
func (t *table) find(h uint32, key string) *entry {
	mask := uint32(len(t.slots) - 1)
	at := h & mask
	for ; t.slots[at] != 0; at = (at + 1) & mask {
		if slot := t.slots[at]; uint32(slot>>32) == h {
			if e := &t.entries[uint32(slot)-1]; e.key == key {
				return e
			}
		}
	}
	index := len(t.entries)
	lane := uint16(Hash(key) % uint64(len(t.open)))
	t.entries = append(t.entries, entry{key: t.keep(lane, key), lane: lane})
	t.bytes += len(key)
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
	return &t.entries[index]
}

// keep copies a borrowed key to where the keys of its lane lie side by side, as
// they go into a batch (BenchmarkPipeline/keys=1000000).
func (t *table) keep(lane uint16, key string) string {
	if len(key) > keyBlock/8 {
		return strings.Clone(key)
	}
	b := &t.open[lane].keys
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

// add adds n to the count of an entry's key in a window, and reports whether that is
// a new increment. It reports false, and adds nothing, if it would pass MaxCount.
func (b *openBatch) add(e *entry, window, n int64) (fresh, ok bool) {
	if e.batch != b.number {
		e.batch, e.newest, e.listed, e.spilled = b.number, 0, 0, false
	} else if c := &b.counters[e.last]; c.window == window { // nearly always the window of the key's event before
		if c.n > MaxCount-n {
			return false, false
		}
		c.n += n
		return false, true
	}
	e.last, fresh = b.search(e, window)
	c := &b.counters[e.last]
	if c.n > MaxCount-n {
		return false, false
	}
	c.n += n
	return fresh, true
}

// full reports whether the batch has times as many increments as are sealed at, or
// sealBytes of keys, whatever times is. Roll-ups count in both.
func (b *openBatch) full(times int) bool {
	return len(b.counters)*b.levels >= times*sealAt || b.bytes*int64(b.levels) >= sealBytes
}

// fills reports whether the batch has just become full, or is so several times over.
func (b *openBatch) fills() bool {
	if !b.full(1) || b.filled && !b.full(sealBusy) {
		return false
	}
	b.filled = true
	return true
}

// search returns the counter of an entry and a window, or a new one of 0. A window
// that is newer than all of the list is known to be new at once.
func (b *openBatch) search(e *entry, window int64) (index int32, fresh bool) {
	before, at := int32(-1), e.newest-1
	for at >= 0 {
		c := &b.counters[at]
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
		if index, ok := b.far[place{e.key, window}]; ok {
			return index, false
		}
	}
	index = int32(len(b.counters))
	b.bytes += int64(len(e.key))
	b.counters = append(b.counters, counter{window: window, key: e.key, next: at + 1})
	switch {
	case far:
		b.setFar(index)
		return index, true
	case before < 0:
		e.newest = index + 1
	default:
		b.counters[before].next = index + 1
	}
	if e.listed++; e.listed == maxList {
		b.spill(e)
	}
	return index, true
}

// spill moves the older half of a list to far.
func (b *openBatch) spill(e *entry) {
	at := e.newest - 1
	for range maxList/2 - 1 {
		at = b.counters[at].next - 1
	}
	rest := b.counters[at].next - 1
	b.counters[at].next = 0
	for rest >= 0 {
		b.setFar(rest)
		rest = b.counters[rest].next - 1
	}
	e.listed, e.spilled = maxList/2, true
}

func (b *openBatch) setFar(index int32) {
	if b.far == nil {
		b.far = make(map[place]int32)
	}
	c := &b.counters[index]
	b.far[place{c.key, c.window}] = index
}

// reset begins a lane's next batch. A new number makes all entries forget the old one. When
// the numbers begin again at 1, entries may remember an earlier 1: they are set to 0.
func (t *table) reset(b *openBatch) {
	clear(b.counters) // of their keys
	b.counters, b.bytes, b.filled, b.far = b.counters[:0], 0, false, nil
	if b.number++; b.number > 0 {
		return
	}
	b.number = 1
	for i := range t.entries {
		if e := &t.entries[i]; &t.open[e.lane] == b {
			e.batch = 0
		}
	}
}

// shrink forgets the entries that have no counters, once they are many.
func (t *table) shrink() {
	if len(t.entries) < maxIdle && t.bytes < maxKept {
		return
	}
	used := 0
	for i := range t.open {
		used += len(t.open[i].counters)
	}
	if len(t.entries) < 4*used {
		return
	}
	moved := make([]uint32, len(t.entries)) // new index + 1
	kept := t.entries[:0]
	t.bytes = 0
	for i, e := range t.entries {
		if e.batch == t.open[e.lane].number {
			e.key = t.keep(e.lane, e.key) // or it would hold on to all keys beside it
			t.bytes += len(e.key)
			kept = append(kept, e)
			moved[i] = uint32(len(kept))
		}
	}
	clear(t.entries[len(kept):])
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
