package sinktest_test

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// levels is an Apply whose roll-ups are changed.
func levels(change func(s shard, b *tumble.Batch)) func(s shard, ctx context.Context, b tumble.Batch) error {
	return func(s shard, ctx context.Context, b tumble.Batch) error {
		b.Rollups = slices.Clone(b.Rollups)
		change(s, &b)
		return s.Apply(ctx, b)
	}
}

// A levelReader is the Reader of a roll-up but for what its functions do instead.
type levelReader struct {
	tumble.Reader
	definition func(def tumble.Definition, err error) (tumble.Definition, error)
	count      func(c tumble.Count, err error) (tumble.Count, error)
	scan       func(at time.Time, limit int) (tumble.Page, error)
}

func (l levelReader) Definition(ctx context.Context) (tumble.Definition, error) {
	def, err := l.Reader.Definition(ctx)
	if l.definition != nil {
		return l.definition(def, err)
	}
	return def, err
}

func (l levelReader) Count(ctx context.Context, key string, at time.Time) (tumble.Count, error) {
	c, err := l.Reader.Count(ctx, key, at)
	if l.count != nil {
		return l.count(c, err)
	}
	return c, err
}

func (l levelReader) Scan(ctx context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	if l.scan != nil {
		return l.scan(at, limit)
	}
	return l.Reader.Scan(ctx, at, cursor, limit)
}

// reading is a Rollup whose Reader is changed.
func reading(change func(s *memory.Sink, l *levelReader)) func(s *memory.Sink, w tumble.Window) (tumble.Reader, error) {
	return func(s *memory.Sink, w tumble.Window) (tumble.Reader, error) {
		r, err := s.Rollup(w)
		l := levelReader{Reader: r}
		if change(s, &l); err != nil {
			return nil, err
		}
		return l, nil
	}
}

var rollupFaults = []*fault{
	{name: "no roll-ups", rules: []string{"Rollup/adds up"}, apply: levels(func(_ shard, b *tumble.Batch) { b.Rollups = nil })},
	{name: "the first roll-up alone", rules: []string{"Rollup/adds up"},
		apply: levels(func(_ shard, b *tumble.Batch) { b.Rollups = b.Rollups[:min(1, len(b.Rollups))] })},
	{name: "what is past retention is so in all windows", rules: []string{"Rollup/retention"},
		apply: levels(func(s shard, b *tumble.Batch) {
			floor := s.state(context.Background()).Floors[0]
			for _, d := range b.Deltas {
				if _, end := s.def.Window.Bounds(d.Start); !end.After(floor) {
					b.Rollups = nil
				}
			}
		})},
	{name: "roll-ups whatever the checkpoint", rules: []string{"Rollup/a refused batch"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if at, ok := s.stored(ctx)[b.Partition]; errors.Is(err, tumble.ErrConflict) && ok && len(b.Rollups) > 0 {
				again := b
				again.From, again.To, again.Deltas = at, at, nil
				_ = s.Apply(ctx, again)
			}
			return err
		}},
	{name: "a roll-up may overflow", rules: []string{"Rollup/a refused batch"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if errors.Is(err, tumble.ErrOverflow) && len(b.Rollups) > 0 {
				b.Rollups = nil
				return s.Apply(ctx, b)
			}
			return err
		}},
	{name: "hours are as final as their first minute", rules: []string{"Rollup/states"},
		rollup: reading(func(s *memory.Sink, l *levelReader) {
			l.count = func(c tumble.Count, err error) (tumble.Count, error) {
				if fine, err := s.Count(context.Background(), c.Key, c.Start); err == nil {
					c.State = fine.State
				}
				return c, err
			}
		})},
	{name: "one retention for all", rules: []string{"Rollup/its retention in force"},
		rollup: reading(func(s *memory.Sink, l *levelReader) {
			l.definition = func(def tumble.Definition, err error) (tumble.Definition, error) {
				if all, err := s.Definition(context.Background()); err == nil {
					def.Retention = all.Retention
				}
				return def, err
			}
		})},
	{name: "any window is counted", rules: []string{"Rollup/windows that are not counted"},
		rollup: func(s *memory.Sink, _ tumble.Window) (tumble.Reader, error) { return s, nil }},
	{name: "the definition of all", rules: []string{"Rollup/adds up"},
		rollup: reading(func(s *memory.Sink, l *levelReader) {
			l.definition = func(tumble.Definition, error) (tumble.Definition, error) {
				return s.Definition(context.Background())
			}
		})},
	{name: "a cursor of any window", rules: []string{"Rollup/cursors"},
		rollup: reading(func(_ *memory.Sink, l *levelReader) {
			l.scan = func(at time.Time, limit int) (tumble.Page, error) {
				return l.Reader.Scan(context.Background(), at, "", limit)
			}
		})},
	{name: "any set of windows", rules: []string{"Rollup/another set of windows"},
		open: func(s *memory.Sink, _ int, shards []tumble.Shard, err error) ([]tumble.Shard, error) {
			var differs *tumble.DefinitionError
			if errors.As(err, &differs) {
				differs.Wanted.Rollups = differs.Stored.Rollups
				return s.Open(context.Background(), differs.Wanted)
			}
			return shards, err
		}},
}
