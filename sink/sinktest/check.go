package sinktest

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
)

// A check is one run of a rule. Its methods, and those of the things it opens, end it
// by a panic with a failure, which rule turns into the rule's error. They are
// for the goroutine that the rule runs on.
type check struct {
	ctx  context.Context
	cfg  Config
	name string // the store's, new for each check
}

type failure struct{ err error }

// rule returns a Rule whose Check is f.
func rule(name, doc string, f func(c *check)) Rule {
	return Rule{Name: name, Doc: doc, Check: func(ctx context.Context, cfg Config) (err error) {
		defer func() {
			switch r := recover().(type) {
			case nil:
			case failure:
				err = r.err
			default:
				panic(r)
			}
		}()
		word, _, _ := strings.Cut(name, "/")
		f(&check{ctx, cfg, word + "-" + strings.ToLower(crand.Text()[:10])})
		return nil
	}}
}

func losing(r Rule) Rule {
	r.NeedsLose = true
	return r
}

func falling(r Rule) Rule {
	r.NeedsSnapshot = true
	return r
}

func (c *check) failf(format string, args ...any) {
	panic(failure{fmt.Errorf(format, args...)})
}

// under returns a check under a name of its own.
func (c *check) under(i int) *check {
	return &check{c.ctx, c.cfg, fmt.Sprint(c.name, "-", i)}
}

// ok ends the check if err is not nil.
func (c *check) ok(err error, doing string, args ...any) {
	if err != nil {
		c.failf("%s: %w", fmt.Sprintf(doing, args...), err)
	}
}

// wraps ends the check if err does not wrap want.
func (c *check) wraps(err, want error, doing string, args ...any) {
	if !errors.Is(err, want) {
		c.failf("%s: got error %v, want one that wraps %q", fmt.Sprintf(doing, args...), err, want)
	}
}

// soon ends the check if f does not return nil within Settle.
func (c *check) soon(f func() error) {
	for end := time.Now().Add(c.cfg.Settle); ; time.Sleep(5 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if !time.Now().Before(end) {
			panic(failure{err})
		}
	}
}

// settle waits until a read must show all writes. It comes before a look
// for something that must not have changed.
func (c *check) settle() { time.Sleep(c.cfg.Settle) }

// sink returns the store's sink, as another process has it.
func (c *check) sink() Sink {
	s, err := c.cfg.Open(c.ctx, c.name)
	c.ok(err, "Config.Open(%q)", c.name)
	return s
}

// A process is one that has opened the store.
type process struct {
	Sink
	c      *check
	def    tumble.Definition
	shards []tumble.Shard
}

// open opens the store as a new process.
func (c *check) open(def tumble.Definition) *process {
	p := &process{Sink: c.sink(), c: c, def: def}
	var err error
	p.shards, err = p.Open(c.ctx, def)
	c.ok(err, "Open(%v)", def)
	if n := len(p.shards); n == 0 || n > 65_535 {
		c.failf("Open returned %d shards", n)
	}
	return p
}

// ask calls Load of one shard.
func (p *process) ask(shard int, r tumble.LoadRequest) tumble.ShardState {
	got, err := p.shards[shard].Load(p.c.ctx, r)
	p.c.ok(err, "Load of shard %d", shard)
	return got
}

// load calls Load of one shard with checkpoints and returns the stored ones.
func (p *process) load(shard int, init map[string]tumble.Checkpoint) map[string]tumble.Checkpoint {
	return p.ask(shard, tumble.LoadRequest{Init: init}).Checkpoints
}

// loadAll loads every shard, as each process does now and then.
func (p *process) loadAll() {
	for i := range p.shards {
		p.ask(i, tumble.LoadRequest{})
	}
}

// stored ends the check if the checkpoints of a shard are not want, all of them.
func (p *process) stored(shard int, want map[string]tumble.Checkpoint, after string) {
	if got := p.load(shard, nil); !maps.EqualFunc(got, want, tumble.Checkpoint.Same) {
		p.c.failf("after %s shard %d holds %v, want %v", after, shard, got, want)
	}
}

