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
//	       ── Partition ─┘  (increments only)    └─ Shard     Reader: key, window -> count, state
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
// Exact means with respect to the log. If a producer wrote an event twice, it is
// counted twice. After a loss in the store the log must still hold the lost
// stretch, so its retention should exceed what the store can lose. On a compacted
// topic records vanish by their key, and a replay counts those that are left. If
// the log no longer holds events that are not counted, the source stops with an
// error or, if it was told to, goes on, and [Stats] has an upper bound in Lost. The
// events of a channel live in its process: close it and wait for Run, and none is
// lost.
//
// No event goes uncounted in silence: see the sum in [Stats]. Two things cannot be
// noticed:
//
//   - Two pipelines that count under one name with different Decode functions. The
//     sink stores the [Definition] and refuses another; a function cannot be
//     compared. Counts of a new Decode need a new name.
//   - A source that starts at the latest offset, a store that loses everything, and
//     a restart before it has healed. Nothing is stored, so the source starts at
//     the end again, and the stretch in between is skipped.
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
// of a shard is the smallest watermark of its partitions.
//
// A time far beyond the clock (MaxAhead) is counted in its own window and does
// not move the watermark, so that one broken clock does not make everybody else
// late. Once the clock has passed it, it counts as the watermark of a partition
// that has fallen silent; a restart forgets it, and then the next event moves the
// watermark, or another partition. A partition that has been caught up and silent for Idle
// lets its watermark follow the clock, so that the last windows close without
// another event; one that lags never does.
//
// Windows, lateness and retention depend on data alone. The clock decides when to
// flush, how long to wait before a retry, when a partition is idle, what is ahead,
// and which of several retentions is in force; nothing else.
//
// # States and terms
//
// A window is in one of four states ([State]):
//
//   - [Open]: events that are on time may come.
//   - [Closed]: the frontier has passed the end of the window by Grace. No event
//     that is on time can come. Late ones may still be added.
//   - [Final]: closed, and late events are dropped (DropLate). The count never
//     changes again.
//   - [Expired]: closed for longer than Retention. The sink may forget the counts.
//
// An event is late if its window was closed by the watermark of its own partition.
// By default it is counted and reported. With DropLate it is reported and not
// counted.
//
// Final holds as long as the store loses nothing. If it does, the counts are made
// again from the log, and may come out different: promises of idle partitions are
// not in the log, nor is the moment at which a partition joined. [Count] has a
// Term for that, a random number that changes with a loss. It may change without
// one, too, at most once for each window that closes: after a restart, say. Two
// final reads of a count under one term are equal. A program that copies final
// counts elsewhere keeps the term beside them, and compares the counts when it is
// another one.
//
// Retention is event time as well: no clock deletes a window that is still
// counted. It may differ between processes and change at any time, as it does not
// say what a count means. In force is the longest that a process asked for within
// the last minute. What has expired stays so.
//
// # Partitions that end
//
// A window waits for every partition. A source reports [ErrEnded] for a partition
// that will not have another event in this run, such as a closed channel: from
// then on nobody waits for it. If all have ended, the frontier is the largest
// watermark, and the window that holds it stays open, so that a service that is
// restarted the same day goes on counting in that day. [ErrFinal] says that no run
// will go on, and closes that window too.
//
// An ended partition may go on all the same. It is revived by a step of its own,
// which moves its watermark up to the frontier: what is closed stays closed, and
// its events before that are late.
//
// [EndPartition] ends a partition that nobody will ever read again, such as the
// channel of a pod that is gone for good. It announces the end for 15 seconds. If
// a pipeline has the partition in its source it objects, and the shards refuse the
// end. The announcement is a courtesy: if it is missed, revival still keeps every
// closed window as it is.
//
// # Logs that are cut
//
// A position in a log is an offset and an epoch: the reign of the leader that
// wrote the record before it, as in Kafka. Offsets alone do not show that a log
// was truncated and has grown beyond the position again; epochs do. The source
// then stops with an error that names the offsets, or goes on from where the log
// was cut. The counts of the removed records stay, and Stats reports them as Lost.
// A log that was created anew has another name, and is counted from its beginning.
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
