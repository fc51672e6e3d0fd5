package redis

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

var (
	//go:embed script/common.lua
	commonScript string
	//go:embed script/load.lua
	loadScript string
	//go:embed script/apply.lua
	applyScript string

	// rueidis sends none of them again by itself: whoever calls decides.
	loadLua  = rueidis.NewLuaScript(commonScript + loadScript)
	applyLua = rueidis.NewLuaScript(commonScript + applyScript)
)

const (
	// maxCount is the largest count that the script computes exactly: Lua's
	// numbers are doubles.
	maxCount = 1<<53 - 1
	// groupSize bounds how many values a script unpacks at a time; Lua's stack
	// takes 8,000.
	groupSize = 1000
	// perBucket is the number of keys that a bucket of a new window shall hold.
	// The script splits buckets when there are more.
	perBucket = 48
	// maxKnown bounds the windows of which a shard remembers the sizes.
	maxKnown = 4096
	// lookBack is how many windows a new one is compared with. The newest may
	// have few of their keys yet.
	lookBack = 16
)

// shard is one shard, as one Open sees it.
type shard struct {
	sink   *Sink
	def    tumble.Definition
	fields []string // the definition as it is stored
	number int
	shards string
	grace  string // milliseconds
	base   string
	keys   []string // of both scripts

	mu    sync.Mutex
	id    string         // of the stored definition, when it was last seen
	sizes map[int64]size // of windows, when they were last seen; may be wrong
}

// size is how many buckets and keys a window has.
type size struct{ buckets, keys uint32 }

func newShard(s *Sink, def tumble.Definition, shards, number int) *shard {
	return &shard{
		sink:   s,
		def:    def,
		fields: fields(def, shards, number),
		number: number,
		shards: strconv.Itoa(shards),
		grace:  strconv.FormatInt(def.Grace.Milliseconds(), 10),
		base:   baseKey(s.cfg.Name, number),
		keys:   scriptKeys(baseKey(s.cfg.Name, number)),
		sizes:  make(map[int64]size),
	}
}

// scriptKeys returns the keys that a script is called with. The second one never
// exists. While a slot moves from one master to another, key by key and in any
// order, neither of them has all keys of the shard; a script on either would
// take what is on the other for missing, and say so, or write it anew. A Redis
// that knows of one missing key refuses the call until the slot has moved.
func scriptKeys(base string) []string { return []string{base, base + ":none"} }

// fail says where an error comes from.
func (s *shard) fail(ctx context.Context, what string, err error) error {
	return fmt.Errorf("redis: %s: shard %d: %s: %w", s.sink.cfg.Name, s.number, what, s.sink.explain(ctx, err))
}

// Load stores what is missing; see [tumble.Shard].
func (s *shard) Load(ctx context.Context, init map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	ctx, cancel := s.sink.bounded(ctx)
	defer cancel()
	args := append([]string{fmt.Sprintf("%016x", rand.Uint64()), s.grace, strconv.Itoa(len(s.fields) / 2)}, s.fields...)
	mark := len(args)
	args = append(args, "", "", "", "")
	for partition, c := range init {
		r, err := record(s.def, c)
		if err != nil {
			return nil, s.fail(ctx, "load "+partition, err)
		}
		args = append(args, partition, r)
	}
	for {
		reply, err := loadLua.Exec(ctx, s.sink.client, s.keys, args).AsStrSlice()
		if err == nil && len(reply) < 2 {
			err = fmt.Errorf("the script answered %q: %w", reply, errSyntax)
		}
		if err != nil {
			return nil, s.fail(ctx, "load", err)
		}
		switch reply[0] {
		case "definition":
			return nil, s.fail(ctx, "load", s.differs(reply[1:]))
		case "endmark":
			// A partition that has ended is raised to a frontier. The script
			// has no calendar to find out which windows that closes.
			ns, err := strconv.ParseInt(reply[1], 10, 64)
			if err != nil {
				return nil, s.fail(ctx, "load", err)
			}
			end := s.def.EndMark(time.Unix(0, ns).UTC())
			final, expired, _ := strings.Cut(frontierMarks(s.def, end), " ")
			copy(args[mark:], []string{reply[1], strconv.FormatInt(end.UnixNano(), 10), final, expired})
			continue
		}
		s.mu.Lock()
		s.id = reply[1]
		s.mu.Unlock()
		all := make(map[string]tumble.Checkpoint, len(reply)/2-1)
		for pair := range slices.Chunk(reply[2:], 2) {
			c, err := parseRecord(pair[1])
			if err != nil {
				return nil, s.fail(ctx, "load", fmt.Errorf("the stored checkpoint of %s is %q: %w", pair[0], pair[1], err))
			}
			all[pair[0]] = c
		}
		return all, nil
	}
}

