package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

// With -readers it is not the programs that are tested but what readers are
// told, by their histories: many readers of Count, Range, Top and Scan, through
// the client's cache and without it, beside writers that are restarted, hold the
// same partitions at times, and count events that are out of order and late.
// Every few seconds the store falls back to an earlier state, or a partition
// ends and goes on, or another one is added. Each fault has a store, a log and
// clients of its own. See judge for what is wrong.

const (
	idleAfter = 250 * time.Millisecond // of silence, before a partition promises
	slowest   = 600 * time.Millisecond // what a slow line delays at most
	healing   = 40 * time.Second       // at most, until all that was lost is counted again
)

// A historyCheck is what the flags say.
type historyCheck struct {
	seed    uint64
	lasts   time.Duration // of each fault
	readers int
	finals  int64 // 0: as many as there are
	short   bool
}

// A trial is one fault, again and again.
type trial struct {
	historyCheck
	lab    *lab
	fall   *fall
	name   string // of the counts
	shards int
	def    tumble.Definition
	began  time.Time
	tape   *tape
	index  map[string]int32 // of keys
	judge  *judge
	logger *slog.Logger
	edge   atomic.Int64 // where windows close, in milliseconds
	aim    atomic.Int64 // where they did in what the store will fall back to; 0: no fault is near

	writers []*writer
	extras  []*writer // of a partition each that ends at times
	master  atomic.Pointer[store]
	clients rueidis.ClientOption
	ground  ground

	mu    sync.Mutex
	dealt []string // partitions that the writers share
	turn  int
	errs  []error

	strikes              int
	checkpoints, windows int64 // that went back
	other                int64 // partitions that went on after their end, or were added
	tally                tallying
	took                 time.Duration
}

func (t *trial) since() time.Duration { return time.Since(t.began) }

// store returns who is asked by the layout.
func (t *trial) store() *store { return t.master.Load() }

func (t *trial) fail(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.errs = append(t.errs, err)
}

// option returns how a client reaches the store.
func (t *trial) option(cached bool, line time.Duration) rueidis.ClientOption {
	o := t.clients
	o.DisableCache = !cached
	o.Dialer.Timeout = time.Second
	return slow(o, line)
}

// histories tries each fault, and returns an error if a reader was told
// something wrong, or if a fault had no effect.
func (l *lab) histories(ctx context.Context, o historyCheck, names string) error {
	chosen := falls
	if names != "" {
		chosen = nil
		for name := range strings.SplitSeq(names, ",") {
			i := slices.IndexFunc(falls, func(f fall) bool { return f.name == name })
			if i < 0 {
				return fmt.Errorf("-faults: there is no %q", name)
			}
			chosen = append(chosen, falls[i])
		}
	}
	trials := make([]*trial, len(chosen))
	var wg sync.WaitGroup
	for i := range chosen {
		trials[i] = &trial{historyCheck: o, lab: l, fall: &chosen[i]}
		if o.short && chosen[i].waits {
			// It waits most of the time.
			wg.Go(func() { trials[i].run(ctx) })
		}
	}
	for i, t := range trials {
		if !(o.short && chosen[i].waits) {
			t.run(ctx)
		}
	}
	wg.Wait()
	l.historyTable(trials)
	var errs []error
	for _, t := range trials {
		errs = append(errs, t.verdict()...)
	}
	if ctx.Err() != nil {
		errs = append(errs, errors.New("interrupted"))
	}
	return errors.Join(errs...)
}

// historyTable prints what was done and seen.
func (l *lab) historyTable(trials []*trial) {
	fmt.Printf("\n%-10s %7s %7s %8s %8s %9s %9s %8s %8s %8s %8s %9s %6s %5s\n", "fault", "strikes", "undone", "rewound", "reads", "finals", "zeros", "near",
		"cells", "renewed", "changed", "by layout", "errors", "WRONG")
	for _, t := range trials {
		s := t.tally
		fmt.Printf("%-10s %7d %7d %8d %8d %9d %9d %8d %8d %8d %8d %9d %6d %5d\n", t.fall.name, t.strikes, t.windows, t.checkpoints+t.other, s.reads, s.finals, s.zeros, s.near,
			s.cells, s.renewed, s.changed, s.byLayout, s.errors, s.wrong)
	}
	fmt.Print(`
undone: windows of a shard that were closed when the fault struck, and not after it. rewound: checkpoints of a
shard that went back; partitions that ended and went on, or were added. near: final counts of the windows that were
undone, read since. cells: keys and windows that were final. renewed: those that were so under several terms, and
changed, not always with the same count, as promises allow. by layout: cells that the checker read in Redis itself.
Where late events are counted, closed counts take the place of final ones.

`)
	for _, t := range trials {
		fmt.Printf("%-10s %s\n", t.fall.name, t.fall.what)
	}
	for _, t := range trials {
		for i, wrong := range t.judge.firstWrong() {
			fmt.Printf("\n%s: wrong %d of %d: %s", t.fall.name, i+1, t.tally.wrong, wrong)
		}
	}
}

