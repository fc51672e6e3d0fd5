package kafka

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go/protocol"

	"github.com/tumblestream/tumble"
)

const (
	// pieceBytes is the most that is asked of one partition at once, and about
	// what is read ahead of it.
	pieceBytes = 1 << 20
	minPiece   = 64 << 10
	// maxAnswer bounds one answer, so that a partition does not wait for long
	// behind the others of its leader.
	maxAnswer = 16 << 20
	// small answers are collected: the next request waits for pace after one,
	// so that a dense trickle does not cost a request an event.
	small = 16 << 10
	pace  = 2 * time.Millisecond
	// busyWait is the broker's wait while a partition is not in the request
	// because it has enough, or has just been added: it must not miss its turn.
	busyWait = 5 * time.Millisecond
	settling = 300 * time.Millisecond
	// refreshEvery is how often leaders, the number of partitions and the
	// topic's id are asked for when nothing calls for it.
	refreshEvery = 5 * time.Second
	// answerWithin is what a broker has for an answer, on top of its wait.
	answerWithin = 30 * time.Second
	// An error is shown once it has lasted for so long. A change of leaders
	// takes less.
	showAfter = 500 * time.Millisecond
	backoff   = 100 * time.Millisecond
)

// A segment is what one answer brought for one partition.
type segment struct {
	buf     *buffer
	data    []byte // whole batches
	aborted []abortedTxn
	err     error // why reading cannot go on after data; nil: it can
}

// A feed is the fetcher's side of a partition, guarded by fetcher.mu.
type feed struct {
	news chan struct{} // capacity 1: take would return something else now

	log      topicID   // that is read
	learned  time.Time // when log was the topic's
	leader   int32
	epoch    int32       // of that leader
	approved approval    // by Resume
	vetted   int32       // leader epoch for which (want, last) is valid
	suspect  bool        // an answer contradicts (want, last)
	want     int64       // to ask for next; -1: nothing
	last     int32       // epoch of the record before want; -1: not to be compared
	fresh    bool        // nothing was read ahead since Fetch said where to begin
	cut      atomic.Bool // what was read ahead is not in the log any more
	turn     int         // grows when answers to earlier requests must not count any more
	asked    bool        // is in a request
	piece    int         // bytes that the next batch needs; 0: not known to be many
	queue    []*segment
	queued   int // bytes
	changed  time.Time
	notUntil time.Time

	end   int64 // high watermark; -1: unknown
	asOf  time.Time
	err   error // for Fetch; nothing is asked for until the next one begins anew
	stuck error // what has kept the partition from being read
	since time.Time
}

// A fetcher reads the partitions that are assigned to this process, with one
// loop for each broker that leads some of them.
type fetcher struct {
	src  *Source
	stop context.CancelCauseFunc // ends the run
	pool *pool

	refresh    chan struct{} // capacity 1: ask for the layout
	partitions chan []int32  // if the Source reads all there are: news of them

	mu      sync.Mutex
	parts   map[int32]*partition
	layout  topicLayout
	learned time.Time // when layout was asked for
	loops   map[int32]*loop
	offsets map[int32]int64 // committed
	pending int             // bytes that answers under way may bring
}

func newFetcher(s *Source, stop context.CancelCauseFunc) *fetcher {
	return &fetcher{
		src:        s,
		stop:       stop,
		pool:       s.pool,
		refresh:    make(chan struct{}, 1),
		partitions: make(chan []int32, 1),
		parts:      map[int32]*partition{},
		loops:      map[int32]*loop{},
		offsets:    map[int32]int64{},
	}
}

