package simulation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/faketest"
)

// do makes one step happen.
func (w *world) do(s step) {
	w.doProcesses(s)
	w.doStore(s)
	w.doLogs(s)
}

// until returns when something ends that lasts for a part of most.
func (s step) until(most time.Duration) time.Time {
	return time.Now().Add(time.Duration(s.n) * most / 1000)
}

// doProcesses makes the steps happen that are about processes and what they read.
func (w *world) doProcesses(s step) {
	slot := s.on % w.slots
	p := w.procs[slot]
	switch s.op {
	case "start":
		if p == nil {
			w.start(slot, w.untilEnd && s.seed%2 == 0)
		}
	case "start all":
		w.startAll(s)
	case "stop":
		if p != nil {
			w.stop(slot)
		}
	case "crash":
		if p != nil {
			p.crash(s.n%20, s.seed%2 == 0)
			w.procs[slot] = nil
			if w.kind == channels {
				w.lossy[w.ids[slot]] = true
			}
		}
	case "stall":
		if p != nil {
			p.stall(s.until(15 * time.Second))
		}
	case "close":
		if p != nil {
			close(w.chans[slot])
			w.chans[slot] = make(chan tumble.Event, 1<<16)
			w.procs[slot] = nil // it ends by itself
			w.await(p, true)
		}
	case "assign":
		w.assign(w.ids[s.n%len(w.ids)], slot)
	case "revoke":
		if id := w.ids[s.n%len(w.ids)]; w.kind != channels {
			w.owners[id] = w.owners[id][len(w.owners[id])-1:]
			w.share()
		}
	case "end":
		w.endPartition(w.ids[s.n%len(w.ids)], s.seed%2 == 0)
	}
}

// doStore makes the steps happen that are about the store and the way there.
func (w *world) doStore(s step) {
	shard := s.on % w.shards
	switch s.op {
	case "down":
		w.mu.Lock()
		w.down[shard] = s.until(20 * time.Second)
		w.mu.Unlock()
	case "hang":
		w.mu.Lock()
		w.hangs[shard] = s.until(10 * time.Second)
		w.mu.Unlock()
	case "noise":
		w.mu.Lock()
		w.noise = s.n / 4
		w.mu.Unlock()
	case "calm":
		w.mu.Lock()
		w.noise = 0
		w.mu.Unlock()
	case "snapshot":
		for i := range w.old {
			w.old[i] = w.sink.Snapshot(i)
		}
	case "restore":
		w.restore(shard, w.old[shard])
	case "restore all":
		for i := range w.old {
			w.restore(i, w.old[i])
		}
	case "wipe":
		if w.kind != latest || w.knownElsewhere(shard) {
			w.replace(shard, faketest.NewShard())
		}
	case "wipe all":
		for i := range w.old {
			w.replace(i, faketest.NewShard())
		}
	case "late batches":
		w.sink.Repeat()
	}
}

// doLogs makes the steps happen that are about what is read.
func (w *world) doLogs(s step) {
	id := w.ids[s.on%len(w.ids)]
	switch s.op {
	case "add":
		w.add(id, s.n/5, rand.New(rand.NewPCG(s.seed, 4)))
	case "grow":
		if len(w.ids) < 5 {
			w.grow(len(w.ids))
			w.share()
		}
	case "truncate":
		w.topic.Change(id, func(l *faketest.Log) { l.First += (l.End - l.First) * int64(s.n) / 1000 })
	case "cut":
		w.cut(id, s)
	case "recreate":
		w.topic.Change(id, func(l *faketest.Log) { l.Recreate(fmt.Sprintf("log-%v", time.Since(w.began))) })
	}
}

// startAll starts all processes at the same time, while something is written.
func (w *world) startAll(s step) {
	for slot, p := range w.procs {
		if p == nil {
			w.start(slot, false)
		}
	}
	for i := range 10 {
		time.Sleep(time.Duration(1+s.n%3) * time.Millisecond)
		w.add(w.ids[i%len(w.ids)], 3, rand.New(rand.NewPCG(s.seed, uint64(i))))
	}
}

// assign gives a partition to a slot. With rivals the one before keeps it, until
// it is revoked; without, it has given it up before.
func (w *world) assign(id string, slot int) {
	if w.kind == channels || slices.Contains(w.owners[id], slot) {
		return
	}
	if w.rivals {
		w.owners[id] = append(w.owners[id], slot)
		w.share()
		return
	}
	w.owners[id] = nil
	w.share()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if !slices.ContainsFunc(w.all, func(p *process) bool { return p.source.reads(id) }) {
			break
		}
		if time.Now().After(deadline) {
			w.fail("%s is not given up", id)
			return
		}
	}
	w.owners[id] = []int{slot}
	w.share()
}