// differs returns the error about a stored definition that is another one.
func (s *shard) differs(stored []string) error {
	m := make(map[string]string)
	for pair := range slices.Chunk(stored, 2) {
		if len(pair) == 2 {
			m[pair[0]] = pair[1]
		}
	}
	l, err := parseLayout(s.sink.cfg.Name, m)
	if err != nil {
		return fmt.Errorf("%w, wanted is %v, %s shards: %w", err, s.def, s.shards, tumble.ErrDefinition)
	}
	return fmt.Errorf("stored is %v, %d shards; wanted is %v, %s shards: %w",
		l.def, l.shards, s.def, s.shards, tumble.ErrDefinition)
}

// Apply adds counts and moves a checkpoint; see [tumble.Shard]. A count may
// reach 2^53 - 1: a batch that goes beyond is refused, and changes nothing.
func (s *shard) Apply(ctx context.Context, b tumble.Batch) error {
	ctx, cancel := s.sink.bounded(ctx)
	defer cancel()
	what := "apply " + b.Partition
	from, err := state(b.From)
	if err != nil { // so it cannot be the stored one
		return s.fail(ctx, what, fmt.Errorf("%w: %w", tumble.ErrConflict, err))
	}
	to, err := record(s.def, b.To)
	if err != nil {
		return s.fail(ctx, what, err)
	}
	increments, err := s.encode(b.Deltas)
	if err != nil {
		return s.fail(ctx, what, err)
	}
	for try := 0; ; try++ {
		s.mu.Lock()
		id := s.id
		s.mu.Unlock()
		args := []string{b.Partition, from, to, id, s.grace, s.shards, increments}
		reply, err := applyLua.Exec(ctx, s.sink.client, s.keys, args).ToArray()
		if err == nil && len(reply) == 0 {
			err = fmt.Errorf("the script answered nothing: %w", errSyntax)
		}
		if err != nil {
			return s.fail(ctx, what, err)
		}
		verdict, err := reply[0].ToString()
		switch {
		case err != nil:
			return s.fail(ctx, what, err)
		case verdict == "ok":
			s.learn(reply[1:])
			return nil
		case verdict == "conflict" && len(reply) > 1:
			return s.fail(ctx, what, conflict(reply[1], b.From))
		case verdict == "overflow" && len(reply) > 2:
			key, _ := reply[1].ToString()
			field, _ := reply[2].ToString()
			return s.fail(ctx, what, fmt.Errorf("the count of %.80q in %s would exceed %d", keyOf(field), key, maxCount))
		case verdict == "id" && try == 0:
			// All was lost and written again, perhaps by a program that counts
			// something else. Nothing has been changed.
			if _, err := s.Load(ctx, nil); err != nil {
				return err
			}
		default:
			return s.fail(ctx, what, errors.New("the definition changes all the time"))
		}
	}
}