// run keeps the layout fresh and the loops running until ctx ends.
func (f *fetcher) run(ctx context.Context) {
	var loops sync.WaitGroup
	defer loops.Wait()
	wait := time.NewTimer(0)
	defer wait.Stop()
	pause := backoff
	known := true // of the layout, as far as the log was told
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		case <-f.refresh:
		}
		asked := time.Now()
		lay, err := f.src.client.layout(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if errors.Is(err, errNoTopic) {
				err = fmt.Errorf("topic %q does not exist any more", f.src.cfg.Topic)
			}
			if !f.lost(err) && known { // no Fetch can say it
				f.src.log.Warn("could not learn which partitions there are, and tries again", "error", err)
				known = false
			}
			wait.Reset(jitter(pause))
			pause = min(2*pause, 2*time.Second)
		default:
			pause, known = backoff, true
			f.apply(ctx, lay, asked, &loops)
			f.announce(lay)
			wait.Reset(refreshEvery)
		}
		// Many may ask at once; a broker that has nothing new to say must not
		// be asked in a busy loop.
		select {
		case <-ctx.Done():
			return
		case <-time.After(backoff / 2):
		}
	}
}

func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// announce tells the Source which partitions there are, if that is news.
func (f *fetcher) announce(lay topicLayout) {
	if f.src.cfg.Group != "" || f.src.cfg.Partitions != nil {
		return
	}
	var all []int32
	for n := range lay.partitions {
		all = append(all, n)
	}
	slices.Sort(all)
	select {
	case <-f.partitions: // older news that nobody took
	default:
	}
	f.partitions <- all
}

// lost notes that the layout cannot be learned, and reports whether there are
// partitions to note it at. Those whose leader is known are read on.
func (f *fetcher) lost(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.parts {
		if p.feed.leader < 0 {
			p.feed.trouble(err)
		}
	}
	return len(f.parts) > 0
}

// apply hands partitions over to their leaders' loops.
func (f *fetcher) apply(ctx context.Context, lay topicLayout, asked time.Time, loops *sync.WaitGroup) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.layout, f.learned = lay, asked
	for _, p := range f.parts {
		f.place(p)
	}
	for _, l := range lay.partitions {
		if l.leader < 0 || f.loops[l.leader] != nil {
			continue
		}
		loop := &loop{f: f, broker: l.leader, wake: make(chan struct{}, 1)}
		f.loops[l.leader] = loop
		loops.Go(func() { loop.run(ctx) })
	}
	for _, loop := range f.loops {
		loop.nudge()
	}
}

// place gives p its leader; f.mu is held.
func (f *fetcher) place(p *partition) {
	d := &p.feed
	if f.layout.partitions == nil {
		return
	}
	l, ok := f.layout.partitions[p.n]
	if !ok || l.leader < 0 {
		l.leader = -1
		d.trouble(errNoLeader)
	}
	if l.leader != d.leader {
		d.turn++
		d.asked = false
		d.notUntil = time.Time{}
		d.changed = time.Now()
	}
	d.leader, d.epoch = l.leader, l.epoch
	if d.log == (topicID{}) {
		d.log, d.learned = f.layout.id, f.learned
	}
	if f.recreated(d) {
		d.tell()
	}
}

// recreated reports whether d reads a topic that is known to be gone.
func (f *fetcher) recreated(d *feed) bool {
	return f.layout.id != topicID{} && d.log != f.layout.id && f.learned.After(d.learned)
}

func (f *fetcher) askLayout() {
	select {
	case f.refresh <- struct{}{}:
	default:
	}
}

// add begins to serve partition n to one consumer.
func (f *fetcher) add(n int32) *partition {
	s := f.src
	p := &partition{src: s, fetch: f, n: n, id: s.id(n), end: -1, pos: -1, epoch: -1}
	p.reader.unpack = unpacker{pool: f.pool, limit: s.cfg.MaxBatchBytes}
	d := &p.feed
	d.news = make(chan struct{}, 1)
	d.leader, d.epoch, d.vetted = -1, -1, unvetted
	d.want, d.last, d.end, d.asOf = -1, -1, -1, time.Now()
	p.shown, p.spoke = p.feed.asOf, p.feed.asOf
	s.mu.Lock()
	if s.ends != nil {
		p.end = s.ends[n] // a partition that was not there at the start is at its end
	}
	if p.about = s.reports[n]; p.about == nil {
		p.about = &report{epoch: -1}
		s.reports[n] = p.about
	}
	s.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.parts[n] = p
	delete(f.offsets, n) // another process may have had it meanwhile
	f.place(p)
	if p.feed.leader < 0 {
		f.askLayout()
	}
	return p
}

