package sourcetest_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/sourcetest"
)

// TestFaultless guards the table below: without a fault nothing is found.
func TestFaultless(t *testing.T) {
	for _, r := range sourcetest.Rules() {
		t.Run(r.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { require.NoError(t, r.Check(t.Context(), (&fault{}).config())) })
		})
	}
}

// TestFinal guards the hook End: a partition may end for good.
func TestFinal(t *testing.T) {
	for _, r := range sourcetest.Rules() {
		if r.Name == "Fetch/the end" || r.Name == "Run/all partitions exhausted" {
			synctest.Test(t, func(t *testing.T) {
				require.NoError(t, r.Check(t.Context(), (&fault{end: tumble.ErrFinal}).config()))
			})
		}
	}
}

// TestSuite runs the rules as a user does, in real time.
func TestSuite(t *testing.T) {
	t.Parallel()
	sourcetest.Test(t, (&fault{}).config())
}

// TestFaults is the proof that each rule can fail.
func TestFaults(t *testing.T) {
	rules := make(map[string]sourcetest.Rule)
	for _, r := range sourcetest.Rules() {
		require.NotContains(t, rules, r.Name, "two rules have one name")
		rules[r.Name] = r
	}
	found := make(map[string]bool)
	for _, f := range faults {
		for _, name := range f.rules {
			found[name] = true
			require.Contains(t, rules, name, "no such rule: see the fault %q", f.name)
		}
		t.Run(f.name, func(t *testing.T) {
			require.NotEmpty(t, f.rules)
			for _, name := range f.rules {
				synctest.Test(t, func(t *testing.T) {
					require.Error(t, rules[name].Check(t.Context(), f.config()), "the rule %q does not find it", name)
					time.Sleep(time.Hour) // what a fault left running ends
				})
			}
		})
	}
	for name := range rules {
		require.True(t, found[name], "no fault shows that the rule %q can fail", name)
	}
}

// changed is a Fetch whose Chunk is changed.
func changed(change func(p *part, from tumble.Position, c *tumble.Chunk)) func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	return func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
		c, err := p.fetch(ctx, from, 500*time.Millisecond)
		if err == nil {
			change(p, from, &c)
		}
		return c, err
	}
}

// offsets are Partitions whose answer is changed, one by one.
func offsets(change func(l *log, stored map[string]tumble.Checkpoint, id string, c *tumble.Checkpoint)) func(l *log, stored, all map[string]tumble.Checkpoint) map[string]tumble.Checkpoint {
	return func(l *log, stored, all map[string]tumble.Checkpoint) map[string]tumble.Checkpoint {
		for id, c := range all {
			change(l, stored, id, &c)
			all[id] = c
		}
		return all
	}
}

