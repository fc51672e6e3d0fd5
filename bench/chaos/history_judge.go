package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// A reading is what one read said of one cell.
type reading struct {
	cell     cell
	n        int64
	state    tumble.State
	term     uint64
	from, to time.Duration // when the read began and ended, since the trial began
	by       string        // who read, and how
}

func (r reading) String() string {
	return fmt.Sprintf("%.3f-%.3f s  %-22s %3d, %v, term %x", r.from.Seconds(), r.to.Seconds(), r.by, r.n, r.state, r.term)
}

// A line is a sequence of reads of which a later one, which began when the
// earlier had ended, must not say less, unless something was lost in between:
// those of one client through its cache, or those of all clients that ask the
// server.
type line struct {
	cells map[cell]reading
}

// A judge holds what readers were told, and finds what contradicts it. Rules:
//
//   - Two finals of one cell and term are equal.
//   - Two finals of one cell are equal if nothing was lost between the reads.
//   - Along a line counts do not fall, and states do not go back, if nothing was
//     lost in between.
//   - No count is more than there are events. No final or closed one is less than
//     the events of steady partitions that were on time.
//   - What the store holds, read by its layout, counts as a final of its term.
//   - Two whole final pages of one window and term are equal.
//   - The closed mark and the floor of a shard do not fall, if nothing was lost.
type judge struct {
	tape   *tape
	shards int
	shard  []int // of keys

	mu       sync.Mutex
	lines    map[string]*line
	cells    map[cell]*history
	pages    map[page]reading // cell.key: -1; n: a sum of what the page holds
	losses   []loss
	hot      []span // by shard: what was closed when the last fault struck, and is not since
	reads    int64
	errors   int64
	finals   int64 // final counts, each compared with all that was known, and closed ones
	zeros    int64 // of them
	byLayout int64
	near     int64 // finals of hot cells
	wrong    int64
	traces   [][]traced // by shard: what it said of itself in the last seconds
	first    []string   // of what is wrong, with the history of the cell
}

// A history is what is known of a cell.
type history struct {
	finals []final
	told   []reading // those that said something new
	more   int
}

// A final is a final count under one term, and its last reading.
type final struct {
	term     uint64
	n        int64
	last     reading
	byLayout bool // the store held it
}

// A page is a window read as a whole, in one way.
type page struct {
	start int64
	how   string
	term  uint64
}

// A loss is a time in which a part of the store may have gone back.
type loss struct {
	from, to time.Duration
	shards   []bool
}

// A span holds the window ends in (from, to], in milliseconds.
type span struct{ from, to int64 }

// A traced mark is what a shard said of itself at a time.
type traced struct {
	at time.Duration
	shardMark
}

const (
	tracedAtMost = 500
	toldAtMost   = 16 // readings of a cell that are kept
	firstWrongs  = 5
)

func newJudge(t *tape, shards int) *judge {
	j := &judge{tape: t, shards: shards, lines: map[string]*line{}, cells: map[cell]*history{}, pages: map[page]reading{}, hot: make([]span, shards), traces: make([][]traced, shards)}
	for i := range j.hot {
		j.hot[i] = span{noMark, noMark}
	}
	for _, key := range t.keys {
		j.shard = append(j.shard, shardAmong(key, shards))
	}
	return j
}

// lose notes that the shards may go back from now on. The caller says when that
// is over.
func (j *judge) lose(from time.Duration, shards []bool) (over func(to time.Duration)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := len(j.losses)
	j.losses = append(j.losses, loss{from, 1 << 62, shards})
	return func(to time.Duration) {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.losses[i].to = to
	}
}

// lost reports whether a shard may have gone back between two times. shard -1 is
// any of them.
func (j *judge) lost(shard int, from, to time.Duration) bool {
	for i := len(j.losses) - 1; i >= 0; i-- {
		l := &j.losses[i]
		if l.from <= to && from <= l.to && (shard < 0 || l.shards[shard]) {
			return true
		}
	}
	return false
}

// see judges what one call returned. along is the line that it belongs to, "" if
// to none.
func (j *judge) see(along string, list []reading) {
	cells := make([]cell, len(list))
	for i, r := range list {
		cells[i] = r.cell
	}
	bounds := j.tape.bounds(cells)
	j.mu.Lock()
	defer j.mu.Unlock()
	j.reads++
	for i, r := range list {
		j.one(r, bounds[i])
		if along != "" {
			j.follow(along, r)
		}
	}
}