// remove ends what add began; it is called by the goroutine that consumed p.
func (f *fetcher) remove(p *partition) {
	p.drop()
	for _, b := range p.spent {
		b.free()
	}
	p.spent = nil
	f.mu.Lock()
	defer f.mu.Unlock()
	p.feed.reset(tumble.Position{Offset: -1, Epoch: -1})
	delete(f.parts, p.n)
}

// seek makes p be read from a position on.
func (f *fetcher) seek(p *partition, from tumble.Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.feed.reset(from)
	p.feed.cut.Store(false)
	p.feed.changed = time.Now()
	f.nudge(p)
}

// setLog says which incarnation of the topic p reads from now on: one with the
// bounds b, in which Resume has found the position at to be valid.
func (f *fetcher) setLog(p *partition, b *bounds, at tumble.Position, truncated bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := &p.feed
	if d.learned.Before(b.asOf) {
		d.learned = b.asOf
	}
	d.approved = approval{at, b.leader.epoch}
	if d.log == b.log && !truncated {
		return
	}
	p.pos = -1 // what was read ahead is of the other one: the next Fetch seeks
	d.reset(tumble.Position{Offset: -1, Epoch: -1})
	d.asOf = time.Now()
	p.shown = d.asOf
	d.end = -1
	d.log = b.log
	if f.layout.id != b.log || d.epoch != b.leader.epoch {
		f.askLayout()
	}
}

// leaderEpoch returns the newest epoch of p's leader that is known; -1: none.
func (f *fetcher) leaderEpoch(p *partition) int32 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return p.feed.epoch
}

// log returns the incarnation of the topic that p reads.
func (f *fetcher) log(p *partition) topicID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return p.feed.log
}

func (f *fetcher) nudge(p *partition) {
	if loop := f.loops[p.feed.leader]; loop != nil {
		loop.nudge()
	}
}

// What take has to say besides a segment.
type state struct {
	end   int64
	asOf  time.Time
	err   error // to be returned now
	stuck error // to be returned if nothing comes
}

// take returns p's next segment; nil: there is none yet.
func (f *fetcher) take(p *partition) (*segment, state) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := &p.feed
	if len(d.queue) > 0 {
		s := d.queue[0]
		d.queue[0] = nil
		d.queue = d.queue[1:]
		d.queued -= len(s.data)
		f.nudge(p)
		return s, state{}
	}
	s := state{end: d.end, asOf: d.asOf, err: d.err}
	if f.recreated(d) {
		s.err = fmt.Errorf("%w: the topic was recreated, its id is %v now", tumble.ErrOffsetOutOfRange, f.layout.id)
	}
	if d.stuck != nil && time.Since(d.since) >= showAfter {
		s.stuck = d.stuck
	}
	return nil, s
}

// end returns the newest end of p's log that is known.
func (f *fetcher) end(p *partition) (int64, time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return p.feed.end, p.feed.asOf
}

func (f *fetcher) noteCommitted(n int32, offset int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.offsets[n] = offset
}

// committed returns the committed offsets of list that differ from shown.
func (f *fetcher) committed(list []int32, shown map[int32]int64) map[int32]int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	news := map[int32]int64{}
	for _, n := range list {
		o, ok := f.offsets[n]
		if was, before := shown[n]; ok && (!before || was != o) {
			news[n] = o
		}
	}
	return news
}

// reset drops what was read ahead and asks for what is at a position next.
func (d *feed) reset(at tumble.Position) {
	for _, s := range d.queue {
		s.buf.free()
	}
	d.queue, d.queued = nil, 0
	d.turn++
	d.asked = false
	d.want, d.last, d.fresh = at.Offset, at.Epoch, true
	d.vetted, d.suspect = unvetted, false
	if d.approved.at == at {
		d.vetted = d.approved.epoch
	}
	d.piece = 0
	d.err = nil
}

