package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble"
)

// memory measures what an increment takes that waits for a store that is away,
// and that no more is taken once MaxPending of them wait.
func memory(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("memory", flag.ExitOnError)
	n := f.Int("pending", 1_000_000, "MaxPending, a `number` of increments; each has a key of its own")
	parts := f.Int("partitions", 4, "`number` of partitions")
	if err := f.Parse(args); err != nil {
		return err
	}
	slog.SetLogLoggerLevel(slog.LevelError + 1) // that the store is away is no news
	before := heap()
	source := &endless{parts: *parts}
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: away{}, Window: tumble.Window{Size: time.Minute},
		MaxPending: *n, ShutdownTimeout: time.Millisecond})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() { failed = pipeline.Run(ctx) })
	// full waits until reading has stopped.
	full := func() (read int64) {
		for still := 0; still < 10 && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
			if now := source.read.Load(); now == read && now > 0 {
				still++
			} else {
				read, still = now, 0
			}
		}
		return read
	}
	full()
	first, increments := heap(), pipeline.Stats().Increments
	time.Sleep(5 * time.Second)
	later, still := heap(), pipeline.Stats().Increments
	cancel()
	wg.Wait()
	if failed != nil && !errors.Is(failed, context.Canceled) {
		return failed
	}
	fmt.Printf("%d increments pending of at most %d: %.1f MB, %.1f bytes each (keys of 11 bytes); 5 s later %d and %.1f MB\n",
		increments, *n, float64(first-before)/1e6, float64(first-before)/float64(increments), still, float64(later-before)/1e6)
	if increments < int64(*n)*9/10 {
		return fmt.Errorf("only %d increments were pending", increments)
	}
	return nil
}

// heap is what is in use, after a collection.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// endless is a Source of events that all have keys of their own.
type endless struct {
	parts int
	read  atomic.Int64
}

func (s *endless) Partitions(context.Context, map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	all := map[string]tumble.Checkpoint{}
	for i := range s.parts {
		all["endless/"+strconv.Itoa(i)] = tumble.Checkpoint{Log: "one"}
	}
	return all, nil
}

func (s *endless) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	errs := make([]error, s.parts)
	var wg sync.WaitGroup
	for i := range s.parts {
		wg.Go(func() { errs[i] = consume(ctx, &endlessPartition{source: s, number: i}) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

type endlessPartition struct {
	source *endless
	number int
	events [500]tumble.Event
}

func (p *endlessPartition) ID() string { return "endless/" + strconv.Itoa(p.number) }

func (p *endlessPartition) Resume(_ context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	return stored, nil
}

func (p *endlessPartition) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	if ctx.Err() != nil {
		return tumble.Chunk{}, io.EOF
	}
	for i := range p.events {
		offset := from.Offset + int64(i)
		key := fmt.Sprintf("%d_%09d", p.number%10, offset)
		p.events[i] = tumble.Event{Key: key, Time: epoch, Offset: offset}
	}
	p.source.read.Add(int64(len(p.events)))
	next := from.Offset + int64(len(p.events))
	return tumble.Chunk{Events: p.events[:], Next: next, End: next + 1000, AsOf: time.Now()}, nil
}

// away is a Sink that knows nothing, and then does not answer.
type away struct{}

func (away) Open(context.Context, tumble.Definition) ([]tumble.Shard, error) {
	shards := make([]tumble.Shard, 16)
	for i := range shards {
		shards[i] = &awayShard{}
	}
	return shards, nil
}

type awayShard struct {
	mu     sync.Mutex
	stored map[string]tumble.Checkpoint
}

func (s *awayShard) Load(_ context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stored == nil {
		s.stored = map[string]tumble.Checkpoint{}
	}
	all := map[string]tumble.Checkpoint{}
	for id, c := range r.Init {
		if _, ok := s.stored[id]; !ok {
			s.stored[id] = c
		}
	}
	for id, c := range s.stored {
		all[id] = c
	}
	return tumble.ShardState{Checkpoints: all}, nil
}

func (s *awayShard) Apply(ctx context.Context, _ tumble.Batch) error {
	<-ctx.Done()
	return ctx.Err()
}