// register stores the checkpoint of a partition in every shard and returns the
// partition's lanes. It must be the first to do so.
func (p *process) register(partition string, init tumble.Checkpoint) *lanes {
	l := &lanes{p, partition, newWriter(), make([]tumble.Checkpoint, len(p.shards))}
	for i := range p.shards {
		got := p.load(i, map[string]tumble.Checkpoint{partition: init})
		at, ok := got[partition]
		if !ok || at.Log != init.Log || at.Origin != init.Origin || at.Offset != init.Offset {
			p.c.failf("Load of shard %d with {%s: %v} returned %v", i, partition, init, got)
		}
		l.at[i] = at
	}
	return l
}

// lanes are one partition's checkpoints, by shard, as one writer knows them.
type lanes struct {
	*process
	partition string
	writer    uint64
	at        []tumble.Checkpoint
}

// newWriter returns a random number that is not 0, for a writer or a token.
func newWriter() uint64 {
	for {
		if w := rand.Uint64(); w != 0 {
			return w
		}
	}
}

// settled returns the lanes as another writer has them who goes on from there.
func (l *lanes) settled(p *process) *lanes {
	return &lanes{p, l.partition, newWriter(), slices.Clone(l.at)}
}

// move returns the batch that moves the checkpoint of a shard to to.
func (l *lanes) move(shard int, to tumble.Checkpoint, deltas ...tumble.Delta) tumble.Batch {
	return tumble.Batch{Partition: l.partition, Writer: l.writer, From: l.at[shard], To: to, Deltas: deltas, Rollups: rolledUp(l.def, deltas)}
}

// rolledUp returns what deltas come to in the windows of each roll-up.
func rolledUp(def tumble.Definition, deltas []tumble.Delta) (all [][]tumble.Delta) {
	type place struct {
		start int64
		key   string
	}
	for _, level := range def.Levels()[1:] {
		var sums []tumble.Delta
		at := make(map[place]int)
		for _, d := range deltas {
			start, _ := level.Window.Bounds(d.Start)
			p := place{start.UnixNano(), d.Key}
			if i, ok := at[p]; ok {
				sums[i].N += d.N
				continue
			}
			at[p] = len(sums)
			sums = append(sums, tumble.Delta{Start: start, Key: d.Key, N: d.N})
		}
		all = append(all, sums)
	}
	return all
}

// batch returns the batch that adds deltas to a shard and moves the checkpoint
// on by one offset, and its watermark to mark if mark is not none.
func (l *lanes) batch(shard int, mark time.Time, deltas ...tumble.Delta) tumble.Batch {
	to := l.at[shard]
	to.Offset++
	if !mark.IsZero() {
		to.Watermark = mark
	}
	return l.move(shard, to, deltas...)
}

// apply applies b, which must succeed.
func (l *lanes) apply(shard int, b tumble.Batch) {
	l.c.ok(l.shards[shard].Apply(l.c.ctx, b), "Apply to shard %d: %s from %v to %v with %d deltas",
		shard, b.Partition, b.From, b.To, len(b.Deltas))
	l.at[shard] = b.To
}

// refused ends the check if Apply of b does not wrap want, or changes what the
// shard holds.
func (l *lanes) refused(shard int, b tumble.Batch, want error) {
	was := l.load(shard, nil)
	l.c.wraps(l.shards[shard].Apply(l.c.ctx, b), want, "Apply to shard %d: %s from %v to %v", shard, b.Partition, b.From, b.To)
	l.stored(shard, was, "a batch that was refused")
}

// split returns those of deltas whose keys belong to each shard.
func (p *process) split(deltas []tumble.Delta) [][]tumble.Delta {
	split := make([][]tumble.Delta, len(p.shards))
	for _, d := range deltas {
		i := p.shardOf(d.Key)
		split[i] = append(split[i], d)
	}
	return split
}

// add applies one batch to every shard, each with those of deltas whose keys
// belong to it, and moves the watermarks to mark if mark is not none.
func (l *lanes) add(mark time.Time, deltas ...tumble.Delta) {
	for i, part := range l.split(deltas) {
		l.apply(i, l.batch(i, mark, part...))
	}
}