// tell wakes Fetch.
func (d *feed) tell() {
	select {
	case d.news <- struct{}{}:
	default:
	}
}

// trouble notes what keeps d from being read; it is shown if it lasts.
func (d *feed) trouble(err error) {
	if d.stuck == nil {
		d.since = time.Now()
	}
	d.stuck = err
}

// A loop asks one broker for the records of the partitions that it leads.
type loop struct {
	f      *fetcher
	broker int32
	wake   chan struct{} // capacity 1
	can    abilities     // of the broker, once it was asked
	turns  int           // rotates the order of partitions
	pause  time.Duration // after the next failure
}

func (l *loop) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// An ask is one partition in a request.
type ask struct {
	p     *partition
	turn  int
	epoch int32 // of the leader
	from  int64
	last  int32
	piece int
}

func (l *loop) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	l.pause = backoff
	var rest time.Duration
	for {
		if rest > 0 {
			timer.Reset(rest)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
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
			rest = jitter(l.pause)
			l.pause = min(2*l.pause, 2*time.Second)
			continue
		}
		l.pause = backoff
		n := l.deliver(asks, req, asOf)
		if rest = 0; n < small && (n > 0 || time.Since(asOf) < pace) {
			rest = pace
		}
	}
}

// prepare makes a request of the partitions that want more; without any it says
// when to look again.
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
		if d.leader != l.broker {
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
		pool: f.pool, topic: f.src.cfg.Topic, id: f.layout.id, asks: asks,
		wait: wait, total: total, limit: f.src.cfg.MaxBatchBytes,
	}, 0
}

// ask sends req and waits for the answer.
func (l *loop) ask(ctx context.Context, req *fetchRequest) error {
	defer func() {
		l.f.mu.Lock()
		l.f.pending -= req.total
		l.f.mu.Unlock()
	}()
	c := l.f.src.client
	if err := l.learn(ctx); err != nil {
		return err
	}
	asked, cancel := context.WithTimeout(ctx, req.wait+answerWithin)
	defer cancel()
	call := req.call(l.broker, l.can.fetch, c.clientID)
	if _, err := c.transport.RoundTrip(asked, c.addr, call); err != nil {
		req.abandon()
		if asked.Err() != nil && ctx.Err() == nil {
			return fmt.Errorf("broker %d did not answer within %v: %w", l.broker, req.wait+answerWithin, err)
		}
		return fmt.Errorf("broker %d: %w", l.broker, err)
	}
	if req.code != 0 {
		req.abandon()
		return fmt.Errorf("broker %d: %w", l.broker, codeError(req.code))
	}
	return nil
}

// learn makes sure that l knows what the broker is able to.
func (l *loop) learn(ctx context.Context) (err error) {
	if l.can.fetch == 0 {
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
			d.trouble(err)
		}
	}
	f.askLayout()
}

// deliver hands out what the answer brought and returns how many bytes.
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
			if bytes == 0 { // and not because the answer was full
				d.trouble(fmt.Errorf("broker %d does not answer for it", l.broker))
				d.notUntil = time.Now().Add(backoff)
			}
		}
	}
	return bytes
}

