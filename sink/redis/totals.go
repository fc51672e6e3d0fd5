package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

// totalsAtOnce is how many totals a transaction reads.
const totalsAtOnce = 1000

// Windows returns the totals of the windows whose start is in [from, to) and that
// hold a count, ascending. See [tumble.Reader]. Each shard keeps a total with every
// count.
func (s *Sink) Windows(ctx context.Context, from, to time.Time) ([]tumble.Total, error) {
	var totals []tumble.Total
	err := s.stable(ctx, "windows", func(ctx context.Context, l *layout, _ int) (bool, error) {
		said := make(map[int]finality)
		sums := make(map[int64]*tumble.Total)
		var mu sync.Mutex
		ok, err := s.eachShard(l, func(shard int) (bool, error) {
			all, f, ok, err := s.totals(ctx, l, shard, from, to)
			if err != nil || !ok {
				return ok, err
			}
			mu.Lock()
			defer mu.Unlock()
			said[shard] = f
			for _, t := range all {
				if sum := sums[t.Start.UnixMilli()]; sum != nil {
					sum.Keys, sum.N = sum.Keys+t.Keys, sum.N+t.N
				} else {
					sums[t.Start.UnixMilli()] = &t
				}
			}
			return true, nil
		})
		if err != nil || !ok {
			return false, err
		}
		all := together(l, said)
		totals = nil
		for _, start := range slices.Sorted(maps.Keys(sums)) {
			t := sums[start]
			t.State, t.Term = all.state(l.def, t.End.UnixMilli()), all.term
			totals = append(totals, *t)
		}
		return s.proves(ctx, l, said)
	})
	if s.assumes(err) {
		_, err := s.assumed()
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	return totals, nil
}

// eachShard calls f for all shards side by side. It reports false if one of them does.
func (s *Sink) eachShard(l *layout, f func(shard int) (bool, error)) (bool, error) {
	oks, errs := make([]bool, len(l.bases)), make([]error, len(l.bases))
	var wg sync.WaitGroup
	for shard := range l.bases {
		wg.Go(func() { oks[shard], errs[shard] = f(shard) })
	}
	wg.Wait()
	return !slices.Contains(oks, false), errors.Join(errs...)
}

// together returns what all shards say of their windows: closed is what all have
// closed, past retention what is so in one, and the term that of all terms.
func together(l *layout, said map[int]finality) finality {
	all := finality{closed: math.MaxInt64, floor: noMark}
	for shard := range l.bases {
		f := said[shard]
		all.closed, all.floor = min(all.closed, f.closed), max(all.floor, f.floor)
		all.term = all.term*0x9e3779b97f4a7c15 + f.term // odd: another sum if one of them is another
	}
	return all
}

// totals returns those of a shard, and the finality that it had with them. It reports
// false if something was lost in between.
func (s *Sink) totals(ctx context.Context, l *layout, shard int, from, to time.Time) (totals []tumble.Total, f finality, ok bool, err error) {
	at := l.sites[shard]
	all, listed, ok, err := s.windows(ctx, l.def.Window, at, from, to)
	if err != nil || !ok {
		return nil, nothing, false, err
	}
	first := true
	for part := range slices.Chunk(all, totalsAtOnce) {
		command := []string{"HMGET", at.data + ":totals"}
		for _, w := range part {
			command = append(command, strconv.FormatInt(w.start, 10))
		}
		now, answers, err := s.atomic(ctx, at, command)
		if err != nil {
			return nil, nothing, false, err
		}
		if first && listed == nil {
			f = now
		} else if first {
			f, ok = listed.with(now)
		} else {
			f, ok = f.with(now)
		}
		if first = false; !ok {
			return nil, nothing, false, nil
		}
		texts, err := answers[0].ToArray()
		if err != nil || len(texts) != len(part) {
			return nil, nothing, false, errors.Join(err, errSyntax)
		}
		for i, m := range texts {
			if m.IsNil() {
				continue
			}
			t := tumble.Total{Start: time.UnixMilli(part[i].start).UTC(), End: time.UnixMilli(part[i].end).UTC()}
			if t.Keys, t.N, err = parseTotal(m); err != nil {
				return nil, nothing, false, err
			}
			totals = append(totals, t)
		}
	}
	if first {
		f, _, err = s.atomic(ctx, at)
	}
	return totals, f, err == nil, err
}

// parseTotal reads the number of keys and the sum of counts.
func parseTotal(m rueidis.RedisMessage) (keys, n int64, err error) {
	text, err := m.ToString()
	if err != nil {
		return 0, 0, err
	}
	a, b, _ := strings.Cut(text, " ")
	keys, err1 := strconv.ParseInt(a, 10, 64)
	n, err2 := strconv.ParseInt(b, 10, 64)
	if err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("a total is %.80q: %w", text, errSyntax)
	}
	return keys, n, nil
}

