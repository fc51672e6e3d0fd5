package sourcetest

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docSource    = "A Source is a set of partitions, each an ordered log of events that can be fetched again from any position that Resume allowed."
	docResume    = "Resume says where to go on from a stored checkpoint: there, if the events from there on can still be fetched."
	docGone      = "If they cannot (retention deleted them, the topic was recreated or truncated, a channel's past is gone) it is the source's policy to return another checkpoint, or an error that stops the pipeline and names the loss. A later Offset skips a gap."
	docTruncated = "An earlier Offset in the same Log says that the log was truncated there: the counts of the removed records stay. Another Log is a new beginning."
	docParted    = "ErrTruncated is wrapped by [Partition.Fetch] when the log no longer holds the records before the position as they were read."
	docFetch     = "Fetch waits until there is something at or after from, or ctx ends."
	docEmpty     = "It returns an empty Chunk with a new AsOf at least every 500 ms."
	docSame      = "Any from that Resume allowed may be asked for at any call, and asking again yields the same events."
	docErrors    = "io.EOF: stop here, for this run. ErrEnded: there will never be more. ErrOffsetOutOfRange and ErrTruncated: Resume again."
	docOne       = "A Partition is one log of a Source. It is used by one goroutine at a time."
	docCommitted = "It may run beside Fetch and does not block. Within a log offset falls only if the log was truncated."
)

var resumeRules = []Rule{
	rule("Resume/there", docResume, func(c *check) {
		c.append(c.Log.Partitions[0], events(0, 20)...)
		c.one(func(r *reader, begin tumble.Position) {
			all, pieces := r.read(begin, 20)
			for _, from := range begins(pieces, all) {
				for _, mark := range []time.Time{{}, all[0].time.Add(1)} {
					stored := r.stored(from)
					stored.Watermark = mark
					if got := r.resume(stored); !got.Same(stored) {
						c.failf("Resume(%v) is %v, though the events from there on can be fetched", stored, got)
					}
					i := slices.IndexFunc(all, func(r record) bool { return r.offset >= from.Offset })
					if i < 0 {
						continue
					}
					again, _ := r.read(from, len(all)-i)
					if !slices.EqualFunc(again, all[i:], record.same) {
						c.failf("after Resume(%v) came %v, want %v", stored, again, all[i:])
					}
				}
			}
		})
	}),

	needing(func(l *Log) bool { return l.Forget != nil }, rule("Resume/gone", docGone+" "+docErrors, func(c *check) {
		id := c.Log.Partitions[0]
		c.append(id, events(0, 20)...)
		c.one(func(r *reader, begin tumble.Position) {
			all, _ := r.read(begin, 20)
			c.ok(c.Forget(c.ctx, id, all[10].offset), "Log.Forget of %s before %d", id, all[10].offset)
			// Prefetched records may still come.
			for end := time.Now().Add(c.patience); ; time.Sleep(20 * time.Millisecond) {
				chunk, err := r.fetch(begin)
				if errors.Is(err, tumble.ErrOffsetOutOfRange) {
					break
				}
				c.ok(err, "Fetch(%v), which is forgotten", begin)
				if len(chunk.Events) > 0 && chunk.Events[0].Offset != all[0].offset {
					c.failf("Fetch(%v), which is forgotten, brought offset %d, and not ErrOffsetOutOfRange", begin, chunk.Events[0].Offset)
				}
				if time.Now().After(end) {
					c.failf("Fetch(%v) has not given ErrOffsetOutOfRange %v after its event was forgotten", begin, c.patience)
				}
			}
			got, err := r.p.Resume(r.ctx, r.stored(begin))
			if err != nil {
				return // a policy
			}
			if got.Log == r.begin.Log && got.Offset <= begin.Offset {
				c.failf("Resume from %v, which is forgotten, is %v", begin, got)
			}
			again, _ := r.read(at(got), 10)
			if !slices.EqualFunc(again, all[10:], record.same) {
				c.failf("after Resume of what is forgotten came %v, want %v", again, all[10:])
			}
		})
	})),
}

