package redis

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

// A found window is one that a range may hold, with the key's count in it.
type found struct {
	start, end int64
	count      int64
	buckets    uint32
}

// Range returns the counts of key, those above 0, in the windows whose start is
// in [from, to), ascending. See [tumble.Reader]. Of the windows that it leaves
// out those that were closed, as far as the others say so, held no count.
func (s *Sink) Range(ctx context.Context, key string, from, to time.Time) ([]tumble.Count, error) {
	var counts []tumble.Count
	err := s.stable(ctx, "range", func(ctx context.Context, l *layout, try int) (bool, error) {
		shard, field := l.shardOf(key), fieldOf(key)
		read := s.cachedRange
		if try > 0 || s.doubts(ctx, l.sites[shard]) {
			read = s.exactRange
		}
		all, f, ok, err := read(ctx, l.def.Window, l.sites[shard], field, from, to)
		if err != nil || !ok {
			return false, err
		}
		counts = nil
		for _, w := range all {
			if w.count > 0 {
				counts = append(counts, tumble.Count{
					Key: key, Start: time.UnixMilli(w.start).UTC(), End: time.UnixMilli(w.end).UTC(), N: w.count,
					State: f.state(l.def, w.end), Term: f.term,
				})
			}
		}
		return s.proves(ctx, l, map[int]finality{shard: f})
	})
	if s.assumes(err) {
		_, err := s.assumed()
		return nil, err
	}
	if err != nil {
		return nil, err
	}
	return counts, nil
}

// cachedRange reads through the cache. The finality that it returns holds of all
// windows of the range, also of those that were found empty. It reports false if
// the range must be read again.
func (s *Sink) cachedRange(ctx context.Context, w tumble.Window, at site, field string, from, to time.Time) ([]found, finality, bool, error) {
	before, err := s.look(ctx, at)
	if err != nil {
		return nil, nothing, false, err
	}
	all, listed, ok, err := s.windows(ctx, w, at, from, to)
	if err != nil || !ok {
		return nil, nothing, false, err
	}
	cached := listed == nil
	for part := range slices.Chunk(all, pageOfWindows) {
		hit, err := s.lookups(ctx, at.data, part, field)
		if err != nil {
			return nil, nothing, false, err
		}
		cached = cached && hit
	}
	after, err := s.lookAgain(ctx, at, before, cached)
	if err != nil {
		return nil, nothing, false, err
	}
	f, ok := before.with(after)
	if !ok {
		return nil, nothing, false, nil
	}
	// Those that were found empty although they are closed.
	var empty []*found
	for i := range all {
		if all[i].count == 0 && all[i].end <= f.closed && all[i].end > f.floor {
			empty = append(empty, &all[i])
		}
	}
	f, ok, err = s.confirm(ctx, at, field, empty, f)
	return all, f, ok, err
}

// exactRange reads in transactions.
func (s *Sink) exactRange(ctx context.Context, w tumble.Window, at site, field string, from, to time.Time) ([]found, finality, bool, error) {
	all, listed, ok, err := s.windows(ctx, w, at, from, to)
	if err != nil || !ok {
		return nil, nothing, false, err
	}
	if listed == nil {
		f, _, err := s.atomic(ctx, at)
		if err != nil {
			return nil, nothing, false, err
		}
		listed = &f
	}
	each := make([]*found, len(all))
	for i := range all {
		each[i] = &all[i]
	}
	f, ok, err := s.confirm(ctx, at, field, each, *listed)
	return all, f, ok, err
}

// confirm reads windows in transactions, and returns the finality as far as it
// still holds.
func (s *Sink) confirm(ctx context.Context, at site, field string, windows []*found, f finality) (finality, bool, error) {
	for part := range slices.Chunk(windows, windowsAtOnce) {
		starts, guesses := make([]int64, len(part)), make([]uint32, len(part))
		for i, w := range part {
			starts[i], guesses[i] = w.start, max(w.buckets, 1)
		}
		counts, now, ok, err := s.exactly(ctx, at, starts, guesses, field)
		if err != nil || !ok {
			return nothing, false, err
		}
		if f, ok = f.with(now); !ok {
			return nothing, false, nil
		}
		for i, w := range part {
			w.count = counts[i]
		}
	}
	return f, true, nil
}

