package faketest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

// A Shard is what a Store keeps in one.
type Shard struct {
	Counts      map[Cell]int64
	Checkpoints map[string]tumble.Checkpoint // by partition
	Floors      []time.Time                  // by level, nil before the first call

	closed  time.Time
	backlog bool              // of windows past retention that are still there
	writers map[string]uint64 // of what is stored, by partition
	tainted bool              // another writer wrote since the term was drawn
	term    uint64

	asked     map[asked]time.Time     // when a retention was asked for last
	announced map[string]announcement // by partition
	late      []tumble.Batch          // copies that arrive again later
}

// An asked is a retention of a level.
type asked struct {
	level     int
	retention time.Duration
}

// An announcement is that somebody will end a partition.
type announcement struct {
	token    uint64
	objected bool
}

// NewShard returns an empty shard.
func NewShard() *Shard {
	return &Shard{
		Counts: map[Cell]int64{}, Checkpoints: map[string]tumble.Checkpoint{}, writers: map[string]uint64{},
		asked: map[asked]time.Time{}, announced: map[string]announcement{},
	}
}

// Clone copies all but the batches that arrive later.
func (sh *Shard) Clone() *Shard {
	c := *sh
	c.Counts, c.Checkpoints, c.writers = maps.Clone(sh.Counts), maps.Clone(sh.Checkpoints), maps.Clone(sh.writers)
	c.asked, c.announced = maps.Clone(sh.asked), maps.Clone(sh.announced)
	c.Floors = slices.Clone(sh.Floors)
	c.late = nil
	return &c
}

func (sh *Shard) load(def tumble.Definition, r tumble.LoadRequest, own tumble.Definition, deletes int) tumble.ShardState {
	frontier := tumble.Frontier(sh.Checkpoints)
	for id, c := range r.Init {
		if _, ok := sh.Checkpoints[id]; ok {
			continue
		}
		if frontier.After(c.Watermark) {
			c.Watermark = frontier
		}
		sh.Checkpoints[id] = c
	}
	for id, token := range r.Announce {
		sh.announced[id] = announcement{token: token}
	}
	for id, token := range r.Object {
		if sh.announced[id].token == token {
			sh.announced[id] = announcement{token, true}
		}
	}
	for i, level := range own.Levels() {
		sh.asked[asked{i, level.Retention}] = time.Now()
	}
	sh.advance(def, deletes)
	state := tumble.ShardState{
		Checkpoints: maps.Clone(sh.Checkpoints), Announced: map[string]uint64{},
		Frontier: tumble.Frontier(sh.Checkpoints), Floors: slices.Clone(sh.Floors),
	}
	for i := range own.Levels() {
		state.Retentions = append(state.Retentions, sh.inForce(i, time.Minute/2))
	}
	for id, a := range sh.announced {
		if !a.objected {
			state.Announced[id] = a.token
		}
	}
	return state
}

func (sh *Shard) apply(def tumble.Definition, b tumble.Batch, deletes int) error {
	if c, ok := sh.Checkpoints[b.Partition]; !ok || !c.Same(b.From) {
		return fmt.Errorf("%w: %v, not %v", tumble.ErrConflict, c, b.From)
	}
	if err := lawful(b); err != nil {
		panic(err)
	}
	if frontier := tumble.Frontier(sh.Checkpoints); b.From.Ended && !b.To.Ended && b.To.Watermark.Before(frontier) {
		return fmt.Errorf("%w: %v, to %v", tumble.ErrPassed, frontier, b.To)
	}
	if a := sh.announced[b.Partition]; b.Token != 0 && (a.token != b.Token || a.objected) {
		return tumble.ErrObjected
	} else if b.Token != 0 {
		delete(sh.announced, b.Partition)
	}
	levels := def.Levels()
	for i, deltas := range slices.Insert(slices.Clone(b.Rollups), 0, b.Deltas) {
		for _, d := range deltas {
			start, end := levels[i].Window.Bounds(d.Start)
			if !start.Equal(d.Start) {
				panic(fmt.Errorf("no window of level %d starts at %v", i, d.Start))
			}
			if i >= len(sh.Floors) || end.After(sh.Floors[i]) {
				sh.Counts[Cell{d.Start.UnixNano(), d.Key, i}] += d.N
			}
		}
	}
	sh.Checkpoints[b.Partition] = b.To
	sh.tainted = sh.tainted || sh.writers[b.Partition] != b.Writer
	sh.writers[b.Partition] = b.Writer
	if closed := def.ClosedAt(tumble.Frontier(sh.Checkpoints)); closed.After(sh.closed) && (sh.tainted || sh.term == 0) {
		sh.term, sh.tainted = rand.Uint64(), false
	}
	sh.advance(def, deletes)
	return nil
}

