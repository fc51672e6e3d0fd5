package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// snapshot reads one shard in one step, by the documented layout.
const snapshot = `
local base = KEYS[1]
local out = {redis.call('HGETALL', base .. ':checkpoints'), redis.call('GET', base .. ':finality') or ''}
for _, start in ipairs(redis.call('ZRANGE', base .. ':windows', 0, -1)) do
	local n = tonumber(redis.call('HGET', base .. ':' .. start .. ':0', '\0') or '1')
	for i = 0, n - 1 do
		out[#out + 1] = {start, tostring(i), tostring(n), redis.call('HGETALL', base .. ':' .. start .. ':' .. i)}
	end
end
return out`

// A held is what one shard holds.
type held struct {
	offsets map[int32]int64 // by partition: how far the counts reach
	counts  map[count]int64
	expired int64 // windows before this are past retention, in milliseconds
	keys    map[string]bool
	faults  []string // what contradicts the layout
}

// holding reads a shard.
func (s *store) holding(ctx context.Context, name string, shard int) (*held, error) {
	base := baseKey(name, shard)
	answer, err := s.eval(ctx, snapshot, base)
	if err != nil {
		return nil, err
	}
	parts, err := answer.ToArray()
	if err != nil || len(parts) < 2 {
		return nil, fmt.Errorf("shard %d: %v: %w", shard, parts, err)
	}
	h := &held{offsets: map[int32]int64{}, counts: map[count]int64{}, keys: map[string]bool{}}
	for _, suffix := range []string{"", ":checkpoints", ":finality", ":windows", ":sizes"} {
		h.keys[base+suffix] = true
	}
	h.expired = -1 << 62
	stored, err := pairs(parts[0])
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(stored); i += 2 {
		_, number, _ := strings.Cut(stored[i], "/")
		partition, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("partition %q: %w", stored[i], err)
		}
		if h.offsets[int32(partition)], err = checkpointOffset(stored[i+1]); err != nil {
			return nil, err
		}
	}
	if finality, _ := parts[1].ToString(); finality != "" {
		if words := strings.Fields(finality); len(words) == 4 && words[1] != "-" {
			if h.expired, err = strconv.ParseInt(words[1], 10, 64); err != nil {
				return nil, fmt.Errorf("finality %q: %w", finality, err)
			}
		}
	}
	for _, part := range parts[2:] {
		if err := h.bucket(base, shard, part); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// bucket adds what is in one bucket: START, its number, how many there are, the
// fields.
func (h *held) bucket(base string, shard int, part rueidis.RedisMessage) error {
	words, err := part.ToArray()
	if err != nil || len(words) != 4 {
		return fmt.Errorf("shard %d: %v: %w", shard, words, err)
	}
	var numbers [3]int64
	for i := range numbers {
		text, _ := words[i].ToString()
		if numbers[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return err
		}
	}
	stored, err := pairs(words[3])
	if err != nil {
		return err
	}
	start, i, n := numbers[0], numbers[1], numbers[2]
	h.keys[fmt.Sprintf("%s:%d:%d", base, start, i)] = true
	for j := 0; j < len(stored); j += 2 {
		field := stored[j]
		if field == "\x00" {
			continue
		}
		key := keyOf(field)
		if at := bucketOf(field, int(n)); at != int(i) || shardOf(key) != shard {
			h.faults = append(h.faults, fmt.Sprintf("window %d: %q is in bucket %d of %d of shard %d, belongs to %d of shard %d", start, key, i, n, shard, at, shardOf(key)))
			continue
		}
		if h.counts[count{start, key}], err = strconv.ParseInt(stored[j+1], 10, 64); err != nil {
			return fmt.Errorf("shard %d: window %d: %q: %w", shard, start, key, err)
		}
	}
	return nil
}

func pairs(m rueidis.RedisMessage) ([]string, error) {
	list, err := m.AsStrSlice()
	if err == nil && len(list)%2 != 0 {
		err = fmt.Errorf("%d words are no pairs", len(list))
	}
	return list, err
}

// A verdict is what a comparison has found.
type verdict struct {
	counts, events int64 // that were compared, and found to be what they should be or not
	differences    []string
	missing, extra int64 // events too few and too many
}

func (v *verdict) differ(format string, args ...any) {
	v.differences = append(v.differences, fmt.Sprintf(format, args...))
}

func (v *verdict) String() string {
	return fmt.Sprintf("%d counts of %d events compared, %d differences (%d events too few, %d too many)", v.counts, v.events, len(v.differences), v.missing, v.extra)
}

// compare compares what a shard holds with what it should.
func (v *verdict) compare(shard int, h *held, want map[count]int64) {
	for _, fault := range h.faults {
		v.differ("shard %d: %s", shard, fault)
	}
	for c, n := range want {
		if c.start < h.expired {
			continue
		}
		v.counts++
		v.events += n
		if got := h.counts[c]; got != n {
			v.differ("shard %d: window %s: %s: %d, should be %d", shard, when(c.start), c.key, got, n)
			v.missing += max(n-got, 0)
			v.extra += max(got-n, 0)
		}
	}
	for c, n := range h.counts {
		if _, known := want[c]; !known && c.start >= h.expired {
			v.differ("shard %d: window %s: %s: %d, should not be there", shard, when(c.start), c.key, n)
			v.extra += n
		}
	}
}

func when(ms int64) string { return time.UnixMilli(ms).UTC().Format("15:04:05") }

// check compares every shard with what the log holds up to the shard's own
// checkpoints. It is right at any moment, whoever is writing; the caller sees
// to it that no slot moves meanwhile.
func (l *lab) check(ctx context.Context, f *fleet) (*verdict, error) {
	var all [shards]*held
	var upTo [shards]map[int32]int64
	furthest := map[int32]int64{}
	for i := range shards {
		err := eventually(ctx, 30*time.Second, f.name+": no shard was read", func(ctx context.Context) (err error) {
			all[i], err = f.store.holding(ctx, f.name, i)
			return err
		})
		if err != nil {
			return nil, err
		}
		upTo[i] = all[i].offsets
		for partition, offset := range upTo[i] {
			furthest[partition] = max(furthest[partition], offset)
		}
	}
	err := eventually(ctx, 60*time.Second, "the independent consumer did not come as far", func(context.Context) error {
		if !l.truth.reached(furthest) {
			return fmt.Errorf("it is at %v, the checkpoints at %v", l.truth.ends(), furthest)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	want := l.truth.counts(upTo)
	v := &verdict{}
	for i := range shards {
		v.compare(i, all[i], want[i])
	}
	return v, nil
}

// checkAll compares the store with the whole log, read once more from its start:
// by the layout, key by key, and through the library's Reader.
func (l *lab) checkAll(ctx context.Context, f *fleet, whole *truth, ends map[int32]int64) (layout, reader *verdict, err error) {
	layout, reader = &verdict{}, &verdict{}
	var upTo [shards]map[int32]int64
	for i := range upTo {
		upTo[i] = ends
	}
	want := whole.counts(upTo)
	keys := map[string]bool{}
	gone := int64(-1 << 62)
	for i := range shards {
		h, err := f.store.holding(ctx, f.name, i)
		if err != nil {
			return nil, nil, err
		}
		for partition, end := range ends {
			if h.offsets[partition] != end {
				layout.differ("shard %d: partition %d is counted up to %d, ends at %d", i, partition, h.offsets[partition], end)
			}
		}
		layout.compare(i, h, want[i])
		for key := range h.keys {
			keys[key] = true
		}
		gone = max(gone, h.expired)
	}
	stored, err := f.store.keys(ctx, f.name)
	if err != nil {
		return nil, nil, err
	}
	for key := range stored {
		if !keys[key] {
			layout.differ("key %q has no place in the layout", key)
		}
	}
	return layout, reader, l.throughReader(ctx, f, want, gone, reader)
}

// throughReader compares what the library's Reader says of each window, page by
// page, and one by one of the first keys of each.
func (l *lab) throughReader(ctx context.Context, f *fleet, want [shards]map[count]int64, gone int64, v *verdict) error {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: strings.Split(f.store.addresses(), ","), Dialer: net.Dialer{Timeout: 3 * time.Second}})
	if err != nil {
		return err
	}
	defer client.Close()
	sink, err := redis.New(redis.Config{Client: client, Name: f.name})
	if err != nil {
		return err
	}
	var from tumble.Reader = sink
	windows := map[int64]map[string]int64{}
	for _, shard := range want {
		for c, n := range shard {
			if c.start < gone {
				continue
			}
			if windows[c.start] == nil {
				windows[c.start] = map[string]int64{}
			}
			windows[c.start][c.key] = n
		}
	}
	for start, keys := range windows {
		at := time.UnixMilli(start)
		got := map[string]int64{}
		for cursor := ""; ; {
			page, err := from.Scan(ctx, at, cursor, 1000)
			if err != nil {
				return err
			}
			for _, c := range page.Counts {
				if _, twice := got[c.Key]; twice {
					v.differ("window %s: %s twice", when(start), c.Key)
				}
				got[c.Key] = c.N
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
		for key, n := range keys {
			v.counts++
			v.events += n
			if got[key] != n {
				v.differ("window %s: %s: Scan found %d, should be %d", when(start), key, got[key], n)
				v.missing += max(n-got[key], 0)
				v.extra += max(got[key]-n, 0)
			}
			delete(got, key)
		}
		for key, n := range got {
			v.differ("window %s: %s: Scan found %d, should not be there", when(start), key, n)
			v.extra += n
		}
		some := slices.Sorted(func(yield func(string) bool) {
			for key := range keys {
				if !yield(key) {
					return
				}
			}
		})
		for _, key := range some[:min(len(some), 20)] {
			c, err := from.Count(ctx, key, at)
			if err != nil {
				return err
			}
			if c.N != keys[key] {
				v.differ("window %s: %s: Count found %d, should be %d", when(start), key, c.N, keys[key])
			}
		}
	}
	return nil
}
