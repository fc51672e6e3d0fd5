package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	docPartitions = "Partitions returns every partition of the source, whoever reads it, by its ID, with the checkpoint at which counting begins."
	docPolicy     = `stored holds the sink's checkpoints, other sources' partitions included. A start policy ("latest") applies only to a source of which nothing is stored; any other unknown partition begins at its earliest offset.`
	docAgain      = "It may be called again, to learn of partitions that are new."
	docID         = `ID names the partition, the same in every process: "clicks/3".`
	docRun        = "Run calls consume, in a goroutine of its own, for each partition that is assigned to this process, and returns once every call has returned."
	docRunCtx     = "consume's ctx ends when ctx does or when the partition must be given up; the source keeps the partition until consume, which flushes, has returned."
	docLost       = "If ctx ends while the source holds events that no later run can fetch, Run returns an error that says how many."
	docRunErr     = "The first error from consume ends the others and is returned; nil once ctx ended or all partitions are exhausted."
)

// others returns checkpoints of all partitions but the first.
func (c *check) others() map[string]tumble.Checkpoint {
	stored := c.partitions(c.Source, nil)
	delete(stored, c.Log.Partitions[0])
	return stored
}

var partitionRules = []Rule{
	rule("Partitions/every one", docPartitions, func(c *check) {
		got := c.partitions(c.Source, nil)
		ids, want := slices.Sorted(maps.Keys(got)), slices.Sorted(slices.Values(c.Log.Partitions))
		if !slices.Equal(ids, want) {
			c.failf("Partitions returned %q, want %q", ids, want)
		}
		for id, at := range got {
			if at.Origin != at.Offset || at.Ended || !at.Watermark.IsZero() {
				c.failf("%s begins at %v, want an Origin that is the Offset, no watermark, and no end", id, at)
			}
		}
	}),

	rule("Partitions/where counting begins", docPartitions, func(c *check) {
		want := events(0, 3)
		c.append(c.Log.Partitions[0], want...)
		c.one(func(r *reader, begin tumble.Position) {
			if begin != at(r.begin) {
				c.failf("Resume(%v) of what Partitions said is %v", r.begin, begin)
			}
			got, _ := r.read(begin, 3)
			c.arrived(got, want)
		})
	}),

	rule("Partitions/unknown ones begin at the earliest", docPolicy, func(c *check) {
		want := events(0, 3)
		c.append(c.Log.Partitions[0], want...)
		got := c.partitions(c.Source, c.others())
		c.one(func(r *reader, _ tumble.Position) {
			got, _ := r.read(at(r.resume(got[r.p.ID()])), 3)
			c.arrived(got, want)
		})
	}),

	needing(func(l *Log) bool { return l.Latest != nil && len(l.Partitions) > 1 }, rule("Partitions/latest", docPolicy, func(c *check) {
		id := c.Log.Partitions[0]
		c.append(id, events(0, 3)...)
		latest := func() tumble.Source {
			s, err := c.Latest(c.ctx)
			c.ok(err, "Log.Latest")
			return s
		}
		first, last := c.partitions(c.Source, nil)[id], c.partitions(latest(), nil)[id]
		if last.Offset < first.Offset+3 {
			c.failf(`nothing is stored and 3 events are there, but "latest" is offset %d and "earliest" is %d`, last.Offset, first.Offset)
		}
		got := c.partitions(latest(), c.others())[id]
		if got.Offset != first.Offset {
			c.failf(`other partitions are stored, but an unknown partition begins at offset %d for the policy "latest", want the earliest, %d`, got.Offset, first.Offset)
		}
	})),

	rule("Partitions/asked again", docAgain, func(c *check) {
		first := c.partitions(c.Source, nil)
		c.reading(func(ctx context.Context, all map[string]*reader) {
			for _, stored := range []map[string]tumble.Checkpoint{nil, first} {
				if got := c.partitions(c.Source, stored); !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(first))) {
					c.failf("Partitions returned %v, asked again with %v it returned %v", first, stored, got)
				}
			}
		})
	}),

	rule("Partition/ID", docID, func(c *check) {
		c.reading(func(ctx context.Context, all map[string]*reader) {
			for _, id := range c.Log.Partitions {
				if all[id] == nil {
					c.failf("consume was called for %q, want %q", slices.Sorted(maps.Keys(all)), c.Log.Partitions)
				}
			}
		})
	}),

	needing(func(l *Log) bool { return l.Another != nil }, rule("Partition/ID in another process", docID, func(c *check) {
		s, err := c.Another(c.ctx)
		c.ok(err, "Log.Another")
		if got := c.partitions(s, nil); !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(slices.Values(c.Log.Partitions))) {
			c.failf("another process calls the partitions %q, this one %q", slices.Sorted(maps.Keys(got)), c.Log.Partitions)
		}
	})),
}

// run starts the source with a consume that tells of each call, and returns how
// to end it and where its result comes.
func (c *check) run(consume func(context.Context, tumble.Partition) error) (cancel func(), result <-chan error) {
	c.partitions(c.Source, nil)
	ctx, cancel := context.WithCancel(c.ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Source.Run(ctx, consume) }()
	return cancel, ended
}

// returned waits for the result of Run.
func (c *check) returned(result <-chan error, when string) error {
	select {
	case err := <-result:
		return err
	case <-time.After(c.patience):
		c.failf("Run has not returned %v after %s", c.patience, when)
		return nil
	}
}

