package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/kafkadial"
	"github.com/tumblestream/tumble/internal/program"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/kafka"
)

// mostLines bounds the differences that audit prints.
const mostLines = 1000

var auditCommand = command{
	name: "audit", args: "NAME", about: "counts a topic once more, in memory, and compares every count",
	help: `It counts each partition up to where the stored counts reach, and compares all windows that
the log can still show and that are not past retention: if the log no longer holds all that was
counted, those that begin within an hour of where it begins now, the first tenth of it or 1,000 events,
are left out. Nothing may be counted
under the name meanwhile: stop it, or choose a time when nothing comes. With drop late, an event that came after a silence may have been late
by the clock, which the log does not tell. It exits with 3 if something differs, and with 1 if
something was counted meanwhile.
`,
	define: func(fs *flag.FlagSet) func(context.Context, *tool, []string) error {
		brokers := fs.String("brokers", "localhost:9092", "`addresses` of Kafka brokers, separated by commas")
		topic := fs.String("topic", "clickstream", "`name` of the topic")
		key := fs.String("key", "user_id", "JSON `field` that was counted by")
		at := fs.String("time", "timestamp", "JSON `field` of the event time")
		unit := fs.String("time-unit", "rfc3339", "how the time is written: rfc3339, s, ms, us, ns or record")
		sum := fs.String("sum", "", "JSON `field` that was added up")
		return func(ctx context.Context, t *tool, args []string) error {
			addresses, err := program.Addresses(*brokers)
			if err != nil {
				return usagef("audit: -brokers: %w", err)
			}
			u, err := kafkadial.Unit(*unit)
			if err != nil {
				return usagef("audit: -time-unit: %w", err)
			}
			sink, def, err := t.stored(ctx, args[0])
			if err != nil {
				return err
			}
			a, err := newAudit(ctx, sink, def)
			if err != nil {
				return err
			}
			if a.def.Sum != (*sum != "") {
				if a.def.Sum {
					return usagef("audit: the counts of %s are sums: -sum must name the field that was added up", args[0])
				}
				return usagef("audit: the counts of %s are numbers of events: they go without -sum", args[0])
			}
			if *topic == "" {
				return usagef("audit: -topic must name the topic that was counted")
			}
			log := kafkadial.New(addresses, *topic)
			defer log.Close()
			if _, err := log.Find(ctx, false); err != nil {
				return err
			}
			if !a.of(*topic) {
				return fmt.Errorf("audit: nothing of topic %s is counted under %s: show %[2]s tells the partitions, and -topic must be theirs", *topic, args[0])
			}
			source, err := kafka.New(kafka.Config{
				Brokers: log.Brokers, Transport: log.Transport, Topic: log.Name, UntilEnd: true, MaxKey: a.def.Longest(),
				Decode:   kafka.Fields{Key: *key, Time: *at, Unit: u, N: *sum}.Decode(),
				OnReject: a.reject,
			})
			if err != nil {
				return usagef("audit: %w", err)
			}
			if err := a.count(ctx, source); err != nil {
				return err
			}
			if err := a.compare(ctx); err != nil {
				return err
			}
			if err := t.print(a.found, a.write); err != nil || len(a.found.Differences) == 0 {
				return err
			}
			return errFound
		}
	},
}

// An audit counts a log up to the positions that a sink holds.
type audit struct {
	sink      *redis.Sink
	def       tumble.Definition
	positions []map[string]tumble.Checkpoint // of the shards
	counted   *memory.Sink

	mu       sync.Mutex
	since    time.Time // windows that begin before it are left out
	rejected string    // the first record that was

	found audited
}

// audited is what an audit prints in JSON.
type audited struct {
	Windows     int          `json:"windows"`
	Counts      int          `json:"counts"`
	Differences []difference `json:"differences"`
}

type difference struct {
	Key     string    `json:"key"`
	Window  string    `json:"window"`
	Start   time.Time `json:"start"`
	Stored  int64     `json:"stored"`
	Counted int64     `json:"counted"`
}

