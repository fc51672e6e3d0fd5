package faketest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/tumblestream/tumble"
)

// ErrFault is the error of each fault that a test asked for.
var ErrFault = errors.New("injected fault")

// A Source reads some partitions of a Topic: one process's view.
type Source struct {
	Topic    *Topic
	Own      []string    // partitions to read; nil: all there are when Run begins
	Latest   bool        // counting begins at the end, if nothing of the topic is stored
	SkipGap  bool        // Resume goes on after a gap, a cut or in another log; else they are errors
	UntilEnd bool        // a partition is exhausted at its end
	More     chan string // partitions that are assigned while it runs; nil: none
}

// Partitions returns all partitions of the topic, those that others read too.
func (s *Source) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	s.Topic.mu.Lock()
	defer s.Topic.mu.Unlock()
	known := false
	for id := range s.Topic.logs {
		_, ok := stored[id]
		known = known || ok
	}
	all := map[string]tumble.Checkpoint{}
	for id, l := range s.Topic.logs {
		at := l.First
		if s.Latest && !known {
			at = l.End
		}
		all[id] = tumble.Checkpoint{Log: l.Name, Origin: at, Offset: at, Epoch: l.epoch(at)}
	}
	return all, nil
}

// Run consumes the source's own partitions, and those that come by More.
func (s *Source) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	own := s.Own
	if own == nil {
		s.Topic.mu.Lock()
		own = slices.Sorted(maps.Keys(s.Topic.logs))
		s.Topic.mu.Unlock()
	}
	var wg sync.WaitGroup
	var once sync.Once
	var first error // also of one that comes after ctx has ended
	start := func(id string) {
		wg.Go(func() {
			if err := consume(ctx, s.Partition(id)); err != nil {
				once.Do(func() { first = err })
				cancel(err)
			}
		})
	}
	for _, id := range own {
		start(id)
	}
	for s.More != nil {
		select {
		case id := <-s.More:
			start(id)
			continue
		case <-ctx.Done():
		}
		break
	}
	wg.Wait()
	return first
}

// Partition returns one that nobody has read from yet. It is also a
// tumble.Committer.
func (s *Source) Partition(id string) tumble.Partition { return &partition{s: s, id: id} }

type partition struct {
	s        *Source
	id       string
	log      string // name of the log, as Resume saw it
	reported int64  // holes before this offset have been told
	events   []tumble.Event
	keys     [][]byte // what the keys of events are made of
}

func (p *partition) ID() string { return p.id }

// Committed wants no more than that a Committer is told.
func (p *partition) Committed(int64) {}

func (p *partition) Resume(ctx context.Context, stored tumble.Checkpoint) (tumble.Checkpoint, error) {
	t := p.s.Topic
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.logs[p.id]
	p.log = l.Name
	end := l.until(stored.Epoch)
	switch {
	case stored.Log == l.Name && stored.Offset >= l.First && stored.Offset <= end:
		return stored, nil
	case !p.s.SkipGap:
		return stored, fmt.Errorf("%s: events from %d to %d are gone", p.id, stored.Offset, l.First)
	case stored.Log == l.Name && stored.Offset > end:
		stored.Offset = max(l.First, end)
		stored.Origin, stored.Epoch = min(stored.Origin, stored.Offset), l.epoch(stored.Offset)
		p.reported = min(p.reported, stored.Offset)
		return stored, nil
	case stored.Log == l.Name:
		stored.Offset = l.First
		return stored, nil
	}
	return tumble.Checkpoint{Log: l.Name, Offset: l.First, Epoch: l.epoch(l.First)}, nil
}

// Fetch hands out a random number of events, in a buffer that it scribbles over
// at the next call: keys are borrowed.
func (p *partition) Fetch(ctx context.Context, at tumble.Position) (tumble.Chunk, error) {
	p.scribble()
	asOf := time.Now()
	timeout := time.NewTimer(500 * time.Millisecond)
	defer timeout.Stop()
	for {
		ch, grown, err := p.look(at, asOf)
		if grown == nil {
			return ch, err
		}
		select {
		case <-grown:
		case <-timeout.C:
			return ch, nil
		case <-ctx.Done():
			return tumble.Chunk{}, ctx.Err()
		}
	}
}

func (p *partition) scribble() {
	for i := range p.events {
		p.events[i] = tumble.Event{Key: "overwritten", Offset: -1}
		for j := range p.keys[i] {
			p.keys[i][j] = '#'
		}
	}
}

// look answers a Fetch at once, or returns an empty chunk and what is closed
// when there may be more.
func (p *partition) look(at tumble.Position, asOf time.Time) (tumble.Chunk, <-chan struct{}, error) {
	t := p.s.Topic
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.logs[p.id]
	from := at.Offset
	if l.Name == p.log && from > l.until(at.Epoch) {
		return tumble.Chunk{}, nil, fmt.Errorf("%v is beyond %d: %w", at, l.until(at.Epoch), tumble.ErrTruncated)
	}
	if from < l.First || from > l.End || l.Name != p.log {
		return tumble.Chunk{}, nil, fmt.Errorf("%d is not in [%d, %d]: %w", from, l.First, l.End, tumble.ErrOffsetOutOfRange)
	}
	ch := tumble.Chunk{Next: from, End: l.End, AsOf: asOf}
	index := l.index(from)
	n := len(l.Events) - index
	if t.Rand != nil && n > 0 {
		if t.Rand.IntN(20) == 0 {
			return tumble.Chunk{}, nil, ErrFault
		}
		n = min(n, 1+t.Rand.IntN(100))
	}
	switch {
	case n > 0:
		p.fill(&ch, l, index, n)
	case from < l.End: // holes alone
		ch.Next, ch.Epoch = l.End, l.epoch(l.End)
	case l.Ended && l.Final:
		return tumble.Chunk{}, nil, tumble.ErrFinal
	case l.Ended:
		return tumble.Chunk{}, nil, tumble.ErrEnded
	case p.s.UntilEnd:
		return tumble.Chunk{}, nil, io.EOF
	default:
		return ch, l.grown, nil
	}
	p.tell(&ch, l, from)
	return ch, nil, nil
}

// fill makes a chunk of about n events: of whole records, and of one epoch.
func (p *partition) fill(ch *tumble.Chunk, l *Log, at, n int) {
	for at+n < len(l.Events) && l.Events[at+n].Offset == l.Events[at+n-1].Offset {
		n++
	}
	ch.Epoch = l.epoch(l.Events[at].Offset + 1)
	for l.epoch(l.Events[at+n-1].Offset+1) != ch.Epoch {
		n--
	}
	p.events, p.keys = p.events[:0], p.keys[:0]
	for _, e := range l.Events[at : at+n] {
		key := []byte(e.Key)
		e.Key = unsafe.String(unsafe.SliceData(key), len(key))
		p.events = append(p.events, e)
		p.keys = append(p.keys, key)
	}
	ch.Events, ch.Next = p.events, p.events[n-1].Offset+1
	if at+n == len(l.Events) && l.epoch(l.End) == ch.Epoch {
		ch.Next = l.End
	}
}

// tell reports the holes of a chunk, each once.
func (p *partition) tell(ch *tumble.Chunk, l *Log, from int64) {
	for o := max(from, p.reported); o < ch.Next; o++ {
		switch l.holes[o] {
		case Rejected:
			ch.Rejected++
		case Skipped:
			ch.Skipped++
		}
	}
	p.reported = max(p.reported, ch.Next)
}