var runRules = []Rule{
	rule("Run/each partition once", docRun, func(c *check) {
		var mu sync.Mutex
		calls := make(map[string]int)
		all := make(chan struct{})
		cancel, result := c.run(func(ctx context.Context, p tumble.Partition) error {
			mu.Lock()
			calls[p.ID()]++
			if len(calls) == len(c.Log.Partitions) && calls[p.ID()] == 1 {
				close(all)
			}
			mu.Unlock()
			<-ctx.Done() // so a source that does not use goroutines gets no further
			return nil
		})
		defer cancel()
		select {
		case <-all:
		case err := <-result:
			c.failf("Run returned with calls of consume still running: %v", err)
		case <-time.After(c.patience):
			mu.Lock()
			n := len(calls)
			mu.Unlock()
			cancel()
			c.returned(result, "its context ended")
			c.failf("Run has called consume for %d of %d partitions after %v", n, len(c.Log.Partitions), c.patience)
		}
		cancel()
		c.ok(c.stopped(c.returned(result, "its context ended")), "Run")
		mu.Lock()
		defer mu.Unlock()
		for id, n := range calls {
			if n != 1 || !slices.Contains(c.Log.Partitions, id) {
				c.failf("Run called consume %d times for %q", n, id)
			}
		}
	}),

	rule("Run/waits for consume", docRun+" "+docRunCtx, func(c *check) {
		var mu sync.Mutex
		begun, returned := 0, 0
		all := make(chan struct{})
		cancel, result := c.run(func(ctx context.Context, p tumble.Partition) error {
			mu.Lock()
			if begun++; begun == len(c.Log.Partitions) {
				close(all)
			}
			mu.Unlock()
			<-ctx.Done()
			time.Sleep(300 * time.Millisecond) // the last flush
			mu.Lock()
			returned++
			mu.Unlock()
			return nil
		})
		defer cancel()
		select {
		case <-all:
		case err := <-result:
			c.failf("Run returned before its context ended: %v", err)
		case <-time.After(c.patience):
			c.failf("Run has called consume %d times after %v", begun, c.patience)
		}
		cancel()
		c.ok(c.returned(result, "its context ended"), "Run, whose context ended")
		mu.Lock()
		defer mu.Unlock()
		if returned != begun {
			c.failf("Run returned when %d of %d calls of consume had returned", returned, begun)
		}
	}),

	rule("Run/the first error", docRunErr, func(c *check) {
		broken := errors.New("consume is broken")
		var mu sync.Mutex
		begun := 0
		all := make(chan struct{})
		cancel, result := c.run(func(ctx context.Context, p tumble.Partition) error {
			mu.Lock()
			if begun++; begun == len(c.Log.Partitions) {
				close(all)
			}
			mu.Unlock()
			select {
			case <-all:
			case <-ctx.Done():
				return nil
			}
			if p.ID() == c.Log.Partitions[0] {
				return broken
			}
			select {
			case <-ctx.Done():
				return errors.New("ended by another's error")
			case <-time.After(2 * c.patience):
				return errors.New("not ended by another's error")
			}
		})
		defer cancel()
		if err := c.returned(result, "an error from consume"); !errors.Is(err, broken) {
			c.failf("Run returned the error %v, want the first from consume: %v", err, broken)
		}
	}),

	rule("Run/an error of the last flush", docRunErr, func(c *check) {
		broken := errors.New("consume is broken")
		begun := make(chan struct{}, len(c.Log.Partitions))
		cancel, result := c.run(func(ctx context.Context, p tumble.Partition) error {
			begun <- struct{}{}
			<-ctx.Done()
			return broken
		})
		defer cancel()
		<-begun
		cancel()
		if err := c.returned(result, "its context ended"); !errors.Is(err, broken) {
			c.failf("Run returned the error %v after its context had ended, want that of consume: %v", err, broken)
		}
	}),

	needing(func(l *Log) bool { return l.Lost != nil }, rule("Run/says what is lost", docLost, func(c *check) {
		c.append(c.Log.Partitions[0], events(0, 20)...)
		begin := c.partitions(c.Source, nil)
		read := make(chan any, 1)
		cancel, result := c.run(func(ctx context.Context, p tumble.Partition) error {
			if p.ID() == c.Log.Partitions[0] {
				func() {
					defer func() { read <- recover() }()
					r := &reader{c, ctx, p, begin[p.ID()]}
					r.read(at(r.resume(r.begin)), 20)
				}()
			}
			<-ctx.Done()
			return nil
		})
		defer cancel()
		failed := <-read
		cancel()
		err := c.returned(result, "its context ended")
		if failed != nil {
			panic(failed)
		}
		if n := c.Lost(err); n < 20 {
			c.failf("20 events were read and not committed, and Run says that %d are lost: %v", n, err)
		}
	})),

	needing(func(l *Log) bool { return l.End != nil }, rule("Run/all partitions exhausted", docRunErr, func(c *check) {
		for i, id := range c.Log.Partitions {
			c.append(id, events(i, 3)...)
			c.ok(c.End(c.ctx, id), "Log.End of %s", id)
		}
		begin := c.partitions(c.Source, nil)
		cancel, result := c.run(func(ctx context.Context, p tumble.Partition) error {
			begin, err := p.Resume(ctx, begin[p.ID()])
			if err != nil {
				return err
			}
			for n, from := 0, at(begin); ; {
				chunk, err := p.Fetch(ctx, from)
				if errors.Is(err, io.EOF) || errors.Is(err, tumble.ErrEnded) {
					if n != 3 {
						return fmt.Errorf("%s ended after %d of 3 events", p.ID(), n)
					}
					return nil
				} else if err != nil {
					return err
				}
				n, from = n+len(chunk.Events), piece{Chunk: chunk, from: from}.next()
			}
		})
		defer cancel()
		c.ok(c.returned(result, "all partitions had ended"), "Run, whose partitions have ended")
	})),
}
