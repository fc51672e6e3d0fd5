package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

// How a read keeps its promises with a cache in between: all keys of a shard
// are in one slot, for which the client has one connection and one cache. The
// server's notices that a key has changed come over that connection, in order
// with the replies. So what a lookup gives, from the cache or not, is what the
// server held at some moment, and of two lookups, one after the other, the
// second gives that of a moment no earlier. A count that is looked up after its
// window was seen to be final is therefore not older than that, and if then
// finality does not say that the window is past retention, it had not been
// deleted when the count was read. Should all be lost and written again in
// between, the id in the finality key is another one.

const (
	// maxTries bounds how often a read begins anew because the layout changed.
	maxTries = 20
	// pageOfWindows is how many windows Range reads at a time.
	pageOfWindows = 512
)

var errUnstable = errors.New("what is stored was replaced while it was read")

// Definition returns what the counts mean; see [tumble.Reader].
func (s *Sink) Definition(ctx context.Context) (tumble.Definition, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	l, err := s.layout(ctx)
	if err != nil {
		return tumble.Definition{}, err
	}
	return l.def, nil
}

// Count returns the count of key in the window that holds at, which must be in
// [1700, 2200); see [tumble.Reader].
func (s *Sink) Count(ctx context.Context, key string, at time.Time) (tumble.Count, error) {
	var count tumble.Count
	err := s.stable(ctx, "count", func(ctx context.Context, l *layout) (bool, error) {
		start, _, err := bounds(l.def, at)
		if err != nil {
			return false, err
		}
		base := l.bases[tumble.Hash(key)%uint64(l.shards)]
		before, err := s.finality(ctx, base)
		if err != nil || before.shards != 0 && before.shards != l.shards {
			return false, err
		}
		ms := start.UnixMilli()
		n, err := s.lookup(ctx, base, ms, fieldOf(key))
		if err != nil {
			return false, err
		}
		count = tumble.Count{Key: key, Window: start, N: n, Final: ms < before.final}
		if !count.Final && l.def.Retention == 0 {
			return true, nil // it claims nothing
		}
		return s.judge(ctx, base, before, &count)
	})
	return count, err
}

// bounds returns the window that holds at.
func bounds(def tumble.Definition, at time.Time) (start, end time.Time, err error) {
	if at.Before(minEvent) || !at.Before(maxEvent) {
		return start, end, fmt.Errorf("no window holds %v: counted are the years 1700 to 2199", at)
	}
	start, end = def.Window.Bounds(at)
	return start, end, nil
}

// stable calls read with the layout until it says that what it read is of one
// piece.
func (s *Sink) stable(ctx context.Context, what string, read func(context.Context, *layout) (bool, error)) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	l, err := s.layout(ctx)
	for try := 0; err == nil && try < maxTries; try++ {
		ok, err := read(ctx, l)
		if err != nil {
			return fmt.Errorf("redis: %s: %s: %w", s.cfg.Name, what, s.explain(ctx, err))
		}
		if ok {
			return nil
		}
		// The notice that the layout has changed comes over a connection of its
		// own, so do not ask the cache again.
		if l, err = s.readLayout(ctx); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("redis: %s: %s: %w", s.cfg.Name, what, errUnstable)
}

// judge completes counts that have been read since before, all of one shard. It
// reports false if they must be read again.
func (s *Sink) judge(ctx context.Context, base string, before closed, counts ...*tumble.Count) (bool, error) {
	after, err := s.finality(ctx, base)
	if err != nil || after.id != before.id {
		return false, err
	}
	for _, c := range counts {
		c.Expired = c.Window.UnixMilli() < after.expired
		c.Final = c.Final && !c.Expired
	}
	return true, nil
}

// finality returns what the shard says of its windows.
func (s *Sink) finality(ctx context.Context, base string) (closed, error) {
	text, err := s.client.DoCache(ctx, s.cached("GET", base+":finality"), s.cfg.CacheTTL).ToString()
	if err != nil && !rueidis.IsRedisNil(err) {
		return closed{}, err
	}
	return parseClosed(text)
}

// lookup returns the count of a field in a window.
func (s *Sink) lookup(ctx context.Context, base string, window int64, field string) (int64, error) {
	n, err := buckets(s.client.DoCache(ctx, s.cached("HGET", bucketKey(base, window, 0), marker), s.cfg.CacheTTL).ToMessage())
	if err != nil {
		return 0, err
	}
	hash := hashOf(field)
	for {
		i := bucketOf(hash, n)
		pair, err := s.client.DoCache(ctx, s.cached("HMGET", bucketKey(base, window, i), field, marker), s.cfg.CacheTTL).ToArray()
		if err != nil {
			return 0, err
		}
		count, now, err := parsePair(pair)
		if err != nil {
			return 0, err
		}
		// The bucket may have been split since n was read, and the field be in
		// one that came of it. The bucket itself says so.
		if now <= n || bucketOf(hash, now) == i {
			return count, nil
		}
		n = now
	}
}

// buckets parses a marker. A window without one has one bucket.
func buckets(m rueidis.RedisMessage, err error) (uint32, error) {
	if rueidis.IsRedisNil(err) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	text, err := m.ToString()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("a number of buckets is %q: %w", text, errSyntax)
	}
	return uint32(n), nil
}

