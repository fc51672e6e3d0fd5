package channel

import (
	"slices"

	"github.com/tumblestream/tumble"
)

// segmentSize is how many events lie in one piece of memory, and so the most
// that come in one Chunk: 48 KB. BenchmarkFetch was no faster with more.
const segmentSize = 1024

// segment holds events with consecutive offsets.
type segment struct {
	base   int64 // offset of the first; a multiple of segmentSize
	events []tumble.Event
}

// kept holds the events [first, next) of a log.
type kept struct {
	first, next int64
	max         int64      // no more is received at next - first >= max
	segments    []*segment // by base, without gaps; all but the last are full
	spare       []*segment // empty
	reuse       int        // how many spare ones pay: as many as were let go at once lately
}

func (k *kept) full() bool { return k.next-k.first >= k.max }

// open returns the last segment, which has room.
func (k *kept) open() *segment {
	if n := len(k.segments); n > 0 {
		if last := k.segments[n-1]; len(last.events) < segmentSize {
			return last
		}
	}
	var s *segment
	if n := len(k.spare); n > 0 {
		s = k.spare[n-1]
		k.spare = k.spare[:n-1]
	} else {
		s = &segment{events: make([]tumble.Event, 0, segmentSize)}
	}
	s.base = k.next
	k.segments = append(k.segments, s)
	return s
}

// took notes that n events were written behind those of the open segment.
func (k *kept) took(n int) {
	last := k.segments[len(k.segments)-1]
	last.events = last.events[:len(last.events)+n]
	k.next += int64(n)
}

// add appends one event.
func (k *kept) add(e tumble.Event) {
	e.Offset = k.next
	s := k.open()
	s.events = append(s.events, e)
	k.next++
}

// from returns the events from offset on, which lie in one piece of memory.
func (k *kept) from(offset int64) []tumble.Event {
	if offset == k.next {
		return nil
	}
	s := k.segments[(offset-k.segments[0].base)/segmentSize]
	return s.events[offset-s.base:]
}

// drop lets go of the events before offset.
func (k *kept) drop(offset int64) {
	if offset <= k.first {
		return
	}
	k.first = offset
	n := 0
	for n < len(k.segments) && k.segments[n].base+segmentSize <= offset {
		n++
	}
	if n == 0 {
		return
	}
	k.trim(n)
	for _, s := range k.segments[:n] {
		if len(k.spare) == k.reuse {
			break
		}
		// Not cleared, which costs a pass over the memory: the keys in it are
		// forgotten when it is written again or trimmed.
		s.events = s.events[:0]
		k.spare = append(k.spare, s)
	}
	k.segments = slices.Delete(k.segments, 0, n)
}

// trim forgets spare segments that were not needed for a while. n is how many
// are let go now.
func (k *kept) trim(n int) {
	k.reuse = max(n, k.reuse*7/8)
	if len(k.spare) > k.reuse {
		k.spare = slices.Delete(k.spare, k.reuse, len(k.spare))
	}
}

// rest lets go of memory while nothing comes.
func (k *kept) rest() {
	k.trim(0)
	if len(k.segments) > 0 {
		s := k.segments[0]
		clear(s.events[:min(k.first-s.base, int64(len(s.events)))])
	}
}
