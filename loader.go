package tumble

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// A loader calls Load on one shard for everybody in the process who wants to know
// what it holds: one call at a time, so that the calls do not grow with the number
// of partitions. A request gets the answer of a call that began after it was made.
type loader struct {
	p     *Pipeline
	shard int
	has   map[string]Checkpoint // the last answer. Belongs to run

	mu      sync.Mutex
	next    map[*loadRequest]struct{} // wait for a call that has yet to begin
	asking  map[*loadRequest]struct{} // the call under way is for
	running bool
	clean   bool               // the shard has a backlog of windows to delete
	cancel  context.CancelFunc // ends the call under way, and the wait for the next one
}

// A loadRequest is told the shard's state once, or an error: that its ctx has ended,
// or a fatal one.
type loadRequest struct {
	ctx  context.Context
	heal bool        // the answer holds every partition of the registry: what is missing is stored
	tell func(error) // each transient error, and nil once they have passed
	done func(ShardState, error)

	forget func() bool // ctx is no longer watched
}

func newLoader(p *Pipeline, shard int) *loader {
	return &loader{p: p, shard: shard, next: map[*loadRequest]struct{}{}, asking: map[*loadRequest]struct{}{}}
}

// request hands a request in. done is called on another goroutine and must not block.
func (l *loader) request(r *loadRequest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next[r] = struct{}{}
	r.forget = context.AfterFunc(r.ctx, func() { l.leave(r) })
	l.start()
}

// load waits for an answer.
func (l *loader) load(ctx context.Context, heal bool, tell func(error)) (state ShardState, err error) {
	answered := make(chan struct{})
	l.request(&loadRequest{ctx: ctx, heal: heal, tell: tell, done: func(s ShardState, e error) {
		state, err = s, e
		close(answered)
	}})
	<-answered
	return state, err
}

// leave answers a request whose ctx has ended.
func (l *loader) leave(r *loadRequest) {
	l.mu.Lock()
	_, waits := l.next[r]
	_, asks := l.asking[r]
	delete(l.next, r)
	delete(l.asking, r)
	if len(l.next)+len(l.asking) == 0 && l.cancel != nil {
		l.cancel()
	}
	l.mu.Unlock()
	if waits || asks {
		r.done(ShardState{}, r.ctx.Err())
	}
}

// run answers requests until there are none.
func (l *loader) run() {
	for wait := (backoff{}); ; {
		ctx, heal, ok := l.begin()
		if !ok {
			return
		}
		began := time.Now()
		state, err := l.ask(ctx, heal)
		if err == nil {
			l.has, wait = state.Checkpoints, backoff{}
			l.answer(state, nil)
			l.applied()
			continue
		}
		err = fmt.Errorf("tumble: load shard %d: %w", l.shard, err)
		if errors.Is(err, ErrDefinition) {
			l.answer(ShardState{}, err)
			continue
		}
		if ctx.Err() == nil {
			l.fail(err)
			wait.sleep(ctx, time.Since(began), nil)
		}
	}
}

// applied has windows deleted if the last call on the shard has left a backlog.
func (l *loader) applied() {
	c, ok := l.p.shards[l.shard].(Cleaner)
	if !ok || !c.Backlog() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clean = true
	l.start()
}

// start has run called, unless it runs. l.mu is held.
func (l *loader) start() {
	if !l.running {
		l.running = true
		l.p.loads.Go(l.run)
	}
}

// begin starts a call for all who wait, if there is anybody.
func (l *loader) begin() (ctx context.Context, heal, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		l.cancel()
		l.cancel = nil
	}
	for r := range l.next {
		l.asking[r] = struct{}{}
	}
	clear(l.next)
	for r := range l.asking {
		heal = heal || r.heal
		if ctx == nil {
			ctx = context.WithoutCancel(r.ctx) // who asks may leave before the others
		}
	}
	if ctx == nil && l.clean && l.p.cleaning.Err() == nil {
		ctx = l.p.cleaning
	}
	l.clean = false
	if ctx == nil {
		l.running = false
		return nil, false, false
	}
	ctx, l.cancel = context.WithCancel(ctx)
	return ctx, heal, true
}

// answer answers those that the call was for.
func (l *loader) answer(state ShardState, err error) {
	l.mu.Lock()
	asking := l.asking
	l.asking = map[*loadRequest]struct{}{}
	l.mu.Unlock()
	for r := range asking {
		r.forget()
		if err == nil {
			r.tell(nil)
		}
		r.done(state, err)
	}
}

// fail tells those that the call was for that it will be repeated.
func (l *loader) fail(err error) {
	l.p.books.change(func(s *Stats) { s.Retries++ })
	l.mu.Lock()
	defer l.mu.Unlock() // so that nobody is told who has left
	for r := range l.asking {
		r.tell(err)
	}
}

// ask loads the shard. To heal it may take a second call, if the shard lost
// partitions since it told that it has them. The whole registry is stored in one
// step: a shard that knew a part of it would close windows without the others.
func (l *loader) ask(ctx context.Context, heal bool) (ShardState, error) {
	var init map[string]Checkpoint
	if heal {
		init = l.p.toStore(l.has)
	}
	state, err := l.p.ask(ctx, l.shard, init)
	if err == nil && heal {
		if init = l.p.toStore(state.Checkpoints); init != nil {
			state, err = l.p.ask(ctx, l.shard, init)
		}
	}
	return state, err
}

// ask loads a shard once. If somebody has announced the end of a partition that
// this pipeline's source has, it objects before it returns.
func (p *Pipeline) ask(ctx context.Context, shard int, init map[string]Checkpoint) (ShardState, error) {
	state, err := p.shards[shard].Load(ctx, LoadRequest{Init: init})
	if err != nil {
		return state, err
	}
	object := map[string]uint64{}
	p.mu.Lock()
	for id, token := range state.Announced {
		if _, mine := p.first[id]; mine {
			object[id] = token
		}
	}
	p.tops[shard] = mark{}
	for _, c := range state.Checkpoints {
		p.tops[shard] = later(p.tops[shard], markOf(c.Watermark))
	}
	p.mu.Unlock()
	if len(object) > 0 {
		p.cfg.Logger.Warn("objecting to the end of partitions that this pipeline reads", "partitions", slices.Sorted(maps.Keys(object)), "shard", shard)
		return p.shards[shard].Load(ctx, LoadRequest{Object: object})
	}
	return state, nil
}

// top returns the largest watermark in the sink when its shards were last loaded.
func (p *Pipeline) top() mark {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.topLocked()
}

// topLocked is top where p.mu is held.
func (p *Pipeline) topLocked() (top mark) {
	for _, m := range p.tops {
		top = later(top, m)
	}
	return top
}
