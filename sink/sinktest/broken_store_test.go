package sinktest_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// lenient is an Apply that takes a conflict for none where same says so.
func lenient(same func(stored, from tumble.Checkpoint) bool) func(s shard, ctx context.Context, b tumble.Batch) error {
	return func(s shard, ctx context.Context, b tumble.Batch) error {
		stored, ok := s.stored(ctx)[b.Partition]
		if ok && same(stored, b.From) {
			b.From = stored
		}
		return s.Apply(ctx, b)
	}
}

// but compares checkpoints after change.
func but(change func(c *tumble.Checkpoint)) func(a, b tumble.Checkpoint) bool {
	return func(a, b tumble.Checkpoint) bool {
		change(&a)
		change(&b)
		return a.Same(b)
	}
}

// deltas is an Apply that changes each delta.
func deltas(change func(d *tumble.Delta)) func(s shard, ctx context.Context, b tumble.Batch) error {
	return func(s shard, ctx context.Context, b tumble.Batch) error {
		b.Deltas = slices.Clone(b.Deltas)
		for i := range b.Deltas {
			change(&b.Deltas[i])
		}
		return s.Apply(ctx, b)
	}
}

var storeFaults = []*fault{
	{name: "takes any definition", rules: []string{"Open/refuses another definition"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			if err != nil {
				stored, _ := s.Definition(context.Background())
				return s.Open(context.Background(), stored)
			}
			return shards, err
		}},
	{name: "does not tell the definitions", rules: []string{"Open/refuses another definition", "Open/a refused one changes nothing"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			if err != nil {
				return nil, tumble.ErrDefinition
			}
			return shards, err
		}},
	{name: "tells the wrong definition", rules: []string{"Open/refuses another definition"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			var e *tumble.DefinitionError
			if errors.As(err, &e) {
				return nil, &tumble.DefinitionError{Stored: e.Wanted, Wanted: e.Wanted}
			}
			return shards, err
		}},
	{name: "retention is part of the definition", rules: []string{"Open/takes another retention", "Load/the longest retention is in force"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			if n > 1 {
				return nil, tumble.ErrDefinition
			}
			return shards, err
		}},
	{name: "takes a refused definition for its own", rules: []string{"Open/a refused one changes nothing"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			if err != nil && n > 1 {
				other, _ := s.Definition(context.Background())
				other.Grace = time.Hour
				s.Clear()
				_, _ = s.Open(context.Background(), other)
			}
			return shards, err
		}},
	{name: "adds up what is counted by two definitions", rules: []string{"Apply/refuses another definition"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if errors.Is(err, tumble.ErrDefinition) {
				stored, _ := s.s.Definition(ctx)
				shards, _ := s.s.Open(ctx, stored)
				return shards[s.i].Apply(ctx, b)
			}
			return err
		}},
	{name: "a shard less each time", rules: []string{"Open/always as many shards"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			return shards[:max(1, len(shards)-n)], err
		}},
	{name: "shards in another order", rules: []string{"Open/keys by hash"},
		open: func(s *memory.Sink, n int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			return append(slices.Clone(shards[1:]), shards[0]), err
		}},
	{name: "nothing outlives the process", rules: []string{"Sink/outlives the process"}, fresh: true},
	{name: "one store for all names", rules: []string{"Sink/names are apart"}, shared: true},

	{name: "logs are not compared", rules: []string{"Apply/conflict in Log"}, apply: lenient(but(func(c *tumble.Checkpoint) { c.Log = "" }))},
	{name: "logs are compared without case", rules: []string{"Apply/conflict in Log"}, apply: lenient(but(func(c *tumble.Checkpoint) { c.Log = strings.ToLower(c.Log) }))},
	{name: "origins are not compared", rules: []string{"Apply/conflict in Origin"}, apply: lenient(but(func(c *tumble.Checkpoint) { c.Origin = 0 }))},
	{name: "epochs are not compared", rules: []string{"Apply/conflict in Epoch", "Apply/conflict in Epoch: none, asked for unknown"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Epoch = 0 }))},
	{name: "no epoch is an unknown one", rules: []string{"Apply/conflict in Epoch: none, asked for unknown"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Epoch = max(c.Epoch, 0) }))},
	{name: "epochs are not stored", rules: []string{"Apply/moves the whole checkpoint"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.To.Epoch = b.From.Epoch
			return s.Apply(ctx, b)
		}},
	{name: "offsets are not compared", rules: []string{"Apply/conflict in Offset", "Apply/the identical batch again"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Offset, c.Watermark = 0, time.Time{} }))},
	{name: "numbers are floating point", rules: []string{"Apply/conflict in Offset", "Apply/conflict in Origin"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Offset, c.Origin = int64(float64(c.Offset)), int64(float64(c.Origin)) }))},
	{name: "a position further on is good enough", rules: []string{"Apply/conflict in Offset"},
		apply: lenient(func(stored, from tumble.Checkpoint) bool {
			return stored.Log == from.Log && from.Offset > stored.Offset
		})},
	{name: "watermarks are compared in microseconds", rules: []string{"Apply/conflict in Watermark"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Watermark = c.Watermark.Truncate(time.Microsecond) }))},
	{name: "watermarks are not compared with none", rules: []string{"Apply/conflict in Watermark: there, asked for none"},
		apply: lenient(func(stored, from tumble.Checkpoint) bool {
			return from.Watermark.IsZero() && but(func(c *tumble.Checkpoint) { c.Watermark = time.Time{} })(stored, from)
		})},
	{name: "no watermark is the epoch",
		rules: []string{"Apply/conflict in Watermark: none, asked for one", "Apply/conflict in Watermark: the epoch, asked for none"},
		apply: lenient(but(func(c *tumble.Checkpoint) {
			if c.Watermark.IsZero() {
				c.Watermark = time.Unix(0, 0)
			}
		}))},
	{name: "ended is not compared", rules: []string{"Apply/conflict in Ended", "Apply/conflict in Ended: so, asked for not"},
		apply: lenient(but(func(c *tumble.Checkpoint) { c.Ended = false }))},
	{name: "times are compared by ==", rules: []string{"Apply/the same instant"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if stored := s.stored(ctx)[b.Partition]; stored != b.From {
				return tumble.ErrConflict
			}
			return s.Apply(ctx, b)
		}},
	{name: "none is stored, so any will do", rules: []string{"Apply/conflict with none"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if _, err := s.init(ctx, checkpoints{b.Partition: b.From}); err != nil {
				return err
			}
			return s.Apply(ctx, b)
		}},
	{name: "a conflict adds", rules: []string{"Apply/conflict in Offset", "Apply/the identical batch again"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if stored, ok := s.stored(ctx)[b.Partition]; ok && err != nil {
				_ = s.Apply(ctx, tumble.Batch{Partition: b.Partition, Writer: 1, From: stored, To: stored, Deltas: b.Deltas})
			}
			return err
		}},
	{name: "a conflict moves", rules: []string{"Apply/conflict in Origin"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if stored, ok := s.stored(ctx)[b.Partition]; ok && err != nil {
				_ = s.move(ctx, b.Partition, stored, b.To)
			}
			return err
		}},
	{name: "the same batch again is fine", rules: []string{"Apply/the identical batch again"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if s.stored(ctx)[b.Partition].Same(b.To) {
				return nil
			}
			return s.Apply(ctx, b)
		}},
	{name: "watermarks are kept in milliseconds", rules: []string{"Apply/moves the whole checkpoint"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.To.Watermark = b.To.Watermark.Truncate(time.Millisecond)
			return s.Apply(ctx, b)
		}},
	{name: "every increment is 1", rules: []string{"Apply/adds"}, apply: deltas(func(d *tumble.Delta) { d.N = 1 })},
	{name: "one checkpoint for all partitions", rules: []string{"Apply/partitions add up"},
		load: initially(func(s shard, ctx context.Context, init checkpoints) (checkpoints, error) {
			for id, c := range init {
				all, err := s.init(ctx, checkpoints{"all": c})
				return checkpoints{id: all["all"]}, err
			}
			return s.init(ctx, nil)
		}),
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.Partition = "all"
			return s.Apply(ctx, b)
		}},
	{name: "a shard moves the others", rules: []string{"Apply/one shard alone"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			for _, other := range s.all {
				if other != s.Shard {
					_ = other.Apply(ctx, tumble.Batch{Partition: b.Partition, Writer: 1, From: b.From, To: b.To})
				}
			}
			return s.Apply(ctx, b)
		}},
	{name: "keys end at a zero byte", rules: []string{"Apply/keys of any bytes"},
		apply: deltas(func(d *tumble.Delta) { d.Key, _, _ = strings.Cut(d.Key, "\x00") })},
	{name: "keys are cut", rules: []string{"Apply/keys of any bytes"}, apply: deltas(func(d *tumble.Delta) { d.Key = d.Key[:min(len(d.Key), 65535)] })},
	{name: "a thousand deltas are enough", rules: []string{"Apply/many deltas"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			b.Deltas = b.Deltas[:min(len(b.Deltas), 1000)]
			return s.Apply(ctx, b)
		}},
	{name: "without deltas there is nothing to do", rules: []string{"Apply/no deltas"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if len(b.Deltas) == 0 {
				return nil
			}
			return s.Apply(ctx, b)
		}},
	{name: "a rebase is refused", rules: []string{"Apply/rebase"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if b.From.Log != b.To.Log {
				return tumble.ErrConflict
			}
			return s.Apply(ctx, b)
		}},
	{name: "offsets only grow", rules: []string{"Apply/truncation"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if b.From.Log == b.To.Log && b.To.Offset < b.From.Offset {
				return tumble.ErrConflict
			}
			return s.Apply(ctx, b)
		}},
	{name: "an origin stays where it is", rules: []string{"Apply/truncation"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			if b.From.Log == b.To.Log {
				b.To.Origin = b.From.Origin
			}
			return s.Apply(ctx, b)
		}},
	{name: "deltas are read later", rules: []string{"Apply/deltas are borrowed"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			s.f.mu.Lock()
			defer s.f.mu.Unlock()
			later := b.Deltas
			b.Deltas, s.f.pending = s.f.pending, later
			return s.Apply(ctx, b)
		}},
}
