package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A contender tells on its standard output how far it is, a line each:
//
//	first            the first record has arrived
//	done N           N records are counted, and the counts are in the store
//	count USER AT N  a count, if it keeps them itself; after done, and after
//	                 its standard input was closed
//
// It waits after done until its standard input is closed, so that what it has
// used until then can be read.

// A job is what a contender is to do.
type job struct {
	kafka, redis string
	topic        topic
	group        string // of consumers; used by nobody before
	profile      string // file for a CPU profile; empty: none
	scratch      string // folder for its files
}

// usage is what one run cost.
type usage struct {
	events   int
	took     time.Duration // from the first record to done
	cpu      time.Duration // of its process, until done
	running  time.Duration // of that, since the first record
	redisCPU time.Duration
	stored   int   // counts in Redis
	bytes    int64 // that they take there; what a contender keeps itself is not in it
	sent     int64 // bytes, to Redis
}

// measure runs cmd, and compares what it counted.
func measure(ctx context.Context, c contender, j job, s *servers, want *tally) (usage, error) {
	before, err := flush(ctx, s.db)
	if err != nil {
		return usage{}, err
	}
	if j.scratch, err = os.MkdirTemp("", "tumble-bench-"); err != nil {
		return usage{}, err
	}
	defer os.RemoveAll(j.scratch)
	cmd, err := c.command(ctx, j)
	if err != nil {
		return usage{}, err
	}
	var said strings.Builder
	cmd.Stderr = &said
	explain := func(err error) error {
		lines := strings.Split(strings.TrimSpace(said.String()), "\n")
		if len(lines) > 15 {
			lines = lines[len(lines)-15:]
		}
		return fmt.Errorf("%w\n%s", err, strings.Join(lines, "\n"))
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return usage{}, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return usage{}, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return usage{}, err
	}
	var u usage
	got := newTally(want.users)
	if c.dots {
		n, err := countBytes(out)
		u.events, u.took = int(n), time.Since(start)
		if err := errors.Join(err, cmd.Wait()); err != nil {
			return u, explain(err)
		}
		r := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		u.cpu = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	} else {
		err := follow(out, in, cmd.Process.Pid, &u, got)
		if err := errors.Join(err, cmd.Wait()); err != nil {
			return u, explain(err)
		}
	}
	if u.events != j.topic.n {
		return u, explain(fmt.Errorf("it read %d of %d records", u.events, j.topic.n))
	}
	after, err := info(ctx, s.db)
	if err != nil {
		return u, err
	}
	u.redisCPU, u.bytes, u.sent = after.cpu-before.cpu, after.memory-before.memory, after.came-before.came
	switch {
	case c.counts != nil:
		if err := c.counts(ctx, s, got); err != nil {
			return u, err
		}
		u.stored = got.stored()
	case !c.own:
		return u, nil // it counts nothing
	}
	return u, got.compare(want)
}

// follow reads what a contender tells.
func follow(out io.Reader, in io.Closer, pid int, u *usage, got *tally) error {
	var begun time.Time
	var first time.Duration
	defer in.Close()
	scan := bufio.NewScanner(out)
	for scan.Scan() {
		f := strings.Fields(scan.Text())
		switch {
		case len(f) == 1 && f[0] == "first":
			begun = time.Now()
			used, err := cpuOf(pid)
			if err != nil {
				return err
			}
			first = used
		case len(f) == 2 && f[0] == "done":
			u.took = time.Since(begun)
			n, err := strconv.Atoi(f[1])
			if err != nil || begun.IsZero() {
				return fmt.Errorf("%q without a number, or before the first record", scan.Text())
			}
			used, err := cpuOf(pid)
			if err != nil {
				return err
			}
			u.events, u.cpu, u.running = n, used, used-first
			if err := in.Close(); err != nil {
				return err
			}
		case len(f) == 4 && f[0] == "count":
			at, err := time.Parse(time.RFC3339, f[2])
			if err != nil {
				return err
			}
			n, err := strconv.ParseInt(f[3], 10, 64)
			if err != nil {
				return err
			}
			if err := got.add(f[1], at, n); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%q is not what a contender says", scan.Text())
		}
	}
	if u.events == 0 {
		return errors.Join(scan.Err(), errors.New("it ended before it was done"))
	}
	return scan.Err()
}

func countBytes(r io.Reader) (n int64, err error) {
	buf := make([]byte, 64<<10)
	for {
		k, err := r.Read(buf)
		n += int64(k)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// self returns a command that runs a part of this program.
func self(ctx context.Context, args ...string) (*exec.Cmd, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return exec.CommandContext(ctx, program, args...), nil
}

// teller is the contender's side, for those in this program.
type teller struct{ begun bool }

func (t *teller) first() {
	if !t.begun {
		t.begun = true
		fmt.Println("first")
	}
}

func (t *teller) done(n int) error {
	fmt.Println("done", n)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
