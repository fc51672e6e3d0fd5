package kafka

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/tumblestream/tumble"
)

// bounds are the offsets that a partition had a moment ago.
type bounds struct {
	log         topicID
	leader      leadership
	first, last tumble.Position
	// ends are, by epoch, where the leader's log ends those that were asked for.
	// An offset of -1 is unknown. The map is never changed, only replaced.
	ends map[int32]tumble.Position
	asOf time.Time
}

// recall returns the bounds of a partition as they were at most a second ago,
// unless they say nothing of epoch or are of an older leader epoch than newest.
func (s *Source) recall(n, epoch, newest int32) (bounds, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.bounds[n]
	if _, told := b.ends[epoch]; epoch >= 0 && !told {
		return b, false
	}
	return b, ok && time.Since(b.asOf) < time.Second && b.leader.epoch >= newest
}

func (s *Source) forget(n int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.bounds, n)
}

// look asks the cluster for the bounds of a partition, and where its log ends
// epoch, unless that is -1.
func (s *Source) look(ctx context.Context, n, epoch int32) (bounds, error) {
	asked := time.Now()
	lay, err := s.client.layout(ctx)
	if err != nil {
		return bounds{}, err
	}
	l, ok := lay.partitions[n]
	if !ok {
		return bounds{}, fmt.Errorf("topic %q has no partition %d", s.cfg.Topic, n)
	}
	if l.leader < 0 {
		return bounds{}, errNoLeader
	}
	one := map[int32]leadership{n: l}
	b := bounds{log: lay.id, leader: l, asOf: asked}
	first, err := s.client.offsets(ctx, l.leader, one, earliest)
	if err != nil {
		return bounds{}, err
	}
	last, err := s.client.offsets(ctx, l.leader, one, latest)
	if err != nil {
		return bounds{}, err
	}
	b.first, b.last = first[n], last[n]
	var end tumble.Position
	if epoch >= 0 {
		if end, err = s.client.epochEnd(ctx, n, l, epoch); err != nil {
			return bounds{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.ends = map[int32]tumble.Position{}
	if was := s.bounds[n]; was.log == b.log && was.leader == l {
		maps.Copy(b.ends, was.ends) // under one leader they stay, or grow
	}
	if epoch >= 0 {
		b.ends[epoch] = end
	}
	s.bounds[n] = b
	return b, nil
}

// known returns where the log ends an epoch, if its leader could tell.
func (b *bounds) known(epoch int32) (tumble.Position, bool) {
	end, ok := b.ends[epoch]
	return end, ok && epoch >= 0 && end.Offset >= 0
}

// parted returns where the log parts from the one that was read up to stored, if
// it does. Of a position whose epoch nobody knows only the end of the log tells.
func (b *bounds) parted(stored tumble.Checkpoint) (at tumble.Position, truncated bool) {
	end, known := b.known(stored.Epoch)
	switch {
	case known && end.Offset < stored.Offset:
		at = end
	case !known && stored.Offset > b.last.Offset:
		at = b.last
	default:
		return at, false
	}
	if at.Offset < b.first.Offset {
		at = b.first
	}
	return at, at.Offset < stored.Offset
}

// holds reports whether stored is of this log, and reading can go on there.
func (b *bounds) holds(stored tumble.Checkpoint) bool {
	_, truncated := b.parted(stored)
	return stored.Log == b.log.String() && !truncated && stored.Offset >= b.first.Offset
}