// one judges one reading by all but its line. j.mu is held.
func (j *judge) one(r reading, b bound) {
	h := j.cells[r.cell]
	if h == nil {
		h = &history{}
		j.cells[r.cell] = h
	}
	h.add(r)
	if r.n > int64(b.most) {
		j.fail(r, h, "more than the %d events that there are", b.most)
	}
	if r.state != tumble.Final && r.state != tumble.Closed {
		return
	}
	if j.finals++; r.n == 0 {
		j.zeros++
	}
	shard := j.shard[r.cell.key]
	end := r.cell.start + j.tape.def.Window.Size.Milliseconds()
	if hot := j.hot[shard]; end > hot.from && end <= hot.to {
		j.near++
	}
	if r.n < int64(b.least) {
		j.fail(r, h, "%v, and less than the %d events that were on time for certain", r.state, b.least)
	}
	j.agree(r, h, shard, false)
}

// agree compares a final with the others of its cell. j.mu is held.
func (j *judge) agree(r reading, h *history, shard int, byLayout bool) {
	if r.state != tumble.Final {
		return // late events are added
	}
	known := false
	// What a read found may be of any moment of it, and a slow one ends late.
	for i := range h.finals {
		f := &h.finals[i]
		switch {
		case f.term == r.term && f.n != r.n:
			j.fail(r, h, "final under term %x, under which %d was final", r.term, f.n)
		case f.n != r.n && !j.lost(shard, min(f.last.from, r.from), max(f.last.to, r.to)):
			j.fail(r, h, "final, and %d was final, and nothing was lost since", f.n)
		}
		if f.term == r.term && f.n == r.n {
			known = true
			f.last = r
			f.byLayout = f.byLayout || byLayout
		}
	}
	if !known {
		h.finals = append(h.finals, final{r.term, r.n, r, byLayout})
	}
}

// follow compares a reading with those before it in its line. j.mu is held.
func (j *judge) follow(along string, r reading) {
	l := j.lines[along]
	if l == nil {
		l = &line{cells: map[cell]reading{}}
		j.lines[along] = l
	}
	if len(l.cells) > 200_000 {
		clear(l.cells) // the oldest are no longer read
	}
	last, ok := l.cells[r.cell]
	shard := -1
	if r.cell.key >= 0 {
		shard = j.shard[r.cell.key]
	}
	switch {
	case !ok || j.lost(shard, last.from, r.to):
		l.cells[r.cell] = r
	case last.to > r.from:
		// They ran side by side. The one that says more is the one to keep.
		if r.state > last.state || r.state == last.state && r.n > last.n {
			l.cells[r.cell] = r
		}
	case r.state < last.state:
		j.fail(r, j.cells[r.cell], "was %v before, and nothing was lost since", last.state)
	case r.state != tumble.Expired && r.n < last.n:
		j.fail(r, j.cells[r.cell], "was %d before, and nothing was lost since", last.n)
	default:
		l.cells[r.cell] = r
	}
}

// whole judges a whole window that was read in one call.
func (j *judge) whole(along, how string, r reading) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r.cell.key = -1
	if along != "" {
		state := r
		state.n = 0
		j.follow(along, state)
	}
	if r.state != tumble.Final {
		return
	}
	key := page{r.cell.start, how, r.term}
	if other, ok := j.pages[key]; ok && other.n != r.n {
		j.fail(r, nil, "the page holds something else than this one of the same term: %v", other)
		return
	}
	j.pages[key] = r
}

// holds compares what a shard itself holds, which is final there, with what
// readers were told. Cells that it does not name hold 0.
func (j *judge) holds(shard int, starts []int64, counts map[cell]int64, r reading) {
	var cells []cell
	for _, start := range starts {
		for key, of := range j.shard {
			if of == shard {
				cells = append(cells, cell{start, int32(key)})
			}
		}
	}
	bounds := j.tape.bounds(cells)
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, c := range cells {
		h := j.cells[c]
		if h == nil {
			continue
		}
		r.cell, r.n = c, counts[c]
		h.add(r)
		j.byLayout++
		if r.n < int64(bounds[i].least) || r.n > int64(bounds[i].most) {
			j.fail(r, h, "less than the %d events that were on time for certain, or more than the %d that there are", bounds[i].least, bounds[i].most)
			continue
		}
		j.agree(r, h, shard, true)
	}
}

