package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/tumblestream/tumble"
)

// Every change of a partition's leader begins an epoch, and each record batch
// carries the one it was written in. A position is (offset, epoch of the record
// before it). If the leader's log ends that epoch before the offset, it does not
// hold what was read there: it was truncated, however long it has grown since.
//
// Resume validates what is stored. A feed validates the position it asks for
// next once for each leader epoch, and whenever an answer contradicts it. Within
// a leader epoch nothing is truncated, and every Fetch request names the leader
// epoch, so that a broker of another one refuses it.
//
// All of them have one criterion, this end. A broker compares the epoch of a
// Fetch request by a stricter one (an epoch without records, replaced since, is
// diverging to it), so what it says is a reason to validate, and no verdict:
// else Resume and Fetch could contradict each other for ever.

const (
	// epochsVersion of OffsetForLeaderEpoch is there since Kafka 2.3.
	epochsVersion = 3
	// unvetted is no leader epoch.
	unvetted = -2
)

// errParted is an answer whose first records were not written after those
// before them were.
var errParted = errors.New("the records there were written in another leader epoch than those read before them")

// An epochAsk asks the leader of a partition where its log ends an epoch.
type epochAsk struct {
	current int32 // leader epoch of the partition
	epoch   int32
}

// An epochEnd is the answer: the position behind the last record of the epoch
// or, if there is none, of the last epoch before it. Its offset is -1 if the
// leader cannot tell.
type epochEnd struct {
	tumble.Position
	err error
}

// epochEnds asks a broker about partitions that it leads.
func (c *client) epochEnds(ctx context.Context, broker int32, asks map[int32]epochAsk) (map[int32]epochEnd, error) {
	var b appender
	b.int32(-1) // not a replica
	b.int32(1)
	b.string(c.topic)
	b.int32(int32(len(asks)))
	for p, a := range asks {
		b.int32(p)
		b.int32(a.current)
		b.int32(a.epoch)
	}
	found := map[int32]epochEnd{}
	err := c.roundTrip(ctx, &call{broker: broker, key: protocol.OffsetForLeaderEpoch, version: epochsVersion, body: b, read: func(r *reader) {
		r.int32() // throttle
		for topics := r.int32(); topics > 0 && r.err == nil; topics-- {
			r.string()
			for parts := r.int32(); parts > 0 && r.err == nil; parts-- {
				code, p := r.int16(), r.int32()
				epoch := r.int32()
				end := epochEnd{Position: tumble.Position{Offset: r.int64(), Epoch: epoch}, err: codeError(code)}
				if r.err == nil {
					found[p] = end
				}
			}
		}
	}})
	if err != nil {
		return nil, err
	}
	for p := range asks {
		if end, ok := found[p]; !ok {
			return nil, fmt.Errorf("broker %d does not say where an epoch of %s/%d ends", broker, c.topic, p)
		} else if end.err != nil {
			end.err = fmt.Errorf("end of an epoch of %s/%d: %w", c.topic, p, end.err)
			found[p] = end
		}
	}
	return found, nil
}

// knownAbilities are those of brokers when they were asked last.
type knownAbilities struct{ brokers sync.Map }

// able returns a broker's abilities, as they were when it was asked last.
func (c *client) able(ctx context.Context, broker int32) (abilities, error) {
	if known, ok := c.known.brokers.Load(broker); ok {
		return known.(abilities), nil
	}
	found, err := c.abilities(ctx, broker)
	if err == nil {
		c.known.brokers.Store(broker, found)
	}
	return found, err
}

// doubtAbilities forgets those of a broker: another one may have its place.
func (c *client) doubtAbilities(broker int32) { c.known.brokers.Delete(broker) }

// epochEnd asks the leader of a partition; the offset is -1 also if the broker
// does not understand the question.
func (c *client) epochEnd(ctx context.Context, partition int32, l leadership, epoch int32) (tumble.Position, error) {
	unknown := tumble.Position{Offset: -1, Epoch: -1}
	can, err := c.able(ctx, l.leader)
	if err != nil {
		return unknown, err
	}
	if !can.epochs {
		return unknown, nil
	}
	ends, err := c.epochEnds(ctx, l.leader, map[int32]epochAsk{partition: {l.epoch, epoch}})
	if err == nil {
		err = ends[partition].err
	}
	if err != nil {
		c.doubtAbilities(l.leader)
		return unknown, err
	}
	return ends[partition].Position, nil
}

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

// diverged takes note of a log that does not hold what was read ahead, or before
// that, beyond at. What was read ahead is dropped. Only if nothing was, it is the
// consumer's position that is not in the log.
func (d *feed) diverged(at tumble.Position) {
	if d.fresh {
		d.err = fmt.Errorf("%w: it holds epoch %d up to offset %d only", tumble.ErrTruncated, d.last, at.Offset)
	} else {
		d.reset(tumble.Position{Offset: -1, Epoch: -1})
		d.cut.Store(true)
	}
	d.tell()
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
			d.notUntil = time.Now().Add(backoff)
			l.f.askLayout()
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