// advance moves the marks to where the checkpoints are, and deletes windows that are
// past retention: so many, or all of them.
func (sh *Shard) advance(def tumble.Definition, deletes int) {
	sh.closed = def.ClosedAt(tumble.Frontier(sh.Checkpoints))
	levels := def.Levels()
	if sh.Floors == nil {
		sh.Floors = make([]time.Time, len(levels))
	}
	for i := range levels {
		def.Retention = sh.inForce(i, time.Minute)
		if floor := def.FloorAt(sh.closed); floor.After(sh.Floors[i]) {
			sh.Floors[i] = floor
		}
	}
	sh.backlog = false
	gone := map[Cell]bool{} // windows, without a key
	for c := range sh.Counts {
		if _, end := levels[c.Level].Window.Bounds(time.Unix(0, c.Start)); end.After(sh.Floors[c.Level]) {
			continue
		}
		if w := (Cell{Start: c.Start, Level: c.Level}); !gone[w] {
			if deletes > 0 && len(gone) >= deletes {
				sh.backlog = true
				continue
			}
			gone[w] = true
		}
		delete(sh.Counts, c)
	}
}

// inForce returns the longest retention of a level that was asked for within so long.
func (sh *Shard) inForce(level int, within time.Duration) time.Duration {
	longest := time.Duration(-1)
	for a, at := range sh.asked {
		if r := a.retention; a.level == level && time.Since(at) <= within && (r == 0 || longest > 0 && r > longest || longest < 0) {
			longest = r
		}
		if longest == 0 {
			break
		}
	}
	return max(longest, 0)
}

// lawful checks what Batch promises to a sink.
func lawful(b tumble.Batch) error {
	rebase := b.From.Log != b.To.Log
	truncation := !rebase && b.To.Offset < b.From.Offset
	revival := b.From.Ended && !b.To.Ended
	seen, all := map[Cell]bool{}, map[string]int64{}
	for _, d := range b.Deltas {
		all[d.Key] += d.N
	}
	for i, deltas := range slices.Insert(slices.Clone(b.Rollups), 0, b.Deltas) {
		sums := map[string]int64{}
		for _, d := range deltas {
			c := Cell{d.Start.UnixNano(), d.Key, i}
			if d.N <= 0 || seen[c] || rebase || truncation || revival {
				return fmt.Errorf("delta %v of level %d in %v", d, i, b)
			}
			seen[c] = true
			sums[d.Key] += d.N
		}
		if !maps.Equal(sums, all) {
			return fmt.Errorf("level %d adds up to something else in %v", i, b)
		}
	}
	switch {
	case b.From.Watermark.After(b.To.Watermark):
		return fmt.Errorf("watermark goes back: %v to %v", b.From, b.To)
	case b.Writer == 0:
		return fmt.Errorf("no writer: %v", b)
	case !rebase && b.To.Origin != b.From.Origin && !(truncation && b.To.Origin == b.To.Offset):
		return fmt.Errorf("the origin moves: %v to %v", b.From, b.To)
	case !rebase && b.To.Offset == b.From.Offset && b.To.Epoch != b.From.Epoch:
		return fmt.Errorf("a promise changes the epoch: %v to %v", b.From, b.To)
	case b.To.Same(b.From):
		return fmt.Errorf("nothing changes: %v", b.From)
	case b.To.Offset == b.From.Offset && len(b.Deltas) > 0:
		return fmt.Errorf("counts without offsets: %v", b)
	}
	return nil
}
