package tumble

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// For those who write a Sink. Users of a pipeline need sink/redis or
// sink/memory, and EndPartition.

// A Checkpoint says how far the counts of one partition reach in one shard.
type Checkpoint struct {
	Log       string    // incarnation of the log (Kafka: topic id; a channel: this run)
	Origin    int64     // where counting began; within a Log it changes only if the log is truncated before it
	Offset    int64     // the next to fetch
	Epoch     int32     // of the record before Offset, see Position
	Watermark time.Time // events from Offset on are judged by at least this; zero: none yet, a case of its own
	Ended     bool      // nobody waits for the partition: there is nothing after Offset, or nobody will ever read it
}

// Same reports whether c and d are the same checkpoint in every field; times
// are compared as instants.
func (c Checkpoint) Same(d Checkpoint) bool {
	return c.Log == d.Log && c.Origin == d.Origin && c.Offset == d.Offset && c.Epoch == d.Epoch &&
		c.Ended == d.Ended && c.Watermark.Equal(d.Watermark)
}

func (c Checkpoint) String() string {
	w := "none"
	if !c.Watermark.IsZero() {
		w = c.Watermark.UTC().Format(time.RFC3339Nano)
	}
	ended := ""
	if c.Ended {
		ended = " ended"
	}
	return fmt.Sprintf("%d (log %s from %d, epoch %d, watermark %s%s)", c.Offset, c.Log, c.Origin, c.Epoch, w, ended)
}

// A Delta is an increment: N more events of Key in the window that starts at
// Start, or with [Definition.Sum] events that add up to N.
type Delta struct {
	Start time.Time
	Key   string
	N     int64 // from 1 to MaxCount
}

// MaxCount is the largest count of a key in a window, and the largest total of a
// window in one shard: 2^53 - 1, as far as every whole number is also a double, which
// is what JSON, Lua and JavaScript have.
const MaxCount = 1<<53 - 1

// A Batch is what a shard applies as one step.
type Batch struct {
	Partition string

	// Writer is who sends the batch, a random number that is never 0: another
	// one after each Load on which a pipeline settled, and for each repetition
	// of a batch whose outcome is unknown. See Shard.Apply.
	Writer uint64

	// Token, if not 0, is that of the announcement under which To.Ended is
	// set by somebody who does not read the partition, see EndPartition.
	Token uint64

	// From is the checkpoint that the batch starts from. Within a Log, To is
	// not before From, unless the log was truncated: then there are no Deltas.
	// Equal offsets carry a later Watermark (a promise) or Ended. Another Log
	// is a rebase, without Deltas. A To that has not Ended, from a From that
	// has, is a revival, without Deltas.
	From, To Checkpoint

	// Deltas holds at most one increment per window and key, in no order; any
	// number of them, none included. The sink may read them until Apply returns.
	Deltas []Delta

	// Rollups holds what Deltas come to in the windows of each roll-up, in the order
	// of [Definition.Levels] from level 1 on, as Deltas does. It is empty if there are
	// no Deltas. An N above MaxCount is an overflow.
	Rollups [][]Delta
}

// A Sink stores counts together with the checkpoints they reach to.
type Sink interface {
	// Open checks def against the definition that is stored under this sink's
	// name (an error that wraps ErrDefinition is fatal), stores it if there is
	// none, and returns the shards, 1 to 65,535. Key k belongs to shard
	// Hash(k) % len(shards). Their number never changes for one name.
	Open(ctx context.Context, def Definition) ([]Shard, error)
}

// An Identity tells one set of counts from all others.
type Identity struct {
	Name       string // of the counts in their store
	Store      string // drawn at random when the first is stored; another one if all was lost and is counted again
	Definition Definition
}

// An Identifier is a Sink whose counts have an Identity. A Source that shares
// its partitions out by a group uses it to notice two pipelines that count into
// different places: each would see a part of the events.
type Identifier interface {
	Identity(ctx context.Context) (Identity, error)
}

