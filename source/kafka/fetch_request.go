package kafka

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// An ask is one partition in a request.
type ask struct {
	p     *partition
	turn  int
	epoch int32 // of the leader
	from  int64
	last  int32
	piece int
}

// A fetched is one partition's part of an answer.
type fetched struct {
	partition int32
	code      int16
	high      int64
	stable    int64 // up to where no transaction is open
	diverges  bool  // the broker does not find the last epoch where it was said to be
	aborted   []abortedTxn
	replica   int32   // that the leader would have us read from, -1 for none
	buf       *buffer // nil: no records
	large     int     // size of the records if they were too many to take
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
	rack  string
	id    topicID
	asks  []ask
	wait  time.Duration
	total int           // bytes
	limit int           // of one batch
	hold  time.Duration // the longest throttle that is waited for with the connection in hand

	byName    bool
	code      int16
	throttled time.Duration // by a quota
	results   []fetched

	mu        sync.Mutex
	abandoned chan struct{} // closed when nobody waits for results any more
}

// request encodes r for a broker.
func (r *fetchRequest) request(broker int32, api wire.API) *wire.Request {
	var b wire.Appender
	b.Int32(-1) // not a replica
	b.Int32(int32(r.wait.Milliseconds()))
	b.Int32(1) // byte at least: a trickle is not held back
	b.Int32(int32(r.total))
	b.Int8(1)   // read committed
	b.Int32(0)  // no session
	b.Int32(-1) // nor a new one
	b.Count(1)
	if r.byName = api == wire.FetchByName; r.byName {
		b.Compact(r.topic)
	} else {
		b = append(b, r.id[:]...)
	}
	b.Count(len(r.asks))
	for _, a := range r.asks {
		b.Int32(a.p.n)
		b.Int32(a.epoch)
		b.Int64(a.from)
		b.Int32(a.last)
		b.Int64(-1) // not a replica
		b.Int32(int32(a.piece))
		b.Tags()
	}
	b.Tags()
	b.Count(0) // no forgotten topics
	b.Compact(r.rack)
	b.Tags()
	return &wire.Request{API: api, Node: broker, Timeout: r.wait + answerWithin, Body: b, Into: r}
}

// tagDiverging is the tagged field that names the end of the last epoch where it
// is not the one asked with.
const tagDiverging = 0

// ReadAnswer reads the answer, on a goroutine of the transport.
func (r *fetchRequest) ReadAnswer(in *wire.Reader) {
	throttled := time.Duration(in.Int32()) * time.Millisecond
	code := in.Int16()
	in.Int32() // session
	var all []fetched
	for range in.CompactArray() {
		if r.byName {
			in.Compact()
		} else {
			in.Skip(len(r.id))
		}
		for range in.CompactArray() {
			all = append(all, r.readPartition(in))
		}
		in.Tags()
	}
	in.Tags()
	in.End()
	if !r.answered(code, throttled, all) || throttled <= 0 {
		return
	}
	// The broker does not look at this connection for so long. It is kept from others:
	// a heartbeat on it would be late. No records wait here, as none come with a
	// throttle.
	hold := time.NewTimer(min(throttled, r.hold))
	defer hold.Stop()
	select {
	case <-hold.C:
	case <-r.abandoned:
	}
}

// answered takes the answer, unless nobody waits for it.
func (r *fetchRequest) answered(code int16, throttled time.Duration, all []fetched) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.abandoned:
		for i := range all {
			all[i].free()
		}
		return false
	default:
		r.code, r.throttled, r.results = code, throttled, all
		return true
	}
}

func (r *fetchRequest) readPartition(in *wire.Reader) fetched {
	one := fetched{partition: in.Int32(), code: in.Int16(), high: in.Int64()}
	one.stable = in.Int64()
	in.Int64() // start of the log
	for range in.CompactArray() {
		one.aborted = append(one.aborted, abortedTxn{in.Int64(), in.Int64()})
		in.Tags()
	}
	one.replica = in.Int32()
	if n := in.Size(); n > r.limit { // a broker sends the first batch whole
		one.large = n
		in.Skip(n)
	} else if n > 0 {
		one.buf = r.pool.get(n)
		in.Full(one.buf.b)
	}
	one.diverges = in.Tagged(tagDiverging)
	slices.SortFunc(one.aborted, func(a, b abortedTxn) int { return cmp.Compare(a.first, b.first) })
	return one
}

// abandon frees the answer's buffers, now or when it has come.
func (r *fetchRequest) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	select {
	case <-r.abandoned:
	default:
		close(r.abandoned)
	}
	for i := range r.results {
		r.results[i].free()
	}
	r.results = nil
}
