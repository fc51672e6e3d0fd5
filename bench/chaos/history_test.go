package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
)

// newTestJudge returns a judge of a tape with 3 events of user_0 in the window
// that starts at 0, of which 2 were on time for certain, and one shard.
func newTestJudge() *judge {
	t := newTape(tumble.Definition{Window: tumble.Window{Size: 100 * time.Millisecond}, DropLate: true}, 2, 1)
	t.cells[cell{0, 0}] = bound{least: 2, most: 3}
	return newJudge(t, 1)
}

func at(from, to time.Duration, n int64, state tumble.State, term uint64) reading {
	return reading{cell: cell{0, 0}, n: n, state: state, term: term, from: from, to: to, by: "test"}
}

// TestJudge has each rule broken, and the same without what breaks it.
func TestJudge(t *testing.T) {
	const asked = "line"
	whole := []bool{true}
	for _, test := range []struct {
		name string
		do   func(j *judge)
		want string // "": nothing is wrong
	}{
		{"equal", func(j *judge) {
			j.see(asked, []reading{at(0, 1, 3, tumble.Final, 7)})
			j.see(asked, []reading{at(2, 3, 3, tumble.Final, 7)})
		}, ""},
		{"two finals of one term", func(j *judge) {
			j.see("", []reading{at(0, 1, 2, tumble.Final, 7)})
			j.lose(0, whole)
			j.see("", []reading{at(2, 3, 3, tumble.Final, 7)})
		}, "under which 2 was final"},
		{"two terms, a loss", func(j *judge) {
			j.see(asked, []reading{at(0, 1, 2, tumble.Final, 7)})
			j.lose(1, whole)
			j.see(asked, []reading{at(2, 3, 3, tumble.Final, 8)})
		}, ""},
		{"two terms, no loss", func(j *judge) {
			j.see("", []reading{at(0, 1, 2, tumble.Final, 7)})
			j.see("", []reading{at(2, 3, 3, tumble.Final, 8)})
		}, "nothing was lost since"},
		{"a loss that is over", func(j *judge) {
			j.lose(0, whole)(1)
			j.see("", []reading{at(2, 3, 2, tumble.Final, 7)})
			j.see("", []reading{at(4, 5, 3, tumble.Final, 8)})
		}, "nothing was lost since"},
		{"a slow read of what is lost", func(j *judge) {
			j.lose(1, whole)(3)
			j.see("", []reading{at(4, 5, 3, tumble.Final, 8)})
			j.see("", []reading{at(0, 6, 2, tumble.Final, 7)})
		}, ""},
		{"a loss of others", func(j *judge) {
			j.see("", []reading{at(0, 1, 2, tumble.Final, 7)})
			j.lose(1, []bool{false})
			j.see("", []reading{at(2, 3, 3, tumble.Final, 8)})
		}, "nothing was lost since"},
		{"more than there are", func(j *judge) { j.see("", []reading{at(0, 1, 4, tumble.Open, 0)}) }, "more than the 3 events"},
		{"less than was on time", func(j *judge) { j.see("", []reading{at(0, 1, 1, tumble.Final, 7)}) }, "less than the 2 events"},
		{"less, but open", func(j *judge) { j.see("", []reading{at(0, 1, 1, tumble.Open, 7)}) }, ""},
		{"less, but expired", func(j *judge) { j.see("", []reading{at(0, 1, 0, tumble.Expired, 7)}) }, ""},
		{"closed, and less than was on time", func(j *judge) { j.see("", []reading{at(0, 1, 1, tumble.Closed, 7)}) }, "closed, and less than the 2 events"},
		{"closed counts grow", func(j *judge) {
			j.see(asked, []reading{at(0, 1, 2, tumble.Closed, 7)})
			j.see(asked, []reading{at(2, 3, 3, tumble.Closed, 7)})
			j.holds(0, []int64{0}, map[cell]int64{{0, 0}: 3}, at(2, 3, 0, tumble.Closed, 7))
		}, ""},
		{"the layout has less than was on time", func(j *judge) {
			j.see("", []reading{at(0, 1, 2, tumble.Closed, 7)})
			j.holds(0, []int64{0}, map[cell]int64{{0, 0}: 1}, at(2, 3, 0, tumble.Closed, 7))
		}, "less than the 2 events"},
		{"a count falls", func(j *judge) {
			j.see(asked, []reading{at(0, 1, 2, tumble.Open, 0)})
			j.see(asked, []reading{at(2, 3, 1, tumble.Open, 0)})
		}, "was 2 before"},
		{"a count falls, side by side", func(j *judge) {
			j.see(asked, []reading{at(0, 2, 2, tumble.Open, 0)})
			j.see(asked, []reading{at(1, 3, 1, tumble.Open, 0)})
		}, ""},
		{"a count falls after one that was read side by side", func(j *judge) {
			j.see(asked, []reading{at(0, 2, 2, tumble.Open, 0)})
			j.see(asked, []reading{at(1, 3, 1, tumble.Open, 0)})
			j.see(asked, []reading{at(4, 5, 1, tumble.Open, 0)})
		}, "was 2 before"},
		{"a count falls along another line", func(j *judge) {
			j.see(asked, []reading{at(0, 1, 2, tumble.Open, 0)})
			j.see("other", []reading{at(2, 3, 1, tumble.Open, 0)})
		}, ""},
		{"a count falls, a loss", func(j *judge) {
			j.see(asked, []reading{at(0, 1, 2, tumble.Open, 0)})
			j.lose(1, whole)
			j.see(asked, []reading{at(2, 3, 1, tumble.Open, 0)})
		}, ""},
		{"a state goes back", func(j *judge) {
			j.see(asked, []reading{at(0, 1, 2, tumble.Final, 7)})
			j.see(asked, []reading{at(2, 3, 2, tumble.Open, 7)})
		}, "was final before"},
		{"expired, and no longer", func(j *judge) {
			j.see(asked, []reading{at(0, 1, 0, tumble.Expired, 7)})
			j.see(asked, []reading{at(2, 3, 2, tumble.Final, 7)})
		}, "was expired before"},
		{"the layout agrees", func(j *judge) {
			j.see("", []reading{at(0, 1, 3, tumble.Final, 7)})
			j.holds(0, []int64{0}, map[cell]int64{{0, 0}: 3}, at(2, 3, 0, tumble.Final, 7))
		}, ""},
		{"the layout differs", func(j *judge) {
			j.see("", []reading{at(0, 1, 2, tumble.Final, 7)})
			j.holds(0, []int64{0}, map[cell]int64{{0, 0}: 3}, at(2, 3, 0, tumble.Final, 7))
		}, "under which 2 was final"},
		{"the layout lacks it", func(j *judge) {
			j.lose(0, whole)
			j.see("", []reading{at(0, 1, 2, tumble.Final, 7)})
			j.holds(0, []int64{0}, nil, at(2, 3, 0, tumble.Final, 7))
		}, "less than the 2 events"},
		{"the layout has another term", func(j *judge) {
			j.lose(0, whole)
			j.see("", []reading{at(0, 1, 2, tumble.Final, 7)})
			j.holds(0, []int64{0}, map[cell]int64{{0, 0}: 3}, at(2, 3, 0, tumble.Final, 8))
		}, ""},
		{"two pages of one term", func(j *judge) {
			j.lose(0, whole)
			j.whole("", "Top", at(0, 1, 100, tumble.Final, 7))
			j.whole("", "Top", at(2, 3, 101, tumble.Final, 7))
		}, "the page holds something else"},
		{"pages of several terms, kinds and states", func(j *judge) {
			j.whole("", "Top", at(0, 1, 100, tumble.Final, 7))
			j.whole("", "Top", at(2, 3, 101, tumble.Final, 8))
			j.whole("", "Scan", at(2, 3, 102, tumble.Final, 7))
			j.whole("", "Top", at(2, 3, 103, tumble.Open, 7))
		}, ""},
		{"a closed mark goes on", func(j *judge) {
			j.mark(0, published{closed: 1, floor: noMark}, published{closed: 2, floor: 1}, 0, 1)
		}, ""},
		{"a closed mark falls", func(j *judge) {
			j.mark(0, published{closed: 2, floor: 1}, published{closed: 1, floor: 1}, 0, 1)
		}, "and nothing was lost since"},
		{"a floor falls", func(j *judge) {
			j.mark(0, published{closed: 2, floor: 1}, published{closed: 2, floor: noMark}, 0, 1)
		}, "and nothing was lost since"},
		{"a closed mark falls, a loss", func(j *judge) {
			j.lose(1, whole)
			j.mark(0, published{closed: 2, floor: 1}, published{closed: 1, floor: 1}, 0, 1)
		}, ""},
		{"a window goes back", func(j *judge) {
			j.whole(asked, "Top", at(0, 1, 100, tumble.Final, 7))
			j.whole(asked, "Top", at(2, 3, 100, tumble.Open, 7))
		}, "was final before"},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := newTestJudge()
			test.do(j)
			if test.want == "" {
				require.Zero(t, j.tally().wrong, j.first)
				return
			}
			require.EqualValues(t, 1, j.tally().wrong, j.first)
			require.Contains(t, j.first[0], test.want)
		})
	}
}

