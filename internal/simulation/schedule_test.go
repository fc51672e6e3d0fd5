package simulation

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tumblestream/tumble"
)

// maxN is the largest N of an event, where these are added up.
const maxN = 3

const (
	scheduleLength  = 40
	maxChunk        = 100 + maxRecord // events of one Fetch, at most
	maxRecord       = 50              // events of one record, at most
	bytesEach       = 256             // MaxPending bounds as many bytes of keys for each increment
	maxAhead        = time.Hour       // MaxAhead
	shutdownTimeout = time.Second     // ShutdownTimeout
	settlingTime    = 3 * time.Minute
	endTime         = 16 * time.Second // of EndPartition, in which nobody starts
)

// A setup is what does not change while a simulation runs.
type setup struct {
	seed                    uint64
	kind                    kind
	def                     tumble.Definition
	shards, slots           int // of processes
	idle, flush             time.Duration
	maxPending              int
	losses, crashes, rivals bool
	ahead, growth, untilEnd bool
	long, yields            bool // keys, and partitions to who is ahead
	deletes                 int  // windows past retention in a call, 0 for all
	differ                  bool // retentions of processes
}

// A kind says what the counts are compared with.
type kind string

const (
	plain    kind = "plain"    // every event is counted
	judged   kind = "judged"   // late events are dropped or expire, by what the log alone says
	promised kind = "promised" // ... and by what the clock and other partitions say: bounds
	gaps     kind = "gaps"     // retention deletes what is not counted, topics are recreated: bounds
	channels kind = "channels" // a crash takes events with it
	latest   kind = "latest"   // counting begins at the end
	cuts     kind = "cuts"     // logs are truncated and grow again: bounds
)

var kinds = []kind{plain, plain, plain, judged, judged, promised, promised, gaps, channels, latest, cuts}

// A step is one thing that happens. It means the same without those before it,
// so that a schedule can be cut down.
type step struct {
	wait  time.Duration // before it
	op    op
	on, n int // which one, and how much
	seed  uint64
}

type op string

var ops = []op{
	"add", "add", "add", "add", "add", "add", "start", "start", "start", "start all", "stop", "crash", "crash", "assign", "assign", "revoke",
	"down", "down", "hang", "stall", "snapshot", "snapshot", "restore", "restore all", "wipe", "wipe all", "late batches", "late batches",
	"grow", "truncate", "recreate", "close", "noise", "calm", "cut", "cut", "end",
}

func (s step) String() string {
	return fmt.Sprintf("%7v  %-12s on %d  n %d  seed %d", s.wait, s.op, s.on, s.n, s.seed)
}

func (s setup) String() string {
	return fmt.Sprintf("seed %d: %s, %d shards, %d processes, %v, idle %v, flush %v, at most %d pending; losses %v, crashes %v, rivals %v, ahead %v, growth %v, until end %v, long keys %v, yields %v, deletes %d, retentions differ %v",
		s.seed, s.kind, s.shards, s.slots, s.def, s.idle, s.flush, s.maxPending, s.losses, s.crashes, s.rivals, s.ahead, s.growth, s.untilEnd, s.long, s.yields, s.deletes, s.differ)
}

func draw(seed uint64) (setup, []step) {
	rng := rand.New(rand.NewPCG(seed, 1))
	yes := func(percent int) bool { return rng.IntN(100) < percent }
	s := setup{
		seed: seed, kind: kinds[seed%uint64(len(kinds))],
		shards: 1 + rng.IntN(4), slots: 1 + rng.IntN(4),
		idle:       []time.Duration{-1, time.Second, 5 * time.Second}[rng.IntN(3)],
		flush:      time.Duration(1+rng.IntN(300)) * time.Millisecond,
		maxPending: 1 + rng.IntN(300),
		losses:     yes(50), crashes: yes(60), rivals: yes(50), ahead: yes(40), growth: yes(40), untilEnd: yes(20),
	}
	s.def = tumble.Definition{Window: tumble.Window{Size: 10 * time.Second}, Grace: time.Duration(rng.IntN(3)) * 4 * time.Second}
	switch s.kind {
	case judged, promised:
		s.def.DropLate = yes(70)
		if !s.def.DropLate || yes(30) {
			s.def.Retention = 30 * time.Second
		}
		if s.kind == judged {
			s.idle, s.ahead, s.growth = -1, false, false
		} else if s.idle < 0 {
			s.idle = time.Second
		}
		s.losses = s.losses && yes(60)
	case channels:
		s.def.DropLate = yes(30)
		s.rivals, s.growth, s.losses, s.crashes, s.untilEnd = false, false, s.losses && yes(50), s.crashes && yes(50), false
	}
	if rng := rand.New(rand.NewPCG(seed, 2)); rng.IntN(100) < 50 {
		s.def.Rollups = []tumble.Rollup{{Window: tumble.Window{Size: time.Minute}}, {Window: tumble.Window{Size: 30 * time.Second, Offset: 10 * time.Second}}}
		if s.def.Retention > 0 {
			for i := range s.def.Rollups {
				s.def.Rollups[i].Retention = s.def.Retention * time.Duration(rng.IntN(4))
			}
		}
	}
	more := rand.New(rand.NewPCG(seed, 5))
	s.long, s.yields, s.deletes = more.IntN(3) == 0, s.rivals && more.IntN(2) == 0, more.IntN(3)
	s.differ = s.def.Retention > 0 && more.IntN(2) == 0
	// What is lost is bounded in offsets, not in what events add up to.
	s.def.Sum = s.kind != gaps && s.kind != cuts && seed/2%3 == 0
	var steps []step
	for range scheduleLength {
		st := step{time.Duration(rng.IntN(2500)) * time.Millisecond, ops[rng.IntN(len(ops))], rng.IntN(60), rng.IntN(1000), rng.Uint64N(1e6)}
		if !s.allows(st.op) {
			st.op = "add"
		}
		steps = append(steps, st)
	}
	return s, steps
}

// allows reports whether a step may happen in this setup.
func (s setup) allows(o op) bool {
	switch o {
	case "restore", "restore all", "wipe":
		return s.losses
	case "wipe all":
		return s.losses && s.kind != latest
	case "crash":
		return s.crashes
	case "grow":
		return s.growth && s.kind != latest
	case "truncate", "recreate":
		return s.kind == gaps
	case "cut":
		return s.kind == cuts
	case "end":
		return s.kind == plain || s.kind == promised || s.kind == cuts
	case "close":
		return s.kind == channels
	}
	return true
}

// parts returns how many partitions there are at first.
func (s setup) parts() int {
	if s.kind == channels {
		return s.slots
	}
	return 1 + int(s.seed/uint64(len(kinds)))%3
}