var fetchRules = []Rule{
	rule("Fetch/every event", docFetch, func(c *check) {
		id, want := c.Log.Partitions[0], events(0, 3000)
		c.append(id, want...)
		for _, other := range c.Log.Partitions[1:] {
			c.append(other, events(5000, 3)...)
		}
		c.one(func(r *reader, begin tumble.Position) {
			got, _ := r.read(begin, 3000)
			c.arrived(got, want)
		})
	}),

	rule("Fetch/waits for more", docFetch, func(c *check) {
		id, want := c.Log.Partitions[0], events(0, 5)
		c.one(func(r *reader, begin tumble.Position) {
			at := begin
			for i := range want {
				appended := make(chan error, 1)
				go func() {
					time.Sleep(150 * time.Millisecond)
					appended <- c.Append(c.ctx, id, want[i])
				}()
				got, pieces := r.read(at, 1)
				c.ok(<-appended, "Log.Append")
				c.arrived(got, want[i:i+1])
				at = pieces[len(pieces)-1].next()
			}
		})
	}),

	rule("Fetch/soon after it came", docFetch, func(c *check) {
		id := c.Log.Partitions[0]
		c.one(func(r *reader, begin tumble.Position) {
			at := r.quiet(begin).next()
			came := make(chan time.Time, 1)
			failed := make(chan error, 1)
			go func() {
				time.Sleep(100 * time.Millisecond)
				err := c.Append(c.ctx, id, events(0, 1)...)
				came <- time.Now()
				failed <- err
			}()
			r.read(at, 1)
			read := time.Now()
			appended := <-came
			c.ok(<-failed, "Log.Append")
			if late := read.Sub(appended); late > slack {
				c.failf("an event was fetched %v after it had been appended", late)
			}
		})
	}),

	rule("Fetch/an empty Chunk every 500 ms", docEmpty, func(c *check) {
		c.append(c.Log.Partitions[0], events(0, 1)...)
		c.one(func(r *reader, begin tumble.Position) {
			_, pieces := r.read(begin, 1)
			last := r.quiet(pieces[len(pieces)-1].next())
			for range 4 {
				asked := time.Now()
				chunk, err := r.fetch(last.next())
				c.ok(err, "Fetch(%v) with nothing there", last.next())
				if took := time.Since(asked); took > 500*time.Millisecond+slack {
					c.failf("Fetch with nothing there took %v", took)
				}
				if len(chunk.Events) != 0 || chunk.Next != last.Next {
					c.failf("Fetch(%v) with nothing there brought %d events and Next %d", last.next(), len(chunk.Events), chunk.Next)
				}
				if !chunk.AsOf.After(last.AsOf) || chunk.AsOf.After(time.Now()) {
					c.failf("an empty Chunk is as of %v, the one before it as of %v, and now is %v", chunk.AsOf, last.AsOf, time.Now())
				}
				last = piece{Chunk: chunk, from: last.next()}
			}
		})
	}),

	rule("Fetch/waits without spinning", docFetch, func(c *check) {
		c.one(func(r *reader, begin tumble.Position) {
			at := r.quiet(begin).next()
			n := 0
			for end := time.Now().Add(time.Second); time.Now().Before(end); n++ {
				chunk, err := r.fetch(at)
				c.ok(err, "Fetch(%v) with nothing there", at)
				at = piece{Chunk: chunk, from: at}.next()
			}
			if n > 100 {
				c.failf("Fetch returned %d times in a second with nothing there", n)
			}
		})
	}),

	rule("Fetch/ctx ends", docFetch, func(c *check) {
		c.one(func(r *reader, begin tumble.Position) {
			at := r.quiet(begin).next()
			for _, after := range []time.Duration{0, 0, 10 * time.Millisecond, 100 * time.Millisecond} {
				ctx, cancel := context.WithCancel(r.ctx)
				if after == 0 {
					cancel()
				}
				timer := time.AfterFunc(after, cancel)
				asked := time.Now()
				_, err := r.p.Fetch(ctx, at)
				took := time.Since(asked) - after
				timer.Stop()
				cancel()
				// Less than an empty Chunk may take.
				if took > 300*time.Millisecond {
					c.failf("Fetch returned %v after its context had ended, with error %v", took, err)
				}
				if errors.Is(err, io.EOF) || errors.Is(err, tumble.ErrEnded) || errors.Is(err, tumble.ErrOffsetOutOfRange) || errors.Is(err, tumble.ErrTruncated) {
					c.failf("Fetch whose context ended returned %v", err)
				}
			}
			c.append(c.Log.Partitions[0], events(0, 1)...)
			got, _ := r.read(at, 1) // and then goes on
			c.arrived(got, events(0, 1))
		})
	}),

	rule("Fetch/the same again", docSource+" "+docSame, func(c *check) {
		c.append(c.Log.Partitions[0], events(0, 500)...)
		c.one(func(r *reader, begin tumble.Position) {
			all, pieces := r.read(begin, 500)
			c.append(c.Log.Partitions[0], events(500, 10)...)
			from := begins(pieces, all)
			for i := range 40 {
				// Forwards and backwards, by leaps.
				at := from[i*37%len(from)]
				rest := slices.IndexFunc(all, func(r record) bool { return r.offset >= at.Offset })
				if rest < 0 {
					continue
				}
				got, _ := r.read(at, 1)
				n := min(len(got), len(all)-rest)
				if !slices.EqualFunc(got[:n], all[rest:rest+n], record.same) {
					c.failf("Fetch(%v) brought %v, and before that %v", at, got[:n], all[rest:rest+n])
				}
			}
			again, _ := r.read(begin, 510)
			if !slices.EqualFunc(again[:500], all, record.same) {
				c.failf("reading from %v again brought other events than before", begin)
			}
		})
	}),

	needing(func(l *Log) bool { return l.End != nil }, rule("Fetch/the end", docErrors, func(c *check) {
		id := c.Log.Partitions[0]
		want := events(0, 20)
		c.append(id, want...)
		for _, p := range c.Log.Partitions {
			c.ok(c.End(c.ctx, p), "Log.End of %s", p)
		}
		c.one(func(r *reader, begin tumble.Position) {
			for range 2 { // and again
				got, pieces := r.read(begin, 20)
				c.arrived(got, want)
				at := pieces[len(pieces)-1].next()
				for range 2 {
					for end := time.Now().Add(c.patience); ; {
						chunk, err := r.fetch(at)
						if errors.Is(err, io.EOF) || errors.Is(err, tumble.ErrEnded) {
							break
						}
						c.ok(err, "Fetch(%v)", at)
						if len(chunk.Events) > 0 {
							c.failf("Fetch(%v), behind the last event, brought %d", at, len(chunk.Events))
						}
						if at = (piece{Chunk: chunk, from: at}).next(); time.Now().After(end) {
							c.failf("Fetch(%v) has given neither ErrEnded nor io.EOF %v after the last event", at, c.patience)
						}
					}
				}
			}
		})
	})),

	rule("Fetch/no end before the end", docErrors, func(c *check) {
		id := c.Log.Partitions[0]
		c.one(func(r *reader, begin tumble.Position) {
			at := r.quiet(begin).next() // fails on ErrEnded and io.EOF
			c.append(id, events(0, 2)...)
			_, pieces := r.read(at, 2)
			r.quiet(pieces[len(pieces)-1].next())
		})
	}),

	rule("Fetch/partitions beside each other", docOne, func(c *check) {
		for i, id := range c.Log.Partitions {
			c.append(id, events(1000*i, 200)...)
		}
		c.reading(func(ctx context.Context, all map[string]*reader) {
			var wg sync.WaitGroup
			failed := make([]any, len(c.Log.Partitions))
			for i, id := range c.Log.Partitions {
				wg.Go(func() {
					defer func() { failed[i] = recover() }()
					r := all[id]
					got, _ := r.read(at(r.resume(r.begin)), 200)
					c.arrived(got, events(1000*i, 200))
				})
			}
			wg.Wait()
			for _, f := range failed {
				if f != nil {
					panic(f)
				}
			}
		})
	}),

	rule("Committed/beside Fetch", docCommitted, func(c *check) {
		want := events(0, 2000)
		c.append(c.Log.Partitions[0], want...)
		c.one(func(r *reader, begin tumble.Position) {
			committer, ok := r.p.(tumble.Committer)
			if !ok {
				return // it need not be one
			}
			// Telling of offsets goes on in another goroutine, which is allowed to
			// be behind.
			tell := make(chan int64, 1)
			var wg sync.WaitGroup
			var slowest time.Duration
			wg.Go(func() {
				for offset := range tell {
					asked := time.Now()
					committer.Committed(offset)
					slowest = max(slowest, time.Since(asked))
				}
			})
			var got []record
			func() {
				defer wg.Wait()
				defer close(tell)
				for at := begin; len(got) < len(want); {
					some, pieces := r.read(at, 1)
					got = append(got, some...)
					at = pieces[len(pieces)-1].next()
					select {
					case tell <- at.Offset - int64(len(some)/2):
					default:
					}
				}
			}()
			c.arrived(got, want)
			if slowest > slack {
				c.failf("Committed took %v", slowest)
			}
			// Records that were not committed can still be fetched.
			last := got[len(got)-1].at
			committer.Committed(last.Offset)
			again, _ := r.read(last, 1)
			c.arrived(again, want[len(want)-1:])
		})
	}),
}
