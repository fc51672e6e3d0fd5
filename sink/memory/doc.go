// Package memory holds counts in the memory of this process: the embedded
// default, and the sink to test a pipeline with.
//
// A Sink is the store and its reader in one:
//
//	counts := memory.New(memory.Config{})
//	p, err := tumble.New(tumble.Config{Source: source, Sink: counts, Window: window})
//	...
//	c, err := counts.Count(ctx, "user_1", time.Now())
//
// What it holds ends with the process, checkpoints included, so a pipeline that
// starts again begins at the beginning of its source.
//
// A count costs about 40 bytes and those of its key, in memory that the garbage
// collector does not scan (BenchmarkMemory measures it). Without a Retention it
// is kept for ever.
package memory
