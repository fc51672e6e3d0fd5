package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/tumblestream/tumble/internal/rarely"
)

// Rejected is a record that gave no event because it could not be understood.
type Rejected struct {
	Topic     string
	Partition int32
	Offset    int64
	Cause     error
	Message   Message // a copy: OnReject may keep it
}

// A telling is one record that OnReject is told of until it returns nil. Reading
// waits for it in front of the record, and other partitions go on.
//
// It has a goroutine of its own, because Fetch must answer in between. A telling
// that reading has dropped may still be inside OnReject: the next one begins when
// that has returned, so that no record is told twice at a time.
type telling struct {
	offset int64
	cause  error
	cancel context.CancelFunc
	told   chan struct{} // closed when OnReject has returned nil
	ended  chan struct{} // closed when the goroutine is about to end
	begun  time.Time

	mu  sync.Mutex
	err error // of the last call
}

const (
	tellFirst = 50 * time.Millisecond // back-off between two calls of OnReject
	tellMax   = 5 * time.Second
	tellSlow  = 5 * time.Second // a call that takes longer is shown as trouble
	// tellAtOnce is how long reading waits for OnReject with events in hand: one
	// that is quick does not cut a Chunk short.
	tellAtOnce = 2 * time.Millisecond
)

// tell begins to tell OnReject of m.
func (p *partition) tell(m Message, cause error) {
	m.Key, m.Value, m.headers = bytes.Clone(m.Key), bytes.Clone(m.Value), bytes.Clone(m.headers)
	r := Rejected{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Cause: cause, Message: m}
	ctx, cancel := context.WithCancel(p.served)
	t := &telling{
		offset: m.Offset, cause: cause, cancel: cancel,
		told: make(chan struct{}), ended: make(chan struct{}), begun: time.Now(),
	}
	before := p.lastTold
	p.telling, p.lastTold = t, t
	go func() {
		defer close(t.ended)
		defer cancel()
		if before != nil {
			<-before.ended
		}
		for retry := (backoff{first: tellFirst, most: tellMax}); ctx.Err() == nil; {
			err := p.src.cfg.OnReject(ctx, r)
			if err == nil {
				close(t.told)
				return
			}
			t.mu.Lock()
			t.err = err
			t.mu.Unlock()
			pause(ctx, retry.next())
		}
	}()
}

// hasTold reports whether OnReject has returned nil, now or within wait.
func (t *telling) hasTold(wait time.Duration) bool {
	select {
	case <-t.told:
		return true
	default:
	}
	if wait <= 0 {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-t.told:
		return true
	case <-timer.C:
		return false
	}
}

// trouble returns the error that keeps the record from being told, if any.
func (t *telling) trouble() error {
	t.mu.Lock()
	err := t.err
	t.mu.Unlock()
	if long := time.Since(t.begun); err == nil && long >= tellSlow {
		err = fmt.Errorf("it has not returned for %v", long.Round(time.Second))
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("record at offset %d was rejected (%w), and Config.OnReject fails: %w", t.offset, t.cause, err)
}

// dropTelling gives up the record that is being told of: reading goes elsewhere.
func (p *partition) dropTelling() {
	if p.telling != nil {
		p.telling.cancel()
		p.telling = nil
	}
}

// endTelling waits until OnReject has returned. It is called when nobody fetches
// any more.
func (p *partition) endTelling() {
	p.dropTelling()
	if p.lastTold != nil {
		<-p.lastTold.ended
	}
}

// awaitTold returns when OnReject has been told, with an error when d is over or
// ctx has ended. The error is nil if there is no trouble.
func (p *partition) awaitTold(ctx context.Context, d time.Duration) (told bool, err error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-p.telling.told:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	case <-timer.C:
		return false, p.telling.trouble()
	}
}

// reject deals with a record that gives no event. It returns an error if the
// record must not be passed: errTelling if OnReject is to be told before.
func (p *partition) reject(m Message, cause error) error {
	if p.src.cfg.OnReject != nil && !p.about.passed(m.Offset, p.reader.batch.epoch) {
		p.tell(m, cause)
		return errTelling
	}
	if p.src.cfg.FailOnReject {
		return rejectedError(m.Offset, cause)
	}
	if p.once(m.Offset) { // there is no hook
		p.src.rejects.report(Rejected{Topic: m.Topic, Partition: m.Partition, Offset: m.Offset, Cause: cause})
		p.rejected++
	}
	return nil
}

// errTelling is returned by decode for a record that waits for OnReject.
var errTelling = errors.New("OnReject has not been told yet")

// passTold passes the record that waits for OnReject, if that has been told of it
// now or within wait. An error says why the record must not be passed all the
// same.
func (p *partition) passTold(wait time.Duration) (passed bool, err error) {
	t := p.telling
	if !t.hasTold(wait) {
		return false, nil
	}
	p.telling = nil
	if p.src.cfg.FailOnReject {
		return false, rejectedError(t.offset, t.cause)
	}
	if p.once(t.offset) {
		p.rejected++
	}
	p.pos, p.epoch = t.offset+1, p.reader.batch.epoch
	return true, nil
}

func rejectedError(offset int64, cause error) error {
	return &fatalError{fmt.Errorf("record at offset %d rejected: %w", offset, cause)}
}

// rejectLog reports rejected records where there is no hook for them.
type rejectLog struct {
	log  *slog.Logger
	line rarely.Line
}

func (l *rejectLog) report(r Rejected) {
	if silence, ok := l.line.Now(); ok {
		l.log.Warn("record rejected", "partition", r.Partition, "offset", r.Offset, "cause", r.Cause, "unreported", silence)
	}
}

// A report remembers up to which record of a partition rejects and skips were
// told. Offsets of one log are read in order, so one number is enough. In a log
// that was truncated an offset comes again, in a later epoch.
type report struct {
	mu    sync.Mutex
	log   string
	upTo  int64
	epoch int32 // of the record before upTo, -1 if unknown
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

// passed reports whether the record at a position has been told of.
func (r *report) passed(offset int64, epoch int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return offset < r.upTo && epoch <= r.epoch
}
