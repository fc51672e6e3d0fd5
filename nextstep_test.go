package tumble

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestWhereASourceSaysToGoOn(t *testing.T) {
	w, frontier := noon, noon.Add(time.Hour)
	stored := Checkpoint{Log: "log", Origin: 5, Offset: 60, Epoch: 3, Watermark: w}
	ended := stored
	ended.Ended = true
	for name, c := range map[string]struct {
		stored, to Checkpoint
		revive     bool
		step       Checkpoint
		lost       loss
		refused    bool
	}{
		"there":           {stored: stored, to: stored, step: stored, lost: loss{"log", 60, 60, false}},
		"after a gap":     {stored: stored, to: Checkpoint{Log: "log", Origin: 5, Offset: 80}, step: stored, lost: loss{"log", 60, 80, false}},
		"in another log":  {stored: stored, to: Checkpoint{Log: "new", Origin: 7, Offset: 9, Epoch: 1}, step: Checkpoint{Log: "new", Origin: 7, Offset: 9, Epoch: 1, Watermark: w}, lost: loss{"new", 7, 9, false}},
		"where it ends":   {stored: stored, to: Checkpoint{Log: "log", Origin: 5, Offset: 50, Epoch: 2}, step: Checkpoint{Log: "log", Origin: 5, Offset: 50, Epoch: 2, Watermark: w}, lost: loss{"log, epoch 3", 50, 60, true}},
		"below its start": {stored: stored, to: Checkpoint{Log: "log", Origin: 2, Offset: 2, Epoch: 0}, step: Checkpoint{Log: "log", Origin: 2, Offset: 2, Watermark: w}, lost: loss{"log, epoch 3", 2, 60, true}},
		"another origin":  {stored: stored, to: Checkpoint{Log: "log", Origin: 6, Offset: 60}, refused: true},
		"no origin":       {stored: stored, to: Checkpoint{Log: "log", Origin: 70, Offset: 50}, refused: true},
		"ended":           {stored: ended, to: ended, step: ended, lost: loss{"log", 60, 60, false}},
		"ended, goes on":  {stored: ended, to: ended, revive: true, step: Checkpoint{Log: "log", Origin: 5, Offset: 60, Epoch: 3, Watermark: frontier}, lost: loss{"log", 60, 60, false}},
		"ended, new log":  {stored: ended, to: Checkpoint{Log: "new"}, step: Checkpoint{Log: "new", Watermark: frontier}, lost: loss{"new", 0, 0, false}},
		"live, goes on":   {stored: stored, to: stored, revive: true, step: stored, lost: loss{"log", 60, 60, false}},
	} {
		t.Run(name, func(t *testing.T) {
			step, m, lost, err := nextStep(finding{c.stored, frontier, kept{}}, c.to, c.revive)
			if c.refused {
				require.ErrorContains(t, err, "begins elsewhere")
				return
			}
			require.NoError(t, err)
			require.True(t, c.step.Same(step), "%v, not %v", step, c.step)
			require.Equal(t, c.lost, lost)
			require.Equal(t, c.stored.Ended && (c.revive || c.to.Log == "new"), m == markOf(frontier), fmt.Sprint(m))
		})
	}
}

// Of two shards that differ the one counts in which the partition has not ended:
// else a shard that lost it would wait for nobody while it is counted again.
func TestMerge(t *testing.T) {
	live := Checkpoint{Log: "log", Origin: 5, Offset: 60, Epoch: 3, Watermark: noon}
	ended := live
	ended.Ended = true
	for _, order := range [][]Checkpoint{{live, ended}, {ended, live}} {
		known := map[string]Checkpoint{}
		for _, c := range order {
			merge(known, map[string]Checkpoint{"clicks/0": c})
		}
		require.Equal(t, map[string]Checkpoint{"clicks/0": {Log: "log", Origin: 5, Offset: 5, Epoch: -1}}, known)
	}
}