// accept takes one partition's part of an answer; f.mu is held.
func (l *loop) accept(a ask, got fetched, asOf time.Time) {
	d := &a.p.feed
	d.asked = false
	if got.code != 0 {
		got.free()
		err := codeError(got.code)
		if got.code == codeOffsetOutOfRange && a.last >= 0 {
			d.doubt() // it may be the epoch that the broker cannot place
			return
		}
		if got.code == codeOffsetOutOfRange {
			d.err = fmt.Errorf("%w: %w", tumble.ErrOffsetOutOfRange, err)
			d.tell()
			return
		}
		// Nearly always a leader that moved, or a topic that was deleted.
		d.trouble(err)
		d.notUntil = time.Now().Add(backoff)
		l.f.askLayout()
		return
	}
	if got.diverges {
		got.free()
		d.doubt()
		return
	}
	d.stuck = nil
	d.end, d.asOf = got.high, asOf
	d.tell()
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
		s.err = nil // what does not fit any more is cut off
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
// what comes in the way after that. The first must reach the position from.
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

// A fetched is one partition's part of an answer.
type fetched struct {
	partition int32
	code      int16
	high      int64
	diverges  bool // the broker does not find the last epoch where it was said to be
	aborted   []abortedTxn
	buf       *buffer // nil: no records
	large     int     // bytes of records that were too many to take; 0: none
}

func (g *fetched) free() {
	if g.buf != nil {
		g.buf.free()
		g.buf = nil
	}
}

// A fetchRequest is one Fetch request and its answer, read straight into
// buffers of the pool.
type fetchRequest struct {
	pool  *pool
	topic string
	id    topicID
	asks  []ask
	wait  time.Duration
	total int // bytes
	limit int // of one batch

	code    int16
	results []fetched

	mu        sync.Mutex
	abandoned bool // nobody waits for results any more
	read      bool // they are complete
}

// call encodes the request: version 13 names the topic by id, so that a broker
// refuses it for a recreated topic; 12 by name.
func (r *fetchRequest) call(broker int32, version int16, clientID string) *call {
	var b appender
	b.int32(-1) // not a replica
	b.int32(int32(r.wait.Milliseconds()))
	b.int32(1) // byte at least: a trickle is not held back
	b.int32(int32(r.total))
	b.int8(1)   // read committed
	b.int32(0)  // no session
	b.int32(-1) // nor a new one
	b.count(1)
	if version >= 13 {
		b = append(b, r.id[:]...)
	} else {
		b.compact(r.topic)
	}
	b.count(len(r.asks))
	for _, a := range r.asks {
		b.int32(a.p.n)
		b.int32(a.epoch)
		b.int64(a.from)
		b.int32(a.last)
		b.int64(-1) // not a replica
		b.int32(int32(a.piece))
		b.tags()
	}
	b.tags()
	b.count(0)    // no forgotten topics
	b.compact("") // no rack
	b.tags()
	return &call{broker: broker, key: protocol.Fetch, version: version, flexible: true, clientID: clientID, body: b, fetch: r, read: func(in *reader) {
		r.answer(in, version)
	}}
}

// tagDiverging is the tagged field that names the end of the last epoch where it
// is not the one asked with.
const tagDiverging = 0

// answer reads the answer; it runs on a goroutine of the transport.
func (r *fetchRequest) answer(in *reader, version int16) {
	in.int32() // throttle
	code := in.int16()
	in.int32() // session
	var all []fetched
	for range max(0, in.size()) {
		if version >= 13 {
			in.int64()
			in.int64()
		} else {
			in.compact()
		}
		for range max(0, in.size()) {
			one := fetched{partition: in.int32(), code: in.int16(), high: in.int64()}
			in.int64() // last stable offset
			in.int64() // start of the log
			for range max(0, in.size()) {
				t := abortedTxn{in.int64(), in.int64()}
				in.tags()
				if in.err != nil {
					break
				}
				one.aborted = append(one.aborted, t)
			}
			in.int32() // preferred replica
			if n := in.size(); n > 0 && in.err == nil {
				if n > r.limit { // a broker sends the first batch whole
					one.large = n
					in.skip(n)
				} else {
					one.buf = r.pool.get(n)
					in.full(one.buf.b)
				}
			}
			one.diverges = in.tagged(tagDiverging)
			slices.SortFunc(one.aborted, func(a, b abortedTxn) int {
				if a.first < b.first {
					return -1
				}
				return 1
			})
			all = append(all, one)
			if in.err != nil {
				break
			}
		}
		in.tags()
		if in.err != nil {
			break
		}
	}
	in.tags()
	if in.err == nil && in.left != 0 {
		in.err = errors.New("answer is longer than it should be")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.abandoned || in.err != nil {
		for i := range all {
			all[i].free()
		}
		return
	}
	r.code, r.results, r.read = code, all, true
}

// abandon gives back what the answer brought, now or when it has come.
func (r *fetchRequest) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.abandoned = true
	for i := range r.results {
		r.results[i].free()
	}
	r.results = nil
}
