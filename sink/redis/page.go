package redis

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

// bucketsAtOnce is how many buckets are asked for in one go: a few thousand
// counts, which hold up no other call for long.
const bucketsAtOnce = 64

// Top returns the n highest counts in the window that holds at, which must be
// in [1700, 2200); see [tumble.Reader]. It reads the whole window, piece by
// piece, and holds n counts and a piece of each shard.
func (s *Sink) Top(ctx context.Context, at time.Time, n int) (tumble.Page, error) {
	var page tumble.Page
	err := s.stable(ctx, "top", func(ctx context.Context, l *layout) (bool, error) {
		start, _, err := bounds(l.def, at)
		if err != nil {
			return false, err
		}
		ms := start.UnixMilli()
		before, err := s.finalities(ctx, l)
		if err != nil || before == nil {
			return false, err
		}
		best := highest{max: max(n, 0), at: make(map[string]int)}
		for _, base := range l.bases {
			for from := uint32(0); ; {
				next, err := s.readBuckets(ctx, base, ms, from, bucketsAtOnce, best.add)
				if err != nil {
					return false, err
				}
				if next == 0 {
					break
				}
				from = next
			}
		}
		page = tumble.Page{Counts: best.take(start)}
		return s.judgePage(ctx, l, before, ms, &page)
	})
	if err != nil {
		return tumble.Page{}, err
	}
	return page, nil
}

// Scan returns about limit of the counts in the window that holds at, which
// must be in [1700, 2200); see [tumble.Reader]. A page consists of whole
// buckets, of up to about a hundred counts each. While a window is written to,
// a key may come twice.
func (s *Sink) Scan(ctx context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	var page tumble.Page
	err := s.stable(ctx, "scan", func(ctx context.Context, l *layout) (bool, error) {
		start, _, err := bounds(l.def, at)
		if err != nil {
			return false, err
		}
		ms := start.UnixMilli()
		shard, bucket := 0, uint32(0)
		if cursor != "" {
			if shard, bucket, err = s.parseCursor(l, ms, cursor); err != nil {
				return false, err
			}
		}
		before, err := s.finalities(ctx, l)
		if err != nil || before == nil {
			return false, err
		}
		page = tumble.Page{}
		for limit := max(limit, 1); shard < l.shards; {
			if len(page.Counts) >= limit {
				page.Cursor = s.cursor(l, ms, shard, bucket)
				break
			}
			some := min(bucketsAtOnce, 1+(limit-len(page.Counts))/perBucket)
			next, err := s.readBuckets(ctx, l.bases[shard], ms, bucket, some, func(key string, n int64) {
				page.Counts = append(page.Counts, tumble.Count{Key: key, Window: start, N: n})
			})
			if err != nil {
				return false, err
			}
			if bucket = next; next == 0 {
				shard++
			}
		}
		return s.judgePage(ctx, l, before, ms, &page)
	})
	if err != nil {
		return tumble.Page{}, err
	}
	return page, nil
}

// finalities returns the finality of every shard, nil if one of them is of
// another layout. It does not ask the cache, which knows the shards as they
// were at different moments.
func (s *Sink) finalities(ctx context.Context, l *layout) ([]closed, error) {
	cmds := make([]rueidis.Completed, len(l.bases))
	for i, base := range l.bases {
		cmds[i] = s.read("GET", base+":finality")
	}
	all := make([]closed, len(l.bases))
	for i, r := range s.client.DoMulti(ctx, cmds...) {
		text, err := r.ToString()
		if err != nil && !rueidis.IsRedisNil(err) {
			return nil, err
		}
		if all[i], err = parseClosed(text); err != nil {
			return nil, err
		}
		if all[i].shards != 0 && all[i].shards != l.shards {
			return nil, nil
		}
	}
	return all, nil
}

// judgePage completes a page of counts that have been read since before. It
// reports false if they must be read again.
func (s *Sink) judgePage(ctx context.Context, l *layout, before []closed, window int64, page *tumble.Page) (bool, error) {
	after, err := s.finalities(ctx, l)
	if err != nil || after == nil {
		return false, err
	}
	page.Final = true
	for i := range before {
		if after[i].id != before[i].id {
			return false, nil
		}
		page.Final = page.Final && window < before[i].final
		page.Expired = page.Expired || window < after[i].expired
	}
	page.Final = page.Final && !page.Expired
	for i := range page.Counts {
		page.Counts[i].Final, page.Counts[i].Expired = page.Final, page.Expired
	}
	return true, nil
}

