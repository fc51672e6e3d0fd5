// Package faketest holds the doubles with which the pipeline is tested: a log
// that can be read again, cut and recreated (Topic, Log, Source), a sink that
// breaks on demand (Store, Shard), and a pipeline that runs beside the test
// (Process).
//
// They keep the contracts of tumble.Source and tumble.Sink, and panic where the
// pipeline breaks its side of them. All of them may be used in a bubble of
// testing/synctest, and most tests do.
package faketest
