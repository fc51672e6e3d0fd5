package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

// day is when the clicks of tests begin.
var day = time.Date(2023, 10, 1, 0, 0, 0, 0, time.UTC)

// A row is one of the table finals.
type row struct{ key, start string }

// count counts clicks of several users in many minutes and adds them to want. It
// returns once they are all counted, and their windows are final if cfg drops late
// events.
func count(t *testing.T, cfg tumble.Config, windows, users int, want map[row]int64) {
	t.Helper()
	events := make(chan tumble.Event)
	source, err := channel.New(channel.Config{ID: fmt.Sprintf("clicks-%x", rand.Uint32()), Events: events, Final: true})
	require.NoError(t, err)
	cfg.Source, cfg.Window, cfg.FlushInterval, cfg.Logger = source, tumble.Window{Size: time.Minute}, 5*time.Millisecond, slog.New(slog.DiscardHandler)
	p, err := tumble.New(cfg)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- p.Run(context.Background()) }()
	for w := range windows {
		at := day.Add(time.Duration(w) * time.Minute)
		for u := range users {
			key := fmt.Sprintf("user_%d", u)
			if u == 0 {
				key = "it's \"quoted\"\n日本"
			}
			for range 1 + (w+u)%3 {
				events <- tumble.Event{Key: key, Time: at}
				want[row{key, at.Format(time.RFC3339)}]++
			}
		}
	}
	close(events)
	require.NoError(t, <-done)
}

// rows reads the table. That no row comes twice is for the table's key to say.
func rows(t *testing.T, db *store) map[row]int64 {
	t.Helper()
	found, err := db.Query(`SELECT key, start, n FROM finals`)
	require.NoError(t, err)
	defer found.Close()
	all := map[row]int64{}
	for found.Next() {
		var r row
		var n int64
		require.NoError(t, found.Scan(&r.key, &r.start, &n))
		all[r] = n
	}
	require.NoError(t, found.Err())
	return all
}