func newAudit(ctx context.Context, sink *redis.Sink, def tumble.Definition) (*audit, error) {
	positions, err := sink.Positions(ctx)
	return &audit{sink: sink, def: def, positions: positions, counted: memory.New(memory.Config{Shards: 8}), found: audited{Differences: []difference{}}}, err
}

// of tells whether a partition of the topic is counted. Where nothing is, there is nothing to differ.
func (a *audit) of(topic string) bool {
	ids := 0
	for _, shard := range a.positions {
		for id := range shard {
			if ids++; strings.HasPrefix(id, topic+"/") {
				return true
			}
		}
	}
	return ids == 0
}

// count counts the log by the stored definition, as a pipeline does.
func (a *audit) count(ctx context.Context, source tumble.Source) error {
	pipeline, err := tumble.New(tumble.Config{
		Source: upTo{source, a}, Sink: a.counted,
		Window: a.def.Window, Grace: a.def.Grace, Retention: a.def.Retention, Rollups: a.def.Rollups,
		DropLate: a.def.DropLate, Sum: a.def.Sum, MaxKey: a.def.MaxKey, Idle: -1,
	})
	if err != nil {
		return err
	}
	if err := pipeline.Run(ctx); err != nil {
		return err
	}
	if s := pipeline.Stats(); s.Rejected > 0 && s.Rejected == s.Read {
		return fmt.Errorf("audit: none of %d records can be understood, the first is %s: -key, -time, -time-unit and -sum must be as they were when it was counted", s.Read, a.rejected)
	}
	return ctx.Err()
}

// reject notes the first record that cannot be understood. Whoever counted it has left it
// out, too.
func (a *audit) reject(_ context.Context, r kafka.Rejected) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.rejected == "" {
		a.rejected = fmt.Sprintf("%s/%d@%d: %v", r.Topic, r.Partition, r.Offset, r.Cause)
	}
	return nil
}

// upTo is a source that ends where the stored counts do.
type upTo struct {
	tumble.Source
	a *audit
}

func (u upTo) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	all, err := u.Source.Partitions(ctx, stored)
	for id := range all {
		if _, ok := u.a.positions[0][id]; !ok {
			delete(all, id) // nothing of it was counted
		}
	}
	return all, err
}

func (u upTo) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	return u.Source.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
		part := &cutOff{Partition: p, a: u.a, all: math.MaxInt64}
		for _, shard := range u.a.positions {
			c, ok := shard[p.ID()]
			if !ok {
				return nil
			}
			part.shards = append(part.shards, c)
			part.all, part.to, part.origin = min(part.all, c.Offset), max(part.to, c.Offset), max(part.origin, c.Origin)
		}
		return consume(ctx, part)
	})
}

// cutOff is a partition that leaves out what its shard has not counted.
type cutOff struct {
	tumble.Partition
	a      *audit
	shards []tumble.Checkpoint
	origin int64 // where the last of them began
	all    int64 // all shards have counted what is before it
	to     int64 // none has counted what is after it
	begun  int   // events that told what time it was, hereOn once that is known
	events []tumble.Event
}

func (c *cutOff) Fetch(ctx context.Context, from tumble.Position) (tumble.Chunk, error) {
	if from.Offset >= c.to {
		c.gone(from)
		return tumble.Chunk{}, io.EOF
	}
	ch, err := c.Partition.Fetch(ctx, from)
	if errors.Is(err, io.EOF) {
		c.gone(from)
	}
	if c.begun == 0 && from.Offset <= c.origin {
		c.begun = hereOn // all that was counted is there
	}
	if c.begun >= hereOn && from.Offset >= c.origin && ch.Next <= c.all {
		return ch, err // nearly always
	}
	c.events = c.events[:0]
	for _, ev := range ch.Events {
		if c.begun < hereOn {
			if c.begun == 0 {
				c.begun = hereOn - int(min(hereOn-1, (c.to-ev.Offset)/10))
			} else {
				c.begun++
			}
			c.a.leaveOut(ev.Time.Add(time.Hour))
		}
		if at := c.shards[tumble.Hash(ev.Key)%uint64(len(c.shards))]; ev.Offset < at.Offset && ev.Offset >= at.Origin {
			c.events = append(c.events, ev)
		}
	}
	ch.Events = c.events
	return ch, err
}