// mark judges what a shard says of itself, one time after another.
func (j *judge) mark(shard int, before, after published, from, to time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if (after.closed < before.closed || after.floor < before.floor) && !j.lost(shard, from, to) {
		r := reading{cell: cell{before.closed, -1}, from: from, to: to, by: "the layout"}
		j.fail(r, nil, "shard %d said %v before, then %v, and nothing was lost since", shard, before, after)
	}
}

// trace keeps what a shard says of itself.
func (j *judge) trace(shard int, m shardMark, at time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := j.traces[shard]
	if len(list) == tracedAtMost {
		list = append(list[:0], list[tracedAtMost/2:]...)
	}
	j.traces[shard] = append(list, traced{at, m})
}

// traceOf tells how a shard came to what it says now, from a time on.
func (j *judge) traceOf(shard int, from time.Duration) string {
	var text strings.Builder
	var last shardMark
	for _, m := range j.traces[shard] {
		if m.at >= from && (m.term != last.term || m.closed != last.closed) {
			fmt.Fprintf(&text, "\tshard %d at %.3f s: closed %d, term %s", shard, m.at.Seconds(), m.closed, m.term)
			for _, id := range slices.Sorted(maps.Keys(m.records)) {
				if r := m.records[id]; r != last.records[id] {
					fmt.Fprintf(&text, "; %s %d %s closes %d, writer %s", id, r.offset, r.state, r.closed%1_000_000, r.writer)
				}
			}
			text.WriteByte('\n')
			last = m.shardMark
		}
	}
	return text.String()
}

// add keeps a reading if it says something new.
func (h *history) add(r reading) {
	if n := len(h.told); n > 0 {
		if last := h.told[n-1]; last.n == r.n && last.state == r.state && (last.term == r.term || r.state == tumble.Open) {
			return
		}
	}
	if len(h.told) >= toldAtMost {
		copy(h.told[toldAtMost/2:], h.told[toldAtMost/2+1:])
		h.told = h.told[:toldAtMost-1]
		h.more++
	}
	h.told = append(h.told, r)
}

// fail notes what is wrong. j.mu is held.
func (j *judge) fail(r reading, h *history, format string, args ...any) {
	if j.wrong++; j.wrong > firstWrongs {
		return
	}
	var text strings.Builder
	name := "the whole window"
	if r.cell.key >= 0 {
		name = j.tape.keys[r.cell.key]
	}
	fmt.Fprintf(&text, "read %d: window %s, %s: %v: %s\n", j.reads, time.UnixMilli(r.cell.start).UTC().Format("15:04:05.000"), name, r, fmt.Sprintf(format, args...))
	if h != nil {
		for i, told := range h.told {
			if i == toldAtMost/2 && h.more > 0 {
				fmt.Fprintf(&text, "\t... %d more\n", h.more)
			}
			fmt.Fprintf(&text, "\t%v\n", told)
		}
	}
	if r.cell.key >= 0 && len(j.first) == 0 {
		text.WriteString(j.traceOf(j.shard[r.cell.key], r.from-2*time.Second))
	}
	for _, l := range j.losses {
		if r.from < l.to+5*time.Second && l.from < r.to {
			fmt.Fprintf(&text, "\tlost between %.3f and %.3f s\n", l.from.Seconds(), l.to.Seconds())
		}
	}
	j.first = append(j.first, text.String())
}

// strikes says what was closed before a fault and is not after it.
func (j *judge) strikes(hot []span) {
	j.mu.Lock()
	defer j.mu.Unlock()
	copy(j.hot, hot)
}

// A tallying is what a judge has seen.
type tallying struct {
	reads, errors, finals, zeros, near, byLayout, wrong int64
	cells                                               int64 // that were final
	renewed                                             int64 // cells that were final under several terms
	changed                                             int64 // and not always with the same count
	confirmed                                           int64 // cells whose last final was found by the layout too
}

func (j *judge) tally() tallying {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := tallying{reads: j.reads, errors: j.errors, finals: j.finals, zeros: j.zeros, near: j.near, byLayout: j.byLayout, wrong: j.wrong}
	for _, h := range j.cells {
		if len(h.finals) == 0 {
			continue
		}
		t.cells++
		if h.finals[len(h.finals)-1].byLayout {
			t.confirmed++
		}
		if len(h.finals) > 1 {
			t.renewed++
			for _, f := range h.finals[1:] {
				if f.n != h.finals[0].n {
					t.changed++
					break
				}
			}
		}
	}
	return t
}

func (j *judge) failed() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.errors++
}