func (j *judge) firstWrong() []string {
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.first
}

// verdict returns what makes the check fail. A check that could not fail is a
// failure too.
func (t *trial) verdict() (errs []error) {
	failed := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %w", t.fall.name, fmt.Errorf(format, args...)))
	}
	for _, err := range t.errs {
		failed("%w", err)
	}
	s := t.tally
	if s.wrong > 0 {
		failed("readers were told %d wrong things, see above", s.wrong)
	}
	if t.strikes == 0 || s.finals == 0 || s.byLayout == 0 {
		failed("there is nothing to judge: it struck %d times, %d finals were read, %d compared with the layout", t.strikes, s.finals, s.byLayout)
	}
	if err := t.effect(s.near); err != nil {
		failed("it had no effect: %w", err)
	}
	return errs
}

// effect returns an error if the fault has not had one yet.
func (t *trial) effect(near int64) error {
	switch {
	case t.fall.loses && (t.windows == 0 || t.checkpoints == 0):
		return fmt.Errorf("%d checkpoints went back, %d windows were closed and then not", t.checkpoints, t.windows)
	case t.fall.others && t.other == 0:
		return errors.New("no partition went on after its end, or was added")
	case near == 0:
		return errors.New("no final count was read near it")
	}
	return nil
}

// more reports whether the fault is to strike once more: for as long as was asked
// for, and some longer if chance has not let it have an effect.
func (t *trial) more(end time.Time) bool {
	s := t.judge.tally()
	switch {
	case t.unasked() != nil || s.wrong >= manyWrongs:
		return false
	case t.strikes < max(t.fall.least, 1):
		return true
	case t.effect(s.near) != nil:
		return time.Now().Before(end.Add(healing))
	}
	return time.Now().Before(end) && (t.finals == 0 || s.finals < t.finals)
}

// run tries the fault.
func (t *trial) run(ctx context.Context) {
	began := time.Now()
	if err := t.try(ctx); err != nil && ctx.Err() == nil {
		t.fail(err)
	}
	t.took = time.Since(began)
	if t.judge == nil {
		return
	}
	t.tally = t.judge.tally()
	s := t.tally
	t.lab.log("%s: struck %d times, %d final reads, %d near, %d cells renewed, %d wrong, %v", t.fall.name, t.strikes, s.finals, s.near, s.renewed, s.wrong, t.took.Round(time.Second))
}