// gone leaves out all that the partition may have counted, if its log holds no event of
// that any more: none is left to tell what time it was where the log begins.
func (c *cutOff) gone(from tumble.Position) {
	if c.begun > 0 || from.Offset <= c.origin {
		return
	}
	highest := latest
	for i, shard := range c.shards {
		if w := shard.Watermark; i == 0 || w.After(highest) {
			highest = w
		}
	}
	if highest.IsZero() {
		highest = latest
	}
	c.a.leaveOut(highest.Add(c.a.def.Grace + time.Hour))
}

// hereOn is how many events tell what time it was where a log begins: a tenth of those that
// are left, so that a short log is compared, too, and this many at most.
const hereOn = 1000

func (a *audit) leaveOut(before time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if before.After(a.since) {
		a.since = before
	}
}

// compare compares both readers, level by level and window by window.
func (a *audit) compare(ctx context.Context) error {
	err := eachLevel(a.sink, a.def, func(_ int, stored tumble.Reader, own tumble.Definition) error {
		counted, err := a.counted.Rollup(own.Window)
		if err != nil {
			return err
		}
		starts := map[time.Time]bool{}
		for _, r := range []tumble.Reader{stored, counted} {
			totals, err := r.Windows(ctx, earliest, latest)
			if err != nil && !errors.Is(err, tumble.ErrNoDefinition) {
				return err
			}
			for _, t := range totals {
				starts[t.Start] = true
			}
		}
		for _, start := range slices.SortedFunc(maps.Keys(starts), time.Time.Compare) {
			if !start.Before(a.since) {
				if err := a.window(ctx, stored, counted, own.Window, start); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	now, err := a.sink.Positions(ctx)
	if err == nil && !slices.EqualFunc(now, a.positions, func(x, y map[string]tumble.Checkpoint) bool {
		return maps.EqualFunc(x, y, func(x, y tumble.Checkpoint) bool { return x.Offset == y.Offset && x.Log == y.Log })
	}) {
		err = errors.New("the name is counted at the moment: stop that, or try again when nothing comes")
	}
	return err
}

func (a *audit) window(ctx context.Context, stored, counted tumble.Reader, window tumble.Window, start time.Time) error {
	for _, r := range []tumble.Reader{stored, counted} {
		page, err := r.Scan(ctx, start, "", 1)
		if page.State == tumble.Expired || err != nil {
			return err
		}
	}
	has, _, _, err := all(ctx, stored, start)
	if err != nil {
		return err
	}
	want, _, _, err := all(ctx, counted, start)
	if err != nil {
		return err
	}
	a.found.Windows++
	a.found.Counts += len(want)
	var differ []difference
	for key, n := range has {
		if n != want[key] {
			differ = append(differ, difference{key, window.String(), start, n, want[key]})
		}
	}
	for key, n := range want {
		if _, ok := has[key]; !ok {
			differ = append(differ, difference{key, window.String(), start, 0, n})
		}
	}
	slices.SortFunc(differ, func(x, y difference) int { return strings.Compare(x.Key, y.Key) })
	a.found.Differences = append(a.found.Differences, differ...)
	return nil
}

func (a *audit) write(w io.Writer) {
	for i, d := range a.found.Differences {
		if i == mostLines {
			fmt.Fprintf(w, "and %d more\n", len(a.found.Differences)-mostLines)
			break
		}
		of := ""
		if d.Window != a.def.Window.String() {
			of = "/" + d.Window
		}
		fmt.Fprintf(w, "%s %s%s stored %d counted %d\n", program.Line(d.Key), program.ShortMinute(d.Start), of, d.Stored, d.Counted)
	}
	fmt.Fprintf(w, "%d windows, %d counts, %d differences\n", a.found.Windows, a.found.Counts, len(a.found.Differences))
}
