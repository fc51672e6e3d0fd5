package tumble

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	sealAt     = 1000            // increments of a batch. Scripts gain nothing above it
	sealBytes  = 192 << 10       // bytes of its keys. They are what a script takes long for
	sealBusy   = 3               // times as much goes into a batch while the lane's last one is outstanding
	lagLimit   = 10_000          // offsets that a quiet lane's checkpoint may lag
	quietEvery = 5 * time.Second // a quiet lane writes its checkpoint at least so often
)

// An aggregator counts the events of one partition into lanes, one for each
// shard. It does no I/O and has no goroutine: the partition's feeds it Chunks
// and takes parcels from its lanes.
type aggregator struct {
	id      string // of the partition
	def     Definition
	lanes   []*lane
	table   table
	spans   spans
	rollups rollups

	pos   int64   // the next offset: all before it are in some lane
	epoch int32   // of the record before pos
	wm    mark    // watermark by which events at pos are judged
	ahead []*lane // those that have seen pos, by next
	limit mark    // smallest of their marks: no event's time moves wm beyond it
	calm  calm
	early mark // largest event time that was too far ahead to move wm
	ended bool // there is nothing beyond pos, and never will be

	stale    bool    // reading is further than some checkpoint
	full     []*lane // perhaps to be sealed at the end of the record
	doubtful []*lane // may have read records that have been truncated since, see pass
	free     [][]Delta
	closings spans // like spans, for watermarks

	onLate   func(Late)   // may be nil
	onReject func(*Event) // an event whose time, key or N is not usable
	longest  int          // key
}

// calm is a row of Chunks that bring no event and find the partition caught up.
type calm struct {
	since time.Time // AsOf of the first, zero if there is no row
	wm    mark      // as the row began
}

func newAggregator(id string, def Definition, shards int) *aggregator {
	a := &aggregator{
		id: id, def: def, longest: def.Longest(), table: newTable(shards, 1+len(def.Rollups)),
		spans: newSpans(def), closings: newSpans(Definition{Window: def.Window, Grace: def.Grace}), rollups: newRollups(def),
	}
	for i := range shards {
		a.lanes = append(a.lanes, &lane{index: i, floors: make([]int64, 1+len(def.Rollups)), open: &a.table.open[i]})
		a.lanes[i].fell()
	}
	return a
}

// A chunkTally counts the events of one chunk that are booked at once. All others
// are in the tallies of their batches.
type chunkTally struct {
	replayed int64
	held     held
}

// place puts a lane to where a shard's checkpoint is stored, and lets it go on at
// next, judged by at least m. A step that is not the stored checkpoint is sent
// before anything is counted.
func (a *aggregator) place(ln *lane, stored, step Checkpoint, next Position, m mark, k kept) {
	ln.sealed, ln.wrote, ln.due = stored, time.Now(), false
	if !step.Same(stored) {
		a.seal(ln, step)
	}
	ln.ahead, ln.next, ln.mark, ln.vouched = true, next, m, true
	ln.fell()
	a.learn(ln, k)
}

// learn takes note of what a lane's shard keeps. Where another process keeps windows for
// longer, events are left out by its retention, too, but only once all shards say so:
// what is booked as counted must not be past retention in any of them.
func (a *aggregator) learn(ln *lane, k kept) {
	ln.raise(k.floors)
	if slices.Equal(ln.retentions, k.retentions) {
		return
	}
	ln.retentions = k.retentions
	levels := a.def.Levels()
	for i := range levels {
		own := levels[i].Retention
		levels[i].Retention = a.lanes[0].keeps(i, own)
		for _, ln := range a.lanes[1:] {
			levels[i].Retention = shorter(levels[i].Retention, ln.keeps(i, own))
		}
	}
	a.spans = spans{def: a.def, levels: levels}
}

// keepPlaces lets every lane keep its place while reading goes back for some.
func (a *aggregator) keepPlaces() {
	for _, ln := range a.lanes {
		if !ln.ahead {
			ln.ahead, ln.next, ln.mark = true, Position{a.pos, a.epoch}, a.wm
		}
	}
}

// rewind goes back to the lane that is furthest behind. Lanes keep their batches and
// marks. The watermark of the reading so far is forgotten, and its calm: it takes over
// the marks of the lanes as it passes them.
func (a *aggregator) rewind() {
	a.ahead = slices.Clone(a.lanes)
	slices.SortFunc(a.ahead, func(a, b *lane) int { return cmp.Compare(a.next.Offset, b.next.Offset) })
	a.wm = mark{}
	a.calm = calm{}
	a.stale = true
	a.pos, a.epoch = a.ahead[0].next.Offset, a.ahead[0].next.Epoch
	a.pass()
	for _, ln := range a.lanes {
		ln.vouched = false
	}
}

