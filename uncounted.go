package tumble

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/tumblestream/tumble/internal/rarely"
)

// Windows wait for every partition of the sink, whoever counts it. One whose process
// is gone holds them open without an error anywhere, so every process looks out for
// the partitions of the others.

// uncountedAfter is how long a partition must have stood still while windows waited
// for it. It is longer than a group takes to give a dead member's partitions away.
const uncountedAfter = time.Minute

// A lookout watches the partitions that other processes count, as polls find them.
// Pipeline.mu guards it.
type lookout struct {
	spans  spans
	idle   time.Duration
	others map[string]*other
	line   rarely.Line
}

// An other is a partition that this process does not count.
type other struct {
	at    []standing // by shard
	since time.Time  // when it moved last, or was seen first
	told  bool       // the log says that nobody counts it
}

type standing struct {
	seen   bool
	offset int64
	mark   mark
	ended  bool
}

func newLookout(def Definition, idle time.Duration) lookout {
	return lookout{spans: newSpans(def), idle: idle, others: map[string]*other{}}
}

// see takes in what a poll found in one of n shards. mine are this process's.
func (l *lookout) see(shard, n int, found map[string]Checkpoint, mine map[string]struct{}, now time.Time) {
	maps.DeleteFunc(l.others, func(id string, _ *other) bool {
		_, counts := mine[id]
		_, known := found[id]
		return counts || !known
	})
	for id, c := range found {
		if _, counts := mine[id]; counts {
			continue
		}
		o := l.others[id]
		if o == nil {
			o = &other{at: make([]standing, n), since: now}
			l.others[id] = o
		}
		at := standing{true, c.Offset, markOf(c.Watermark), c.Ended}
		if o.at[shard] != at {
			o.at[shard], o.since = at, now
		}
	}
}

// uncounted returns the partitions that nobody counts, although the watermarks of
// others have reached top and windows wait for them. news are those that the log
// does not know of yet.
func (l *lookout) uncounted(top mark, now time.Time) (all []PartitionStats, news []string) {
	if l.idle < 0 || !top.ok { // a partition that is read, and silent, stands still
		return nil, nil
	}
	// Who counts a silent partition has moved its watermark this far.
	due := min(top.ns, now.UnixNano()) - int64(l.idle) - int64(uncountedAfter)
	for id, o := range l.others {
		if now.Sub(o.since) < uncountedAfter || !l.holds(o, due) {
			o.told = false
			continue
		}
		s := PartitionStats{ID: id, Offset: math.MaxInt64, End: -1, Uncounted: true}
		low := o.at[0].mark
		for _, at := range o.at {
			s.Offset, low = min(s.Offset, at.offset), earlier(low, at.mark)
		}
		s.Committed, s.Watermark = s.Offset, low.time()
		all = append(all, s)
		if !o.told {
			news = append(news, id)
		}
	}
	slices.SortFunc(all, func(a, b PartitionStats) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(news)
	return all, news
}

// holds reports whether o keeps a window open that would close if o's watermark were due.
func (l *lookout) holds(o *other, due int64) bool {
	if slices.ContainsFunc(o.at, func(at standing) bool { return !at.seen }) {
		return false // a shard has not answered yet
	}
	return slices.ContainsFunc(o.at, func(at standing) bool {
		return !at.ended && (!at.mark.ok || due >= l.spans.of(at.mark.ns-int64(l.spans.def.Grace)).closed)
	})
}

// noteOthers notes what a poll of a shard found of other processes' partitions, and says
// which of them nobody counts. p.mu is held.
func (p *Pipeline) noteOthers(shard int, found map[string]Checkpoint) {
	mine, now := map[string]struct{}{}, time.Now()
	for c := range p.consumers {
		mine[c.id] = struct{}{}
	}
	p.lookout.see(shard, len(p.shards), found, mine, now)
	if shard > 0 {
		return
	}
	all, news := p.lookout.uncounted(p.topLocked(), now)
	p.books.others(all)
	if len(news) == 0 {
		return
	}
	if _, ok := p.lookout.line.Now(); ok {
		for _, id := range news {
			p.lookout.others[id].told = true
		}
		p.cfg.Logger.Warn("nobody counts these partitions, or who has them cannot, and windows wait for them", "partitions", news[:min(10, len(news))], "number", len(news), "since", uncountedAfter)
	}
}
