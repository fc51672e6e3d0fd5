package simulation

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// compare looks at what is left when all is over.
func (w *world) compare() {
	total := w.compareCounts()
	all := w.books()
	w.compareBooks(total, all)
	if w.kind == channels {
		return
	}
	w.compareCheckpoints()
	switch w.kind {
	case cuts:
		w.compareGone(total, all)
	case gaps:
		w.compareMissing(total, all)
	}
}

// compareCounts wants each count to be within its bounds, and returns their sum.
func (w *world) compareCounts() (total int64) {
	got := w.sink.Counts()
	low, high := w.bounds()
	cells := maps.Clone(high)
	maps.Copy(cells, got)
	for _, c := range slices.SortedFunc(maps.Keys(cells), func(a, b faketest.Cell) int {
		return cmp.Or(cmp.Compare(a.Level, b.Level), cmp.Compare(a.Start, b.Start), cmp.Compare(a.Key, b.Key))
	}) {
		if c.Level == 0 {
			total += got[c]
		}
		if got[c] < low[c] || got[c] > high[c] {
			w.fail("%s in window %v of level %d was counted %d times, not %d to %d", c.Key, time.Unix(0, c.Start).UTC(), c.Level, got[c], low[c], high[c])
		}
		w.compareLevels(int(tumble.Hash(c.Key)%uint64(w.shards)), c)
	}
	return total
}

// compareLevels wants a count of a roll-up to be the sum of its finest windows' counts, if
// all of these are kept.
func (w *world) compareLevels(shard int, c faketest.Cell) {
	if c.Level == 0 {
		return
	}
	sh := w.sink.Shards[shard]
	start, end := w.def.Levels()[c.Level].Window.Bounds(time.Unix(0, c.Start))
	if len(sh.Floors) > 0 && start.Before(sh.Floors[0]) {
		return
	}
	var sum int64
	for at := start; at.Before(end); at = at.Add(w.def.Window.Size) {
		sum += sh.Counts[faketest.CellAt(at, c.Key)]
	}
	if sh.Counts[c] != sum {
		w.fail("shard %d holds %d of %s in window %v of level %d, and %d in its finest windows", shard, sh.Counts[c], c.Key, start, c.Level, sum)
	}
}

// compareBooks wants the books of all processes to say what the store holds.
func (w *world) compareBooks(total int64, all tumble.Stats) {
	if w.lost || w.rivals {
		return // what was counted again is in two books, or in none
	}
	most := int64(1) // of an event
	if w.def.Sum {
		most = maxN
	}
	if n := total - all.Sum; w.def.Retention == 0 && (n < 0 || n > most*all.Pending) {
		w.fail("the sink holds %d, the books say %d, and %d events perhaps", total, all.Sum, all.Pending)
	}
	if !w.def.DropLate && w.final > most*(all.Late+all.Pending) {
		w.fail("%d were added to windows that were final, the books say %d events, and %d perhaps", w.final, all.Late, all.Pending)
	}
}

// compareCheckpoints wants every shard to stand at the end of every log.
func (w *world) compareCheckpoints() {
	for _, id := range w.ids {
		l := w.topic.Log(id)
		var top time.Time
		for _, e := range l.Events {
			if countable(e) && e.Time.After(top) && w.adds(e) > 0 {
				top = e.Time
			}
		}
		for i := range w.shards {
			c := w.sink.Stored(i, id)
			if c.Log != l.Name || c.Offset != l.End || c.Ended && !w.ended[id] || w.kind != gaps && c.Origin != w.sink.Stored(0, id).Origin {
				w.fail("shard %d holds %s at %v, the first has %v, the end is %d of %s", i, id, c, w.sink.Stored(0, id), l.End, l.Name)
			}
			if w.kind == judged && !c.Watermark.Equal(top) {
				w.fail("shard %d holds %s at %v, the watermark is %v", i, id, c, top)
			}
		}
	}
}

// compareGone wants no more to be counted twice, or of what is gone, than the
// books say.
func (w *world) compareGone(total int64, all tumble.Stats) {
	for _, e := range w.sent {
		if !e.gone && countable(e.Event) {
			total--
		}
	}
	if total > all.Lost {
		w.fail("%d events are counted that no log holds, the books say %d offsets at most", total, all.Lost)
	}
}