// pass joins the lanes that pos has reached to reading. One that came there in
// another epoch may have read records that were truncated since: it stays ahead,
// and is doubtful until the source has been asked.
func (a *aggregator) pass() {
	for len(a.ahead) > 0 && a.ahead[0].next.Offset <= a.pos {
		ln := a.ahead[0]
		a.ahead = a.ahead[1:]
		a.wm = later(a.wm, ln.mark)
		if !ln.vouched && ln.next.Epoch != a.epoch && ln.next.Epoch >= 0 && a.epoch >= 0 {
			a.doubtful = append(a.doubtful, ln)
			continue
		}
		ln.ahead = false
	}
	// Epochs only rise along a log. If reading is in a later one than a lane that is
	// ahead, what that lane read was replaced since.
	a.ahead = slices.DeleteFunc(a.ahead, func(ln *lane) bool {
		replaced := !ln.vouched && ln.next.Epoch >= 0 && ln.next.Epoch < a.epoch
		if replaced {
			a.doubtful = append(a.doubtful, ln)
		}
		return replaced
	})
	for i, ln := range a.ahead {
		if i == 0 {
			a.limit = ln.mark
		} else {
			a.limit = earlier(a.limit, ln.mark)
		}
	}
}

// count adds a chunk's events to their lanes. Times beyond soonest do not move
// the watermark. An error is the source's fault.
func (a *aggregator) count(ch Chunk, soonest int64) (r chunkTally, err error) {
	pos, wm := a.pos, a.wm
	at := int64(-1)
	for i := range ch.Events {
		if i%atOnce == 0 {
			a.table.prefetch(ch.Events[i:min(i+atOnce, len(ch.Events))])
		}
		ev := &ch.Events[i]
		if ev.Offset != at {
			if at = ev.Offset; at < a.pos || at >= ch.Next {
				return r, fmt.Errorf("tumble: fetch %s@%d: the source returned offset %d in a chunk from %d to %d", a.id, pos, at, a.pos, ch.Next)
			}
			if a.pos = at; at > pos {
				a.epoch = ch.Epoch
			}
			if len(a.full) > 0 {
				a.sealFull()
			}
			if len(a.ahead) > 0 {
				a.pass()
			}
		}
		ns, ok := nanos(ev.Time)
		n := int64(1)
		if a.def.Sum {
			n = ev.N
		} else if ev.N != 0 {
			return r, fmt.Errorf("tumble: fetch %s@%d: the source returned an event with N = %d, which goes with Config.Sum only", a.id, ev.Offset, ev.N)
		}
		if !ok || len(ev.Key) > a.longest || uint64(n-1) >= MaxCount {
			a.leaveOut(ev, n == 0 && ok && len(ev.Key) <= a.longest, &r)
			continue
		}
		sp := a.spans.of(ns)
		e := a.table.find(a.table.hashes[i%atOnce], ev.Key)
		ln := a.lanes[e.lane]
		if ln.ahead {
			r.replayed++
		} else if !a.wm.passed(sp.closed) || a.late(ln, ev, sp) {
			fresh, ok := ln.open.add(e, sp.start, n)
			if !ok {
				return r, fmt.Errorf("tumble: count %s@%d: %w: of %.80q in the window from %s to %s", a.id, ev.Offset, ErrOverflow,
					ev.Key, formatTime(sp.start), formatTime(sp.end))
			}
			if fresh {
				r.held.increments++
				r.held.bytes += int64(len(e.key))
				if ln.open.fills() {
					a.full = append(a.full, ln)
				}
			}
			ln.tally.counted++
			if ns > soonest {
				ln.tally.ahead++
				a.early = later(a.early, mark{ns, true})
			}
		}
		// While lanes are ahead, a time beyond their marks does not count: it
		// did not when it was read first.
		if (!a.wm.ok || ns > a.wm.ns) && ns <= soonest && (len(a.ahead) == 0 || a.limit.passed(ns)) {
			a.wm = mark{ns, true}
		}
	}
	if ch.Next < a.pos {
		return r, fmt.Errorf("tumble: fetch %s@%d: the source returned a chunk that ends at %d", a.id, pos, ch.Next)
	}
	if a.pos = ch.Next; a.pos > pos {
		a.epoch = ch.Epoch
	}
	a.sealFull()
	a.pass()
	a.table.shrink()
	if a.pos != pos || a.wm != wm {
		a.stale = true
	}
	return r, nil
}

// leaveOut books an event that is not counted, whatever its window.
func (a *aggregator) leaveOut(ev *Event, skipped bool, r *chunkTally) {
	switch ln := a.lanes[Hash(ev.Key)%uint64(len(a.lanes))]; {
	case ln.ahead:
		r.replayed++
	case skipped:
		ln.tally.skipped++
	default:
		ln.tally.rejected++
		a.onReject(ev)
	}
}

// formatTime writes nanoseconds since the epoch for people.
func formatTime(ns int64) string { return time.Unix(0, ns).UTC().Format(time.RFC3339Nano) }

// late takes an event whose window is closed: it books it, calls onLate, and reports
// whether it is counted.
func (a *aggregator) late(ln *lane, ev *Event, sp *span) bool {
	expired := a.wm.passed(sp.expired) || ln.forgot(sp)
	counted := !expired && !a.def.DropLate
	switch {
	case expired:
		ln.tally.expired++
	case counted:
		ln.tally.late++
	default:
		ln.tally.dropped++
	}
	if a.onLate != nil {
		event := *ev
		event.Key = strings.Clone(ev.Key)
		a.onLate(Late{
			Partition: a.id, Event: event, Start: time.Unix(0, sp.start).UTC(), End: time.Unix(0, sp.end).UTC(),
			Watermark: a.wm.time(), Counted: counted, Expired: expired,
		})
	}
	return counted
}

