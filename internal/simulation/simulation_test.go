package simulation

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

var shrinking = flag.Duration("shrink", 20*time.Second, "how long TestSimulation may look for the shortest schedule that fails")

// TestSimulation lets several processes count one topic (or a channel each) into
// one store while everything breaks, by a schedule that is drawn from a seed,
// and compares what is left with a plain loop. A seed that fails is cut down to
// the steps that it takes.
func TestSimulation(t *testing.T) {
	var all tumble.Stats
	var reads readTally
	var endings, yielded, filled int
	var shrunk bool
	n := 0
	eachSeed(t, simulationSeeds, func(t *testing.T, seed uint64) {
		n++
		setup, steps := draw(seed)
		w, err := simulate(t, setup, steps)
		all = sum(all, w.books())
		endings += w.endings
		yielded += w.yielded
		filled += w.filled
		reads.final += w.readers.reads.final
		reads.fallen += w.readers.reads.fallen
		if err == nil {
			return
		}
		if shrunk {
			t.Fatalf("%v\n%v", err, setup)
		}
		shrunk = true
		steps, took, err := shrink(t, setup, steps, err)
		var b strings.Builder
		for _, s := range steps {
			fmt.Fprintln(&b, s)
		}
		t.Fatalf("%v\n%v\nof %d steps these are left after %v:\n%v", err, setup, scheduleLength, took.Round(time.Second), b.String())
	})
	if n < simulationSeeds || t.Failed() {
		return
	}
	// A schedule in which nothing breaks proves nothing.
	for what, n := range map[string]int64{
		"Counted": all.Counted, "DroppedLate": all.DroppedLate, "Expired": all.Expired, "Rejected": all.Rejected, "Skipped": all.Skipped,
		"Replayed": all.Replayed, "Pending": all.Pending, "Late": all.Late, "Ahead": all.Ahead, "Lost": all.Lost, "Conflicts": all.Conflicts, "Retries": all.Retries,
		"final reads": reads.final, "reads during which the store fell back": reads.fallen, "partitions that were ended": int64(endings),
		"partitions that were yielded": int64(yielded), "looks at memory that keys have filled": int64(filled),
	} {
		t.Logf("%s: %d", what, n)
		require.Positive(t, n, what)
	}
}

// simulate runs a schedule and returns the first rule that it found broken.
func simulate(t *testing.T, s setup, steps []step) (*world, error) {
	w := newWorld(s)
	synctest.Test(t, func(t *testing.T) {
		w.began = time.Now()
		w.readers = w.read()
		for i := range s.parts() {
			w.grow(i)
		}
		for _, st := range steps {
			if w.err() != nil {
				break
			}
			time.Sleep(st.wait)
			w.do(st)
			w.audit()
		}
		w.finish()
	})
	return w, w.err()
}

// shrink looks for a shorter schedule that fails as well: by halves, quarters
// and so on, and then by single steps. Goroutines do not always run in the same
// order, so each is given some tries.
func shrink(t *testing.T, s setup, steps []step, why error) ([]step, time.Duration, error) {
	began := time.Now()
	fails := func(steps []step) error {
		for range 3 {
			if _, err := simulate(t, s, steps); err != nil {
				return err
			}
		}
		return nil
	}
	for size := len(steps) / 2; size > 0; {
		cut := false
		for at := 0; at < len(steps) && time.Since(began) < *shrinking; {
			shorter := slices.Concat(steps[:at], steps[min(at+size, len(steps)):])
			if err := fails(shorter); err != nil {
				steps, why, cut = shorter, err, true
			} else {
				at += size
			}
		}
		if size > 1 || !cut {
			size /= 2
		}
		if time.Since(began) >= *shrinking {
			break
		}
	}
	return steps, time.Since(began), why
}
