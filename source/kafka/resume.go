package kafka

import (
	"context"
	"fmt"

	"github.com/tumblestream/tumble"
)

// Resume implements [tumble.Partition].
func (p *partition) Resume(ctx context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	// Every shard asks, so bounds of a moment ago are good enough for a yes. A no
	// is looked up afresh, twice: brokers learn of a new topic or a new leader one
	// after the other.
	b, fresh := p.src.recall(p.n, stored.Epoch, p.fetch.leaderEpoch(p))
	if !fresh || !b.holds(stored) {
		for try := range 2 {
			if try > 0 {
				pause(ctx, quiet)
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
	to, err := p.src.policy(p.n, &b, stored)
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

// policy says where to go on from stored in a log with the bounds b. The error is
// a LostError.
func (s *Source) policy(n int32, b *bounds, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	lost := func(from, to int64, cause string, args ...any) (tumble.Checkpoint, error) {
		return stored, &LostError{Topic: s.cfg.Topic, Partition: n, From: from, To: to, Cause: fmt.Errorf(cause, args...)}
	}
	at, truncated := b.parted(stored)
	end, known := b.known(stored.Epoch)
	switch now := b.log.String(); {
	case stored.Log != now && s.cfg.OnRecreated == GoOn:
		return tumble.Checkpoint{Log: now, Origin: b.first.Offset, Offset: b.first.Offset, Epoch: b.first.Epoch, Watermark: stored.Watermark}, nil
	case stored.Log != now:
		return lost(stored.Offset, -1, "%w: its id was %s, now it is %s; what the old one held from offset %d on was not counted (Config.OnRecreated)", ErrRecreated, stored.Log, now, stored.Offset)
	case truncated && s.cfg.OnTruncated == GoOn:
		stored.Origin = min(stored.Origin, at.Offset)
		stored.Offset, stored.Epoch = at.Offset, at.Epoch
	case truncated && known:
		return lost(at.Offset, stored.Offset, "%w at offset %d, where epoch %d ends now; it ends at offset %d, counts reach to %d (Config.OnTruncated)", tumble.ErrTruncated, at.Offset, stored.Epoch, b.last.Offset, stored.Offset)
	case truncated:
		return lost(at.Offset, stored.Offset, "%w: it ends at offset %d, counts reach to %d (Config.OnTruncated)", tumble.ErrTruncated, b.last.Offset, stored.Offset)
	case stored.Offset < b.first.Offset && s.cfg.OnGap == GoOn:
		stored.Offset, stored.Epoch = b.first.Offset, b.first.Epoch
	case stored.Offset < b.first.Offset:
		return lost(stored.Offset, b.first.Offset, "%w %d to %d before they were counted (Config.OnGap)", ErrGap, stored.Offset, b.first.Offset-1)
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