// compareMissing wants no more to be missing than the books say.
func (w *world) compareMissing(total int64, all tumble.Stats) {
	if slices.ContainsFunc(w.ids, func(id string) bool { return w.topic.Log(id).Name != "log-1" }) {
		return // recreated
	}
	missing := -total
	for _, e := range w.sent {
		origin := int64(0) // what was deleted before counting began is not lost
		for i := range w.shards {
			origin = max(origin, w.sink.Stored(i, e.id).Origin)
		}
		if countable(e.Event) && e.Offset >= origin {
			missing++
		}
	}
	if missing > all.Lost {
		w.fail("%d events are missing, the books say that %d were lost at most", missing, all.Lost)
	}
}

// bounds is the model: how often a plain loop over the log counts each key and
// window, at least and at most.
func (w *world) bounds() (low, high map[faketest.Cell]int64) {
	low, high = map[faketest.Cell]int64{}, map[faketest.Cell]int64{}
	marks := map[string]time.Time{}
	top := w.ceiling()
	floors := make([][]time.Time, w.shards)
	for i := range floors {
		floors[i] = w.sink.Snapshot(i).Floors
	}
	levels := w.def.Levels()
	for _, e := range w.sent {
		n := w.adds(e.Event)
		if !countable(e.Event) || n == 0 {
			continue
		}
		finest, end := w.def.Window.Bounds(e.Time)
		floors := floors[tumble.Hash(e.Key)%uint64(w.shards)]
		mark := marks[e.id]
		if e.Time.After(mark) {
			marks[e.id] = e.Time
		}
		for i, level := range levels {
			start, levelEnd := level.Window.Bounds(finest)
			expired := i < len(floors) && !levelEnd.After(floors[i])
			sure, perhaps := true, true
			switch w.kind {
			case judged:
				// A level that is past retention by the log alone is judged by the
				// shard, unless all are.
				closed := w.def.ClosedAt(mark)
				past, all := w.pastRetention(finest, closed)
				if w.differ {
					all = false // somebody may keep it for longer
				}
				if w.def.State(closed, time.Time{}, end) == tumble.Final || all || expired {
					sure, perhaps = false, false
				} else if past[i] {
					sure = false
				}
			case promised:
				_, initial := w.first[e.id]
				late := !initial || !top(e).Before(end.Add(w.def.Grace))
				sure = !late && !expired
				perhaps = !expired
			case gaps:
				l := w.topic.Log(e.id)
				sure = e.log == l.Name && e.Offset >= l.First
			case channels:
				sure = !w.lossy[e.id] && !w.lost && !w.def.DropLate
			case cuts:
				sure = !e.gone
			case latest:
				perhaps = e.Offset >= w.sink.Stored(0, e.id).Origin
				sure = perhaps
			}
			c := faketest.Cell{Start: start.UnixNano(), Key: e.Key, Level: i}
			if sure {
				low[c] += n
			}
			if perhaps {
				high[c] += n
			}
		}
	}
	return low, high
}

// longestKey is the length of the longest key that is counted, by default.
const longestKey = 1024

// countable reports whether an event is not rejected.
func countable(e tumble.Event) bool { return !e.Time.IsZero() && len(e.Key) <= longestKey }

// adds returns what an event adds to its key.
func (w *world) adds(e tumble.Event) int64 {
	if w.def.Sum {
		return e.N
	}
	return 1
}

// pastRetention returns the levels whose windows of a finest one are past retention, and
// whether all of them are.
func (w *world) pastRetention(finest, closed time.Time) (past []bool, all bool) {
	all = true
	for i, level := range w.def.Levels() {
		_, end := level.Window.Bounds(finest)
		def := w.def.Level(i)
		past = append(past, def.State(closed, def.FloorAt(closed), end) == tumble.Expired)
		all = all && past[i]
	}
	return past, all
}

// ceiling returns a function to what no watermark can have passed when an event
// was written: a watermark is an event's time and what promises add, which do
// not move faster than the clock, nor beyond it.
func (w *world) ceiling() func(writtenEvent) time.Time {
	over := make([]time.Duration, len(w.sent)) // most by which an event so far was ahead of the clock
	index := map[time.Time]int{}
	for i, e := range w.sent {
		if i > 0 {
			over[i] = over[i-1]
		}
		if d := e.Time.Sub(e.at); !e.Time.IsZero() && d < maxAhead+30*time.Minute {
			over[i] = max(over[i], d)
		}
		index[e.at] = i
	}
	return func(e writtenEvent) time.Time { return e.at.Add(over[index[e.at]]) }
}
