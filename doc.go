// Package tumble counts keyed events in tumbling windows of event time, inside
// the service that imports it, and keeps the counts exact in the store that the
// service's API reads.
//
// # The model
//
// A [Source] is a set of partitions, each an ordered log of events: the
// partitions of a Kafka topic, or a channel. A [Sink] stores counts by key and
// window, spread over shards: Redis, or a map. A [Pipeline] reads the one and
// keeps the other up to date; any number of processes may run the same pipeline,
// and the source shares its partitions out among them.
//
//	Source ── Partition ─┐                       ┌─ Shard
//	       ── Partition ─┼─ Pipeline ── Batch ───┼─ Shard
//	       ── Partition ─┘  (increments only)    └─ Shard     Reader: key, window -> count, final?
//
// The sink is the only state. It stores counts and, in the same atomic step, how
// far into each partition those counts reach: the [Checkpoint]. The process in
// between holds nothing but the increments since its last flush.
//
// # The guarantee
//
// The counts in the store are those that a plain loop over the log would find.
// A crash, a rebalance, a retry, a lost answer or a process that was believed
// dead can repeat a stretch of the log, and never count it twice: a batch is
// applied only to the checkpoint that it starts from. A store that loses its
// last seconds, or everything, loses counts and checkpoints together, so the
// stretch is read again and the counts heal by themselves. A restart has nothing
// to restore, however many windows are open.
//
// Exact means with respect to the log. What a producer wrote twice is counted
// twice. After a loss in the store the log must still hold the stretch that was
// lost, so its retention should exceed what the store can lose; on a compacted
// topic records vanish by their key, and a replay counts what is left. Where the
// log no longer holds what is not counted, the source stops with an error or, if
// it was told to, goes on, and Stats reports an upper bound of what was Lost. A
// channel's past goes with its process.
//
// Nothing that is not counted is silent: see the sum in [Stats].
//
// # Its price
//
//   - Counts in the store lag by up to FlushInterval and one round trip.
//   - One checkpoint for each partition and shard, compared and written with
//     every batch; a batch waits for the answer to the one before it, in its
//     own shard.
//   - After a loss, or when two processes hold one partition, a stretch is read
//     again. Rivals stay exact and are slower than one alone.
//   - A store that is away holds up reading once MaxPending increments wait.
//
// # Time
//
// A window is [start, end) in event time. The watermark of a partition is the
// largest event time read so far; it is stored with the checkpoint. The frontier
// of a shard is the smallest watermark of its partitions. A window is final when
// the frontier has passed its end by Grace, and expired, so that a sink may
// forget it, when it has passed that by Retention. Retention is event time as
// well: no clock deletes a window that is still counted.
//
// An event whose window is final by its own partition's watermark is late. It
// is counted and reported, or with DropLate it is not counted and reported:
// then final means that a count never changes again, as long as the store loses
// nothing.
//
// A time far beyond the clock (MaxAhead) is counted in its own window and does
// not move the watermark, so that one broken clock does not make everybody else
// late. A partition that has been caught up and silent for Idle lets its
// watermark follow the clock, so that the last windows become final without
// another event; one that lags never does. A partition whose channel was closed
// holds nothing up.
//
// Window, lateness and retention depend on data alone. The clock decides when to
// flush, how long to wait before a retry, when a partition is idle and what is
// ahead; nothing else.
//
// # Goroutines
//
// Run blocks. The source calls the pipeline once for each partition, in a
// goroutine of its own, which owns all state of that partition: it hands events
// to lanes, one for each shard, and seals their batches. A Fetch, and at most
// one call on each lane's shard, run beside it and answer through channels. One
// goroutine for each shard looks at it every 5 seconds, for what other processes
// did and for losses. Run returns when all have ended. OnLate is called on the
// partition's goroutine. Stats and a Reader may be used from any goroutine.
package tumble
