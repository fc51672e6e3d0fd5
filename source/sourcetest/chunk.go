package sourcetest

import (
	"context"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docAscending = "Events are ordered by ascending Offset and valid until the next Fetch."
	docOffset    = "of its record. All events of one record share it and come in one Chunk"
	docNext      = "Next is the offset to fetch next. It is beyond every Offset, perhaps also beyond records that gave no event."
	docEnd       = "End is the end of the log (Kafka: the high watermark), or -1 if it is not known. The partition is caught up if Next >= End, and never while End is -1."
	docAsOf      = "AsOf is when the request was sent that learned End."
	docOnce      = "Records that gave no event. Each is reported once, however often it is read."
)

var chunkRules = []Rule{
	rule("Chunk/ascending", "A Chunk is the answer to one Fetch. "+docAscending, func(c *check) {
		c.append(c.Log.Partitions[0], events(0, 500)...)
		c.one(func(r *reader, begin tumble.Position) {
			all, pieces := r.read(begin, 500)
			for _, p := range pieces {
				for _, got := range p.records {
					if got.offset < p.from.Offset {
						c.failf("Fetch(%v) brought offset %d", p.from, got.offset)
					}
				}
			}
			for i := 1; i < len(all); i++ {
				// Each is a record of its own.
				if all[i].offset <= all[i-1].offset {
					c.failf("after offset %d came offset %d", all[i-1].offset, all[i].offset)
				}
			}
		})
	}),

	rule("Chunk/nothing before from", docFetch, func(c *check) {
		c.append(c.Log.Partitions[0], events(0, 50)...)
		c.one(func(r *reader, begin tumble.Position) {
			all, _ := r.read(begin, 50)
			for _, i := range []int{1, 7, 33, 49} {
				got, _ := r.read(all[i].at, 1)
				if !got[0].same(all[i]) {
					c.failf("Fetch(%v) begins with %v, want %v", all[i].at, got[0], all[i])
				}
			}
		})
	}),

	rule("Chunk/Next", docNext, func(c *check) {
		c.append(c.Log.Partitions[0], events(0, 500)...)
		c.one(func(r *reader, begin tumble.Position) {
			_, pieces := r.read(begin, 500)
			for _, p := range pieces {
				if p.Next < p.from.Offset {
					c.failf("Fetch(%v) has Next %d", p.from, p.Next)
				}
				for _, got := range p.records {
					if got.offset >= p.Next {
						c.failf("Fetch(%v) has offset %d and Next %d", p.from, got.offset, p.Next)
					}
				}
			}
		})
	}),

	needing(func(l *Log) bool { return l.AppendRecord != nil }, rule("Chunk/one record in one", docOffset, func(c *check) {
		id := c.Log.Partitions[0]
		one, many, two := events(0, 1), events(1, 5000), events(5001, 2)
		c.append(id, one...)
		c.ok(c.AppendRecord(c.ctx, id, many...), "Log.AppendRecord of %d events", len(many))
		c.ok(c.AppendRecord(c.ctx, id, two...), "Log.AppendRecord of %d events", len(two))
		c.one(func(r *reader, begin tumble.Position) {
			all, pieces := r.read(begin, 5003)
			c.arrived(all, slices.Concat(one, many, two))
			for i, got := range all {
				first := 0 // of its record
				if i >= 5001 {
					first = 5001
				} else if i >= 1 {
					first = 1
				}
				if got.offset != all[first].offset {
					c.failf("event %d has offset %d, the first of its record has %d", i, got.offset, all[first].offset)
				}
			}
			if all[0].offset >= all[1].offset || all[1].offset >= all[5001].offset {
				c.failf("three records have the offsets %d, %d, %d", all[0].offset, all[1].offset, all[5001].offset)
			}
			for _, p := range pieces {
				n := 0
				for _, got := range p.records {
					if got.offset == all[1].offset {
						n++
					}
				}
				if n != 0 && n != len(many) {
					c.failf("%d of the %d events of a record came in one Chunk", n, len(many))
				}
			}
		})
	})),

	rule("Chunk/valid until the next Fetch", docAscending, func(c *check) {
		ids := c.Log.Partitions
		c.append(ids[0], events(0, 100)...)
		c.one(func(r *reader, begin tumble.Position) {
			p := piece{from: begin}
			for end := time.Now().Add(c.patience); len(p.Events) == 0; {
				chunk, err := r.fetch(p.from)
				c.ok(err, "Fetch(%v)", p.from)
				if p.Chunk = chunk; len(p.Events) == 0 {
					p.from = p.next()
				}
				if time.Now().After(end) {
					c.failf("no event has come after %v", c.patience)
				}
			}
			before := remember(p.from, p.Chunk)
			// Records that a source prefetches must not go where the Chunk is.
			for i := range 5 {
				c.append(ids[i%len(ids)], events(1000+i*100, 100)...)
				time.Sleep(20 * time.Millisecond)
			}
			if after := remember(p.from, p.Chunk); !slices.EqualFunc(before, after, record.same) {
				c.failf("the events of a Chunk changed before the next Fetch")
			}
		})
	}),

	rule("Chunk/End", docEnd+" "+docAsOf, func(c *check) {
		id := c.Log.Partitions[0]
		c.one(func(r *reader, begin tumble.Position) {
			at := r.quiet(begin).next()
			for i := range 3 {
				c.append(id, events(10*i, 10)...)
				appended := time.Now()
				all, pieces := r.read(at, 10)
				last := all[9].offset
				for _, p := range pieces {
					// An answer from before the events were there need not know of them.
					if !p.AsOf.Before(appended) && p.End != -1 && p.End <= last {
						c.failf("as of %v the end of the log was %d, but offset %d was there at %v", p.AsOf, p.End, last, appended)
					}
				}
				at = pieces[len(pieces)-1].next()
				for end := appended.Add(c.patience); ; {
					quiet := r.quiet(at)
					if at = quiet.next(); quiet.End == -1 || at.Offset >= quiet.End {
						break
					}
					if time.Now().After(end) {
						c.failf("everything was fetched, but Next is %d and End is %d", quiet.Next, quiet.End)
					}
				}
			}
		})
	}),

	rule("Chunk/AsOf", docAsOf, func(c *check) {
		c.append(c.Log.Partitions[0], events(0, 50)...)
		made := time.Now()
		c.one(func(r *reader, begin tumble.Position) {
			_, pieces := r.read(begin, 50)
			quiet := r.quiet(pieces[len(pieces)-1].next())
			last := pieces[0].AsOf
			for _, p := range append(pieces, quiet) {
				if p.AsOf.Before(last) || p.AsOf.After(time.Now()) || p.AsOf.Before(made.Add(-c.patience)) {
					c.failf("a Chunk is as of %v, the one before it as of %v, and now is %v", p.AsOf, last, time.Now())
				}
				last = p.AsOf
			}
		})
	}),

	needing(func(l *Log) bool { return l.Reject != nil }, rule("Chunk/rejected once", docOnce+" could not be understood", func(c *check) {
		once(c, c.Reject, func(p piece) (int64, int64) { return p.Rejected, p.Skipped })
	})),

	needing(func(l *Log) bool { return l.Skip != nil }, rule("Chunk/skipped once", docOnce+" hold nothing to count, such as a tombstone", func(c *check) {
		once(c, c.Skip, func(p piece) (int64, int64) { return p.Skipped, p.Rejected })
	})),
}

// once checks that three records that give no event are told of once each, as
// count's first number, when they are read twice.
func once(c *check, write func(ctx context.Context, partition string) error, count func(p piece) (want, other int64)) {
	id := c.Log.Partitions[0]
	c.append(id, events(0, 1)...)
	for i := range 3 {
		c.ok(write(c.ctx, id), "writing a record that gives no event")
		c.append(id, events(1+i, 1)...)
	}
	c.one(func(r *reader, begin tumble.Position) {
		var told, other int64
		for round := range 2 {
			all, pieces := r.read(begin, 4)
			c.arrived(all, events(0, 4))
			for _, p := range pieces {
				n, m := count(p)
				told, other = told+n, other+m
			}
			if told != 3 || other != 0 {
				c.failf("after reading 3 such records %d times %d were told of, and %d of the other kind", round+1, told, other)
			}
		}
	})
}