// parsePair parses a count and a marker, both of which may be missing: 0.
func parsePair(pair []rueidis.RedisMessage) (count int64, n uint32, err error) {
	if len(pair) != 2 {
		return 0, 0, errSyntax
	}
	if !pair[0].IsNil() {
		if count, err = parseCount(pair[0]); err != nil {
			return 0, 0, err
		}
	}
	if !pair[1].IsNil() {
		n, err = buckets(pair[1], nil)
	}
	return count, n, err
}

func parseCount(m rueidis.RedisMessage) (int64, error) {
	text, err := m.ToString()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("a count is %.80q: %w", text, errSyntax)
	}
	return n, nil
}

// Range returns the counts of key, those above 0, in the windows whose start is
// in [from, to), ascending; see [tumble.Reader].
func (s *Sink) Range(ctx context.Context, key string, from, to time.Time) ([]tumble.Count, error) {
	var counts []tumble.Count
	err := s.stable(ctx, "range", func(ctx context.Context, l *layout) (bool, error) {
		counts = nil
		base := l.bases[tumble.Hash(key)%uint64(l.shards)]
		before, err := s.finality(ctx, base)
		if err != nil || before.shards != 0 && before.shards != l.shards {
			return false, err
		}
		starts, err := s.windows(ctx, l.def.Window, base, from, to)
		if err != nil {
			return false, err
		}
		field := fieldOf(key)
		for part := range slices.Chunk(starts, pageOfWindows) {
			ns, err := s.lookups(ctx, base, part, field)
			if err != nil {
				return false, err
			}
			for i, n := range ns {
				if n > 0 {
					counts = append(counts, tumble.Count{
						Key: key, Window: time.UnixMilli(part[i]).UTC(), N: n, Final: part[i] < before.final,
					})
				}
			}
		}
		pointers := make([]*tumble.Count, len(counts))
		for i := range counts {
			pointers[i] = &counts[i]
		}
		return s.judge(ctx, base, before, pointers...)
	})
	if err != nil {
		return nil, err
	}
	return counts, nil
}

// windows returns the starts in [from, to) at which there may be a window: all
// of them if they are few, which asks no server, else those that the shard
// knows.
func (s *Sink) windows(ctx context.Context, w tumble.Window, base string, from, to time.Time) ([]int64, error) {
	if from.Before(minEvent) {
		from, _ = w.Bounds(minEvent) // the window that holds it may begin before
	}
	if !to.Before(maxEvent) {
		to = maxEvent
	}
	var starts []int64
	for at := from; at.Before(to); {
		start, end := w.Bounds(at)
		if !start.Before(from) {
			starts = append(starts, start.UnixMilli())
		}
		if len(starts) > pageOfWindows {
			return s.index(ctx, base, from, to)
		}
		at = end
	}
	return starts, nil
}

// index returns the starts in [from, to) of the windows that the shard holds.
func (s *Sink) index(ctx context.Context, base string, from, to time.Time) ([]int64, error) {
	// Starts are whole milliseconds: those before to are before to rounded up.
	low, high := ceilMilli(from), ceilMilli(to)
	var starts []int64
	for {
		found, err := s.client.Do(ctx, s.read("ZRANGEBYSCORE", base+":windows",
			strconv.FormatInt(low, 10), "("+strconv.FormatInt(high, 10), "LIMIT", "0", "10000")).AsStrSlice()
		if err != nil {
			return nil, err
		}
		for _, text := range found {
			start, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("a window is %.80q: %w", text, errSyntax)
			}
			starts = append(starts, start)
		}
		if len(found) < 10000 {
			return starts, nil
		}
		low = starts[len(starts)-1] + 1
	}
}

func ceilMilli(t time.Time) int64 {
	ms := t.UnixMilli()
	if t.After(time.UnixMilli(ms)) {
		ms++
	}
	return ms
}

// lookups is lookup in many windows at once.
func (s *Sink) lookups(ctx context.Context, base string, windows []int64, field string) ([]int64, error) {
	cmds := make([]rueidis.CacheableTTL, 0, len(windows))
	for _, w := range windows {
		cmds = append(cmds, rueidis.CT(s.cached("HGET", bucketKey(base, w, 0), marker), s.cfg.CacheTTL))
	}
	ns := make([]uint32, len(windows))
	var err error
	for i, r := range s.client.DoMultiCache(ctx, cmds...) {
		if ns[i], err = buckets(r.ToMessage()); err != nil {
			return nil, err
		}
	}
	hash := hashOf(field)
	cmds = cmds[:0]
	for i, w := range windows {
		cmds = append(cmds, rueidis.CT(s.cached("HMGET", bucketKey(base, w, bucketOf(hash, ns[i])), field, marker), s.cfg.CacheTTL))
	}
	counts := make([]int64, len(windows))
	for i, r := range s.client.DoMultiCache(ctx, cmds...) {
		pair, err := r.ToArray()
		if err != nil {
			return nil, err
		}
		count, now, err := parsePair(pair)
		if err != nil {
			return nil, err
		}
		if now > ns[i] && bucketOf(hash, now) != bucketOf(hash, ns[i]) {
			if count, err = s.lookup(ctx, base, windows[i], field); err != nil {
				return nil, err
			}
		}
		counts[i] = count
	}
	return counts, nil
}
