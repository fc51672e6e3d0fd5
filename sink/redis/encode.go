package redis

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	// groupSize bounds how many values a script unpacks at a time. Lua's stack
	// takes 8,000.
	groupSize = 1000
	// perBucket is the number of keys that a bucket of a new window shall hold.
	// The script splits buckets when there are more.
	perBucket = 48
	// lookBack is how many windows a new one is compared with. The newest may
	// have few of their keys yet.
	lookBack = 16
	// mostGuess bounds a guess to a multiple of the keys that a batch brings for a
	// window. Without it one busy minute gives thousands of buckets to each of the
	// quiet ones that are counted after it.
	mostGuess = 64
)

// minStart is before the start of the window that holds the earliest event: a
// window lasts ten years at most.
var minStart = time.Date(1689, 1, 1, 0, 0, 0, 0, time.UTC)

// A portion is the deltas of one window.
type portion struct {
	deltas  []tumble.Delta // of its level
	level   int
	window  int64 // its start, in milliseconds since the epoch
	end     int64
	keys    uint32
	buckets uint32   // that the window has, or shall begin with
	places  []uint64 // bucket and index of a delta, 32 bits each
}

// groups is the number of groups that cut makes of the portion.
func (p portion) groups() (n uint32) {
	for rest := p.places; len(rest) > 0; n++ {
		_, rest = cut(rest)
	}
	return n
}

// cut returns the first places that share a bucket, as many as a script takes at
// a time, and the rest.
func cut(places []uint64) (group, rest []uint64) {
	n := 1
	for n < len(places) && n < groupSize && places[n]>>32 == places[0]>>32 {
		n++
	}
	return places[:n], places[n:]
}

// encode packs the increments of a batch as apply.lua wants them, by level, window and
// bucket. It shares no memory with the batch: a client may still send it when the call
// has long been given up.
func (s *shard) encode(b tumble.Batch) (string, error) {
	if n := len(b.Rollups); n > 0 && n != len(s.levels)-1 {
		return "", fmt.Errorf("the batch has %d roll-ups, must have %d", n, len(s.levels)-1)
	}
	portions, size, err := s.split(nil, 0, b.Deltas)
	for i, deltas := range b.Rollups {
		if err == nil {
			var more int
			portions, more, err = s.split(portions, 1+i, deltas)
			size += more
		}
	}
	if err != nil {
		return "", err
	}
	list := newPacked(size)
	for _, p := range portions {
		deltas := p.deltas
		list.number(uint32(p.level))
		list.digits(p.window)
		list.digits(p.end)
		list.number(p.buckets)
		list.number(p.groups())
		for rest := p.places; len(rest) > 0; {
			var group []uint64
			group, rest = cut(rest)
			list.digits(int64(group[0] >> 32))
			list.number(uint32(len(group)))
			for _, place := range group {
				list.text(fieldOf(deltas[uint32(place)].Key))
			}
			for _, place := range group {
				list.digits(deltas[uint32(place)].N)
			}
		}
	}
	return list.array(), nil
}

// split checks the deltas of a level, divides them by their windows, sorts those of each
// by bucket, and appends them to all. The size is about that of these when packed.
func (s *shard) split(all []portion, level int, deltas []tumble.Delta) (_ []portion, size int, err error) {
	var portions []portion
	of := make([]uint32, len(deltas)) // portions
	known := make(map[int64]uint32)   // portions of windows
	for i := range deltas {
		d := &deltas[i]
		if d.N <= 0 {
			return nil, 0, fmt.Errorf("%.80q: an increment of %d, must be positive", d.Key, d.N)
		}
		if d.N > tumble.MaxCount {
			start, end := s.levels[level].Window.Bounds(d.Start)
			return nil, 0, overflow(d.Key, start, end)
		}
		size += len(d.Key) + 32
		if i > 0 && d.Start == deltas[i-1].Start { // nearly always
			of[i] = of[i-1]
			portions[of[i]].keys++
			continue
		}
		ms := d.Start.UnixMilli()
		if d.Start.Nanosecond()%int(time.Millisecond) != 0 || d.Start.Before(minStart) || !d.Start.Before(maxEvent) {
			return nil, 0, fmt.Errorf("%.80q: no window starts at %v", d.Key, d.Start)
		}
		n, ok := known[ms]
		if !ok {
			n = uint32(len(portions))
			known[ms] = n
			_, end := s.levels[level].Window.Bounds(d.Start)
			portions = append(portions, portion{deltas: deltas, level: level, window: ms, end: end.UnixMilli()})
		}
		of[i] = n
		portions[n].keys++
	}
	s.guess(level, portions)
	free := make([]uint64, len(deltas))
	for i := range portions {
		p := &portions[i]
		p.places, free = free[:0:p.keys], free[p.keys:]
	}
	for i := range deltas {
		p := &portions[of[i]]
		bucket := bucketOf(hashOf(fieldOf(deltas[i].Key)), p.buckets)
		p.places = append(p.places, uint64(bucket)<<32|uint64(i))
	}
	spare := make([]uint64, len(deltas))
	for i := range portions {
		portions[i].sort(spare)
	}
	return append(all, portions...), size, nil
}

// sort sorts the places by their buckets, byte by byte from the lowest. It needs
// room for as many again. With slices.Sort an increment took half as long again
// to encode (BenchmarkEncode).
func (p *portion) sort(spare []uint64) {
	from, to := p.places, spare[:len(p.places)]
	for shift := 32; (p.buckets-1)>>(shift-32) > 0; shift += 8 {
		var starts [256]uint32
		for _, place := range from {
			starts[byte(place>>shift)]++
		}
		at := uint32(0)
		for i, n := range starts {
			starts[i] = at
			at += n
		}
		for _, place := range from {
			start := &starts[byte(place>>shift)]
			to[*start] = place
			*start++
		}
		from, to = to, from
	}
	copy(p.places, from)
}

// guess sets how many buckets each window has, as far as is known, and else how
// many it should begin with: enough for the keys of this batch and for as many
// keys as one of the windows before has, because to split buckets costs the
// server more than the counts in them (BenchmarkCatchUp).
func (s *shard) guess(level int, portions []portion) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inOrder := make([]*portion, len(portions))
	for i := range portions {
		inOrder[i] = &portions[i]
	}
	slices.SortFunc(inOrder, func(a, b *portion) int { return cmp.Compare(a.window, b.window) })
	expected := make(map[int64]uint32) // keys of new windows
	for _, p := range inOrder {
		if p.buckets = s.sizes[place{level, p.window}].buckets; p.buckets > 0 {
			continue
		}
		keys, before := p.keys, time.UnixMilli(p.window)
		for n := 0; n < lookBack && before.After(minStart); n++ {
			before, _ = s.levels[level].Window.Bounds(before.Add(-1))
			ms := before.UnixMilli()
			keys = max(keys, s.sizes[place{level, ms}].keys, expected[ms])
		}
		keys = min(keys, mostGuess*p.keys)
		expected[p.window] = keys
		p.buckets = max(1, (keys-1)/perBucket)
	}
}
