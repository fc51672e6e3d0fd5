package tumble

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// For those who write a Source. Users of a pipeline need source/kafka or
// source/channel, and Event.

// An Event is one thing to count.
type Event struct {
	Key    string    // borrowed: valid until the next Fetch
	Time   time.Time // event time: when it happened, as its producer says
	N      int64     // what it adds to its key, from 0 to MaxCount, with Config.Sum. Without, 0: each event counts 1
	Offset int64     // of its record. All events of one record share it and come in one Chunk
}

// A Position is a place in a log. Offset is the next to fetch. Epoch is that of
// the record before it: the reign of the leader under which it was written, by
// which a log that was truncated and has grown again is told from one that only
// grew. It is -1 where it is not known, and a source without epochs may leave it 0.
type Position struct {
	Offset int64
	Epoch  int32
}

// A Chunk is the answer to one Fetch.
type Chunk struct {
	// Events are ordered by ascending Offset and valid until the next Fetch.
	Events []Event
	// Next is the offset to fetch next. It is beyond every Offset, perhaps also
	// beyond records that gave no event.
	Next int64
	// Epoch is that of all records that the Chunk passes, up to Next. It means
	// nothing if the Chunk passes none.
	Epoch int32
	// End is the end of the log (Kafka: the high watermark), or -1 if it is not
	// known. The partition is caught up if Next >= End, and never while End is -1.
	End int64
	// AsOf is when the request was sent that learned End.
	AsOf time.Time

	// Waits says what holds reading up although the log goes on, in words for who
	// operates it: a quota, an open transaction. "" if nothing does.
	Waits string

	// Records that gave no event. Each is reported once, however often it is read.
	Rejected int64 // could not be understood
	Skipped  int64 // hold nothing to count, such as a tombstone
}

// A Source is a set of partitions, each an ordered log of events that can be
// fetched again from any position that Resume allowed.
type Source interface {
	// Partitions returns every partition of the source, whoever reads it, by
	// its ID, with the checkpoint at which counting begins. stored holds the
	// sink's checkpoints, other sources' partitions included. A start policy
	// ("latest") applies only to a source of which nothing is stored; any other
	// unknown partition begins at its earliest offset. It may be called again,
	// to learn of partitions that are new. An error ends the pipeline, unless
	// it wraps ErrUnavailable and Run has been called: then it is asked again.
	Partitions(ctx context.Context, stored map[string]Checkpoint) (map[string]Checkpoint, error)

	// Run calls consume, in a goroutine of its own, for each partition that is
	// assigned to this process, and returns once every call has returned.
	// consume's ctx ends when ctx does or when the partition must be given up;
	// the source keeps the partition until consume, which flushes, has
	// returned. The first error from consume ends the others and is returned;
	// nil once ctx ended or all partitions are exhausted. If ctx ends while the
	// source holds events that no later run can fetch, Run returns an error
	// that says how many.
	Run(ctx context.Context, consume func(context.Context, Partition) error) error
}

// A Partition is one log of a Source. It is used by one goroutine at a time.
type Partition interface {
	// ID names the partition, the same in every process: "clicks/3".
	ID() string

	// Resume says where to go on from a stored checkpoint: there, if the
	// events from there on can still be fetched. If they cannot (retention
	// deleted them, the topic was recreated or truncated, a channel's past is
	// gone) it is the source's policy to return another checkpoint, or an error
	// that stops the pipeline and names the loss. A later Offset skips a gap.
	// An earlier Offset in the same Log says that the log was truncated there:
	// the counts of the removed records stay. Another Log is a new beginning.
	// A transient error wraps ErrUnavailable and is retried.
	Resume(ctx context.Context, stored Checkpoint) (Checkpoint, error)

	// Fetch waits until there is something at or after from, or ctx ends. It
	// returns an empty Chunk with a new AsOf at least every 500 ms. Any from
	// that Resume allowed may be asked for at any call, and asking again yields
	// the same events. io.EOF: stop here, for this run. ErrEnded: there will
	// never be more. ErrOffsetOutOfRange and ErrTruncated: Resume again. Any
	// other error is transient and retried with back-off.
	Fetch(ctx context.Context, from Position) (Chunk, error)
}

// A Committer is a Partition that wants to know how far its events are counted
// for good, to forget them or to tell others.
type Committer interface {
	// Committed reports that every shard holds the counts of all events before
	// offset. It may run beside Fetch and does not block. Within a log offset
	// falls only if the log was truncated.
	Committed(offset int64)
}

// A Yielder is a Partition that a group of processes shares out, so that another one
// may have it by now.
type Yielder interface {
	// Yield is called when another process has counted events of the partition that
	// this one was about to count. If it returns true, consume returns as if its ctx
	// had ended. Otherwise the partition is this process's, which rests for half a
	// second at most before it goes on.
	Yield() bool
}

// A Sharer is a Source that shares its partitions out by a group of processes,
// and must know that all of them count into the same place.
type Sharer interface {
	// Share is called once a run, before Partitions. identity asks the sink
	// and may be called at any time until Run returns.
	Share(identity func(context.Context) (Identity, error))
}

// ErrEnded is returned by [Partition.Fetch] when the log will never hold another
// event: windows need not wait for it any more. The partition may go on in a
// later run.
var ErrEnded = errors.New("partition has ended")

// ErrFinal is an [ErrEnded] after which no run will go on with the partition:
// the windows of its last events close at once.
var ErrFinal = fmt.Errorf("%w for good", ErrEnded)

// ErrOffsetOutOfRange is wrapped by [Partition.Fetch] when the events at the
// position can no longer be fetched. The events before it are flushed, then Resume
// says where to go on.
var ErrOffsetOutOfRange = errors.New("offset out of range")

// ErrTruncated is wrapped by [Partition.Fetch] when the log no longer holds the
// records before the position as they were read. Events that are read and not yet
// stored are dropped, then Resume says where to go on.
var ErrTruncated = errors.New("the log was truncated")

// ErrUnavailable is wrapped by [Partition.Resume] and [Source.Partitions] when
// they could not find out, because a server did not answer, say: the pipeline
// asks again, with back-off.
var ErrUnavailable = errors.New("temporarily unavailable")
