package memory

import (
	"encoding/binary"
	"hash/maphash"
	"slices"
)

// table counts keys. It holds no pointers but those to its few blocks, so that
// millions of counts cost the garbage collector nothing, and its entries keep
// the order in which they came, so that a scan can go on where it stopped.
// BenchmarkApply and BenchmarkMemory compare it with a Go map.
type table struct {
	slots   []uint64 // open addressing: the key's hash in the high half, 1 + its entry in the low; 0: free
	entries []entry
	blocks  [][]byte // the keys, each after its length; written once, never moved
}

type entry struct {
	key uint64 // where the key is: block and byte in it
	n   int64
}

const (
	firstSlots = 8
	firstBlock = 128
	maxBlock   = 1 << blockBits // of a block that holds more than one key
	blockBits  = 16
)

var seed = maphash.MakeSeed()

// add adds n to the count of key.
func (t *table) add(key string, n int64) {
	// 7/8 full is the most that linear probing bears.
	if (len(t.entries)+1)*8 > len(t.slots)*7 {
		t.grow()
	}
	h := uint32(maphash.String(seed, key))
	slot := t.lookup(h, key)
	if s := t.slots[slot]; s != 0 {
		t.entries[uint32(s)-1].n += n
		return
	}
	t.entries = append(t.entries, entry{t.store(key), n})
	t.slots[slot] = uint64(h)<<32 | uint64(len(t.entries))
}

// get returns the count of key, 0 if it has none.
func (t *table) get(key string) int64 {
	if len(t.slots) == 0 {
		return 0
	}
	if s := t.slots[t.lookup(uint32(maphash.String(seed, key)), key)]; s != 0 {
		return t.entries[uint32(s)-1].n
	}
	return 0
}

// lookup returns the slot of key, or the free one that it would take.
func (t *table) lookup(h uint32, key string) uint32 {
	mask := uint32(len(t.slots) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		s := t.slots[i]
		if s == 0 || uint32(s>>32) == h && string(t.bytes(uint32(s)-1)) == key {
			return i
		}
	}
}

// key returns a copy of the key of entry i.
func (t *table) key(i int) string { return string(t.bytes(uint32(i))) }

func (t *table) bytes(i uint32) []byte {
	at := t.entries[i].key
	b := t.blocks[at>>blockBits][at&(maxBlock-1):]
	if n := b[0]; n < 0x80 { // the length in one byte, nearly always
		return b[1 : 1+int(n)]
	}
	n, size := binary.Uvarint(b)
	return b[size : size+int(n)]
}

// store copies key into a block and returns where it is.
func (t *table) store(key string) uint64 {
	need := binary.MaxVarintLen64 + len(key)
	last := len(t.blocks) - 1
	if last < 0 || cap(t.blocks[last])-len(t.blocks[last]) < need {
		size := firstBlock
		if last >= 0 {
			size = min(2*cap(t.blocks[last]), maxBlock)
		}
		// A key that needs more gets a block of its own, at byte 0.
		t.blocks = append(t.blocks, make([]byte, 0, max(size, need)))
		last++
	}
	b := t.blocks[last]
	at := uint64(last)<<blockBits | uint64(len(b))
	b = binary.AppendUvarint(b, uint64(len(key)))
	t.blocks[last] = append(b, key...)
	return at
}

// clone returns a copy. Bytes of keys that are written never change, so both
// share them. Additions of either go into blocks of its own.
func (t *table) clone() table {
	c := table{slots: slices.Clone(t.slots), entries: slices.Clone(t.entries), blocks: slices.Clone(t.blocks)}
	for i, b := range c.blocks {
		c.blocks[i] = slices.Clip(b)
	}
	return c
}

func (t *table) grow() {
	old := t.slots
	t.slots = make([]uint64, max(2*len(old), firstSlots))
	mask := uint32(len(t.slots) - 1)
	for _, s := range old {
		if s == 0 {
			continue
		}
		i := uint32(s>>32) & mask
		for t.slots[i] != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = s
	}
}
