package sinktest_test

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

// totalling is a Windows whose totals are changed.
func totalling(change func(t *tumble.Total)) func(s *memory.Sink, from, to time.Time) ([]tumble.Total, error) {
	return func(s *memory.Sink, from, to time.Time) ([]tumble.Total, error) {
		all, err := s.Windows(context.Background(), from, to)
		for i := range all {
			change(&all[i])
		}
		return all, err
	}
}

// progressing is a Progress that is changed, told of what each shard stores.
func progressing(change func(p *tumble.Progress, stored []checkpoints)) func(s *memory.Sink) (tumble.Progress, error) {
	return func(s *memory.Sink) (tumble.Progress, error) {
		p, err := s.Progress(context.Background())
		if _, stored := all(s); err == nil {
			change(&p, stored)
		}
		return p, err
	}
}

var totalFaults = []*fault{
	{name: "a part of a batch that overflows", rules: []string{"Apply/overflow"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			for i := 0; errors.Is(err, tumble.ErrOverflow) && i < len(b.Deltas); i++ {
				part := b
				part.Deltas, part.To = b.Deltas[:len(b.Deltas)-i], b.From
				if s.Apply(ctx, part) == nil {
					break
				}
			}
			return err
		}},
	{name: "an overflow is any error", rules: []string{"Apply/overflow"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			err := s.Apply(ctx, b)
			if errors.Is(err, tumble.ErrOverflow) {
				return errors.New("too much")
			}
			return err
		}},
	{name: "stops at the largest count", rules: []string{"Apply/overflow"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			for _, d := range b.Deltas {
				if d.N == tumble.MaxCount {
					return tumble.ErrOverflow
				}
			}
			return s.Apply(ctx, b)
		}},
	{name: "a batch overflows by what is not counted", rules: []string{"Apply/overflow of what has expired"},
		apply: func(s shard, ctx context.Context, b tumble.Batch) error {
			var all int64
			for _, d := range b.Deltas {
				if all > tumble.MaxCount-d.N {
					return tumble.ErrOverflow
				}
				all += d.N
			}
			return s.Apply(ctx, b)
		}},
	{name: "counts in another order", rules: []string{"Reader/counts"},
		several: func(s *memory.Sink, at time.Time, keys []string) ([]tumble.Count, error) {
			return s.Counts(context.Background(), at, slices.Sorted(slices.Values(keys))...)
		}},
	{name: "counts each key once", rules: []string{"Reader/counts"},
		several: func(s *memory.Sink, at time.Time, keys []string) ([]tumble.Count, error) {
			var once []string
			for _, key := range keys {
				if !slices.Contains(once, key) {
					once = append(once, key)
				}
			}
			return s.Counts(context.Background(), at, once...)
		}},
	{name: "all counts of the window that is open", rules: []string{"Reader/counts"},
		several: func(s *memory.Sink, at time.Time, keys []string) ([]tumble.Count, error) {
			all, err := s.Counts(context.Background(), at, keys...)
			for i := range all {
				all[i].State = tumble.Open
			}
			return all, err
		}},
	{name: "one key more", rules: []string{"Reader/windows", "Apply/adds"}, windows: totalling(func(t *tumble.Total) { t.Keys++ })},
	{name: "events for their sum", rules: []string{"Reader/windows", "Apply/adds"}, windows: totalling(func(t *tumble.Total) { t.N = t.Keys })},
	{name: "totals of open windows", rules: []string{"Reader/windows"}, windows: totalling(func(t *tumble.Total) { t.State = tumble.Open })},
	{name: "totals with the windows' own bounds", rules: []string{"Reader/windows"},
		windows: func(s *memory.Sink, from, to time.Time) ([]tumble.Total, error) {
			return s.Windows(context.Background(), from.Truncate(time.Minute), to.Add(time.Minute-1).Truncate(time.Minute))
		}},
	{name: "the newest window first", rules: []string{"Reader/windows"},
		windows: func(s *memory.Sink, from, to time.Time) ([]tumble.Total, error) {
			all, err := s.Windows(context.Background(), from, to)
			slices.Reverse(all)
			return all, err
		}},
	{name: "progress of the first shard", rules: []string{"Reader/progress"},
		progress: progressing(func(p *tumble.Progress, stored []checkpoints) { *p = tumble.ProgressOf(stored[:1]) })},
	{name: "progress of the furthest shard", rules: []string{"Reader/progress"},
		progress: progressing(func(p *tumble.Progress, stored []checkpoints) {
			for i := range p.Partitions {
				for _, shard := range stored {
					p.Partitions[i].Offset = max(p.Partitions[i].Offset, shard[p.Partitions[i].ID].Offset)
				}
			}
		})},
	{name: "the log of the first shard", rules: []string{"Reader/progress"},
		progress: progressing(func(p *tumble.Progress, stored []checkpoints) {
			for i := range p.Partitions {
				p.Partitions[i].Log = stored[0][p.Partitions[i].ID].Log
			}
		})},
	{name: "nothing ever ends", rules: []string{"Reader/progress"},
		progress: progressing(func(p *tumble.Progress, _ []checkpoints) {
			for i := range p.Partitions {
				p.Partitions[i].Ended = false
			}
		})},
	{name: "the frontier of the furthest shard", rules: []string{"Reader/progress"},
		progress: progressing(func(p *tumble.Progress, stored []checkpoints) {
			for _, shard := range stored {
				if f := tumble.Frontier(shard); f.After(p.Frontier) {
					p.Frontier = f
				}
			}
		})},
	{name: "no progress for a name that is not there", rules: []string{"Reader/no definition, no counts"},
		progress: func(s *memory.Sink) (tumble.Progress, error) {
			p, _ := s.Progress(context.Background())
			return p, nil
		}},
}
