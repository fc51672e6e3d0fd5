package tumble

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A Checkpoint says how far the counts of one partition reach in one shard.
type Checkpoint struct {
	Log       string    // incarnation of the log (Kafka: topic id; a channel: this run)
	Origin    int64     // where counting began; never changes within a Log
	Offset    int64     // the next to fetch
	Watermark time.Time // events from Offset on are judged by at least this; zero: none yet, a case of its own
	Ended     bool      // the source said that there will never be more
}

// Same reports whether c and d are the same checkpoint in every field; times
// are compared as instants.
func (c Checkpoint) Same(d Checkpoint) bool {
	return c.Log == d.Log && c.Origin == d.Origin && c.Offset == d.Offset &&
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
	return fmt.Sprintf("%d (log %s from %d, watermark %s%s)", c.Offset, c.Log, c.Origin, w, ended)
}

// A Delta is an increment: N more events of Key in the window that starts at
// Window.
type Delta struct {
	Window time.Time
	Key    string
	N      int64 // > 0
}

// A Batch is what a shard applies as one step.
type Batch struct {
	Partition string

	// Within a Log, To is not before From. Equal offsets carry a later
	// Watermark (a promise) or Ended. Another Log is a rebase, without Deltas.
	From, To Checkpoint

	// At most one per window and key, in no order; any number of them, none
	// included. The sink may read them until Apply returns.
	Deltas []Delta
}

// A Sink stores counts together with the checkpoints they reach to.
type Sink interface {
	// Open checks def against what is stored under this sink's name (an error
	// that wraps ErrDefinition is fatal), stores it if nothing is, and returns
	// the shards, 1 to 65,535. Key k belongs to shard Hash(k) % len(shards).
	// Their number never changes for one name.
	Open(ctx context.Context, def Definition) ([]Shard, error)
}

// A Shard holds a part of the counts and, for every partition, the checkpoint
// that they reach to. It commits alone. It is safe for concurrent use.
type Shard interface {
	// Load stores, in one step, those of init that are missing, their Watermark
	// raised to the shard's frontier (see [Definition.Frontier]) as it was
	// before the call, and returns all checkpoints by partition. A stored
	// checkpoint that has Ended under another Log than init's counts as
	// missing. It also writes the definition where it is missing and wraps
	// ErrDefinition where it differs.
	Load(ctx context.Context, init map[string]Checkpoint) (map[string]Checkpoint, error)

	// Apply adds b.Deltas to the counts and moves the partition's checkpoint
	// from b.From to b.To, doing both or neither. If the stored checkpoint is
	// not the Same as b.From, or none is stored, it changes nothing and wraps
	// ErrConflict. After any other error the outcome is unknown, and the
	// identical batch is sent again; ErrDefinition is fatal. It may forget
	// windows that the shard's frontier has passed by Grace + Retention.
	Apply(ctx context.Context, b Batch) error
}

// ErrDefinition is wrapped by a sink that holds counts under another
// [Definition] than the one it was opened with. It is fatal: adding one
// definition's counts to another's would make both wrong.
var ErrDefinition = errors.New("definition differs from the stored one")

// ErrConflict is wrapped by [Shard.Apply] when the stored checkpoint is not the
// batch's From. Nothing was changed.
var ErrConflict = errors.New("stored checkpoint is not the one the batch starts from")

// End marks a partition as one that nobody will ever read again, in every shard
// of s, so that windows need not wait for it: a channel whose process will not
// come back, a topic that is no longer counted. s must also be a Reader. A
// partition that a process is still counting, or that is not known, is an error.
func End(ctx context.Context, s Sink, partition string) error {
	r, ok := s.(Reader)
	if !ok {
		return fmt.Errorf("tumble: end %s: the sink %T is no Reader, which tells its definition", partition, s)
	}
	def, err := r.Definition(ctx)
	if err != nil {
		return fmt.Errorf("tumble: end %s: %w", partition, err)
	}
	shards, err := s.Open(ctx, def)
	if err != nil {
		return fmt.Errorf("tumble: end %s: %w", partition, err)
	}
	for i, shard := range shards {
		stored, err := shard.Load(ctx, nil)
		if err != nil {
			return fmt.Errorf("tumble: end %s: shard %d: %w", partition, i, err)
		}
		from, ok := stored[partition]
		if !ok {
			return fmt.Errorf("tumble: end %s: shard %d knows no such partition", partition, i)
		}
		if from.Ended {
			continue
		}
		to := from
		to.Ended = true
		if err := shard.Apply(ctx, Batch{Partition: partition, From: from, To: to}); err != nil {
			return fmt.Errorf("tumble: end %s: shard %d: %w", partition, i, err)
		}
	}
	return nil
}

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