// share tells every process which partitions it is to read.
func (w *world) share() {
	w.mu.Lock()
	for id, slots := range w.owners {
		if len(slots) > 0 {
			w.newest[id] = slots[len(slots)-1]
		}
	}
	w.mu.Unlock()
	for slot, p := range w.procs {
		if p == nil || p.source == nil {
			continue
		}
		var own []string
		for id, slots := range w.owners {
			if slices.Contains(slots, slot) {
				own = append(own, id)
			}
		}
		p.source.assign(own)
	}
}

// endPartition has somebody end a partition whose process is not there, or so he
// thinks. If nobody is, nobody objects, and the partition may go on after its end.
func (w *world) endPartition(id string, alone bool) {
	if alone {
		for slot, p := range w.procs {
			if p != nil {
				w.stop(slot)
			}
		}
	}
	w.ended[id] = true
	delete(w.first, id) // so it is judged by the frontier when it goes on
	w.ends.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := tumble.EndPartition(ctx, w.sink.Defined(), id); err == nil {
			w.mu.Lock()
			w.endings++
			w.mu.Unlock()
		}
	})
	if alone {
		time.Sleep(endTime)
	}
}

// knownElsewhere reports whether another shard knows where counting began.
func (w *world) knownElsewhere(shard int) bool {
	for i := range w.shards {
		if i != shard && len(w.sink.Snapshot(i).Checkpoints) > 0 {
			return true
		}
	}
	return false
}

// restore brings an old shard back, but for one that does not know where counting
// began while that must be known.
func (w *world) restore(shard int, old *faketest.Shard) {
	if old == nil || w.kind == latest && len(old.Checkpoints) == 0 {
		return
	}
	w.replace(shard, old)
}

func (w *world) replace(shard int, old *faketest.Shard) {
	w.mu.Lock()
	w.lost = true
	w.mu.Unlock()
	w.sink.Restore(shard, old)
}

// grow adds a partition.
func (w *world) grow(n int) {
	id := fmt.Sprint("p", n)
	w.ids = append(w.ids, id)
	w.owners[id] = []int{n % w.slots}
	if time.Since(w.began) == 0 {
		w.first[id] = n
	}
	if w.kind == channels {
		w.chans = append(w.chans, make(chan tumble.Event, 1<<16))
		return
	}
	w.topic.Change(id, func(*faketest.Log) {})
}

// add writes n events, out of order, some late, some far ahead, some with no
// usable time, in records of one, of some and of none.
func (w *world) add(id string, n int, rng *rand.Rand) {
	now := time.Now()
	var events []tumble.Event
	for range n {
		age := time.Duration(rng.IntN(8000)) * time.Millisecond
		e := tumble.Event{Key: fmt.Sprint("k", rng.IntN(12)), Time: now.Add(-age)}
		switch x := rng.IntN(60); {
		case x < 4:
			e.Time = now.Add(-age * 10)
		case x == 4 && w.ahead:
			e.Time = now.Add(maxAhead + time.Duration(rng.IntN(3))*time.Hour + age) // the least become timely while this runs
		case x == 5:
			e.Time = time.Time{}
		}
		if w.long {
			e.Key += strings.Repeat("-", []int{0, longestKey - len(e.Key), longestKey - len(e.Key) + 1}[rng.IntN(40)%9%3])
		}
		if w.def.Sum {
			e.N = int64(len(w.sent)+len(events)) % (maxN + 1)
		}
		events = append(events, e)
	}
	if w.kind == channels {
		for _, e := range events {
			w.sent = append(w.sent, writtenEvent{Event: e, id: id, at: now})
			w.chans[slices.Index(w.ids, id)] <- e
		}
		return
	}
	w.topic.Change(id, func(l *faketest.Log) {
		for len(events) > 0 {
			size := 1
			if x := rng.IntN(40); w.kind != gaps && w.kind != cuts && x < 4 { // what is lost is bounded in offsets
				size = min(len(events), []int{2, 5, 20, maxRecord}[x])
			} else if x > 35 {
				l.Skip(faketest.Hole(rng.IntN(3)))
			}
			at := len(l.Events)
			l.Append(events[:size]...)
			for _, e := range l.Events[at:] {
				w.sent = append(w.sent, writtenEvent{Event: e, id: id, log: l.Name, at: now})
			}
			events = events[size:]
		}
		if rng.IntN(4) == 0 {
			l.Skip(faketest.Hole(rng.IntN(3)))
		}
	})
}

// cut truncates a log at some place: one time in three within its last ten
// records, as most leaders do.
func (w *world) cut(id string, s step) {
	w.topic.Change(id, func(l *faketest.Log) {
		at := l.First + (l.End-l.First)*int64(s.n)/1000
		if s.seed%3 == 0 {
			at = max(at, l.End-10)
		}
		for i := range w.sent {
			if e := &w.sent[i]; e.id == id && e.Offset >= at {
				e.gone = true
			}
		}
		l.Truncate(at)
	})
}
