// Package channel reads events from a Go channel: the embedded default, and the
// source to test a pipeline with.
//
//	events := make(chan tumble.Event, 1024)
//	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
//	...
//	events <- tumble.Event{Key: "user_1", Time: time.Now()}
//	...
//	close(events) // there will never be more: every window becomes final
//
// # What is exact, and what a crash takes
//
// A channel has no past. The source keeps what it received until every shard of
// the sink holds its counts, and so each event is counted exactly once as long
// as the process lives, whatever the sink goes through. When the process ends,
// these are gone: what was received and not yet counted, and what is still in
// the channel. A pipeline that is stopped counts what it has received before it
// returns; close the channel and let Run return by itself to have everything
// counted.
//
// # Runs
//
// A Source is one partition, Config.ID, whose log is this run: it begins with
// New, and its offsets count the events received. The next run, under the same
// ID and on the same sink, is a new log; counting goes on beside what the runs
// before it have counted, and at their watermark. Of two processes that use one
// ID at the same time the one that started later goes on, and the other's
// pipeline ends with an error: with both, events would be lost unseen.
package channel
