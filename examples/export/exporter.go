package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"time"

	"github.com/tumblestream/tumble"
)

// An exporter hands the windows of a name on to a database.
type exporter struct {
	counts tumble.Reader
	name   string
	window *tumble.Window // nil: the finest that is counted
	closed bool           // hand on closed windows, not final ones
	db     *store
	log    *slog.Logger

	windows, rows int64  // written by this process
	trouble       string // as it was last said, "" for none
}

const patience = time.Second // between two tries

// run exports until ctx ends, whose error it returns, or until going on can't help.
func (e *exporter) run(ctx context.Context) error {
	for {
		err := e.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil || errors.Is(err, errMoved) {
			continue
		}
		if over := (unmendable{}); errors.As(err, &over) {
			return over.error
		}
		if text := err.Error(); text != e.trouble { // each once, while it lasts
			e.log.Warn("cannot go on, trying again", "name", e.name, "error", err)
			e.trouble = text
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(patience):
		}
	}
}

// An unmendable error comes again however often one tries.
type unmendable struct{ error }

func (e unmendable) Unwrap() error { return e.error }

// follow exports from the stored cursor on until something goes wrong, or the cursor has
// been moved by other means than rows.
func (e *exporter) follow(ctx context.Context) error {
	r, err := e.reader(ctx)
	if err != nil {
		return err
	}
	cursor, err := e.db.cursor(ctx, e.export(r))
	if err != nil {
		return err
	}
	windows := tumble.Finals
	if e.closed {
		windows = tumble.ClosedWindows
	}
	for t, err := range windows(ctx, r.Reader, cursor) {
		anew, lost := new(tumble.NewTermError), new(tumble.LostWindowsError)
		switch {
		case errors.As(err, &anew):
			// Counts may have been lost and counted again. What is exported stays: it
			// was final, and the log holds the same events.
			e.log.Info("the store has a new term", "name", e.name)
			return e.db.move(ctx, cursor, anew.Cursor)
		case errors.As(err, &lost):
			e.log.Error("windows were past retention before they were exported: their rows are missing", "name", e.name, "from", lost.From, "to", lost.To)
			return e.db.move(ctx, cursor, lost.Cursor)
		case errors.Is(err, tumble.ErrCursor):
			return unmendable{fmt.Errorf("%s: %w", e.db.name, err)}
		case err != nil:
			return err
		}
		n, err := e.db.write(ctx, cursor, t, e.rowsOf(ctx, r, t))
		if err != nil {
			return err
		}
		if e.trouble != "" {
			e.log.Info("works again", "name", e.name)
			e.trouble = ""
		}
		cursor = t.Cursor
		e.windows++
		e.rows += n
	}
	return ctx.Err()
}

// A level is the reader of the windows that are exported.
type level struct {
	tumble.Reader
	window tumble.Window
}

func (e *exporter) reader(ctx context.Context) (level, error) {
	def, err := e.counts.Definition(ctx)
	if err != nil {
		return level{}, err
	}
	if !e.closed && !def.DropLate {
		return level{}, unmendable{fmt.Errorf("%s: %w: its late events are counted, export its windows with -closed", e.name, tumble.ErrNotFinal)}
	}
	if e.window == nil {
		return level{e.counts, def.Window}, nil
	}
	if _, err := def.LevelOf(*e.window); err != nil {
		return level{}, unmendable{fmt.Errorf("-window: %w", err)}
	}
	r, err := e.counts.Rollup(*e.window)
	return level{r, *e.window}, err
}

// export is what the database is told that it holds.
func (e *exporter) export(r level) export {
	x := export{Name: e.name, Window: r.window.String(), States: "final"}
	if e.closed {
		x.States = "closed"
	}
	return x
}

// rowsOf reads the counts of a window, and makes sure that they are all of it: those
// that it had when it was handed on, if it is final, and at any rate those that it had
// at one moment.
func (e *exporter) rowsOf(ctx context.Context, r level, t tumble.Total) iter.Seq2[tumble.Count, error] {
	return func(yield func(tumble.Count, error) bool) {
		keys := 0
		for c, err := range tumble.All(ctx, r, t.Start) {
			if err == nil && c.State != tumble.Final && (!e.closed || c.State != tumble.Closed) {
				err = fmt.Errorf("window %s: %w: it is %v by now", start(t), tumble.ErrChanged, c.State)
			}
			if !yield(c, err) || err != nil {
				return
			}
			keys++
		}
		if err := e.same(ctx, r, t, keys); err != nil {
			yield(tumble.Count{}, err)
		}
	}
}

// same makes sure that a window, of which that many keys were read, is still what it was
// when it was handed on.
func (e *exporter) same(ctx context.Context, r level, t tumble.Total, keys int) error {
	if e.closed && keys > 0 {
		return nil // late events may have been added
	}
	totals, err := r.Windows(ctx, t.Start, t.End)
	if err != nil {
		return err
	}
	if len(totals) == 1 && totals[0].State == tumble.Final && totals[0].Term == t.Term && totals[0].Keys == t.Keys && totals[0].N == t.N && int64(keys) == t.Keys {
		return nil
	}
	return fmt.Errorf("window %s: %w since it was final", start(t), tumble.ErrChanged)
}

// start is how the table says when a window begins.
func start(t tumble.Total) string { return t.Start.UTC().Format(time.RFC3339Nano) }
