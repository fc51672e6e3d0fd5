// Package sinktest checks that a sink keeps the contract of package tumble.
//
// Each sentence of the contract is a [Rule]: a function from a sink to an
// error. Test runs them all:
//
//	func TestRules(t *testing.T) {
//		sinktest.Test(t, sinktest.Config{
//			Open: func(ctx context.Context, name string) (sinktest.Sink, error) {
//				return mysink.New(mysink.Config{Client: client, Name: name})
//			},
//		})
//	}
//
// The rules are about a sink's promises to a pipeline and to readers:
// conflicts, checkpoints, states of windows, terms, retention. How a store behaves that fails,
// or is slow, is for the sink's own tests.
package sinktest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/tumblestream/tumble"
)

// A Sink is a sink and the reader of its counts. The rules need both.
type Sink interface {
	tumble.Sink
	tumble.Reader
}

// Config says how the rules get at a sink.
type Config struct {
	// Open returns the sink whose counts have this name: letters, digits and
	// dashes. Under a new name nothing is stored. Called again with a name it
	// must give the same counts to a stand-in for another process: a Sink
	// value of its own if the sink has a life outside the process. The caller
	// closes everything it opened, after the rules. It may be called from several
	// goroutines. Required.
	Open func(ctx context.Context, name string) (Sink, error)

	// Lose makes the store forget all that it holds under name, as a server
	// does that comes back empty. nil: the store cannot be made to, and the
	// rules that need it do not run.
	Lose func(ctx context.Context, name string) error

	// Snapshot notes all that the store holds under name and returns a function
	// that makes it hold that again, as often as it is called, as a server
	// does that fails over to a replica that lags, or starts from an older
	// backup. It is called while readers read. nil: the store cannot be made
	// to, and the rules that need it do not run.
	Snapshot func(ctx context.Context, name string) (restore func(context.Context) error, err error)

	// Settle is how long a read may lag behind a write that has returned, as
	// one from a client-side cache does. Defaults to 0, not at all. Then some
	// rules look closer.
	Settle time.Duration
}

// A Rule is one promise of a sink.
type Rule struct {
	Name string
	Doc  string // the sentences of package tumble's documentation that make the promise

	// Check tries the promise under a name of its own and returns an error if
	// the sink broke it.
	Check func(ctx context.Context, cfg Config) error

	NeedsLose     bool // Check needs Config.Lose
	NeedsSnapshot bool // Check needs Config.Snapshot
}

// Rules returns all rules.
func Rules() []Rule {
	return slices.Concat(openRules, loadRules, checkpointRules, applyRules, revivalRules, announceRules,
		termRules, retentionRules, readerRules, totalRules, rollupRules, stateRules, raceRules, fallRules)
}

// Test runs every rule that cfg allows as a subtest of its own.
func Test(t *testing.T, cfg Config) {
	t.Helper()
	if cfg.Open == nil {
		t.Fatal("sinktest: Config.Open is nil, it is required")
	}
	for _, r := range Rules() {
		if r.NeedsLose && cfg.Lose == nil {
			t.Logf("%s is not run: Config.Lose is nil", r.Name)
			continue
		}
		if r.NeedsSnapshot && cfg.Snapshot == nil {
			t.Logf("%s is not run: Config.Snapshot is nil", r.Name)
			continue
		}
		t.Run(r.Name, func(t *testing.T) {
			if err := r.Check(t.Context(), cfg); err != nil {
				t.Errorf("%v\nrule: %s", err, r.Doc)
			}
		})
	}
}