// TestNear counts the finals of what a fault undid.
func TestNear(t *testing.T) {
	j := newTestJudge()
	final := []reading{at(0, 1, 3, tumble.Final, 7)}
	j.see("", final)
	j.strikes([]span{{0, 50}})
	j.see("", final)
	require.Zero(t, j.tally().near)
	j.strikes([]span{{50, 100}})
	j.see("", final)
	j.see("", []reading{at(0, 1, 3, tumble.Open, 7)})
	require.EqualValues(t, 1, j.tally().near)
	j.strikes([]span{{noMark, noMark}})
	j.see("", final)
	require.EqualValues(t, 1, j.tally().near)
	require.EqualValues(t, 4, j.tally().finals)
}

// TestHistoryVerdict has a check that could not fail be a failure.
func TestHistoryVerdict(t *testing.T) {
	good := func() *trial {
		return &trial{fall: &fall{name: "x", loses: true, others: true}, strikes: 1, windows: 1, checkpoints: 1, other: 1,
			tally: tallying{finals: 1, byLayout: 1, near: 1}}
	}
	require.Empty(t, good().verdict())
	for name, change := range map[string]func(*trial){
		"wrong":             func(x *trial) { x.tally.wrong = 1 },
		"never struck":      func(x *trial) { x.strikes = 0 },
		"no final":          func(x *trial) { x.tally.finals = 0 },
		"no layout":         func(x *trial) { x.tally.byLayout = 0 },
		"nothing lost":      func(x *trial) { x.checkpoints = 0 },
		"nothing undone":    func(x *trial) { x.windows = 0 },
		"no partition":      func(x *trial) { x.other = 0 },
		"nothing read near": func(x *trial) { x.tally.near = 0 },
		"an error":          func(x *trial) { x.errs = []error{context.Canceled} },
	} {
		x := good()
		change(x)
		require.Len(t, x.verdict(), 1, name)
	}
}

