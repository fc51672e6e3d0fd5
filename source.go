package tumble

import (
	"context"
	"errors"
	"time"
)

// An Event is one thing to count.
type Event struct {
	Key    string    // borrowed: valid until the next Fetch
	Time   time.Time // event time: when it happened, as its producer says
	Offset int64     // of its record; all events of one record share it and come in one Chunk
}

// A Chunk is what one Fetch brought.
type Chunk struct {
	Events []Event   // by ascending Offset; valid until the next Fetch
	Next   int64     // the offset to fetch next: beyond every Offset, perhaps beyond records that are no events
	End    int64     // end of the log (Kafka: high watermark); -1: unknown, and never caught up. Caught up: Next >= End
	AsOf   time.Time // when the request that learned End was sent

	// Records that gave no event. Each is reported once, however often it is read.
	Rejected int64 // could not be understood
	Skipped  int64 // hold nothing to count, such as a tombstone
}

// A Source is a set of partitions, each an ordered log of events that can be
// fetched again from any offset that Resume allowed.
type Source interface {
	// Partitions returns every partition of the source, whoever reads it, by
	// its ID, with the checkpoint at which counting begins. stored is what the
	// sink knows, other sources' partitions included. A start policy ("latest")
	// applies only to a source of which nothing is stored; any other unknown
	// partition begins at its earliest offset. It may be called again, to learn
	// of partitions that are new. An error ends the pipeline, unless it wraps
	// ErrUnavailable and Run has been called: then it is asked again.
	Partitions(ctx context.Context, stored map[string]Checkpoint) (map[string]Checkpoint, error)

	// Run calls consume, in a goroutine of its own, for each partition that is
	// assigned to this process, and returns once every call has returned.
	// consume's ctx ends when ctx does or when the partition must be given up;
	// the source keeps the partition until consume, which flushes, has
	// returned. The first error from consume ends the others and is returned;
	// nil once ctx ended or all partitions are exhausted.
	Run(ctx context.Context, consume func(context.Context, Partition) error) error
}

// A Partition is one log of a Source. It is used by one goroutine at a time.
type Partition interface {
	// ID names the partition, the same in every process: "clicks/3".
	ID() string

	// Resume says where to go on from a stored checkpoint: there, if the
	// events from there on can still be fetched. If they cannot (retention
	// deleted them, the topic was recreated or truncated, a channel's past is
	// gone) it is the source's policy to return a later or a new checkpoint, or
	// an error that stops the pipeline and names what is lost. A transient
	// error wraps ErrUnavailable and is retried.
	Resume(ctx context.Context, stored Checkpoint) (Checkpoint, error)

	// Fetch waits until there is something at or after from, or ctx ends. It
	// returns an empty Chunk with a new AsOf at least every 500 ms. Any from
	// that Resume allowed may be asked for at any call, and asking again yields
	// the same events. io.EOF: stop here, for this run. ErrEnded: there will
	// never be more. ErrOffsetOutOfRange: Resume again. Any other error is
	// transient and retried with back-off.
	Fetch(ctx context.Context, from int64) (Chunk, error)
}

// ErrEnded is returned by [Partition.Fetch] when the partition will never hold
// another event: its windows need not wait for it any more.
var ErrEnded = errors.New("partition has ended")

// ErrOffsetOutOfRange is wrapped by [Partition.Fetch] when events at the offset
// that was asked for can no longer be fetched: Resume says where to go on.
var ErrOffsetOutOfRange = errors.New("offset out of range")

// ErrUnavailable is wrapped by [Partition.Resume] and [Source.Partitions] when
// they could not find out, because a server did not answer, say: the pipeline
// asks again, with back-off.
var ErrUnavailable = errors.New("temporarily unavailable")

// A Committer is a Partition that wants to know how far its events are counted
// for good, to forget them or to tell others.
type Committer interface {
	// Committed reports that every shard holds the counts of all events before
	// offset. It may run beside Fetch, does not block, and offset never falls
	// within a log while the Partition is consumed.
	Committed(offset int64)
}