// conflict returns the error about another stored checkpoint than from.
func conflict(stored rueidis.RedisMessage, from tumble.Checkpoint) error {
	text, err := stored.ToString()
	if err != nil || text == "" {
		return fmt.Errorf("%w: none is stored, the batch starts from %v", tumble.ErrConflict, from)
	}
	c, err := parseRecord(text)
	if err != nil {
		return fmt.Errorf("%w: stored is %q, the batch starts from %v", tumble.ErrConflict, text, from)
	}
	return fmt.Errorf("%w: stored is %v, the batch starts from %v", tumble.ErrConflict, c, from)
}

// learn remembers the sizes of windows.
func (s *shard) learn(triples []rueidis.RedisMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sizes) > maxKnown {
		clear(s.sizes)
	}
	for triple := range slices.Chunk(triples, 3) {
		if len(triple) < 3 {
			return
		}
		start, _ := triple[0].ToString()
		n, _ := triple[1].AsInt64()
		keys, _ := triple[2].AsInt64()
		if ms, err := strconv.ParseInt(start, 10, 64); err == nil && n > 0 {
			s.sizes[ms] = size{uint32(n), uint32(keys)}
		}
	}
}

// A portion is the deltas of one window.
type portion struct {
	window  int64
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

// encode packs deltas as apply.lua wants them, by window and bucket. It shares no
// memory with the deltas: a client may still send it when the call has long been
// given up.
func (s *shard) encode(deltas []tumble.Delta) (string, error) {
	portions, size, err := s.split(deltas)
	if err != nil {
		return "", err
	}
	list := newPacked(size)
	for _, p := range portions {
		list.digits(p.window)
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

// split checks deltas, divides them by their windows and sorts those of each by
// bucket. The size is about that of all when packed.
func (s *shard) split(deltas []tumble.Delta) (portions []portion, size int, err error) {
	of := make([]uint32, len(deltas)) // portions
	known := make(map[int64]uint32)   // portions of windows
	for i := range deltas {
		d := &deltas[i]
		if d.N <= 0 || d.N > maxCount {
			return nil, 0, fmt.Errorf("%.80q: an increment of %d, must be from 1 to %d", d.Key, d.N, maxCount)
		}
		size += len(d.Key) + 32
		if i > 0 && d.Window == deltas[i-1].Window { // nearly always
			of[i] = of[i-1]
			portions[of[i]].keys++
			continue
		}
		ms := d.Window.UnixMilli()
		if d.Window.Nanosecond()%int(time.Millisecond) != 0 || d.Window.Before(minNanos) || d.Window.After(maxNanos) {
			return nil, 0, fmt.Errorf("%.80q: no window starts at %v", d.Key, d.Window)
		}
		n, ok := known[ms]
		if !ok {
			n = uint32(len(portions))
			known[ms] = n
			portions = append(portions, portion{window: ms})
		}
		of[i] = n
		portions[n].keys++
	}
	s.guess(portions)
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
	return portions, size, nil
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
// many it should begin with: enough for what this batch brings and for as many
// keys as one of the windows before has, because to split buckets costs the
// server more than the counts in them (BenchmarkCatchUp).
func (s *shard) guess(portions []portion) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inOrder := make([]*portion, len(portions))
	for i := range portions {
		inOrder[i] = &portions[i]
	}
	slices.SortFunc(inOrder, func(a, b *portion) int { return cmp.Compare(a.window, b.window) })
	expected := make(map[int64]uint32) // keys of new windows
	for _, p := range inOrder {
		if p.buckets = s.sizes[p.window].buckets; p.buckets > 0 {
			continue
		}
		keys, before := p.keys, time.UnixMilli(p.window)
		for n := 0; n < lookBack && before.After(minNanos); n++ {
			before, _ = s.def.Window.Bounds(before.Add(-1))
			ms := before.UnixMilli()
			keys = max(keys, s.sizes[ms].keys, expected[ms])
		}
		expected[p.window] = keys
		p.buckets = max(1, (keys-1)/perBucket)
	}
}
