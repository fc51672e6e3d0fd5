package tumble

import (
	"context"
	"fmt"
	"time"
)

// endWait is how long EndPartition lets pipelines object: three polls of each.
const endWait = 3 * pollEvery

// EndPartition marks a partition as one that nobody will ever read again, in
// every shard of s, so that windows need not wait for it: a channel whose
// process will not come back, a topic that is no longer counted. s must also be
// a Reader.
//
// It takes 15 seconds, in which every pipeline whose source has the partition
// objects. Then the error wraps ErrObjected, or ErrConflict if the partition moved
// on. An unknown partition is an error, too. If the partition has ended in some
// shards already, the error names them. If the partition goes on after all, it
// does so at the frontier, and closed windows stay closed.
func EndPartition(ctx context.Context, s Sink, partition string) error {
	if err := endPartition(ctx, s, partition); err != nil {
		return fmt.Errorf("tumble: end %s: %w", partition, err)
	}
	return nil
}

func endPartition(ctx context.Context, s Sink, partition string) error {
	r, ok := s.(Reader)
	if !ok {
		return fmt.Errorf("the sink %T is no tumble.Reader, so its definition is unknown", s)
	}
	def, err := r.Definition(ctx)
	if err != nil {
		return err
	}
	shards, err := s.Open(ctx, def)
	if err != nil {
		return err
	}
	// Nothing is announced unless every shard knows the partition.
	live := false
	for i, shard := range shards {
		state, err := shard.Load(ctx, LoadRequest{})
		if err != nil {
			return fmt.Errorf("shard %d: %w", i, err)
		}
		c, ok := state.Checkpoints[partition]
		if !ok {
			return fmt.Errorf("shard %d knows no such partition", i)
		}
		live = live || !c.Ended
	}
	if !live {
		return nil
	}
	token := newNumber()
	for i, shard := range shards {
		if _, err := shard.Load(ctx, LoadRequest{Announce: map[string]uint64{partition: token}}); err != nil {
			return fmt.Errorf("announce it to shard %d: %w", i, err)
		}
	}
	t := time.NewTimer(endWait)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	var ended []int
	for i, shard := range shards {
		state, err := shard.Load(ctx, LoadRequest{})
		if from := state.Checkpoints[partition]; err == nil && !from.Ended {
			to := from
			to.Ended = true
			err = shard.Apply(ctx, Batch{Partition: partition, Writer: newNumber(), Token: token, From: from, To: to})
		}
		switch {
		case err != nil && ended != nil:
			return fmt.Errorf("shard %d: %w (it has ended in the shards %v)", i, err, ended)
		case err != nil:
			return fmt.Errorf("shard %d: %w", i, err)
		}
		ended = append(ended, i)
	}
	return nil
}