func TestFell(t *testing.T) {
	before := []shardMark{{published{closed: 500}, map[string]record{"a": {offset: 5, state: "live"}, "b": {offset: 5, state: "live"}, "c": {offset: 1, state: "live"}}}}
	after := []shardMark{{published{closed: 200}, map[string]record{"a": {offset: 4, state: "live"}, "b": {offset: 5, state: "live"}}}}
	checkpoints, windows, hot := fell(before, after, 100)
	require.EqualValues(t, 2, checkpoints, "one went back, one is gone")
	require.EqualValues(t, 3, windows)
	require.Equal(t, []span{{200, 500}}, hot)
	checkpoints, windows, hot = fell(before, before, 100)
	require.Zero(t, checkpoints)
	require.Zero(t, windows)
	require.Equal(t, []span{{noMark, noMark}}, hot)
}

// TestTape has a plain loop count what was on time.
func TestTape(t *testing.T) {
	def := tumble.Definition{Window: tumble.Window{Size: 100 * time.Millisecond}, Grace: 50 * time.Millisecond, DropLate: true}
	tape := newTape(def, 1, 1)
	tape.add("steady/0", true, 0)
	tape.add("talks/0", false, 0)
	steady, talks := tape.reels["steady/0"], tape.reels["talks/0"]
	tape.event(talks, 10, false)
	tape.event(steady, 10, false)
	tape.event(steady, 149, false)
	tape.event(steady, 20, false) // the window ends at 100, and closes at 150
	tape.event(steady, 150, false)
	tape.event(steady, 30, false)
	require.Equal(t, []bound{{least: 2, most: 4}}, tape.bounds([]cell{{0, 0}}))

	p := &tapePartition{tape, "steady/0"}
	chunk, err := p.Fetch(t.Context(), tumble.Position{Offset: 2})
	require.NoError(t, err)
	require.Len(t, chunk.Events, 3)
	require.EqualValues(t, 5, chunk.Next)
	require.EqualValues(t, -1, chunk.End, "nothing is promised")
	chunk, err = (&tapePartition{tape, "talks/0"}).Fetch(t.Context(), tumble.Position{Offset: 1})
	require.NoError(t, err)
	require.Empty(t, chunk.Events)
	require.EqualValues(t, 1, chunk.End)
	require.False(t, chunk.AsOf.IsZero())
}

