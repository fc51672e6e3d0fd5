// Package sourcetest checks that a source keeps the contract of package tumble.
//
// Each sentence of the contract is a [Rule]: a function from a log and its
// source to an error. Test runs them all:
//
//	func TestRules(t *testing.T) {
//		sourcetest.Test(t, sourcetest.Config{
//			New: func(ctx context.Context) (*sourcetest.Log, error) {
//				topic := newTopic(ctx)
//				return &sourcetest.Log{
//					Source:     mysource.New(mysource.Config{Topic: topic}),
//					Partitions: []string{topic + "/0", topic + "/1"},
//					Append:     func(ctx context.Context, partition string, events ...tumble.Event) error { ... },
//				}, nil
//			},
//		})
//	}
//
// The rules are about a source's promises to a pipeline. How it deals
// with a broken server or with bad records is for its own tests.
//
// A Check may run in a bubble of testing/synctest, if the source does.
package sourcetest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/tumblestream/tumble"
)

// Config says how the rules get at a source.
type Config struct {
	// New makes a log that nobody else uses, without events. The abilities that
	// it has, its fields that are not nil, must always be the same. Required.
	New func(ctx context.Context) (*Log, error)

	// Patience is how long a rule waits for something that must come at some time, over a
	// network perhaps. Defaults to 10 seconds.
	Patience time.Duration
}

// A Log is the log that a source reads, with the means to write it. Its functions may take
// their time. They return once their writes can be read.
type Log struct {
	Source     tumble.Source
	Partitions []string // the IDs of all: at least one, better three

	// Append writes each event as a record of its own, in order. Keys are short
	// words, times are whole milliseconds in the past. Offset is not set.
	Append func(ctx context.Context, partition string, events ...tumble.Event) error

	// An ability that not every source has is nil. The rules that need it do not run.

	// AppendRecord writes one record that gives all these events.
	AppendRecord func(ctx context.Context, partition string, events ...tumble.Event) error
	// Reject writes a record that cannot be understood.
	Reject func(ctx context.Context, partition string) error
	// Skip writes a record that holds nothing to count.
	Skip func(ctx context.Context, partition string) error
	// End ends a partition: nothing will ever be appended to it. Fetch then
	// gives ErrEnded, ErrFinal, which is one, or io.EOF.
	End func(ctx context.Context, partition string) error
	// Forget makes the log forget the records before an offset.
	Forget func(ctx context.Context, partition string, before int64) error
	// Lost is of a source whose events are gone with its Run: it returns how
	// many an error of Run says are lost, 0 if the error says anything else, or
	// that too.
	Lost func(err error) int64
	// Elect gives a partition another leader: records appended after it are
	// written in a later epoch.
	Elect func(ctx context.Context, partition string) error
	// Truncate takes from a partition its records from an offset on, as an
	// election does that loses them. Records appended after it are written in a
	// later epoch.
	Truncate func(ctx context.Context, partition string, at int64) error
	// Another returns a source on the same log as another process has it. It is
	// asked for its partitions only.
	Another func(ctx context.Context) (tumble.Source, error)
	// Latest is like Another, with the start policy "latest". Its rule needs two
	// partitions.
	Latest func(ctx context.Context) (tumble.Source, error)

	// Close is called when a rule is done with the log. It is nil if there is nothing
	// to do.
	Close func()
}

// A Rule is one promise of a source.
type Rule struct {
	Name string
	Doc  string // the sentences of package tumble's documentation that make the promise

	// Check tries the promise on a log of its own and returns an error if
	// the source broke it.
	Check func(ctx context.Context, cfg Config) error

	// Needs reports whether l has the abilities that Check needs. Nil means that it always has.
	Needs func(l *Log) bool
}

// Rules returns all rules.
func Rules() []Rule {
	return slices.Concat(partitionRules, runRules, resumeRules, fetchRules, chunkRules, epochRules)
}

// Test runs every rule that the log is able to as a subtest of its own.
func Test(t *testing.T, cfg Config) {
	t.Helper()
	if cfg.New == nil {
		t.Fatal("sourcetest: Config.New is nil, it is required")
	}
	able, err := cfg.New(t.Context())
	if err != nil {
		t.Fatalf("sourcetest: Config.New: %v", err)
	}
	if able.Close != nil {
		able.Close()
	}
	for _, r := range Rules() {
		if r.Needs != nil && !r.Needs(able) {
			t.Logf("%s is not run: the log is not able to do what it needs", r.Name)
			continue
		}
		t.Run(r.Name, func(t *testing.T) {
			if err := r.Check(t.Context(), cfg); err != nil {
				t.Errorf("%v\nrule: %s", err, r.Doc)
			}
		})
	}
}