// Counts returns the counts of keys in the window that holds at, in the order of
// keys. See [tumble.Reader]. It asks each shard once, in one transaction, all of them
// side by side, if the client's cache knows how many buckets the window has there.
func (s *Sink) Counts(ctx context.Context, at time.Time, keys ...string) ([]tumble.Count, error) {
	counts := make([]tumble.Count, len(keys))
	err := s.stable(ctx, "counts", func(ctx context.Context, l *layout, _ int) (bool, error) {
		start, end, err := l.def.Window.Find(at)
		if err != nil {
			return false, err
		}
		of := make(map[int][]int) // indices of keys, by shard
		for i, key := range keys {
			of[l.shardOf(key)] = append(of[l.shardOf(key)], i)
		}
		said := make(map[int]finality)
		var mu sync.Mutex
		ok, err := s.eachShard(l, func(shard int) (bool, error) {
			if of[shard] == nil {
				return true, nil
			}
			fields := make([]string, len(of[shard]))
			for n, i := range of[shard] {
				fields[n] = fieldOf(keys[i])
			}
			found, f, ok, err := s.several(ctx, l.sites[shard], start.UnixMilli(), fields)
			if err != nil || !ok {
				return false, err
			}
			mu.Lock()
			defer mu.Unlock()
			said[shard] = f
			for n, i := range of[shard] {
				counts[i] = tumble.Count{Key: keys[i], Start: start, End: end, N: found[n], State: f.state(l.def, end.UnixMilli()), Term: f.term}
			}
			return true, nil
		})
		if err != nil || !ok {
			return false, err
		}
		return s.proves(ctx, l, said)
	})
	if s.assumes(err) {
		for i, key := range keys {
			if counts[i], err = s.emptyCount(key, at); err != nil {
				return nil, err
			}
		}
		return counts, nil
	}
	if err != nil {
		return nil, err
	}
	return counts, nil
}

// several returns the counts of fields in a window of one shard, and the finality that
// it had with them. It reports false if something was lost in between.
func (s *Sink) several(ctx context.Context, at site, window int64, fields []string) ([]int64, finality, bool, error) {
	n, err := buckets(s.client.DoCache(ctx, s.cached("HGET", bucketKey(at.data, window, 0), marker), s.cfg.CacheTTL).ToMessage())
	if err != nil {
		return nil, nothing, false, err
	}
	for range maxTries {
		of := make(map[uint32][]int) // indices of fields, by bucket
		commands := [][]string{{"HGET", bucketKey(at.data, window, 0), marker}}
		for i, field := range fields {
			bucket := bucketOf(hashOf(field), n)
			of[bucket] = append(of[bucket], i)
		}
		order := slices.Sorted(maps.Keys(of))
		for _, bucket := range order {
			command := []string{"HMGET", bucketKey(at.data, window, bucket)}
			for _, i := range of[bucket] {
				command = append(command, fields[i])
			}
			commands = append(commands, command)
		}
		f, answers, err := s.atomic(ctx, at, commands...)
		if err != nil {
			return nil, nothing, false, err
		}
		now, err := bucketsOf(answers[0])
		if err != nil {
			return nil, nothing, false, err
		}
		if now != n {
			n = now
			continue
		}
		counts := make([]int64, len(fields))
		for b, m := range answers[1:] {
			list, err := m.ToArray()
			if err != nil || len(list) != len(of[order[b]]) {
				return nil, nothing, false, errors.Join(err, errSyntax)
			}
			for j, i := range of[order[b]] {
				if counts[i], err = countOf(list[j]); err != nil {
					return nil, nothing, false, err
				}
			}
		}
		return counts, f, true, nil
	}
	return nil, nothing, false, nil
}

// Progress returns how far the partitions are counted. See [tumble.Reader].
func (s *Sink) Progress(ctx context.Context) (tumble.Progress, error) {
	shards, err := s.Positions(ctx)
	if err != nil || shards == nil {
		return tumble.Progress{}, err
	}
	return tumble.ProgressOf(shards), nil
}

// Positions returns the checkpoints that each shard holds, by partition. They are read
// shard by shard.
func (s *Sink) Positions(ctx context.Context) (shards []map[string]tumble.Checkpoint, err error) {
	err = s.stable(ctx, "progress", func(ctx context.Context, l *layout, _ int) (bool, error) {
		var cmds []rueidis.Completed
		for _, base := range l.bases {
			cmds = append(cmds, s.read("HGETALL", base+":checkpoints"))
		}
		shards = nil
		for _, answer := range s.client.DoMulti(ctx, cmds...) {
			records, err := answer.AsStrMap()
			if err != nil {
				return false, err
			}
			shard := make(map[string]tumble.Checkpoint, len(records))
			for id, record := range records {
				if shard[id], err = parseRecord(record); err != nil {
					return false, fmt.Errorf("the stored checkpoint of %s is %q: %w", id, record, err)
				}
			}
			shards = append(shards, shard)
		}
		return true, nil
	})
	if s.assumes(err) {
		_, err := s.assumed()
		return nil, err
	}
	return shards, err
}
