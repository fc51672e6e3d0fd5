// Package channel reads events from a Go channel: the embedded default, and the
// source to test a pipeline with.
//
//	events := make(chan tumble.Event, 1024)
//	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
//	...
//	events <- tumble.Event{Key: "user_1", Time: time.Now()}
//	...
//	close(events) // this run is over: Run counts the rest and returns
//
// # Exactness, and losses
//
// A channel has no past. The source keeps every event until all shards of the
// sink have counted it, so each event is counted exactly once as long as the
// process lives, whatever happens to the sink. With the process go the events
// that were received and not yet counted, and those still in the channel.
//
// To stop without a loss, close the channel and wait for the pipeline's Run to
// return nil. Stop the senders first: a send on a closed channel panics. The
// example of an HTTP service shows the order.
//
// If the context of Run ends instead, the pipeline flushes the events that it has
// received. Those that it could not flush, because the store was away, and those
// that still lay in the channel are not counted, and Run returns a [LostError]
// that says how many. As long as the process lives, another pipeline with the
// same Source goes on where the first stopped, and counts them.
//
// # Runs
//
// A Source is one partition, Config.ID, whose log is this run: it begins with
// New, and its offsets count the events received. The next run, under the same
// ID and on the same sink, is a new log. It goes on at the watermark of the runs
// before it and adds to their counts. Of two processes that use one ID at the
// same time the one that started later goes on, and the pipeline of the other ends
// with an error: with both, events would be lost unseen. One Source serves one
// pipeline at a time.
//
// # The end of a run
//
// A closed channel ends its partition: windows need not wait for it any more. If
// no other partition is being read, the window of the last events stays open, so
// that a service that is restarted goes on counting in the minute or the day in
// which it stopped, with DropLate too. If other partitions go on meanwhile, their
// windows close without this one, and the next run begins where they are.
//
// Config.Final says that there is no next run: a batch, or a test. The windows of
// the last events then close with the channel, and with DropLate they are final.
//
// A process that was killed leaves its partition open, and the windows of all
// others wait for it until it is back. If it will never be, [tumble.EndPartition]
// takes its ID out.
package channel
