package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/redis/rueidis"
)

// A size is one way to count the same number of clicks.
type size struct {
	users, partitions, processes int
	cluster                      bool
}

func (s size) store() string {
	if s.cluster {
		return "3 masters"
	}
	return "one Redis"
}

func (s size) String() string {
	return fmt.Sprintf("%d keys, %d partitions, %d processes, %s", s.users, s.partitions, s.processes, s.store())
}

// growth measures what an event costs as keys, partitions and processes grow.
func growth(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("growth", flag.ExitOnError)
	n := f.Int("n", 2_000_000, "`number` of clicks")
	rounds := f.Int("rounds", 3, "`times` that each runs, in turns")
	where := declareServers(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	up, err := where.start(ctx)
	if err != nil {
		return err
	}
	defer up.stop()
	sizes := []size{
		{users: 10_000, partitions: 4, processes: 1}, // what the others are compared with
		{users: 3, partitions: 4, processes: 1},
		{users: 100_000, partitions: 4, processes: 1},
		{users: 1_000_000, partitions: 4, processes: 1},
		{users: 10_000, partitions: 1, processes: 1},
		{users: 10_000, partitions: 64, processes: 1},
		{users: 10_000, partitions: 64, processes: 4},
	}
	if up.cluster != "" {
		sizes = append(sizes, size{10_000, 4, 1, true}, size{10_000, 64, 4, true})
	}
	topics := make([]topic, len(sizes))
	truths := map[int]*tally{}
	for i, s := range sizes {
		topics[i] = topic{"plain", clicks{*n, s.users, 1}, *n, s.partitions}
		if err := topics[i].write(ctx, up.kafka); err != nil {
			return err
		}
		if truths[s.users] == nil {
			truths[s.users] = topics[i].clicks.truth(*n)
		}
	}
	results := make([][]usage, len(sizes))
	for range *rounds {
		for i, s := range sizes {
			u, err := s.measure(ctx, up, topics[i], truths[s.users])
			if err != nil {
				return fmt.Errorf("%v: %w", s, err)
			}
			results[i] = append(results[i], u)
			fmt.Fprintf(os.Stderr, "bench: %v: %.1f s, %.3f us of CPU an event\n", s, u.took.Seconds(), cpu(u))
		}
	}
	fmt.Printf("%d clicks in %d minutes.\n\n| keys | partitions | processes | store | counts | events/s | client CPU us/event | x the first | Redis CPU us/event |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n", *n, minutes)
	column := func(i int, of func(usage) float64) []float64 {
		var values []float64
		for _, u := range results[i] {
			values = append(values, of(u))
		}
		return sorted(values)
	}
	for i, s := range sizes {
		fmt.Printf("| %d | %d | %d | %s | %d | %s | %s | %s | %s |\n", s.users, s.partitions, s.processes, s.store(), results[i][0].stored,
			spread(column(i, func(u usage) float64 { return float64(u.events) / u.took.Seconds() })),
			spread(column(i, cpu)), short(median(column(i, cpu))/median(column(0, cpu))),
			spread(column(i, func(u usage) float64 { return perEvent(u.redisCPU, u) })))
	}
	return nil
}

// measure counts with all processes at once; took is until the last has ended.
func (s size) measure(ctx context.Context, up *servers, t topic, want *tally) (u usage, err error) {
	stores, err := s.stores(up)
	if err != nil {
		return u, err
	}
	defer func() {
		for _, db := range stores {
			db.Close()
		}
	}()
	var before, after time.Duration
	for _, db := range stores {
		use, err := flush(ctx, db)
		if err != nil {
			return u, err
		}
		before += use.cpu
	}
	address := up.redis
	if s.cluster {
		address = up.cluster
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group := fmt.Sprintf("growth-%d", time.Now().UnixNano())
	type process struct {
		cmd       *exec.Cmd
		out, said bytes.Buffer
	}
	all := make([]*process, s.processes)
	start := time.Now()
	for i := range all {
		cmd, err := self(ctx, "contend", "-kafka", up.kafka, "-redis", address, "-topic", t.name(), "-group", group, "tumble")
		if err != nil {
			return u, err
		}
		p := &process{cmd: cmd}
		cmd.Stdout, cmd.Stderr = &p.out, &p.said
		if err := cmd.Start(); err != nil {
			return u, err // those that run end with ctx
		}
		all[i] = p
	}
	for _, p := range all {
		if waited := p.cmd.Wait(); waited != nil {
			err = errors.Join(err, fmt.Errorf("%w\n%s", waited, p.said.String()))
			continue
		}
		r := p.cmd.ProcessState.SysUsage().(*syscall.Rusage)
		u.cpu += time.Duration(r.Utime.Nano() + r.Stime.Nano())
		for line := range strings.Lines(p.out.String()) {
			if n, ok := strings.CutPrefix(strings.TrimSpace(line), "done "); ok {
				k, bad := strconv.Atoi(n)
				u.events += k
				err = errors.Join(err, bad)
			}
		}
	}
	u.took = time.Since(start)
	if err != nil {
		return u, err
	}
	if u.events != t.n {
		return u, fmt.Errorf("they counted %d of %d clicks", u.events, t.n)
	}
	for _, db := range stores {
		use, err := info(ctx, db)
		if err != nil {
			return u, err
		}
		after += use.cpu
	}
	u.redisCPU = after - before
	got := newTally(want.users)
	if err := countsAt(ctx, address, got); err != nil {
		return u, err
	}
	u.stored = got.stored()
	return u, got.compare(want)
}

// stores are clients of each server by itself.
func (s size) stores(up *servers) ([]rueidis.Client, error) {
	addresses := []string{up.redis}
	if s.cluster {
		addresses = strings.Split(up.cluster, ",")
	}
	var all []rueidis.Client
	for _, a := range addresses {
		db, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{a}, ForceSingleClient: true, DisableCache: true})
		if err != nil {
			for _, db := range all {
				db.Close()
			}
			return nil, err
		}
		all = append(all, db)
	}
	return all, nil
}
