package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/internal/kafkadial"
	"github.com/tumblestream/tumble/internal/program"
)

// All times that a window may start at: one that holds the first event time lasts ten years
// at most.
var (
	earliest = time.Date(1690, 1, 1, 0, 0, 0, 0, time.UTC)
	latest   = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)
)

// A shown is what show prints in JSON.
type shown struct {
	Definition string           `json:"definition"`
	Levels     []shownLevel     `json:"levels"`
	Shards     int              `json:"shards"`
	Keys       int64            `json:"redis_keys"`
	Bytes      int64            `json:"redis_bytes"`
	Frontier   *time.Time       `json:"frontier"`
	Partitions []shownPartition `json:"partitions"`
}

type shownLevel struct {
	Window    string `json:"window"`
	Retention string `json:"retention"`
	Windows   int    `json:"windows"` // that are stored
	N         int64  `json:"n"`       // of all their counts
}

type shownPartition struct {
	Partition string     `json:"partition"`
	Offset    int64      `json:"offset"`
	Watermark *time.Time `json:"watermark"`
	Ended     bool       `json:"ended"`
	Lag       *int64     `json:"lag"` // null: no brokers are given, or the topic has no such partition
}

var showCommand = command{
	name: "show", args: "NAME", about: "shows what is stored under a name, and how far it is counted",
	help: "It looks at every key, to tell how much memory they take. With -brokers it tells how many records of each partition are\nnot yet counted.\n",
	define: func(fs *flag.FlagSet) func(context.Context, *tool, []string) error {
		brokers := fs.String("brokers", "", "`addresses` of Kafka brokers, separated by commas; empty: no lag is shown")
		topic := fs.String("topic", "", "`name` of the topic; empty: those that the partitions are of")
		return func(ctx context.Context, t *tool, args []string) error {
			var addresses []string
			if *brokers != "" {
				var err error
				if addresses, err = program.Addresses(*brokers); err != nil {
					return usagef("show: -brokers: %w", err)
				}
			}
			sink, def, err := t.stored(ctx, args[0])
			if err != nil {
				return err
			}
			p, err := sink.Progress(ctx)
			if err != nil {
				return err
			}
			ends := map[string]int64{}
			if addresses != nil {
				topics := []string{*topic}
				if *topic == "" {
					topics = topicsOf(p)
				}
				for _, topic := range topics {
					log := kafkadial.New(addresses, topic)
					of, err := log.Ends(ctx)
					log.Close()
					if err != nil {
						return err
					}
					maps.Copy(ends, of)
				}
			}
			size, err := sink.Size(ctx)
			if err != nil {
				return err
			}
			s := shown{Definition: def.String(), Shards: size.Shards, Keys: size.Keys, Bytes: size.Bytes, Frontier: program.OrNull(p.Frontier), Partitions: []shownPartition{}}
			err = eachLevel(sink, def, func(level int, r tumble.Reader, own tumble.Definition) error {
				totals, err := r.Windows(ctx, earliest, latest)
				l := shownLevel{Window: own.Window.String(), Retention: own.Retention.String(), Windows: len(totals)}
				for _, total := range totals {
					l.N += total.N
				}
				s.Levels = append(s.Levels, l)
				return err
			})
			if err != nil {
				return err
			}
			for _, part := range p.Partitions {
				one := shownPartition{Partition: part.ID, Offset: part.Offset, Watermark: program.OrNull(part.Watermark), Ended: part.Ended}
				if end, ok := ends[part.ID]; ok {
					lag := max(0, end-part.Offset)
					one.Lag = &lag
				}
				s.Partitions = append(s.Partitions, one)
			}
			return t.print(s, func(w io.Writer) { s.write(w) })
		}
	},
}

// topicsOf returns the topics of partitions that package kafka has named, but for
// those that have ended: their topic may be gone.
func topicsOf(p tumble.Progress) (topics []string) {
	for _, part := range p.Partitions {
		if i := strings.LastIndexByte(part.ID, '/'); i > 0 && !part.Ended && !slices.Contains(topics, part.ID[:i]) {
			topics = append(topics, part.ID[:i])
		}
	}
	return topics
}

func (s shown) write(w io.Writer) {
	fmt.Fprintf(w, "definition\t%s\n", s.Definition)
	for _, l := range s.Levels {
		fmt.Fprintf(w, "window %s\tkept for %s\t%d stored\t%d in all\n", l.Window, l.Retention, l.Windows, l.N)
	}
	fmt.Fprintf(w, "shards\t%d\nredis\t%d keys\t%d bytes\nfrontier\t%s\n", s.Shards, s.Keys, s.Bytes, instantOr(s.Frontier))
	for _, p := range s.Partitions {
		ended := ""
		if p.Ended {
			ended = "ended"
		}
		lag := ""
		if p.Lag != nil {
			lag = fmt.Sprintf("lag %d", *p.Lag)
		}
		fmt.Fprintf(w, "%s\toffset %d\twatermark %s\t%s\t%s\n", program.Line(p.Partition), p.Offset, instantOr(p.Watermark), lag, ended)
	}
}