// end marks the partition as ended in every shard.
func (l *lanes) end() {
	for i := range l.shards {
		to := l.at[i]
		to.Ended = true
		l.apply(i, l.move(i, to))
	}
}

func (p *process) shardOf(key string) int {
	return int(tumble.Hash(key) % uint64(len(p.shards)))
}

// keyOf returns a key that belongs to shard.
func (p *process) keyOf(shard int) string {
	for i := 0; ; i++ {
		if key := fmt.Sprintf("key%d", i); p.shardOf(key) == shard {
			return key
		}
	}
}

// counts ends the check if the counts of key are not want: in the window that
// each of want starts at, so many.
func (p *process) counts(key string, want ...tumble.Delta) {
	for _, d := range want {
		p.c.soon(func() error {
			switch got, err := p.Count(p.c.ctx, key, d.Start); {
			case err != nil:
				return fmt.Errorf("Count(%s, %v): %w", quoted(key), d.Start, err)
			case got.N != d.N || got.Key != key || !got.Start.Equal(d.Start):
				return fmt.Errorf("Count(%s, %v) is %d of %s in %v, want %d", quoted(key), d.Start, got.N, quoted(got.Key), got.Start, d.N)
			}
			return nil
		})
	}
}

// all ends the check if the counts of the window that holds at are not want,
// by key, as Scan tells them, or Windows adds them up to something else.
func (p *process) all(at time.Time, want map[string]int64) {
	p.c.soon(func() error {
		got := make(map[string]int64)
		for cursor := ""; ; {
			page, err := p.Scan(p.c.ctx, at, cursor, 1000)
			if err != nil {
				return fmt.Errorf("Scan(%v, %q): %w", at, cursor, err)
			}
			for _, n := range page.Counts {
				got[n.Key] += n.N
			}
			if cursor = page.Cursor; cursor == "" {
				break
			}
		}
		if len(got) != len(want) {
			return fmt.Errorf("Scan(%v) gave %d keys, want %d", at, len(got), len(want))
		}
		for key, n := range want {
			if got[key] != n {
				return fmt.Errorf("Scan(%v) gave %d of %s, want %d", at, got[key], quoted(key), n)
			}
		}
		return p.total(at, want)
	})
}

// total returns an error if the total of the window that holds at is not that of want.
func (p *process) total(at time.Time, want map[string]int64) error {
	start, end := p.def.Window.Bounds(at)
	got, err := p.Windows(p.c.ctx, start, end)
	if err != nil {
		return fmt.Errorf("Windows(%v, %v): %w", start, end, err)
	}
	n := sumOf(want)
	switch {
	case len(want) == 0 && len(got) == 0:
		return nil
	case len(got) != 1 || len(want) == 0:
		return fmt.Errorf("Windows(%v, %v) is %v, want one window with %d keys and a sum of %d", start, end, got, len(want), n)
	case !got[0].Start.Equal(start) || !got[0].End.Equal(end) || got[0].Keys != int64(len(want)) || got[0].N != n:
		return fmt.Errorf("Windows(%v, %v) is %+v, want %d keys and a sum of %d", start, end, got[0], len(want), n)
	}
	return nil
}

// quoted returns s for a message, shortened.
func quoted(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%q... (%d bytes)", s[:40], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// t0 is the start of a minute.
var t0 = time.Date(2024, 3, 1, 12, 0, 0, 0, time.UTC)

// minute returns the start of the i-th minute from t0.
func minute(i int) time.Time { return t0.Add(time.Duration(i) * time.Minute) }

// minutes counts per minute, and keeps the counts.
var minutes = tumble.Definition{Window: tumble.Window{Size: time.Minute}}

// first is a checkpoint that nothing was counted before.
func first() tumble.Checkpoint { return tumble.Checkpoint{Log: "log-1"} }

func one(partition string, c tumble.Checkpoint) map[string]tumble.Checkpoint {
	return map[string]tumble.Checkpoint{partition: c}
}
