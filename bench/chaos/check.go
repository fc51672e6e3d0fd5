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
local out = {redis.call('HGETALL', base .. ':checkpoints'), redis.call('GET', base .. ':finality') or '',
	redis.call('ZRANGE', base .. ':live', 0, -1), redis.call('ZRANGE', base .. ':ended', 0, -1)}
for level, at in ipairs({base, base .. ':r1'}) do
	out[#out + 1] = redis.call('ZRANGE', at .. ':windows', 0, -1, 'WITHSCORES')
	out[#out + 1] = redis.call('HGETALL', at .. ':totals')
end
for level, at in ipairs({base, base .. ':r1'}) do
	for _, start in ipairs(redis.call('ZRANGE', at .. ':windows', 0, -1)) do
		local n = tonumber(redis.call('HGET', at .. ':' .. start .. ':0', '\0') or '1')
		for i = 0, n - 1 do
			out[#out + 1] = {tostring(level - 1), start, tostring(i), tostring(n), redis.call('HGETALL', at .. ':' .. start .. ':' .. i)}
		end
	end
end
return out`

// rolledUp is how many windows the one roll-up of a storm is long.
const rolledUp = 6

// A held is what one shard holds.
type held struct {
	shards  int             // that the name has
	offsets map[int32]int64 // by partition: how far the counts reach
	counts  map[count]int64
	coarse  map[count]int64 // of the roll-up
	window  int64           // length of each of counts, in milliseconds
	floor   int64           // windows that end at or before it are past retention, in milliseconds
	keys    map[string]bool
	faults  []string // what contradicts the layout
}

// gone reports whether the window that starts at start is past retention.
func (h *held) gone(start int64) bool { return start+h.window <= h.floor }

// holding reads a shard whose windows are of that length.
func (s *store) holding(ctx context.Context, name string, shard int, window time.Duration) (*held, error) {
	base := baseKey(name, shard)
	answer, err := s.eval(ctx, snapshot, base)
	if err != nil {
		return nil, err
	}
	parts, err := answer.ToArray()
	if err != nil || len(parts) < 8 {
		return nil, fmt.Errorf("shard %d: %v: %w", shard, parts, err)
	}
	h := &held{shards: s.shards(), offsets: map[int32]int64{}, counts: map[count]int64{}, coarse: map[count]int64{}, window: window.Milliseconds(), keys: map[string]bool{}}
	for _, suffix := range []string{"", ":checkpoints", ":finality", ":live", ":ended", ":tainted", ":announced", ":retentions", ":windows", ":totals", ":r1:windows", ":r1:totals"} {
		h.keys[base+suffix] = true
	}
	stored, err := pairs(parts[0])
	if err != nil {
		return nil, err
	}
	records := map[string]record{}
	for i := 0; i < len(stored); i += 2 {
		_, number, _ := strings.Cut(stored[i], "/")
		partition, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("partition %q: %w", stored[i], err)
		}
		r, err := parseRecord(stored[i+1])
		if err != nil {
			return nil, err
		}
		h.offsets[int32(partition)], records[stored[i]] = r.offset, r
	}
	finality, _ := parts[1].ToString()
	said, err := parsePublished(finality)
	if err != nil {
		return nil, err
	}
	h.floor = said.floor
	var sets [6][]string // live, ended, and windows and totals of each level
	for i := range sets {
		if sets[i], err = parts[2+i].AsStrSlice(); err != nil {
			return nil, err
		}
	}
	if err := h.frontier(shard, records, sets[0], sets[1], said); err != nil {
		return nil, err
	}
	for level, length := range []int64{h.window, rolledUp * h.window} {
		windows := sets[2+2*level]
		for i := 0; i+1 < len(windows); i += 2 {
			start, err := strconv.ParseInt(windows[i], 10, 64)
			if end := strconv.FormatInt(start+length, 10); err != nil || windows[i+1] != end {
				h.faults = append(h.faults, fmt.Sprintf("window %s has the score %s, ends at %s", windows[i], windows[i+1], end))
			}
		}
	}
	for _, part := range parts[8:] {
		if err := h.bucket(base, shard, part); err != nil {
			return nil, err
		}
	}
	h.totals("windows", h.counts, sets[3])
	h.totals("roll-up", h.coarse, sets[5])
	h.addUp()
	return h, nil
}

// totals compares what a shard says of whole windows with the counts in them.
func (h *held) totals(what string, counts map[count]int64, said []string) {
	keys, sums := map[int64]int64{}, map[int64]int64{}
	for c, n := range counts {
		keys[c.start]++
		sums[c.start] += n
	}
	got := map[string]string{}
	for i := 0; i+1 < len(said); i += 2 {
		got[said[i]] = said[i+1]
	}
	for start := range keys {
		text := strconv.FormatInt(start, 10)
		if want := fmt.Sprintf("%d %d", keys[start], sums[start]); got[text] != want && !h.gone(start) {
			h.faults = append(h.faults, fmt.Sprintf("%s: the total of %s is %q, should be %q", what, when(start), got[text], want))
		}
		delete(got, text)
	}
	for start, total := range got {
		h.faults = append(h.faults, fmt.Sprintf("%s: %s has the total %q and no counts", what, start, total))
	}
}

// addUp compares the counts of the roll-up with the sums of their windows' counts, where
// all of these are kept.
func (h *held) addUp() {
	length := rolledUp * h.window
	sums := map[count]int64{}
	for c, n := range h.counts {
		sums[count{c.start - c.start%length, c.key}] += n
	}
	for c, n := range h.coarse {
		if c.start >= h.floor && sums[c] != n {
			h.faults = append(h.faults, fmt.Sprintf("roll-up %s: %s: %d, its windows add up to %d", when(c.start), c.key, n, sums[c]))
		}
		delete(sums, c)
	}
	for c, n := range sums {
		if c.start >= h.floor {
			h.faults = append(h.faults, fmt.Sprintf("roll-up %s: %s: none, its windows add up to %d", when(c.start), c.key, n))
		}
	}
}

// frontier compares what a shard keeps to find its frontier, and what it told
// readers, with what follows from its checkpoints.
func (h *held) frontier(shard int, records map[string]record, live, ended []string, said published) error {
	want := map[string][]string{}
	closed := map[string]int64{} // by member
	for partition, r := range records {
		member, err := r.member(partition)
		if err != nil {
			return err
		}
		want[r.state] = append(want[r.state], member)
		closed[member] = r.closed
	}
	slices.Sort(want["live"])
	slices.Sort(want["ended"])
	if !slices.Equal(want["live"], live) || !slices.Equal(want["ended"], ended) {
		h.faults = append(h.faults, fmt.Sprintf("shard %d: live are %q and ended %q, should be %q", shard, live, ended, want))
		return nil
	}
	mark := int64(noMark)
	if len(live) > 0 {
		mark = closed[live[0]]
	} else if len(ended) > 0 {
		mark = closed[ended[len(ended)-1]]
	}
	if said.closed != mark {
		h.faults = append(h.faults, fmt.Sprintf("shard %d: the closed mark is %d, should be %d", shard, said.closed, mark))
	}
	return nil
}

// bucket adds what is in one bucket: its level, START, its number, how many there are,
// the fields.
func (h *held) bucket(base string, shard int, part rueidis.RedisMessage) error {
	words, err := part.ToArray()
	if err != nil || len(words) != 5 {
		return fmt.Errorf("shard %d: %v: %w", shard, words, err)
	}
	var numbers [4]int64
	for i := range numbers {
		text, _ := words[i].ToString()
		if numbers[i], err = strconv.ParseInt(text, 10, 64); err != nil {
			return err
		}
	}
	stored, err := pairs(words[4])
	if err != nil {
		return err
	}
	level, start, i, n := numbers[0], numbers[1], numbers[2], numbers[3]
	counts := h.counts
	if level > 0 {
		base += ":r1"
		counts = h.coarse
	}
	h.keys[fmt.Sprintf("%s:%d:%d", base, start, i)] = true
	for j := 0; j < len(stored); j += 2 {
		field := stored[j]
		if field == "\x00" {
			continue
		}
		key := keyOf(field)
		if at := bucketOf(field, int(n)); at != int(i) || shardAmong(key, h.shards) != shard {
			h.faults = append(h.faults, fmt.Sprintf("window %d: %q is in bucket %d of %d of shard %d, belongs to %d of shard %d", start, key, i, n, shard, at, shardAmong(key, h.shards)))
			continue
		}
		if counts[count{start, key}], err = strconv.ParseInt(stored[j+1], 10, 64); err != nil {
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
		if h.gone(c.start) {
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
		if _, known := want[c]; !known && !h.gone(c.start) {
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
	all := make([]*held, f.store.shards())
	upTo := make([]map[int32]int64, len(all))
	furthest := map[int32]int64{}
	for i := range all {
		err := eventually(ctx, 30*time.Second, f.name+": no shard was read", func(ctx context.Context) (err error) {
			all[i], err = f.store.holding(ctx, f.name, i, l.window)
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
	for i := range all {
		v.compare(i, all[i], want[i])
	}
	return v, nil
}

// checkAll compares the store with the whole log, read once more from its start:
// by the layout, key by key, and through the library's Reader.
func (l *lab) checkAll(ctx context.Context, f *fleet, whole *truth, ends map[int32]int64) (layout, reader *verdict, err error) {
	layout, reader = &verdict{}, &verdict{}
	upTo := make([]map[int32]int64, f.store.shards())
	for i := range upTo {
		upTo[i] = ends
	}
	want := whole.counts(upTo)
	keys := map[string]bool{}
	gone := func(int64) bool { return false }
	floor := int64(noMark)
	for i := range upTo {
		h, err := f.store.holding(ctx, f.name, i, l.window)
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
		if floor <= h.floor {
			floor, gone = h.floor, h.gone
		}
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
func (l *lab) throughReader(ctx context.Context, f *fleet, want []map[count]int64, gone func(start int64) bool, v *verdict) error {
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
			if gone(c.start) {
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
