package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// A loop asks one broker for the records of the partitions that it leads, and of those
// whose leaders sent us to it.
type loop struct {
	f      *fetcher
	broker int32
	wake   signal
	can    abilities // of the broker, once it was asked
	turns  int       // rotates the order of partitions
}

func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := backoff{first: retryAfter, most: retryMost}
	var rest time.Duration
	for {
		if rest > 0 && !pause(ctx, rest) {
			return
		}
		if l.vet(ctx); ctx.Err() != nil {
			return
		}
		asks, req, again := l.prepare()
		if len(asks) == 0 {
			timer.Reset(again)
			select {
			case <-ctx.Done():
				return
			case <-l.wake:
			case <-timer.C:
			}
			rest = 0
			continue
		}
		asOf := time.Now()
		err := l.ask(ctx, req)
		if ctx.Err() != nil {
			req.abandon() // the answer may have come all the same
			return
		}
		if err != nil {
			l.forget()
			l.failed(asks, err)
			rest = retry.next()
			continue
		}
		retry.tries = 0
		n := l.deliver(asks, req, asOf)
		if told := l.f.src.delivered; told != nil {
			told(l.broker, n)
		}
		if rest = 0; n < small && (n > 0 || time.Since(asOf) < pace) {
			rest = pace
		}
	}
}

// prepare makes a request of the partitions that want more. If there are none it
// returns how long to wait.
func (l *loop) prepare() ([]ask, *fetchRequest, time.Duration) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	again := refreshEvery
	piece := max(minPiece, min(pieceBytes, f.src.cfg.MaxBuffered/max(1, 2*len(f.parts))))
	room := f.src.cfg.MaxBuffered - int(f.pool.used.Load()) - f.pending
	if room < minPiece && f.pool.used.Load()+int64(f.pending) > 0 {
		return nil, nil, busyWait
	}
	var asks []ask
	wait := f.src.cfg.MaxWait
	for _, p := range f.parts {
		d := &p.feed
		if d.replica >= 0 && now.After(d.returns) && !d.asked {
			f.readFrom(p, -1)
		}
		if d.broker() != l.broker {
			continue
		}
		if now.Sub(d.changed) < settling {
			wait = busyWait
		}
		switch {
		case d.want < 0 || d.asked || d.err != nil || d.log != f.layout.id:
		case d.unvetted() && !d.notUntil.After(now):
			again = 0 // since it was looked for
		case d.notUntil.After(now):
			again = min(again, d.notUntil.Sub(now))
		case d.queued >= piece:
			wait = busyWait
		default:
			asks = append(asks, ask{p, d.turn, d.epoch, d.want, d.last, max(piece, d.piece)})
		}
	}
	if len(asks) == 0 {
		return nil, nil, again
	}
	// The broker fills the partitions in order, up to the limit of the answer.
	slices.SortFunc(asks, func(a, b ask) int { return int(a.p.n - b.p.n) })
	l.turns++
	k := l.turns % len(asks)
	asks = slices.Concat(asks[k:], asks[:k])
	// A batch that did not fit is sent whole to whoever comes first.
	if i := slices.IndexFunc(asks, func(a ask) bool { return a.piece > piece }); i > 0 {
		asks[0], asks[i] = asks[i], asks[0]
	}
	total := 0
	for _, a := range asks {
		a.p.feed.asked = true
		total += a.piece
	}
	total = max(min(total, maxAnswer, room), minPiece)
	f.pending += total
	return asks, &fetchRequest{
		pool: f.pool, topic: f.src.cfg.Topic, rack: f.src.cfg.Rack, id: f.layout.id, asks: asks,
		wait: wait, total: total, limit: f.src.cfg.MaxBatchBytes,
		hold: answerWithin / 2, abandoned: make(chan struct{}),
	}, 0
}

// ask sends req and waits for the answer.
func (l *loop) ask(ctx context.Context, req *fetchRequest) error {
	defer func() {
		l.f.mu.Lock()
		l.f.pending -= req.total
		l.f.mu.Unlock()
	}()
	if err := l.learn(ctx); err != nil {
		return err
	}
	_, err := l.f.src.client.Do(ctx, req.request(l.broker, l.can.fetch))
	if err == nil && req.code != 0 {
		err = fmt.Errorf("broker %d: %w", l.broker, codeError(req.code))
	}
	if err != nil {
		req.abandon()
	}
	return err
}

// learn makes sure that l knows the broker's abilities.
func (l *loop) learn(ctx context.Context) (err error) {
	if l.can.fetch == (wire.API{}) {
		l.can, err = l.f.src.client.able(ctx, l.broker)
	}
	return err
}

// forget has the broker asked again: it may be another one now.
func (l *loop) forget() {
	l.can = abilities{}
	l.f.src.client.doubtAbilities(l.broker)
}

// failed notes that a whole request failed.
func (l *loop) failed(asks []ask, err error) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range asks {
		if d := &a.p.feed; d.turn == a.turn {
			d.asked = false
			if l.broker != d.leader {
				f.readFrom(a.p, -1)
				continue
			}
			d.trouble(err)
		}
	}
	f.refresh.send()
}