func (t *trial) try(ctx context.Context) (err error) {
	t.name = "history-" + t.fall.name
	t.def = tumble.Definition{Window: tumble.Window{Size: 100 * time.Millisecond}, Grace: 50 * time.Millisecond, DropLate: !t.fall.late, Retention: t.fall.retention}
	t.shards = 3
	if t.fall.shards > 0 {
		t.shards = t.fall.shards
	}
	dir := filepath.Join(t.lab.work, t.fall.name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	logger, closeLog, err := logTo(dir, "writers.log")
	if err != nil {
		return err
	}
	defer closeLog()
	t.logger = logger
	defer func() {
		for _, f := range slices.Backward(t.ground.exits) {
			f()
		}
	}()
	if err := t.fall.prepare(ctx, t); err != nil {
		return err
	}
	t.began = time.Now()
	t.tape = newTape(t.def, 240, t.seed)
	t.index = map[string]int32{}
	for i, key := range t.tape.keys {
		t.index[key] = int32(i)
	}
	t.judge = newJudge(t.tape, t.shards)

	// What is started is ended in the reverse order.
	running, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { stop(); wg.Wait() }()
	if err := t.startWriters(); err != nil {
		return err
	}
	defer t.endWriters()
	wg.Go(func() { t.tape.run(running) })
	wg.Go(func() { t.lookOut(running) })
	if err := t.counts(ctx); err != nil {
		return err
	}
	for i := range t.readers {
		r, closeReader, err := newReader(t, i)
		if err != nil {
			return err
		}
		defer closeReader()
		for k := range atOnce {
			wg.Go(func() { r.run(running, t.seed+uint64(i*atOnce+k)) })
		}
	}
	if err := t.strike(ctx); err != nil {
		return err
	}
	// No more faults; writers go on, and what readers are told is compared once
	// more with all that the store holds.
	time.Sleep(time.Second)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_, err = t.audit(ctx, noMark)
	stop()
	wg.Wait() // so that readers end before their clients are closed
	return errors.Join(err, t.unasked())
}

// startWriters starts those that share most partitions, and one for each of
// those that will end.
func (t *trial) startWriters() error {
	for i, id := range []string{"steady/0", "steady/1", "talks/0", "talks/1", "talks/2"} {
		t.tape.add(id, i < 2, 600)
		t.dealt = append(t.dealt, id)
	}
	for i := range 2 {
		t.writers = append(t.writers, &writer{trial: t, number: i, source: newTapeSource(t.tape)})
	}
	t.deal(0, false)
	for _, w := range t.writers {
		if err := w.start(); err != nil {
			return err
		}
	}
	if !t.fall.ends {
		return nil
	}
	for i := range 4 {
		w := &writer{trial: t, number: len(t.writers) + i, source: newTapeSource(t.tape), ends: fmt.Sprintf("ends/%d", i)}
		t.tape.add(w.ends, false, 200)
		w.source.assign([]string{w.ends}, []string{w.ends})
		t.extras = append(t.extras, w)
		if err := w.start(); err != nil {
			return err
		}
	}
	return nil
}

func (t *trial) endWriters() {
	for _, w := range slices.Concat(t.writers, t.extras) {
		w.end()
	}
}

// counts waits until every shard has closed some windows.
func (t *trial) counts(ctx context.Context) error {
	return eventually(ctx, healing, "nothing is counted", func(ctx context.Context) error {
		marks, err := t.store().marks(ctx, t.name, t.shards)
		if err != nil {
			return err
		}
		for shard, m := range marks {
			if m.closed < t.began.Add(5*t.def.Window.Size).UnixMilli() {
				return fmt.Errorf("shard %d: %v", shard, m)
			}
		}
		return nil
	})
}

// lookOut keeps the edge until ctx ends, and has the judge see what shards say of
// themselves.
func (t *trial) lookOut(ctx context.Context) {
	t.edge.Store(t.began.UnixMilli())
	var last []shardMark
	var since time.Duration // when they were asked for
	for ctx.Err() == nil {
		at := t.since()
		bounded, cancel := context.WithTimeout(ctx, time.Second)
		marks, err := t.store().marks(bounded, t.name, t.shards)
		cancel()
		if err == nil {
			for shard, m := range marks {
				if last != nil {
					t.judge.mark(shard, last[shard].published, m.published, since, t.since())
				}
				t.judge.trace(shard, m, t.since())
				t.edge.Store(max(t.edge.Load(), m.closed))
			}
			last, since = marks, at
		} else if errors.Is(err, errLayout) {
			t.fail(err)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// strike lets the fault happen again and again, with time to heal in between.
func (t *trial) strike(ctx context.Context) error {
	r := rand.New(rand.NewPCG(t.seed, 14))
	churning, calm := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { t.churn(churning) })
	defer func() { calm(); wg.Wait() }()
	audited := int64(noMark)
	end := time.Now().Add(t.lasts)
	for ctx.Err() == nil && t.more(end) {
		var err error
		if audited, err = t.audit(ctx, audited); err != nil {
			return err
		}
		before, err := t.store().marks(ctx, t.name, t.shards)
		if err != nil {
			return err
		}
		if err := t.fall.strike(ctx, t, r); err != nil {
			return fmt.Errorf("strike %d: %w", t.strikes+1, err)
		}
		t.strikes++
		t.aim.Store(0)
		if err := t.heal(ctx, before); err != nil {
			return err
		}
		time.Sleep(time.Duration(300+r.IntN(1000)) * time.Millisecond)
	}
	return nil
}

// manyWrongs are enough.
const manyWrongs = 1000

// heal waits until all that was closed before is so again, and some more.
func (t *trial) heal(ctx context.Context, before []shardMark) error {
	return eventually(ctx, healing, "it did not heal", func(ctx context.Context) error {
		marks, err := t.store().marks(ctx, t.name, t.shards)
		if err != nil {
			return err
		}
		for shard, m := range marks {
			if past := m.closed - before[shard].closed; past < 5*t.def.Window.Size.Milliseconds() {
				return fmt.Errorf("shard %d: the closed mark is %d ms beyond that before the fault", shard, past)
			}
		}
		return nil
	})
}
