package simulation

import (
	"flag"
	"fmt"
	"testing"
)

// How many seeds are run if nobody says how many: of each kind of simulation some
// eighteen.
const (
	modelSeeds      = 60
	simulationSeeds = 200
)

var (
	seeds   = flag.Uint64("seeds", 0, fmt.Sprintf("how many seeds TestModel and TestSimulation run; 0: %d and %d", modelSeeds, simulationSeeds))
	oneSeed = flag.Int64("seed", -1, "the one seed that TestModel and TestSimulation run; -1: all")
)

// eachSeed runs a test for the seeds that were asked for.
func eachSeed(t *testing.T, n uint64, test func(t *testing.T, seed uint64)) {
	first := uint64(0)
	if *seeds > 0 {
		n = *seeds
	}
	if *oneSeed >= 0 {
		first, n = uint64(*oneSeed), uint64(*oneSeed)+1
	}
	for seed := first; seed < n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { test(t, seed) })
	}
}
