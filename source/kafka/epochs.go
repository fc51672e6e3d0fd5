package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/tumblestream/tumble"
)

// Every change of a partition's leader begins an epoch, and each record batch
// carries the one it was written in. A position is (offset, epoch of the record
// before it). If the leader's log ends that epoch before the offset, the
// records that were read there are gone: the log was truncated, however long it
// has grown since.
//
// Resume validates the stored position. A feed validates its next position once
// for each leader epoch, and whenever an answer contradicts it. Within a leader
// epoch nothing is truncated, and every Fetch request names the leader epoch, so
// that a broker of another one refuses it.
//
// This end of the epoch is the one criterion of all. A broker judges the epoch of
// a Fetch request more strictly: one without records that was replaced since is
// diverging. So its verdict is only a reason to validate. Otherwise Resume and
// Fetch could contradict each other for ever.

// unvetted is no leader epoch.
const unvetted = -2

// An approval is a position that is valid in a leader epoch.
type approval struct {
	at    tumble.Position
	epoch int32
}

// unvetted reports whether the position to ask for next must be validated.
func (d *feed) unvetted() bool {
	return d.want >= 0 && d.last >= 0 && d.vetted != d.epoch
}

// doubt has the position validated because an answer contradicts it. If it is
// valid all the same, its epoch is no longer compared.
func (d *feed) doubt() {
	d.vetted, d.suspect = unvetted, true
}

// diverged takes note of a log that was truncated at a position before the next.
// Prefetched records are dropped. Only if there were none, the consumer's own
// position is gone from the log.
func (d *feed) diverged(at tumble.Position) {
	if d.fresh {
		d.err = fmt.Errorf("%w: it holds epoch %d up to offset %d only", tumble.ErrTruncated, d.last, at.Offset)
	} else {
		d.reset(tumble.Position{Offset: -1, Epoch: -1})
		d.cut.Store(true)
	}
	d.news.send()
}

// A doubt is the position of a feed that must be validated.
type doubt struct {
	p  *partition
	at tumble.Position
	epochAsk
	turn int
}

// doubts lists those that this broker can dispel.
func (l *loop) doubts() (all []doubt) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	for _, p := range f.parts {
		d := &p.feed
		if d.leader == l.broker && d.unvetted() && d.err == nil && d.log == f.layout.id && !d.notUntil.After(now) {
			all = append(all, doubt{p, tumble.Position{Offset: d.want, Epoch: d.last}, epochAsk{d.epoch, d.last}, d.turn})
		}
	}
	return all
}

// vet validates positions before records at them are asked for.
func (l *loop) vet(ctx context.Context) {
	doubts := l.doubts()
	if len(doubts) == 0 {
		return
	}
	c := l.f.src.client
	asks := map[int32]epochAsk{}
	for _, q := range doubts {
		asks[q.p.n] = q.epochAsk
	}
	err := l.learn(ctx)
	ends := map[int32]epochEnd{}
	if err == nil && l.can.epochs {
		ends, err = c.epochEnds(ctx, l.broker, asks)
	}
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		l.forget()
	}
	l.f.mu.Lock()
	defer l.f.mu.Unlock()
	for _, q := range doubts {
		d := &q.p.feed
		if d.turn != q.turn || d.epoch != q.current || d.want != q.at.Offset || d.last != q.at.Epoch {
			continue // it is about another position now
		}
		end, known := ends[q.p.n]
		if err != nil {
			end.err = err
		}
		switch {
		case end.err != nil: // nearly always a leader that moved
			d.trouble(end.err)
			d.notUntil = time.Now().Add(retryAfter)
			l.f.refresh.send()
		case known && end.Offset >= 0 && end.Offset < d.want:
			d.vetted = d.epoch
			d.diverged(end.Position)
		default:
			if !known || end.Offset < 0 || d.suspect {
				d.last = -1
			}
			d.vetted, d.suspect = d.epoch, false
		}
	}
}
