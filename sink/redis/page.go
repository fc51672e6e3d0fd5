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

// firstBuckets is how many are asked for while nobody knows how many there are.
const firstBuckets = 8

// Top returns the n highest counts in the window that holds at. See [tumble.Reader].
// It reads the whole window, piece by piece, and holds n counts and a piece of each
// shard.
func (s *Sink) Top(ctx context.Context, at time.Time, n int) (tumble.Page, error) {
	var page tumble.Page
	err := s.stable(ctx, "top", func(ctx context.Context, l *layout, _ int) (bool, error) {
		r, err := s.newPage(l, at)
		if err != nil {
			return false, err
		}
		best := highest{max: max(n, 0), at: make(map[string]int)}
		for shard := range l.bases {
			for from := uint32(0); ; {
				next, ok, err := r.read(ctx, shard, from, bucketsAtOnce, best.add)
				if err != nil || !ok {
					return false, err
				}
				if next == 0 {
					break
				}
				from = next
			}
		}
		page, err = r.finish(ctx, best.take())
		return err == nil && r.of, err
	})
	if s.assumes(err) {
		return s.emptyPage(at, "")
	}
	if err != nil {
		return tumble.Page{}, err
	}
	return page, nil
}

// Scan returns about limit of the counts in the window that holds at. See
// [tumble.Reader]. A page consists of whole buckets, of up to about a hundred counts
// each. While a window is written to, a key may come twice.
func (s *Sink) Scan(ctx context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	var page tumble.Page
	err := s.stable(ctx, "scan", func(ctx context.Context, l *layout, _ int) (bool, error) {
		r, err := s.newPage(l, at)
		if err != nil {
			return false, err
		}
		shard, bucket := 0, uint32(0)
		if cursor != "" {
			if shard, bucket, err = s.parseCursor(l, r.window, cursor); err != nil {
				return false, err
			}
		}
		var counts []tumble.Count
		next := ""
		for limit := max(limit, 1); shard < l.shards; {
			if len(counts) >= limit {
				next = s.cursor(l, r.window, shard, bucket)
				break
			}
			some := min(bucketsAtOnce, 1+(limit-len(counts))/perBucket)
			to, ok, err := r.read(ctx, shard, bucket, some, func(c tumble.Count) { counts = append(counts, c) })
			if err != nil || !ok {
				return false, err
			}
			if bucket = to; to == 0 {
				shard++
			}
		}
		page, err = r.finish(ctx, counts)
		page.Cursor = next
		return err == nil && r.of, err
	})
	if s.assumes(err) {
		return s.emptyPage(at, cursor)
	}
	if err != nil {
		return tumble.Page{}, err
	}
	return page, nil
}

// pageReader reads a part of a window. Each piece is read together with what its
// shard says of finality at this moment, and judged by that alone.
type pageReader struct {
	sink       *Sink
	layout     *layout
	start, end time.Time
	window     int64
	said       map[int]finality // by shards that have been read
	buckets    map[int]uint32   // that the window has in a shard
	of         bool             // the page is of the layout
}

func (s *Sink) newPage(l *layout, at time.Time) (*pageReader, error) {
	start, end, err := l.def.Window.Find(at)
	return &pageReader{
		sink: s, layout: l, start: start, end: end, window: start.UnixMilli(),
		said: make(map[int]finality), buckets: make(map[int]uint32),
	}, err
}

// read calls f for the counts in up to some buckets of a shard, from one on, and
// returns the bucket to go on with, 0 at the end. Keys move only to higher
// buckets, so going up misses none, though one that moves meanwhile may come
// twice. It reports false if the shard fell back since the last piece, and may
// have keys in lower buckets again.
func (r *pageReader) read(ctx context.Context, shard int, from uint32, some int, f func(tumble.Count)) (uint32, bool, error) {
	at := r.layout.sites[shard]
	had := r.buckets[shard]
	if had == 0 {
		some = min(some, firstBuckets)
	} else {
		some = min(some, int(had-from))
	}
	commands := [][]string{{"HGET", bucketKey(at.data, r.window, 0), marker}}
	for i := range some {
		commands = append(commands, []string{"HGETALL", bucketKey(at.data, r.window, from+uint32(i))})
	}
	said, answers, err := r.sink.atomic(ctx, at, commands...)
	if err != nil {
		return 0, false, err
	}
	n, err := bucketsOf(answers[0])
	if err != nil {
		return 0, false, err
	}
	if before, ok := r.said[shard]; ok {
		// That the window was closed under another term would be all right, but
		// not that it was put together of two histories.
		if said, ok = before.with(said); !ok || n < had {
			return 0, false, nil
		}
	}
	r.said[shard], r.buckets[shard] = said, n
	for _, m := range answers[1:] {
		counts, err := m.AsMap()
		if err != nil {
			return 0, false, err
		}
		for field, m := range counts {
			if field == marker {
				continue
			}
			n, err := countOf(m)
			if err != nil {
				return 0, false, err
			}
			f(tumble.Count{Key: keyOf(field), N: n, Term: said.term})
		}
	}
	if to := from + uint32(some); to < n {
		return to, true, nil
	}
	return 0, true, nil
}

// finish returns the page with counts. The shards that none of them is of have a
// say in the state of the window, as they are now.
func (r *pageReader) finish(ctx context.Context, counts []tumble.Count) (tumble.Page, error) {
	var shards []int
	var cmds []rueidis.Completed
	for shard, base := range r.layout.bases {
		if _, ok := r.said[shard]; !ok {
			shards = append(shards, shard)
			cmds = append(cmds, r.sink.read("GET", base+":finality"))
		}
	}
	if len(cmds) > 0 {
		for i, answer := range r.sink.client.DoMulti(ctx, cmds...) {
			f, err := finalityOf(answer.ToString())
			if err != nil {
				return tumble.Page{}, err
			}
			r.said[shards[i]] = f.at(r.layout.sites[shards[i]].level)
		}
	}
	var err error
	if r.of, err = r.sink.proves(ctx, r.layout, r.said); err != nil || !r.of {
		return tumble.Page{}, err
	}
	all := together(r.layout, r.said)
	page := tumble.Page{Start: r.start, End: r.end, Counts: counts, State: all.state(r.layout.def, r.end.UnixMilli()), Term: all.term}
	for i := range counts {
		counts[i].Start, counts[i].End, counts[i].State = page.Start, page.End, page.State
	}
	return page, nil
}

// cursor returns the cursor of a page that begins at a bucket. Its last part
// tells a cursor from what somebody made up, or took from another window.
func (s *Sink) cursor(l *layout, window int64, shard int, bucket uint32) string {
	place := strconv.Itoa(shard) + "." + strconv.FormatUint(uint64(bucket), 10)
	sum := fnv.New32a()
	def := l.def
	def.Retention = 0 // may change while somebody scans
	fmt.Fprint(sum, s.cfg.Name, "\x00", def, l.shards, window, " ", place)
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
func (h *highest) add(c tumble.Count) {
	switch i, ok := h.at[c.Key]; {
	case ok:
		if c.N > h.counts[i].N {
			h.counts[i] = c
			heap.Fix(h, i)
		}
	case len(h.counts) < h.max:
		heap.Push(h, c)
	case h.max > 0 && lower(h.counts[0], c):
		delete(h.at, h.counts[0].Key)
		h.counts[0], h.at[c.Key] = c, 0
		heap.Fix(h, 0)
	}
}

// take returns the counts in order.
func (h *highest) take() []tumble.Count {
	slices.SortFunc(h.counts, func(a, b tumble.Count) int {
		return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Key, b.Key))
	})
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
