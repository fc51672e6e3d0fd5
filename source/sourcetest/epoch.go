package sourcetest

import (
	"errors"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

const docEpoch = "Epoch is that of all records that the Chunk passes, up to Next. It means nothing if the Chunk passes none."

var epochRules = []Rule{
	rule("Chunk/Epoch never falls", docEpoch, func(c *check) {
		c.append(c.Log.Partitions[0], events(0, 500)...)
		c.one(func(r *reader, begin tumble.Position) {
			all, pieces := r.read(begin, 500)
			for _, p := range pieces {
				if p.Next > p.from.Offset && p.Epoch < p.from.Epoch {
					c.failf("Fetch(%v) has Next %d and epoch %d: epochs of a log do not fall", p.from, p.Next, p.Epoch)
				}
			}
			for i := 1; i < len(all); i++ {
				if all[i].epoch < all[i-1].epoch {
					c.failf("after epoch %d came epoch %d", all[i-1].epoch, all[i].epoch)
				}
			}
		})
	}),

	needing(func(l *Log) bool { return l.Elect != nil }, rule("Chunk/one Epoch", docEpoch, func(c *check) {
		id := c.Log.Partitions[0]
		for i := range 3 {
			if i > 0 {
				c.ok(c.Elect(c.ctx, id), "Log.Elect of %s", id)
			}
			c.append(id, events(10*i, 10)...)
		}
		c.one(func(r *reader, begin tumble.Position) {
			all, pieces := r.read(begin, 30)
			c.arrived(all, events(0, 30))
			for i := 1; i < 30; i++ {
				switch a, b := all[i-1], all[i]; {
				case i%10 == 0 && a.epoch >= b.epoch:
					c.failf("between %v and %v there was an election", a, b)
				case i%10 != 0 && a.epoch != b.epoch:
					c.failf("between %v and %v there was no election", a, b)
				}
			}
			// Any position has the events behind it in the same epochs.
			for _, from := range begins(pieces, all) {
				stored := r.stored(from)
				if got := r.resume(stored); !got.Same(stored) {
					c.failf("Resume(%v) is %v, though nothing was removed", stored, got)
				}
				i := slices.IndexFunc(all, func(r record) bool { return r.offset >= from.Offset })
				if i < 0 {
					continue
				}
				if again, _ := r.read(from, len(all)-i); !slices.EqualFunc(again, all[i:], record.same) {
					c.failf("Fetch(%v) brought %v, and before that %v", from, again, all[i:])
				}
			}
		})
	})),

	needing(func(l *Log) bool { return l.Truncate != nil }, rule("Resume/truncated", docTruncated+" "+docParted, func(c *check) {
		id := c.Log.Partitions[0]
		c.append(id, events(0, 20)...)
		c.one(func(r *reader, begin tumble.Position) {
			old, pieces := r.read(begin, 20)
			end := pieces[len(pieces)-1].next()
			c.ok(c.Truncate(c.ctx, id, old[10].offset), "Log.Truncate of %s at %d", id, old[10].offset)
			c.append(id, events(100, 15)...) // it has grown past the end that it had
			r.parted(end)

			stored := r.stored(end)
			stored.Watermark = old[19].time
			got, err := r.settle(stored)
			switch {
			case err != nil: // a policy
			case got.Log == stored.Log && (got.Offset != old[10].offset || got.Origin > got.Offset || !got.Watermark.Equal(stored.Watermark)):
				c.failf("the log was truncated at offset %d, and Resume(%v) is %v", old[10].offset, stored, got)
			case got.Log == stored.Log:
				now, _ := r.read(at(got), 15)
				c.arrived(now, events(100, 15))
			default:
				now, _ := r.read(at(got), 25)
				c.arrived(now, slices.Concat(events(0, 10), events(100, 15)))
			}

			// The records before the cut are as they were.
			for _, before := range []tumble.Position{old[5].at, old[10].at} {
				stored := r.stored(before)
				if got := r.resume(stored); !got.Same(stored) {
					c.failf("Resume(%v) is %v, though the log was truncated at offset %d only", stored, got, old[10].offset)
				}
				i := slices.IndexFunc(old, func(r record) bool { return r.offset >= before.Offset })
				now, _ := r.read(before, 10-i+15)
				c.arrived(now, slices.Concat(events(i, 10-i), events(100, 15)))
			}
		})
	})),

	needing(func(l *Log) bool { return l.Truncate != nil }, rule("Fetch/truncated while it is read", docParted, func(c *check) {
		id := c.Log.Partitions[0]
		c.append(id, events(0, 20)...)
		c.one(func(r *reader, begin tumble.Position) {
			old, _ := r.read(begin, 20)
			from := old[5].at
			p := piece{from: from}
			for len(p.Events) == 0 { // the rest may be fetched in advance
				chunk, err := r.fetch(p.from)
				c.ok(err, "Fetch(%v)", p.from)
				if p.Chunk = chunk; len(p.Events) == 0 {
					p.from = p.next()
				}
			}
			read := remember(p.from, p.Chunk)
			from = p.next()
			c.ok(c.Truncate(c.ctx, id, old[10].offset), "Log.Truncate of %s at %d", id, old[10].offset)
			c.append(id, events(100, 15)...)
			for end := time.Now().Add(c.patience); ; {
				chunk, err := r.fetch(from)
				if errors.Is(err, tumble.ErrTruncated) {
					if len(read) <= 5 {
						c.failf("Fetch(%v) said %v, though what was read is still there", from, err)
					}
					return
				}
				c.ok(err, "Fetch(%v)", from)
				p := piece{Chunk: chunk, from: from}
				read, from = append(read, remember(from, chunk)...), p.next()
				for i, got := range read {
					if i >= 5 && got.key != old[min(5+i, 19)].key && read[5].key == old[10].key {
						c.failf("%v followed what was removed before it, without ErrTruncated", got)
					}
				}
				if len(read) == 5+15 && read[5].key != old[10].key {
					c.arrived(read, slices.Concat(events(5, 5), events(100, 15)))
					return
				}
				if time.Now().After(end) {
					c.failf("neither ErrTruncated nor what was appended has come after %v", c.patience)
				}
			}
		})
	})),
}

// parted fetches from a position that the log no longer reaches as it was until
// Fetch says so.
func (r *reader) parted(from tumble.Position) {
	for end := time.Now().Add(r.patience); ; {
		chunk, err := r.fetch(from)
		if errors.Is(err, tumble.ErrTruncated) {
			return
		}
		r.ok(err, "Fetch(%v), before which the log was truncated", from)
		if chunk.Next != from.Offset {
			r.failf("Fetch(%v), before which the log was truncated, brought %d events, and not ErrTruncated", from, len(chunk.Events))
		}
		if time.Now().After(end) {
			r.failf("Fetch(%v), before which the log was truncated, has not given ErrTruncated after %v", from, r.patience)
		}
	}
}
