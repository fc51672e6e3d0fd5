package kafka

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
)

// bounds are what a partition could be asked for a moment ago.
type bounds struct {
	log         topicID
	leader      leadership
	first, last tumble.Position
	// ends are, by epoch, where the leader's log ends those that were asked
	// for; an offset of -1 is unknown. It is never changed, only replaced.
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

// Resume implements [tumble.Partition].
func (p *partition) Resume(ctx context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	// Every shard asks, so what was learned a moment ago is good enough for a
	// yes. Nobody is told a no that was not just looked up, twice: brokers
	// learn of a new topic or a new leader one after the other.
	b, fresh := p.src.recall(p.n, stored.Epoch, p.fetch.leaderEpoch(p))
	if !fresh || !b.holds(stored) {
		for try := range 2 {
			if try > 0 {
				select {
				case <-ctx.Done():
				case <-time.After(quiet):
				}
			}
			var err error
			if b, err = p.src.look(ctx, p.n, stored.Epoch); err != nil {
				if ctx.Err() != nil {
					return stored, ctx.Err()
				}
				return stored, fmt.Errorf("kafka: resume %s@%d: %w: %w", p.id, stored.Offset, tumble.ErrUnavailable, err)
			}
			if b.holds(stored) {
				break
			}
		}
	}
	to, err := p.src.policy(p.id, &b, stored)
	if err != nil {
		return stored, err
	}
	recreated, truncated := to.Log != stored.Log, to.Offset < stored.Offset
	if p.end >= 0 && recreated {
		p.end = b.last.Offset // the old log's end says nothing about the new one
	} else if truncated {
		p.recede(&b)
	}
	p.about.begin(to.Log)
	if truncated && !recreated {
		p.about.cut(to.Offset)
	}
	p.fetch.setLog(p, &b, tumble.Position{Offset: to.Offset, Epoch: to.Epoch}, truncated)
	return to, nil
}

// policy says where to go on from stored in a log with the bounds b.
func (s *Source) policy(id string, b *bounds, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	at, truncated := b.parted(stored)
	end, known := b.known(stored.Epoch)
	switch now := b.log.String(); {
	case stored.Log != now && s.cfg.OnRecreated == GoOn:
		return tumble.Checkpoint{Log: now, Origin: b.first.Offset, Offset: b.first.Offset, Epoch: b.first.Epoch, Watermark: stored.Watermark}, nil
	case stored.Log != now:
		return stored, fmt.Errorf("kafka: %s@%d: the topic was recreated: its id was %s, now it is %s; what the old one held from offset %d on was not counted (Config.OnRecreated)", id, stored.Offset, stored.Log, now, stored.Offset)
	case truncated && s.cfg.OnTruncated == GoOn:
		stored.Origin = min(stored.Origin, at.Offset)
		stored.Offset, stored.Epoch = at.Offset, at.Epoch
	case truncated && known:
		return stored, fmt.Errorf("kafka: %s@%d: the log was truncated at offset %d, where epoch %d ends now; it ends at offset %d, counts reach to %d (Config.OnTruncated)", id, stored.Offset, at.Offset, stored.Epoch, b.last.Offset, stored.Offset)
	case truncated:
		return stored, fmt.Errorf("kafka: %s@%d: the log was truncated: it ends at offset %d, counts reach to %d (Config.OnTruncated)", id, stored.Offset, b.last.Offset, stored.Offset)
	case stored.Offset < b.first.Offset && s.cfg.OnGap == GoOn:
		stored.Offset, stored.Epoch = b.first.Offset, b.first.Epoch
	case stored.Offset < b.first.Offset:
		return stored, fmt.Errorf("kafka: %s@%d: retention deleted offsets %d to %d before they were counted (Config.OnGap)", id, stored.Offset, stored.Offset, b.first.Offset-1)
	case !known || end.Offset < stored.Offset:
		stored.Epoch = -1 // not compared any more, or Fetch could contradict
	}
	return stored, nil
}

// recede moves the end at which UntilEnd stops back to where the log has its own
// now: it was truncated, and might never reach the other one again.
func (p *partition) recede(b *bounds) {
	if p.end <= b.last.Offset {
		return
	}
	p.end = b.last.Offset
	p.src.mu.Lock()
	defer p.src.mu.Unlock()
	p.src.ends[p.n] = min(p.src.ends[p.n], p.end)
}

// shrunk looks whether the log has become shorter than the end at which UntilEnd
// stops. A high watermark alone does not tell: that of a new leader may be behind
// for a moment.
func (p *partition) shrunk(ctx context.Context) {
	if b, err := p.src.look(ctx, p.n, -1); err == nil && b.log == p.fetch.log(p) {
		p.recede(&b)
	}
}

// A report remembers what was told of a partition's records. Offsets of one log
// are read in order, so one number is enough. In a log that was truncated an
// offset comes again, in a later epoch.
type report struct {
	mu    sync.Mutex
	log   string
	upTo  int64
	epoch int32 // of the record before upTo; -1: unknown
}

// begin notes which log is read from now on.
func (r *report) begin(log string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.log != log {
		r.log, r.upTo, r.epoch = log, 0, -1
	}
}

// cut notes that the log was truncated at an offset. If there are epochs, they
// say more: the lanes of a truncated log come here one after the other, and
// records behind the offset may have been told of since.
func (r *report) cut(offset int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch < 0 {
		r.upTo = min(r.upTo, offset)
	}
}

// once reports whether the record at a position has not been told of.
func (r *report) once(offset int64, epoch int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if offset < r.upTo && epoch <= r.epoch {
		return false
	}
	r.upTo, r.epoch = offset+1, epoch
	return true
}
