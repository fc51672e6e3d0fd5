package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tumblestream/tumble"
)

const (
	// pieceBytes is the most that is asked of one partition at once, and about
	// the size of its prefetch.
	pieceBytes = 1 << 20
	minPiece   = 64 << 10
	// maxAnswer bounds one answer, so that a partition does not wait for long
	// behind the others of its leader.
	maxAnswer = 16 << 20
	// After an answer below small the next request waits for pace, so that a dense
	// trickle of events does not cost a request each.
	small = 16 << 10
	pace  = 2 * time.Millisecond
	// busyWait is the broker's wait while a partition is not in the request
	// because it has enough, or has just been added: it must not miss its turn.
	busyWait = 5 * time.Millisecond
	settling = 300 * time.Millisecond
	// refreshEvery is how often leaders, the number of partitions and the
	// topic's id are asked for when nothing calls for it.
	refreshEvery = 5 * time.Second
	// answerWithin is a broker's time for an answer, on top of its wait.
	answerWithin = 30 * time.Second
	// replicaFor is how long a replica is read before the leader is asked again which is
	// the best. It is asked sooner when the replica has no more, or fails.
	replicaFor = time.Minute
	// An error is shown once it has lasted for so long. A change of leaders
	// takes less.
	showAfter = 500 * time.Millisecond
	// A transaction is told of once it has been waited for so long, and a quota until
	// it has not throttled for as long as it may pause.
	openAfter   = 2 * time.Second
	throttleFor = 10 * time.Second
	// retryAfter is the first wait after an error, of a request or a partition.
	retryAfter = 100 * time.Millisecond
	retryMost  = 2 * time.Second
)

// A segment is the part of one answer that is of one partition.
type segment struct {
	buf     *buffer
	data    []byte // whole batches
	aborted []abortedTxn
	err     error // why reading cannot go on after data
}

// A feed is the fetcher's side of a partition, guarded by fetcher.mu.
type feed struct {
	news signal // take would return something else now

	log      topicID   // that is read
	learned  time.Time // when log was the topic's
	leader   int32
	epoch    int32       // of that leader
	replica  int32       // that is read in its place, -1 for none
	returns  time.Time   // to the leader, to hear whether another replica is better
	approved approval    // by Resume
	vetted   int32       // leader epoch for which (want, last) is valid
	suspect  bool        // an answer contradicts (want, last)
	want     int64       // to ask for next, -1 for nothing
	last     int32       // epoch of the record before want, -1 not to compare
	fresh    bool        // nothing was prefetched since Fetch sought
	cut      atomic.Bool // the log does not hold the prefetched records any more
	turn     int         // grows when answers to earlier requests must not count any more
	asked    bool        // is in a request
	piece    int         // bytes of the next batch if it is known to be large
	queue    []*segment
	queued   int // bytes
	changed  time.Time
	notUntil time.Time

	end       int64 // high watermark, -1 if unknown
	asOf      time.Time
	throttled time.Time // when a quota left it out last
	openAt    int64     // the transaction that is waited for begins here
	openSince time.Time // zero: none is

	err   error // for Fetch. Nothing is asked for until that seeks
	stuck error // why the partition could not be read of late
	since time.Time
}

// A fetcher reads the partitions that are assigned to this process, with one
// loop for each broker that leads some of them.
type fetcher struct {
	src  *Source
	stop context.CancelCauseFunc // ends the run
	pool *pool

	unsure func() bool // whether another process may have our partitions by now

	refresh    signal       // ask for the layout
	partitions chan []int32 // if the Source reads all there are: news of them

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
		unsure:     func() bool { return false },
		pool:       s.pool,
		refresh:    newSignal(),
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
	retry := backoff{first: retryAfter, most: retryMost}
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
				f.src.log.Warn("metadata request failed, retrying", "error", err)
				known = false
			}
			wait.Reset(retry.next())
		default:
			retry.tries, known = 0, true
			f.apply(ctx, lay, asked, &loops)
			f.announce(lay)
			wait.Reset(refreshEvery)
		}
		// Many may ask at once. A broker without news must not be asked in a busy
		// loop.
		if !pause(ctx, retryAfter/2) {
			return
		}
	}
}

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
	start := func(broker int32) {
		if broker < 0 || f.loops[broker] != nil {
			return
		}
		loop := &loop{f: f, broker: broker, wake: newSignal()}
		f.loops[broker] = loop
		loops.Go(func() { loop.run(ctx) })
	}
	for _, l := range lay.partitions {
		start(l.leader)
	}
	for _, p := range f.parts {
		start(p.feed.replica)
	}
	for _, loop := range f.loops {
		loop.wake.send()
	}
}