var faults = []*fault{
	{name: "a partition is not told of", rules: []string{"Partitions/every one"},
		partitions: func(l *log, stored, all map[string]tumble.Checkpoint) map[string]tumble.Checkpoint {
			delete(all, "clicks/1")
			return all
		}},
	{name: "origin is not where counting begins", rules: []string{"Partitions/every one"},
		partitions: offsets(func(l *log, _ map[string]tumble.Checkpoint, _ string, c *tumble.Checkpoint) { c.Origin-- })},
	{name: "counting begins behind the first event", rules: []string{"Partitions/where counting begins"},
		partitions: offsets(func(l *log, _ map[string]tumble.Checkpoint, id string, c *tumble.Checkpoint) {
			if len(l.parts[id].records) > 0 {
				c.Origin, c.Offset = 1, 1
			}
		})},
	{name: "unknown ones begin at the end", rules: []string{"Partitions/unknown ones begin at the earliest", "Partitions/latest"},
		partitions: offsets(func(l *log, stored map[string]tumble.Checkpoint, id string, c *tumble.Checkpoint) {
			if _, ok := stored[id]; !ok && len(stored) > 0 {
				c.Offset = int64(len(l.parts[id].records))
				c.Origin = c.Offset
			}
		})},
	{name: "latest is earliest", rules: []string{"Partitions/latest"},
		partitions: offsets(func(l *log, _ map[string]tumble.Checkpoint, _ string, c *tumble.Checkpoint) {
			c.Origin, c.Offset = 0, 0
		})},
	{name: "what is stored is not told of again", rules: []string{"Partitions/asked again"},
		partitions: func(l *log, stored, all map[string]tumble.Checkpoint) map[string]tumble.Checkpoint {
			for id := range stored {
				delete(all, id)
			}
			return all
		}},
	{name: "a partition has another name when read", rules: []string{"Partition/ID"}, id: func(id string) string { return "read/" + id }},
	{name: "each process has its own names", rules: []string{"Partition/ID in another process"},
		partitions: func(l *log, stored, all map[string]tumble.Checkpoint) map[string]tumble.Checkpoint {
			own := make(map[string]tumble.Checkpoint)
			for id, c := range all {
				if l.parts[id].l != l {
					id += "-b"
				}
				own[id] = c
			}
			return own
		}},

	{name: "one partition after the other", rules: []string{"Run/each partition once"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			for _, p := range l.parts {
				if err := consume(ctx, p); err != nil {
					return err
				}
			}
			return nil
		}},
	{name: "a partition twice", rules: []string{"Run/each partition once"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			return l.run(ctx, func(ctx context.Context, p tumble.Partition) error {
				var wg sync.WaitGroup
				wg.Go(func() { _ = consume(ctx, p) })
				err := consume(ctx, p)
				wg.Wait()
				return err
			})
		}},
	{name: "does not wait for consume", rules: []string{"Run/waits for consume"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			ended := make(chan error, 1)
			go func() { ended <- l.run(ctx, consume) }()
			select {
			case err := <-ended:
				return err
			case <-ctx.Done():
				return nil
			}
		}},
	{name: "being stopped is an error", rules: []string{"Run/waits for consume", "Run/each partition once"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			return errors.Join(l.run(ctx, consume), ctx.Err())
		}},
	{name: "an error does not end the others", rules: []string{"Run/the first error"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			return l.run(context.WithoutCancel(ctx), func(own context.Context, p tumble.Partition) error { return consume(ctx, p) })
		}},
	{name: "the last error is returned", rules: []string{"Run/the first error"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			var mu sync.Mutex
			var last error
			_ = l.run(ctx, func(ctx context.Context, p tumble.Partition) error {
				err := consume(ctx, p)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					last = err
				}
				return err
			})
			return last
		}},
	{name: "errors are lost", rules: []string{"Run/the first error", "Run/an error of the last flush"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			_ = l.run(ctx, consume)
			return nil
		}},
	{name: "errors are lost once it was stopped", rules: []string{"Run/an error of the last flush"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			if err := l.run(ctx, consume); ctx.Err() == nil {
				return err
			}
			return nil
		}},
	{name: "what is lost is not said", rules: []string{"Run/says what is lost"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			err := l.run(ctx, consume)
			if _, ok := err.(lostError); ok {
				return nil
			}
			return err
		}},
	{name: "too little is said to be lost", rules: []string{"Run/says what is lost"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			err := l.run(ctx, consume)
			if _, ok := err.(lostError); ok {
				return lostError(1)
			}
			return err
		}},
	{name: "exhausted, but waits to be stopped", rules: []string{"Run/all partitions exhausted"},
		run: func(l *log, ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
			err := l.run(ctx, consume)
			<-ctx.Done()
			return err
		}},

	{name: "Resume is at the beginning", rules: []string{"Resume/there"},
		resume: func(p *part, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
			stored.Offset = stored.Origin
			return stored, nil
		}},
	{name: "Resume forgets the watermark", rules: []string{"Resume/there"},
		resume: func(p *part, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
			stored.Watermark = time.Time{}
			return stored, nil
		}},
	{name: "Resume of what is gone is there", rules: []string{"Resume/gone"},
		resume: func(p *part, stored tumble.Checkpoint) (tumble.Checkpoint, error) { return stored, nil }},
	{name: "Resume of what was truncated is there", rules: []string{"Resume/truncated"},
		resume: func(p *part, stored tumble.Checkpoint) (tumble.Checkpoint, error) { return stored, nil }},
	{name: "Resume of what was truncated is at the end", rules: []string{"Resume/truncated"},
		resume: func(p *part, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
			p.l.mu.Lock()
			defer p.l.mu.Unlock()
			if at := (tumble.Position{Offset: stored.Offset, Epoch: stored.Epoch}); p.parted(at) != at {
				stored.Offset, stored.Epoch = int64(len(p.records)), p.epoch
			}
			return stored, nil
		}},
	{name: "Resume of what was truncated forgets the watermark", rules: []string{"Resume/truncated"},
		resume: func(p *part, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
			p.l.mu.Lock()
			defer p.l.mu.Unlock()
			if at := p.parted(tumble.Position{Offset: stored.Offset, Epoch: stored.Epoch}); at.Offset < stored.Offset {
				stored.Offset, stored.Epoch, stored.Watermark = at.Offset, at.Epoch, time.Time{}
			}
			return stored, nil
		}},
	{name: "Resume goes back further than the cut", rules: []string{"Resume/truncated"},
		resume: func(p *part, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
			if p.epoch > 0 {
				stored.Offset, stored.Epoch = min(stored.Offset, 3), 0
			}
			return stored, nil
		}},
	{name: "Fetch does not look at epochs", rules: []string{"Resume/truncated", "Fetch/truncated while it is read"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			from.Epoch = 1 << 20
			return p.fetch(ctx, from, 500*time.Millisecond)
		}},
	{name: "what was removed is out of range", rules: []string{"Resume/truncated", "Fetch/truncated while it is read"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			c, err := p.fetch(ctx, from, 500*time.Millisecond)
			if errors.Is(err, tumble.ErrTruncated) {
				err = tumble.ErrOffsetOutOfRange
			}
			return c, err
		}},
	{name: "a Chunk goes over an election", rules: []string{"Chunk/one Epoch"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			c, err := p.fetch(ctx, from, 500*time.Millisecond)
			if more, e := p.fetch(ctx, tumble.Position{Offset: c.Next, Epoch: c.Epoch}, 0); err == nil && e == nil {
				more.Events = slices.Concat(c.Events, more.Events)
				return more, nil
			}
			return c, err
		}},
	{name: "the epoch is the leader's", rules: []string{"Chunk/one Epoch"},
		fetch: changed(func(p *part, from tumble.Position, c *tumble.Chunk) {
			if c.Next > from.Offset {
				c.Epoch = p.epoch
			}
		})},
	{name: "epochs fall", rules: []string{"Chunk/Epoch never falls"},
		fetch: changed(func(p *part, from tumble.Position, c *tumble.Chunk) {
			if p.calls--; c.Next > from.Offset {
				c.Epoch = int32(p.calls)
			}
		})},
	{name: "Fetch jumps over what is gone", rules: []string{"Resume/gone"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			p.l.mu.Lock()
			from.Offset = max(from.Offset, p.first)
			p.l.mu.Unlock()
			return p.fetch(ctx, from, 500*time.Millisecond)
		}},

	{name: "an event is lost", rules: []string{"Fetch/every event"},
		fetch: changed(func(p *part, from tumble.Position, c *tumble.Chunk) {
			c.Events = slices.DeleteFunc(c.Events, func(e tumble.Event) bool { return e.Offset == 1234 })
		})},
	{name: "an event comes twice", rules: []string{"Fetch/every event", "Chunk/ascending"},
		fetch: changed(func(p *part, from tumble.Position, c *tumble.Chunk) {
			if len(c.Events) > 1 {
				c.Events = append(c.Events, c.Events[len(c.Events)-1])
			}
		})},
	{name: "event times in seconds", rules: []string{"Fetch/every event"},
		fetch: changed(func(p *part, from tumble.Position, c *tumble.Chunk) {
			for i := range c.Events {
				c.Events[i].Time = c.Events[i].Time.Truncate(time.Second)
			}
		})},
	{name: "nothing more is seen", rules: []string{"Fetch/waits for more"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			if p.calls++; p.calls > 1 {
				return waiting(ctx, from)
			}
			return p.fetch(ctx, from, 500*time.Millisecond)
		}},
	{name: "more is seen late", rules: []string{"Fetch/soon after it came"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			if p.calls++; p.calls%5 > 0 {
				return waiting(ctx, from)
			}
			return p.fetch(ctx, from, 500*time.Millisecond)
		}},
	{name: "waits as long as nothing is there", rules: []string{"Fetch/an empty Chunk every 500 ms"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			return p.fetch(ctx, from, 5*time.Second)
		}},
	{name: "an empty Chunk has no new AsOf", rules: []string{"Fetch/an empty Chunk every 500 ms"},
		fetch: changed(func(p *part, _ tumble.Position, c *tumble.Chunk) { c.AsOf = c.AsOf.Truncate(time.Hour) })},
	{name: "an empty Chunk goes on", rules: []string{"Fetch/an empty Chunk every 500 ms"},
		fetch: changed(func(p *part, from tumble.Position, c *tumble.Chunk) {
			if p.calls++; len(c.Events) == 0 && p.calls > 2 {
				c.Next++
			}
		})},
	{name: "spins", rules: []string{"Fetch/waits without spinning"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			return p.fetch(ctx, from, time.Millisecond)
		}},
	{name: "does not look at ctx", rules: []string{"Fetch/ctx ends"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			return p.fetch(context.WithoutCancel(ctx), from, 500*time.Millisecond)
		}},
	{name: "the end of ctx is the end", rules: []string{"Fetch/ctx ends"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			c, err := p.fetch(ctx, from, 500*time.Millisecond)
			if ctx.Err() != nil {
				err = io.EOF
			}
			return c, err
		}},
	{name: "goes on where it was", rules: []string{"Fetch/the same again"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			p.told = max(p.told, from.Offset)
			return p.fetch(ctx, tumble.Position{Offset: p.told}, 500*time.Millisecond)
		}},
	{name: "the end is silent", rules: []string{"Fetch/the end"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			c, err := p.fetch(ctx, from, 500*time.Millisecond)
			if errors.Is(err, tumble.ErrEnded) {
				return waiting(ctx, from)
			}
			return c, err
		}},
	{name: "the end comes once", rules: []string{"Fetch/the end"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			c, err := p.fetch(ctx, from, 500*time.Millisecond)
			if errors.Is(err, tumble.ErrEnded) {
				if p.calls++; p.calls > 1 {
					return waiting(ctx, from)
				}
			}
			return c, err
		}},
	{name: "quiet is the end", rules: []string{"Fetch/no end before the end"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			c, err := p.fetch(ctx, from, 500*time.Millisecond)
			if err == nil && len(c.Events) == 0 {
				err = io.EOF
			}
			return c, err
		}},
	{name: "partitions are mixed up", rules: []string{"Fetch/partitions beside each other"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			if p.id == "clicks/2" {
				p = p.l.parts["clicks/1"]
			}
			return p.fetch(ctx, from, 500*time.Millisecond)
		}},
	{name: "forgets more than is committed", rules: []string{"Committed/beside Fetch"},
		committed: func(p *part, offset int64) {
			p.l.mu.Lock()
			defer p.l.mu.Unlock()
			p.first = min(offset+1, int64(len(p.records)))
		}},
	{name: "Committed blocks", rules: []string{"Committed/beside Fetch"},
		committed: func(p *part, offset int64) { time.Sleep(2 * time.Second) }},

	{name: "descending", rules: []string{"Chunk/ascending"},
		fetch: changed(func(_ *part, _ tumble.Position, c *tumble.Chunk) { slices.Reverse(c.Events) })},
	{name: "from the beginning of the batch", rules: []string{"Chunk/nothing before from"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			c, err := p.fetch(ctx, tumble.Position{Offset: from.Offset - from.Offset%10}, 500*time.Millisecond)
			c.Next = max(c.Next, from.Offset)
			return c, err
		}},
	{name: "Next is the last", rules: []string{"Chunk/Next"},
		fetch: changed(func(_ *part, from tumble.Position, c *tumble.Chunk) {
			if len(c.Events) > 1 {
				c.Next--
				c.Events = append(c.Events, c.Events[len(c.Events)-1])
			}
		})},
	{name: "a record is cut", rules: []string{"Chunk/one record in one"},
		fetch: changed(func(p *part, from tumble.Position, c *tumble.Chunk) {
			if len(c.Events) > 1000 {
				if p.calls++; p.calls == 1 {
					c.Events, c.Next = c.Events[:1000], 1
				} else {
					c.Events = c.Events[1000-1:]
				}
			}
		})},
	{name: "each event of a record has its own offset", rules: []string{"Chunk/one record in one"},
		fetch: changed(func(_ *part, from tumble.Position, c *tumble.Chunk) {
			for i := range c.Events {
				c.Events[i].Offset = from.Offset + int64(i)
			}
			c.Next = max(c.Next, from.Offset+int64(len(c.Events)))
		})},
	{name: "a Chunk is reused too early", rules: []string{"Chunk/valid until the next Fetch"}, reuses: true},
	{name: "the end of the log is old", rules: []string{"Chunk/End"},
		fetch: changed(func(p *part, from tumble.Position, c *tumble.Chunk) { c.End = from.Offset })},
	{name: "the end of the log is never reached", rules: []string{"Chunk/End"},
		fetch: changed(func(p *part, _ tumble.Position, c *tumble.Chunk) { c.End++ })},
	{name: "AsOf is in the future", rules: []string{"Chunk/AsOf"},
		fetch: changed(func(p *part, _ tumble.Position, c *tumble.Chunk) { c.AsOf = c.AsOf.Add(time.Minute) })},
	{name: "AsOf is zero", rules: []string{"Chunk/AsOf"},
		fetch: changed(func(p *part, _ tumble.Position, c *tumble.Chunk) { c.AsOf = time.Time{} })},
	{name: "AsOf goes back", rules: []string{"Chunk/AsOf"},
		fetch: changed(func(p *part, _ tumble.Position, c *tumble.Chunk) {
			p.calls++
			c.AsOf = c.AsOf.Add(-time.Duration(p.calls) * time.Second)
		})},
	{name: "told of each time", rules: []string{"Chunk/rejected once", "Chunk/skipped once"},
		fetch: func(p *part, ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
			p.told = 0
			return p.fetch(ctx, from, 500*time.Millisecond)
		}},
	{name: "not told of", rules: []string{"Chunk/rejected once", "Chunk/skipped once"},
		fetch: changed(func(_ *part, _ tumble.Position, c *tumble.Chunk) { c.Rejected, c.Skipped = 0, 0 })},
	{name: "skipped is rejected", rules: []string{"Chunk/skipped once"},
		fetch: changed(func(_ *part, _ tumble.Position, c *tumble.Chunk) { c.Rejected, c.Skipped = c.Rejected+c.Skipped, 0 })},
}

// waiting is a Fetch that finds nothing.
func waiting(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	select {
	case <-ctx.Done():
		return tumble.Chunk{}, ctx.Err()
	case <-time.After(500 * time.Millisecond):
		return tumble.Chunk{Next: from.Offset, Epoch: from.Epoch, End: from.Offset, AsOf: time.Now()}, nil
	}
}
