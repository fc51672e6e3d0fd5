package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

// A shardMark is what a shard says of itself at one moment.
type shardMark struct {
	published
	records map[string]record // by partition
}

const readMarks = `
local base = KEYS[1]
return {redis.call('GET', base .. ':finality') or '', redis.call('HGETALL', base .. ':checkpoints'),
	redis.call('ZRANGE', base .. ':live', 0, -1), redis.call('ZRANGE', base .. ':ended', 0, -1)}`

// errLayout: a shard holds what contradicts the layout.
var errLayout = errors.New("contradicts the layout")

// marks asks the shards what they say of themselves, by the documented layout.
func (s *store) marks(ctx context.Context, name string, n int) ([]shardMark, error) {
	all := make([]shardMark, n)
	for i := range all {
		answer, err := s.eval(ctx, readMarks, baseKey(name, i))
		if err != nil {
			return nil, err
		}
		parts, err := answer.ToArray()
		if err != nil || len(parts) != 4 {
			return nil, fmt.Errorf("shard %d: %v: %w", i, parts, err)
		}
		text, _ := parts[0].ToString()
		if all[i].published, err = parsePublished(text); err != nil {
			return nil, err
		}
		stored, err := pairs(parts[1])
		if err != nil {
			return nil, err
		}
		all[i].records = map[string]record{}
		for j := 0; j < len(stored); j += 2 {
			if all[i].records[stored[j]], err = parseRecord(stored[j+1]); err != nil {
				return nil, err
			}
		}
		live, err := parts[2].AsStrSlice()
		if err != nil {
			return nil, err
		}
		ended, err := parts[3].AsStrSlice()
		if err != nil {
			return nil, err
		}
		h := &held{}
		if err := h.frontier(i, all[i].records, live, ended, all[i].published); err != nil {
			return nil, err
		}
		if len(h.faults) > 0 {
			return nil, fmt.Errorf("%w: %s", errLayout, strings.Join(h.faults, "; "))
		}
	}
	return all, nil
}

// fell counts by how much shards went back: the checkpoints that did, and the
// windows that were closed and are no longer.
func fell(before, after []shardMark, size int64) (checkpoints, windows int64, hot []span) {
	for i, b := range before {
		a := after[i]
		for id, r := range b.records {
			if now, ok := a.records[id]; !ok || now.offset < r.offset || now.state != r.state && r.state == "live" {
				checkpoints++
			}
		}
		s := span{noMark, noMark}
		if b.closed != noMark && a.closed < b.closed {
			s = span{max(a.closed, b.closed-1000*size), b.closed}
			windows += (s.to - s.from) / size
		}
		hot = append(hot, s)
	}
	return checkpoints, windows, hot
}

const readClosed = `
local base = KEYS[1]
local out = {redis.call('GET', base .. ':finality') or ''}
for _, start in ipairs(redis.call('ZRANGEBYSCORE', base .. ':windows', '(' .. ARGV[1], ARGV[2])) do
	local first = base .. ':' .. start .. ':0'
	local n = tonumber(redis.call('HGET', first, '\0') or '1')
	local counts = {}
	for i = 0, n - 1 do
		for _, text in ipairs(redis.call('HGETALL', base .. ':' .. start .. ':' .. i)) do counts[#counts + 1] = text end
	end
	out[#out + 1] = {start, counts}
end
return out`

// closed returns what a shard holds of the windows that end in a span, and what
// it said of itself at that moment.
func (t *trial) closed(ctx context.Context, shard int, s span) (published, map[cell]int64, error) {
	answer, err := t.store().eval(ctx, readClosed, baseKey(t.name, shard), strconv.FormatInt(s.from, 10), strconv.FormatInt(s.to, 10))
	if err != nil {
		return published{}, nil, err
	}
	parts, err := answer.ToArray()
	if err != nil || len(parts) == 0 {
		return published{}, nil, fmt.Errorf("shard %d: %v: %w", shard, parts, err)
	}
	text, _ := parts[0].ToString()
	said, err := parsePublished(text)
	if err != nil {
		return published{}, nil, err
	}
	counts := map[cell]int64{}
	for _, part := range parts[1:] {
		if err := t.window(part, counts); err != nil {
			return published{}, nil, fmt.Errorf("shard %d: %w", shard, err)
		}
	}
	return said, counts, nil
}

// window adds the counts of one window.
func (t *trial) window(part rueidis.RedisMessage, counts map[cell]int64) error {
	words, err := part.ToArray()
	if err != nil || len(words) != 2 {
		return fmt.Errorf("%v: %w", words, err)
	}
	text, _ := words[0].ToString()
	start, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return err
	}
	stored, err := pairs(words[1])
	if err != nil {
		return err
	}
	for i := 0; i < len(stored); i += 2 {
		if stored[i] == "\x00" {
			continue
		}
		key, ok := t.index[keyOf(stored[i])]
		if !ok {
			return fmt.Errorf("window %d: %q is no key of ours", start, stored[i])
		}
		if counts[cell{start, key}], err = strconv.ParseInt(stored[i+1], 10, 64); err != nil {
			return err
		}
	}
	return nil
}

// audit reads what the shards hold of the windows that are final and end after a
// time, and has the judge compare it with what readers were told. It returns how
// far it has come.
func (t *trial) audit(ctx context.Context, after int64) (int64, error) {
	marks, err := t.store().marks(ctx, t.name, t.shards)
	if err != nil {
		return after, err
	}
	size := t.def.Window.Size.Milliseconds()
	settled := tumble.Closed
	if t.def.DropLate {
		settled = tumble.Final
	}
	upTo := int64(math.MaxInt64)
	for shard, m := range marks {
		if m.closed == noMark {
			return after, nil
		}
		for from := max(after, m.floor, t.began.Truncate(t.def.Window.Size).UnixMilli()-20*size); from < m.closed; from += 100 * size {
			s := span{from, min(from+100*size, m.closed)}
			at := t.since()
			said, counts, err := t.closed(ctx, shard, s)
			if err != nil {
				return after, err
			}
			if said.closed < s.to {
				return after, fmt.Errorf("shard %d went back while nothing was broken: %v, before %v", shard, said, m.published)
			}
			s.from = max(s.from, said.floor)
			term, err := strconv.ParseUint(said.term, 16, 64)
			if err != nil {
				return after, err
			}
			var starts []int64
			for end := s.from + size; end <= s.to; end += size {
				starts = append(starts, end-size)
			}
			t.judge.holds(shard, starts, counts, reading{state: settled, term: term, from: at, to: t.since(), by: "the layout"})
		}
		upTo = min(upTo, m.closed)
	}
	return upTo, nil
}