// deliver hands an answer out to its partitions and returns its size in bytes.
func (l *loop) deliver(asks []ask, req *fetchRequest, asOf time.Time) (bytes int) {
	f := l.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, got := range req.results {
		if got.buf != nil {
			bytes += len(got.buf.b)
		}
		i := slices.IndexFunc(asks, func(a ask) bool { return a.p.n == got.partition })
		if i < 0 || asks[i].p.feed.turn != asks[i].turn {
			got.free()
			continue
		}
		l.accept(asks[i], got, asOf)
	}
	for _, a := range asks {
		if d := &a.p.feed; d.turn == a.turn && d.asked {
			d.asked = false // the broker left it out
			if req.throttled > 0 {
				d.throttled, d.stuck = time.Now(), nil
			} else if l.broker != d.leader {
				f.readFrom(a.p, -1)
			} else if bytes == 0 { // and not because the answer was full
				d.trouble(fmt.Errorf("broker %d does not answer for it", l.broker))
				d.notUntil = time.Now().Add(retryAfter)
			}
		}
	}
	return bytes
}

// accept takes one partition's part of an answer. f.mu is held.
func (l *loop) accept(a ask, got fetched, asOf time.Time) {
	d := &a.p.feed
	d.asked = false
	replica := l.broker != d.leader
	// What a replica refuses the leader decides. And when it has no more, the leader says
	// whether that is all.
	if replica && (got.code != 0 || got.diverges || got.buf == nil) {
		got.free()
		l.f.readFrom(a.p, -1)
		return
	}
	if got.code != 0 {
		got.free()
		err := codeError(got.code)
		if got.code == codeOffsetOutOfRange && a.last >= 0 {
			d.doubt() // it may be the epoch that the broker cannot place
			return
		}
		if got.code == codeOffsetOutOfRange {
			d.err = fmt.Errorf("%w: %w", tumble.ErrOffsetOutOfRange, err)
			d.news.send()
			return
		}
		// Nearly always a leader that moved, or a topic that was deleted.
		d.trouble(err)
		d.notUntil = time.Now().Add(retryAfter)
		l.f.refresh.send()
		return
	}
	if got.diverges {
		got.free()
		d.doubt()
		return
	}
	d.stuck = nil
	if !replica {
		d.open(a.from, got)
	}
	if replica {
		d.end = max(d.end, got.high) // as of when the leader was asked, or later
	} else {
		d.end, d.asOf = got.high, asOf
	}
	if !replica && got.replica >= 0 && got.replica != l.broker {
		l.f.readFrom(a.p, got.replica)
	}
	d.news.send()
	if got.large > 0 {
		d.err = fmt.Errorf("%w (%d of %d bytes)", errTooLarge, got.large, l.f.src.cfg.MaxBatchBytes)
		return
	}
	if got.buf == nil {
		return
	}
	s := &segment{buf: got.buf, aborted: got.aborted}
	var next tumble.Position
	s.data, next, s.err = scan(got.buf.b, tumble.Position{Offset: a.from, Epoch: a.last})
	if errors.Is(s.err, errParted) {
		got.free()
		d.doubt()
		return
	}
	if len(s.data) == 0 && errors.Is(s.err, errPartial) {
		// The first batch does not fit.
		came := len(got.buf.b)
		need, known := batchSize(got.buf.b)
		got.free()
		switch {
		case !known || need <= a.piece:
			d.err = garbled("%d bytes of %d came", came, need)
		case need > l.f.src.cfg.MaxBatchBytes:
			d.err = fmt.Errorf("%w (%d of %d bytes)", errTooLarge, need, l.f.src.cfg.MaxBatchBytes)
		default:
			d.piece = need
		}
		return
	}
	d.piece = 0
	if errors.Is(s.err, errPartial) {
		s.err = nil // the broker cuts off the batch that does not fit any more
	}
	if s.err == nil {
		d.want, d.last, d.fresh = next.Offset, next.Epoch, false
		d.vetted = a.epoch // whose leader has just sent it
	} else {
		d.want = -1 // Fetch seeks when it has seen the error
	}
	d.queue = append(d.queue, s)
	d.queued += len(s.data)
}

// scan returns the whole batches at the start of p, the position after them, and
// the error of the batch after that. The first must reach the position from.
func scan(p []byte, from tumble.Position) (whole []byte, next tumble.Position, err error) {
	next = from
	rest := p
	for len(rest) > 0 {
		var b batch
		after, err := b.parse(rest)
		if err != nil {
			return p[:len(p)-len(rest)], next, err
		}
		if b.next() <= next.Offset && (next.Offset != from.Offset || len(after) == 0) {
			return p[:len(p)-len(rest)], next, garbled("batch at offset %d ends at %d, %d was to follow", b.base, b.next(), next.Offset)
		}
		if b.next() > next.Offset {
			if next.Offset == from.Offset && b.parts(from) {
				return nil, from, errParted
			}
			next = tumble.Position{Offset: b.next(), Epoch: b.epoch}
		}
		rest = after
	}
	return p, next, nil
}
