package faketest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/tumblestream/tumble"
)

// Quiet keeps the warnings that tests provoke out of their output.
var Quiet = slog.New(slog.DiscardHandler)

// A Process is a pipeline that runs beside the test.
type Process struct {
	*tumble.Pipeline
	Cancel context.CancelFunc // asks it to stop
	Done   chan error         // is sent what Run returned, once

	exited chan struct{} // closed after that
}

// Start runs a pipeline, until the test ends at most. Its windows are of a minute,
// and its log is Quiet, unless cfg says otherwise.
func Start(t testing.TB, cfg tumble.Config) *Process {
	t.Helper()
	if cfg.Window == (tumble.Window{}) {
		cfg.Window.Size = time.Minute
	}
	if cfg.Logger == nil {
		cfg.Logger = Quiet
	}
	p, err := tumble.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	run := &Process{p, cancel, make(chan error, 1), make(chan struct{})}
	go func() {
		defer close(run.exited)
		run.Done <- p.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-run.exited
	})
	return run
}

// Stop asks the process to stop, and returns what Run did.
func (p *Process) Stop() error {
	p.Cancel()
	return <-p.Done
}

// Ends waits until Run returns by itself, and not for ever, which fake time
// makes a busy loop.
func (p *Process) Ends() error {
	select {
	case err := <-p.Done:
		return err
	case <-time.After(time.Minute):
		return errors.New("Run goes on")
	}
}

// Books checks the sum that Stats promises.
func Books(s tumble.Stats) error {
	if s.Read != s.Counted+s.DroppedLate+s.Expired+s.Rejected+s.Skipped+s.Replayed+s.Pending {
		return fmt.Errorf("books: %+v", s)
	}
	return nil
}

// Balanced fails the test unless the books add up.
func Balanced(t testing.TB, s tumble.Stats) {
	t.Helper()
	if err := Books(s); err != nil {
		t.Fatal(err)
	}
}