// A Shard holds a part of the counts and, for every partition, the checkpoint
// that they reach to. It commits alone. It is safe for concurrent use.
//
// A shard keeps three things for its readers. The closed mark is
// [Definition.ClosedAt] of its frontier. The floor of a level never falls: windows of
// that level that end at or before it are past retention. The term is a random number that is
// another one after a loss: see Apply.
type Shard interface {
	// Load stores, in one step, those of r.Init that are missing, their
	// Watermark raised to the shard's frontier (see [Frontier]) as
	// it was before the call, and returns the shard's state after that. It
	// replaces nothing. It also writes the definition where it is missing and
	// wraps ErrDefinition where it differs. It notes the Retention of each level of the
	// definition that the shard was opened with as asked for at this moment of
	// the store's clock: in force is the longest that was asked for within the
	// last minute. It leaves the term as it is.
	Load(ctx context.Context, r LoadRequest) (ShardState, error)

	// Apply adds b.Deltas and b.Rollups to the counts and moves the partition's checkpoint
	// from b.From to b.To, doing both or neither. If the stored checkpoint is
	// not the Same as b.From, or none is stored, it changes nothing and wraps
	// ErrConflict. After any other error the outcome is unknown, and the
	// identical batch is sent again with another Writer; ErrDefinition and
	// ErrOverflow are fatal.
	//
	// If a count, or the total of a window in the shard, would pass MaxCount, it
	// changes nothing and wraps ErrOverflow.
	//
	// A revival whose To.Watermark is before the frontier, or none where there
	// is one, changes nothing and wraps ErrPassed. A batch with a Token that is
	// not announced, or that somebody has objected to, changes nothing and
	// wraps ErrObjected.
	//
	// Each checkpoint is stored with the Writer of the batch that moved it
	// there, which is no part of Same. A batch whose Writer is not the stored
	// one sets a flag in the shard. The next batch that moves the closed mark
	// on, perhaps this very one, draws a new term and clears the flag.
	// So two reads that find a window closed under the same term found the
	// counts of the same history.
	//
	// It may forget windows at or before their level's floor: those that end Retention
	// before the closed mark, by the retention in force. Deltas of such windows
	// are not counted.
	Apply(ctx context.Context, b Batch) error
}

// A Cleaner is a Shard that deletes windows past retention a few at a time, within
// Load and Apply, so that no call takes long.
type Cleaner interface {
	// Backlog reports whether the last call left some to be deleted. The pipeline
	// then calls Load until there are none, before Run returns, too, for as long as
	// ShutdownTimeout allows.
	Backlog() bool
}

// A LoadRequest says what a Load brings. The zero value only asks.
type LoadRequest struct {
	// Init holds checkpoints by partition, for the partitions of which the
	// shard knows nothing.
	Init map[string]Checkpoint

	// Announce holds, by partition, the tokens of those that somebody is about
	// to end without reading them. A token replaces the partition's earlier
	// one and the objections to it.
	Announce map[string]uint64

	// Object holds tokens, by partition, that this process objects to because
	// its source has the partition. A token that is not the announced one means
	// nothing.
	Object map[string]uint64
}

// A ShardState is what Load finds.
type ShardState struct {
	Checkpoints map[string]Checkpoint // by partition, all of them
	Announced   map[string]uint64     // tokens by partition, without those that somebody objected to
	Frontier    time.Time             // Frontier of the Checkpoints
	Floors      []time.Time           // by level; windows of it that end at or before are past retention; zero: none

	// Retentions holds, by level, the longest that was asked for within the last half
	// minute. It stays in force for as long again, so that what a process counts by it
	// now is not past retention by the time it is stored.
	Retentions []time.Duration
}

// ErrDefinition is wrapped by a sink that holds counts under another
// [Definition] than the one it was opened with. It is fatal: adding one
// definition's counts to another's would make both wrong. See [DefinitionError].
var ErrDefinition = errors.New("definition differs from the stored one")

// A DefinitionError is an [ErrDefinition] that tells both definitions.
type DefinitionError struct{ Stored, Wanted Definition }

func (e *DefinitionError) Error() string {
	var differ []string
	wanted := e.Wanted.parts()
	for i, stored := range e.Stored.parts() {
		if stored != wanted[i] {
			differ = append(differ, fmt.Sprintf("%s, wanted %s", stored, wanted[i]))
		}
	}
	return fmt.Sprintf("%v: stored is %s (under a new name, with a new consumer group, everything is counted from the log)", ErrDefinition, strings.Join(differ, "; "))
}

func (e *DefinitionError) Unwrap() error { return ErrDefinition }

// ErrConflict is wrapped by [Shard.Apply] when the stored checkpoint is not the
// batch's From. Nothing was changed.
var ErrConflict = errors.New("stored checkpoint is not the one the batch starts from")

// ErrPassed is wrapped by [Shard.Apply] when a partition that had ended is to go
// on with a watermark that the shard's frontier has passed: windows that it
// would count in may be closed. Nothing was changed.
var ErrPassed = errors.New("the frontier has passed the watermark of a partition that had ended")

// ErrObjected is wrapped by [Shard.Apply] when a batch's Token is not announced,
// or a pipeline has objected to it. Nothing was changed.
var ErrObjected = errors.New("a pipeline that has this partition objects to its end")

// ErrOverflow is wrapped by [Shard.Apply], and returned by Run, when a count, or the
// total of a window in one shard, would pass [MaxCount]. Nothing of the batch was
// changed. It is fatal: counting can't go on without a wrong count.
var ErrOverflow = errors.New("a count would pass 2^53 - 1")

// Hash maps a key to its shard: key k belongs to shard Hash(k) % shards. It is
// the same in every version and process, so that a program in another language
// can find a key: 64-bit FNV-1a over the key's bytes, mixed by the finalizer
// of MurmurHash3 (fmix64), because the low bits of FNV-1a alone depend only on
// the low bits of the bytes.
//
// See http://www.isthe.com/chongo/tech/comp/fnv and
// https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp.
func Hash(key string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(key) {
		h ^= uint64(key[i])
		h *= 1099511628211
	}
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	h ^= h >> 33
	return h
}