// windows returns the windows with a start in [from, to) that there may be: all
// of them if they are few, which asks no server, else those that the shard
// holds, and its finality when it listed them. It reports false if
// they must be listed again.
func (s *Sink) windows(ctx context.Context, w tumble.Window, at site, from, to time.Time) ([]found, *finality, bool, error) {
	if from.Before(minEvent) {
		if first, _ := w.Bounds(minEvent); from.Before(first) {
			from = first // the window that holds it may begin before
		}
	}
	if !to.Before(maxEvent) {
		to = maxEvent
	}
	var all []found
	for moment := from; moment.Before(to); {
		start, end := w.Bounds(moment)
		if !start.Before(from) {
			all = append(all, found{start: start.UnixMilli(), end: end.UnixMilli()})
		}
		if len(all) > pageOfWindows {
			return s.index(ctx, w, at, from, to)
		}
		moment = end
	}
	return all, nil, true, nil
}

// index returns the windows with a start in [from, to) that the shard holds.
func (s *Sink) index(ctx context.Context, w tumble.Window, at site, from, to time.Time) ([]found, *finality, bool, error) {
	const page = 10000
	// The set is in the order of ends. A window that begins at from or later
	// ends later, and so does none before to after that of the last.
	_, last := w.Bounds(to.Add(-1))
	low, high := from.UnixMilli(), last.UnixMilli()
	var all []found
	var listed *finality
	for {
		f, answers, err := s.atomic(ctx, at, []string{"ZRANGEBYSCORE", at.data + ":windows",
			"(" + strconv.FormatInt(low, 10), strconv.FormatInt(high, 10), "WITHSCORES", "LIMIT", "0", strconv.Itoa(page)})
		if err != nil {
			return nil, nil, false, err
		}
		if listed == nil {
			listed = &f
		} else if merged, ok := listed.with(f); ok {
			listed = &merged
		} else {
			return nil, nil, false, nil
		}
		stored, err := answers[0].AsZScores()
		if err != nil {
			return nil, nil, false, err
		}
		for _, z := range stored {
			start, err := strconv.ParseInt(z.Member, 10, 64)
			if err != nil || math.Abs(z.Score) > 1<<53 {
				return nil, nil, false, fmt.Errorf("a window is %.80q with score %v: %w", z.Member, z.Score, errSyntax)
			}
			low = int64(z.Score)
			if t := time.UnixMilli(start); !t.Before(from) && t.Before(to) {
				all = append(all, found{start: start, end: low})
			}
		}
		if len(stored) < page {
			return all, listed, true, nil
		}
	}
}

// lookups is lookup in many windows at once. It reports whether the cache had
// everything.
func (s *Sink) lookups(ctx context.Context, data string, windows []found, field string) (cached bool, err error) {
	if len(windows) == 0 {
		return true, nil
	}
	cached = true
	cmds := make([]rueidis.CacheableTTL, 0, len(windows))
	for i := range windows {
		cmds = append(cmds, rueidis.CT(s.cached("HGET", bucketKey(data, windows[i].start, 0), marker), s.cfg.CacheTTL))
	}
	for i, r := range s.client.DoMultiCache(ctx, cmds...) {
		if windows[i].buckets, err = buckets(r.ToMessage()); err != nil {
			return false, err
		}
		cached = cached && r.IsCacheHit()
	}
	hash := hashOf(field)
	cmds = cmds[:0]
	for i := range windows {
		w := &windows[i]
		cmds = append(cmds, rueidis.CT(s.cached("HMGET", bucketKey(data, w.start, bucketOf(hash, w.buckets)), field, marker), s.cfg.CacheTTL))
	}
	for i, r := range s.client.DoMultiCache(ctx, cmds...) {
		w := &windows[i]
		pair, err := r.ToArray()
		if err != nil {
			return false, err
		}
		cached = cached && r.IsCacheHit()
		var now uint32
		if w.count, now, err = parsePair(pair); err != nil {
			return false, err
		}
		if now > w.buckets && bucketOf(hash, now) != bucketOf(hash, w.buckets) {
			var hit bool
			if w.count, w.buckets, hit, err = s.lookup(ctx, data, w.start, field); err != nil {
				return false, err
			}
			cached = cached && hit
		}
	}
	return cached, nil
}