// place gives p its leader. f.mu is held.
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
		d.replica = -1
	}
	d.leader, d.epoch = l.leader, l.epoch
	if d.log == (topicID{}) {
		d.log, d.learned = f.layout.id, f.learned
	}
	if f.recreated(d) {
		d.news.send()
	}
}

// recreated reports whether d reads a topic that is known to be gone.
func (f *fetcher) recreated(d *feed) bool {
	return f.layout.id != topicID{} && d.log != f.layout.id && f.learned.After(d.learned)
}

// add begins to serve partition n to one consumer.
func (f *fetcher) add(n int32) *partition {
	s := f.src
	p := &partition{src: s, fetch: f, n: n, id: s.id(n), end: -1, pos: -1, epoch: -1}
	p.reader.unpack = unpacker{pool: f.pool, limit: s.cfg.MaxBatchBytes}
	d := &p.feed
	d.news = newSignal()
	d.leader, d.epoch, d.replica, d.vetted = -1, -1, -1, unvetted
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
		f.refresh.send()
	}
	return p
}

// remove undoes add, on the goroutine that consumed p.
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
	p.pos = -1 // prefetched records are of the other one: the next Fetch seeks
	d.reset(tumble.Position{Offset: -1, Epoch: -1})
	d.asOf = time.Now()
	p.shown = d.asOf
	d.end = -1
	d.log = b.log
	if f.layout.id != b.log || d.epoch != b.leader.epoch {
		f.refresh.send()
	}
}

// leaderEpoch returns the newest epoch of p's leader that is known, -1 for none.
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
	if loop := f.loops[p.feed.broker()]; loop != nil {
		loop.wake.send()
	}
}

// broker returns the one to ask: the leader, or a replica in its place. While it is in
// doubt whether the log holds the position only the leader is asked.
func (d *feed) broker() int32 {
	if d.replica >= 0 && !d.unvetted() {
		return d.replica
	}
	return d.leader
}

// readFrom makes d be read from a replica in the leader's place for a while, or from the
// leader again, -1. f.mu is held.
func (f *fetcher) readFrom(p *partition, replica int32) {
	d := &p.feed
	d.replica, d.returns = replica, time.Now().Add(replicaFor)
	if f.loops[d.broker()] == nil {
		f.refresh.send() // apply starts one
	}
	f.nudge(p)
}

// A state is the news of a partition.
type state struct {
	end   int64
	asOf  time.Time
	waits string // what holds up reading
	err   error  // to be returned now
	stuck error  // to be returned if nothing comes
}

// take returns p's next segment, or nil and the state if there is none yet.
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
	s := state{end: d.end, asOf: d.asOf, waits: d.waits(time.Now()), err: d.err}
	if f.recreated(d) {
		s.err = fmt.Errorf("%w: the topic was recreated, its id is %v now", tumble.ErrOffsetOutOfRange, f.layout.id)
	}
	if d.stuck != nil && time.Since(d.since) >= showAfter {
		s.stuck = d.stuck
	}
	return nil, s
}

// end returns the newest end of p's log that is known.
func (f *fetcher) end(p *partition) state {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := &p.feed
	return state{end: d.end, asOf: d.asOf, waits: d.waits(time.Now())}
}

// open notes whether an answer without records says that a transaction is open where
// reading is to go on.
func (d *feed) open(from int64, got fetched) {
	if got.buf != nil || got.stable < 0 || from < got.stable || got.stable >= got.high {
		d.openSince = time.Time{}
	} else if d.openSince.IsZero() || d.openAt != got.stable {
		d.openAt, d.openSince = got.stable, time.Now()
	}
}

// waits says what holds up reading although the log goes on, "" if nothing does.
func (d *feed) waits(now time.Time) string {
	switch {
	case now.Sub(d.throttled) < throttleFor && !d.throttled.IsZero():
		return "a quota of the brokers: this client is throttled"
	case !d.openSince.IsZero() && now.Sub(d.openSince) >= openAfter:
		return fmt.Sprintf("an open transaction: records from offset %d on are held back until it ends", d.openAt)
	}
	return ""
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

// reset drops prefetched records and goes on at a position.
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
	d.openSince = time.Time{}
}

// trouble notes an error that keeps d from being read. It is shown if it lasts.
func (d *feed) trouble(err error) {
	if d.stuck == nil {
		d.since = time.Now()
	}
	d.stuck = err
}