// readBuckets calls f for the counts in up to some buckets of a window, from
// one on, and returns the bucket to go on with, 0 at the end. Keys move only to
// higher buckets, so going up misses none, though one that moves meanwhile may
// come twice.
func (s *Sink) readBuckets(ctx context.Context, base string, window int64, from uint32, some int, f func(key string, n int64)) (uint32, error) {
	n, err := s.countBuckets(ctx, base, window)
	if err != nil || from >= n {
		return 0, err
	}
	to := min(n, from+uint32(some))
	cmds := make([]rueidis.Completed, 0, to-from)
	for i := from; i < to; i++ {
		cmds = append(cmds, s.read("HGETALL", bucketKey(base, window, i)))
	}
	for _, r := range s.client.DoMulti(ctx, cmds...) {
		counts, err := r.AsMap()
		if err != nil {
			return 0, err
		}
		for field, m := range counts {
			if field == marker {
				continue
			}
			n, err := parseCount(m)
			if err != nil {
				return 0, err
			}
			f(keyOf(field), n)
		}
	}
	if to < n {
		return to, nil
	}
	// Buckets that came while these were read hold what was moved out of them.
	if n, err = s.countBuckets(ctx, base, window); err != nil || to >= n {
		return 0, err
	}
	return to, nil
}

func (s *Sink) countBuckets(ctx context.Context, base string, window int64) (uint32, error) {
	return buckets(s.client.Do(ctx, s.read("HGET", bucketKey(base, window, 0), marker)).ToMessage())
}

// cursor returns the cursor of a page that begins at a bucket. Its last part
// tells a cursor from what somebody made up, or took from another window.
func (s *Sink) cursor(l *layout, window int64, shard int, bucket uint32) string {
	place := strconv.Itoa(shard) + "." + strconv.FormatUint(uint64(bucket), 10)
	sum := fnv.New32a()
	fmt.Fprint(sum, s.cfg.Name, "\x00", l.def, l.shards, window, " ", place)
	return fmt.Sprintf("%s.%08x", place, sum.Sum32())
}

func (s *Sink) parseCursor(l *layout, window int64, cursor string) (shard int, bucket uint32, err error) {
	parts := strings.SplitN(cursor, ".", 3)
	if len(parts) == 3 {
		shard, err1 := strconv.Atoi(parts[0])
		bucket, err2 := strconv.ParseUint(parts[1], 10, 32)
		if err1 == nil && err2 == nil && shard >= 0 && shard < l.shards &&
			cursor == s.cursor(l, window, shard, uint32(bucket)) {
			return shard, uint32(bucket), nil
		}
	}
	return 0, 0, fmt.Errorf("%.80q: %w", cursor, tumble.ErrCursor)
}

// highest collects the highest counts: a heap with the lowest of them on top.
type highest struct {
	max    int
	counts []tumble.Count
	at     map[string]int // where in counts a key is
}

// add takes a count. A key may come again, with a later count.
func (h *highest) add(key string, n int64) {
	c := tumble.Count{Key: key, N: n}
	switch i, ok := h.at[key]; {
	case ok:
		if n > h.counts[i].N {
			h.counts[i].N = n
			heap.Fix(h, i)
		}
	case len(h.counts) < h.max:
		heap.Push(h, c)
	case h.max > 0 && lower(h.counts[0], c):
		delete(h.at, h.counts[0].Key)
		h.counts[0], h.at[key] = c, 0
		heap.Fix(h, 0)
	}
}

// take returns the counts in order.
func (h *highest) take(window time.Time) []tumble.Count {
	slices.SortFunc(h.counts, func(a, b tumble.Count) int {
		return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Key, b.Key))
	})
	for i := range h.counts {
		h.counts[i].Window = window
	}
	return h.counts
}

// lower reports whether a comes after b among the highest.
func lower(a, b tumble.Count) bool { return a.N < b.N || a.N == b.N && a.Key > b.Key }

// heap.Interface

func (h *highest) Len() int           { return len(h.counts) }
func (h *highest) Less(i, j int) bool { return lower(h.counts[i], h.counts[j]) }

func (h *highest) Swap(i, j int) {
	h.counts[i], h.counts[j] = h.counts[j], h.counts[i]
	h.at[h.counts[i].Key], h.at[h.counts[j].Key] = i, j
}

func (h *highest) Push(x any) {
	c := x.(tumble.Count)
	h.at[c.Key] = len(h.counts)
	h.counts = append(h.counts, c)
}

func (h *highest) Pop() any { panic("redis: the highest counts are never fewer") }