func newStore(t *testing.T, where string) *store {
	t.Helper()
	db, err := open(t.Context(), where)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

// exportFor runs an exporter for a while. It may have been stopped, and nothing else.
func exportFor(t *testing.T, r tumble.Reader, db *store, d time.Duration) {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	e := &exporter{counts: r, name: "clicks", db: db, log: slog.New(slog.DiscardHandler)}
	require.ErrorIs(t, e.run(ctx), context.DeadlineExceeded)
}

// Exporters that are stopped at any moment, two at once, and readers that fail, beside
// counting: in the end each row is there once.
func TestEachRowOnce(t *testing.T) {
	db := newStore(t, filepath.Join(t.TempDir(), "odd name? 100%.db"))
	sink := memory.New(memory.Config{})
	want := map[row]int64{}
	var counting sync.WaitGroup
	counting.Go(func() { count(t, tumble.Config{Sink: sink, DropLate: true}, 60, 40, want) })
	r := &flaky{Reader: sink}
	for range 30 {
		var two sync.WaitGroup
		for range 2 {
			two.Go(func() { exportFor(t, r, db, time.Duration(1+rand.IntN(40))*time.Millisecond) })
		}
		two.Wait()
	}
	counting.Wait()
	r.well = true
	for end := time.Now().Add(30 * time.Second); len(rows(t, db)) < len(want) && time.Now().Before(end); {
		exportFor(t, r, db, 3*time.Second)
	}
	require.Equal(t, want, rows(t, db))
}

// A flaky Reader fails now and then, and in the middle of a window, too.
type flaky struct {
	tumble.Reader
	well bool
}

func (f *flaky) Scan(ctx context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	if !f.well && rand.IntN(10) == 0 {
		return tumble.Page{}, errors.New("broken")
	}
	return f.Reader.Scan(ctx, at, cursor, min(limit, 7))
}

// A window whose counts are not those that it had is not written, not in part either.
func TestOnlyWhatIsFinal(t *testing.T) {
	sink := memory.New(memory.Config{})
	want := map[row]int64{}
	count(t, tumble.Config{Sink: sink, DropLate: true}, 2, 5, want)
	for name, change := range map[string]func(*tumble.Count){
		"another number": func(c *tumble.Count) { c.N++ },
		"not final":      func(c *tumble.Count) { c.State = tumble.Closed },
		"expired":        func(c *tumble.Count) { c.State = tumble.Expired },
	} {
		t.Run(name, func(t *testing.T) {
			db := newStore(t, filepath.Join(t.TempDir(), "finals.db"))
			exportFor(t, changed{sink, change}, db, 200*time.Millisecond)
			require.Empty(t, rows(t, db))
			exportFor(t, sink, db, 200*time.Millisecond)
			require.Equal(t, want, rows(t, db))
		})
	}
}

// A window of another term than when it was handed on, though its numbers are the same.
func TestAnotherTerm(t *testing.T) {
	sink := memory.New(memory.Config{})
	want := map[row]int64{}
	count(t, tumble.Config{Sink: sink, DropLate: true}, 2, 5, want)
	db := newStore(t, filepath.Join(t.TempDir(), "finals.db"))
	exportFor(t, &reborn{Reader: sink}, db, 200*time.Millisecond)
	require.Empty(t, rows(t, db))
	exportFor(t, sink, db, 200*time.Millisecond)
	require.Equal(t, want, rows(t, db))
}

// reborn has a new term at every look.
type reborn struct {
	tumble.Reader
	looks uint64
}

func (r *reborn) Windows(ctx context.Context, from, to time.Time) ([]tumble.Total, error) {
	totals, err := r.Reader.Windows(ctx, from, to)
	r.looks++
	for i := range totals {
		totals[i].Term += r.looks
	}
	return totals, err
}

// changed changes the last count of each window as it is scanned.
type changed struct {
	tumble.Reader
	change func(*tumble.Count)
}

func (c changed) Scan(ctx context.Context, at time.Time, cursor string, limit int) (tumble.Page, error) {
	page, err := c.Reader.Scan(ctx, at, cursor, limit)
	if n := len(page.Counts); n > 0 && page.Cursor == "" {
		c.change(&page.Counts[n-1])
	}
	return page, err
}

func TestRefused(t *testing.T) {
	late, strict := memory.New(memory.Config{}), memory.New(memory.Config{})
	want := map[row]int64{}
	count(t, tumble.Config{Sink: late}, 2, 3, map[row]int64{})
	count(t, tumble.Config{Sink: strict, DropLate: true}, 2, 3, want)
	hour := &tumble.Window{Size: time.Hour}
	db := newStore(t, filepath.Join(t.TempDir(), "finals.db"))
	exportFor(t, strict, db, 200*time.Millisecond)
	for says, e := range map[string]*exporter{
		"export its windows with -closed":                                                   {counts: late, name: "clicks"},
		"-window: no such window is counted: 1h0m0s":                                        {counts: strict, name: "clicks", window: hour},
		"holds the final windows (1m0s) of clicks, not the final windows (1m0s) of views":   {counts: strict, name: "views"},
		"holds the final windows (1m0s) of clicks, not the closed windows (1m0s) of clicks": {counts: strict, name: "clicks", closed: true},
	} {
		e.db, e.log = db, slog.New(slog.DiscardHandler)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		require.ErrorContains(t, e.run(ctx), says)
		cancel()
	}
	_, err := db.Exec(`UPDATE export SET "cursor" = 'nonsense'`)
	require.NoError(t, err)
	e := &exporter{counts: strict, name: "clicks", db: db, log: slog.New(slog.DiscardHandler)}
	require.ErrorIs(t, e.run(t.Context()), tumble.ErrCursor)
	_, err = db.Exec(`UPDATE export SET "cursor" = ''`)
	require.NoError(t, err)
	err = e.run(t.Context())
	require.ErrorContains(t, err, "finals.db: key")
	require.ErrorContains(t, err, "UNIQUE constraint failed", "rows that stand there already")
	require.Equal(t, want, rows(t, db))
}

// Closed windows, where late events are counted.
func TestClosed(t *testing.T) {
	sink := memory.New(memory.Config{})
	want := map[row]int64{}
	count(t, tumble.Config{Sink: sink}, 3, 5, want)
	db := newStore(t, filepath.Join(t.TempDir(), "finals.db"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	e := &exporter{counts: sink, name: "clicks", closed: true, db: db, log: slog.New(slog.DiscardHandler)}
	require.ErrorIs(t, e.run(ctx), context.DeadlineExceeded)
	require.Equal(t, want, rows(t, db))
	require.Equal(t, []int64{3, 15}, []int64{e.windows, e.rows})
}

// A roll-up, and windows that are past retention: that is said, and the rest comes.
func TestRollupAndLoss(t *testing.T) {
	sink := memory.New(memory.Config{})
	want := map[row]int64{}
	cfg := tumble.Config{Sink: sink, DropLate: true, Retention: 10 * time.Minute, Rollups: []tumble.Rollup{{Window: tumble.Window{Size: time.Hour}, Retention: 10 * time.Hour}}}
	count(t, cfg, 150, 3, want)
	hours := map[row]int64{}
	for r, n := range want {
		at, err := time.Parse(time.RFC3339, r.start)
		require.NoError(t, err)
		if hour := at.Truncate(time.Hour); hour.Sub(day) < 2*time.Hour { // the third goes on
			hours[row{r.key, hour.Format(time.RFC3339)}] += n
		}
	}
	hour := tumble.Window{Size: time.Hour}
	db := newStore(t, filepath.Join(t.TempDir(), "hours.db"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	e := &exporter{counts: sink, name: "clicks", window: &hour, db: db, log: slog.New(slog.DiscardHandler)}
	require.ErrorIs(t, e.run(ctx), context.DeadlineExceeded)
	require.Equal(t, hours, rows(t, db))

	// The cursor of an exporter that came as far as the first minute and then was away.
	minutes := newStore(t, filepath.Join(t.TempDir(), "minutes.db"))
	var term uint64
	for total, err := range tumble.Finals(t.Context(), sink, "") {
		require.NoError(t, err)
		term = total.Term
		break
	}
	_, err := minutes.cursor(t.Context(), export{"clicks", "1m0s", "final"})
	require.NoError(t, err)
	require.NoError(t, minutes.move(t.Context(), "", fmt.Sprintf("1m0s %d %x", day.Add(time.Minute).UnixMilli(), term)))
	var said strings.Builder
	ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	e = &exporter{counts: sink, name: "clicks", db: minutes, log: slog.New(slog.NewTextHandler(&said, nil))}
	require.ErrorIs(t, e.run(ctx), context.DeadlineExceeded)
	require.Contains(t, said.String(), "windows were past retention before they were exported")
	got := rows(t, minutes)
	require.NotEmpty(t, got)
	require.Less(t, len(got), len(want))
	for r, n := range got {
		require.Equal(t, want[r], n)
	}
}