func instantOr(t *time.Time) string {
	if t == nil {
		return "none"
	}
	return t.Format(time.RFC3339Nano)
}

// eachLevel calls f with the reader and the definition of each level.
func eachLevel(r tumble.Reader, def tumble.Definition, f func(level int, r tumble.Reader, own tumble.Definition) error) error {
	for i, l := range def.Levels() {
		level, err := r.Rollup(l.Window)
		if err == nil {
			err = f(i, level, def.Level(i))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var checkCommand = command{
	name: "check", args: "NAME", about: "compares counts with the totals that are stored beside them, and roll-ups with their windows",
	help: "Open windows that are counted into meanwhile are left out. It exits with 3 if something differs.\n",
	define: func(*flag.FlagSet) func(context.Context, *tool, []string) error {
		return func(ctx context.Context, t *tool, args []string) error {
			sink, def, err := t.stored(ctx, args[0])
			if err != nil {
				return err
			}
			c := checked{Differences: []string{}}
			err = eachLevel(sink, def, func(_ int, r tumble.Reader, own tumble.Definition) error {
				return c.level(ctx, sink, r, own.Window)
			})
			if err != nil {
				return err
			}
			err = t.print(c, func(w io.Writer) {
				for _, line := range c.Differences {
					fmt.Fprintln(w, line)
				}
				fmt.Fprintf(w, "%d windows, %d counts, %d differences\n", c.Windows, c.Counts, len(c.Differences))
			})
			if err == nil && len(c.Differences) > 0 {
				return errFound
			}
			return err
		}
	},
}

// checked is what check finds.
type checked struct {
	Windows     int      `json:"windows"`
	Counts      int      `json:"counts"`
	Differences []string `json:"differences"`
}

// level compares the windows of a level.
func (c *checked) level(ctx context.Context, finest, r tumble.Reader, window tumble.Window) error {
	totals, err := r.Windows(ctx, earliest, latest)
	if err != nil {
		return err
	}
	for _, total := range totals {
		if total.State == tumble.Expired {
			continue
		}
		if err := c.window(ctx, finest, r, window, total); err != nil {
			return err
		}
	}
	return nil
}

func (c *checked) window(ctx context.Context, finest, r tumble.Reader, window tumble.Window, total tumble.Total) error {
	counts, changed, stays, err := all(ctx, r, total.Start)
	if err != nil {
		return err
	}
	at := window.String() + " " + program.ShortMinute(total.Start)
	c.Windows, c.Counts = c.Windows+1, c.Counts+len(counts)
	if changed && (stays || total.State != tumble.Open) {
		var sum int64
		for _, n := range counts {
			sum += n
		}
		c.Differences = append(c.Differences, fmt.Sprintf("%s: %d counts that add up to %d, its total says %d and %d", at, len(counts), sum, total.Keys, total.N))
	}
	if changed {
		return nil
	}
	// Those of the finest windows, if all of them are kept.
	page, err := finest.Scan(ctx, total.Start, "", 1)
	if err != nil || page.State == tumble.Expired || page.Start.Equal(total.Start) && page.End.Equal(total.End) {
		return err
	}
	parts, err := finest.Windows(ctx, total.Start, total.End)
	if err != nil {
		return err
	}
	sums := map[string]int64{}
	for _, part := range parts {
		fine, changed, _, err := all(ctx, finest, part.Start)
		if err != nil || changed {
			return err // told of with the finest windows
		}
		for key, n := range fine {
			sums[key] += n
		}
	}
	for key, n := range counts {
		if sums[key] != n {
			c.Differences = append(c.Differences, fmt.Sprintf("%s: %s is %d, its finest windows add up to %d", at, program.Line(key), n, sums[key]))
		}
		delete(sums, key)
	}
	for key, n := range sums {
		c.Differences = append(c.Differences, fmt.Sprintf("%s: %s is missing, its finest windows add up to %d", at, program.Line(key), n))
	}
	return nil
}

// all reads a window. changed says that its counts are not what its total says, three
// times in a row, and stays that they were the same each time: nobody counts into it.
func all(ctx context.Context, r tumble.Reader, at time.Time) (counts map[string]int64, changed, stays bool, err error) {
	said := map[string]bool{}
	for range 3 {
		counts, changed = map[string]int64{}, false
		for c, err := range tumble.All(ctx, r, at) {
			if errors.Is(err, tumble.ErrChanged) {
				changed = true
				said[err.Error()] = true
			} else if err != nil {
				return nil, false, false, err
			} else {
				counts[c.Key] = c.N
			}
		}
		if !changed {
			return counts, false, false, nil
		}
	}
	return counts, true, len(said) == 1, nil
}