// promise moves the watermark of a partition that is silent and caught up: no
// event will come that is much older than now. top is the largest watermark in
// the sink.
func (a *aggregator) promise(ch Chunk, idle time.Duration, top func() mark) {
	if len(ch.Events) > 0 || ch.End < 0 || ch.Next < ch.End || len(a.ahead) > 0 || ch.AsOf.IsZero() {
		a.calm = calm{}
		return
	}
	if a.early.ok && ch.AsOf.UnixNano() >= a.early.ns {
		// The clock has passed an event that was too far ahead of it.
		a.wm, a.early = later(a.wm, a.early), mark{}
		a.calm = calm{}
		a.stale = true
	}
	if a.calm.since.IsZero() {
		a.calm = calm{ch.AsOf, a.wm}
		return
	}
	q := ch.AsOf.Sub(a.calm.since)
	if idle < 0 || q < idle {
		return
	}
	wm := a.wm
	if w := a.calm.wm; w.ok {
		a.wm = later(a.wm, mark{w.ns + int64(q-idle), true})
	}
	if top := top(); top.ok {
		a.wm = later(a.wm, mark{min(top.ns, ch.AsOf.UnixNano()) - int64(idle), true})
	}
	if a.wm != wm {
		a.stale = true
	}
}

// target is the checkpoint that a lane's open batch leads to.
func (a *aggregator) target(ln *lane) Checkpoint {
	to := ln.sealed
	at, wm := Position{a.pos, a.epoch}, a.wm
	if ln.ahead {
		at, wm = ln.next, ln.mark
	}
	if at.Offset != to.Offset {
		to.Offset, to.Epoch = at.Offset, at.Epoch
	} else if to.Ended {
		return ln.sealed
	}
	to.Ended = a.ended
	to.Watermark = later(markOf(to.Watermark), wm).time()
	return to
}

func (a *aggregator) seal(ln *lane, to Checkpoint) {
	ln.seal(a.id, &a.table, to, &a.rollups, a.spare)
}

// spare returns a slice that no batch needs any more, nil if there is none.
func (a *aggregator) spare() (deltas []Delta) {
	if n := len(a.free); n > 0 {
		deltas, a.free = a.free[n-1], a.free[:n-1]
	}
	return deltas
}

func (a *aggregator) sealFull() {
	for _, ln := range a.full {
		if ln.open.full(sealBusy) || ln.open.full(1) && len(ln.queue) == 0 {
			a.seal(ln, a.target(ln))
		}
	}
	a.full = a.full[:0]
}

// flush seals the open batches. A lane without increments writes its checkpoint
// when that closes a window, when the checkpoint lags, or else every 5 seconds.
func (a *aggregator) flush(now time.Time) {
	a.stale = false
	for _, ln := range a.lanes {
		to := a.target(ln)
		switch {
		case len(ln.open.counters) > 0 && len(ln.queue) > 0:
			ln.due = true
		case len(ln.open.counters) > 0:
			a.seal(ln, to)
		case to.Same(ln.sealed):
		case len(ln.queue) == 0 && (to.Offset-ln.sealed.Offset >= lagLimit || now.Sub(ln.wrote) >= quietEvery || a.closes(ln.sealed, to)):
			a.seal(ln, to)
		default:
			a.stale = true
		}
	}
}

// closes reports whether some window closes between two checkpoints.
func (a *aggregator) closes(from, to Checkpoint) bool {
	old, new := markOf(from.Watermark), markOf(to.Watermark)
	if old == new || !new.ok {
		return false
	}
	if !old.ok {
		return true
	}
	before := a.closings.of(old.ns - int64(a.def.Grace)).start
	return a.closings.of(new.ns-int64(a.def.Grace)).start > before
}

// end notes that the log will never hold anything after pos. With final no later
// run will either, so that the window of the last event need not stay open.
func (a *aggregator) end(final bool) {
	a.ended = true
	if final {
		a.wm = later(a.wm, markOf(a.def.EndMark(a.wm.time())))
	}
}

// sealDue seals the open batch of a lane whose queue has become empty, if a flush
// came in the meantime or it is full.
func (a *aggregator) sealDue(ln *lane) {
	if len(ln.queue) == 0 && len(ln.open.counters) > 0 && (ln.due || ln.open.full(1)) {
		a.seal(ln, a.target(ln))
	}
}

// reuse takes the slices of a batch back that nobody needs any more.
func (a *aggregator) reuse(b *Batch) {
	for _, deltas := range append(b.Rollups, b.Deltas) {
		if cap(deltas) > 0 && len(a.free) < len(a.lanes)*(1+len(a.def.Rollups)) {
			a.free = append(a.free, deltas[:0])
		}
	}
}