func TestRetarget(t *testing.T) {
	p := newTestProxy(t)
	c := dialed(t, p)
	p.retarget(local(echo(t)))
	_, err := c.Read(make([]byte, 1))
	require.Error(t, err)
	dialed(t, p)
}

func TestFallNames(t *testing.T) {
	require.Equal(t, "lag, sentinel, snapshot, aof, node, late, retention, ended, growth", fallNames())
	for _, f := range falls {
		require.NotEmpty(t, f.what)
		require.True(t, f.loses || f.others)
	}
	l := &lab{}
	err := l.histories(t.Context(), historyCheck{}, "lag,nothing")
	require.ErrorContains(t, err, `"nothing"`)
}

func TestLayoutOfCheckpoints(t *testing.T) {
	r, err := parseRecord("1714564860000 a1b2 118 0 -1 1714564890000000000 live log 1")
	require.NoError(t, err)
	require.Equal(t, record{1714564860000, "a1b2", 118, "1714564890000000000", "live"}, r)
	member, err := r.member("clicks/3")
	require.NoError(t, err)
	require.Equal(t, "97cb5baeecce8400 clicks/3", member)
	r, err = parseRecord("- 0 0 0 0 - ended log")
	require.NoError(t, err)
	require.EqualValues(t, noMark, r.closed)
	member, err = r.member("clicks/3")
	require.NoError(t, err)
	require.Equal(t, "- clicks/3", member)
	_, err = parseRecord("1714564860000 1714561260000 118 0 1714564890000000000 live log-1")
	require.Error(t, err, "that of the layout before")

	said, err := parsePublished("1714564860000 77 16 id 1714561260000")
	require.NoError(t, err)
	require.Equal(t, published{1714564860000, 1714561260000, "77"}, said)
	said, err = parsePublished("")
	require.NoError(t, err)
	require.Equal(t, published{noMark, noMark, "-"}, said)
	_, err = parsePublished("1714564860000 - 16 id")
	require.Error(t, err)
}

// TestFrontier has what a shard keeps to find its frontier compared with its
// checkpoints.
func TestFrontier(t *testing.T) {
	records := map[string]record{"a": {closed: 100, watermark: "1", state: "live"}, "b": {closed: 200, watermark: "2", state: "live"}, "c": {closed: 300, watermark: "3", state: "ended"}}
	live, ended := []string{"8000000000000001 a", "8000000000000002 b"}, []string{"8000000000000003 c"}
	fault := func(records map[string]record, live, ended []string, closed int64) string {
		h := &held{}
		require.NoError(t, h.frontier(0, records, live, ended, published{closed: closed}))
		return strings.Join(h.faults, "")
	}
	require.Empty(t, fault(records, live, ended, 100))
	require.Contains(t, fault(records, live, ended, 200), "the closed mark is 200, should be 100")
	require.Contains(t, fault(records, live[1:], ended, 100), "live are")
	require.Contains(t, fault(records, live, nil, 100), "ended")
	all := map[string]record{"c": records["c"]}
	require.Empty(t, fault(all, nil, ended, 300))
	require.Empty(t, fault(nil, nil, nil, noMark))
}
