package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A child is a process that we started. It does not outlive us.
type child struct {
	name string
	out  string // file with its standard output
	cmd  *exec.Cmd
	done chan struct{} // closed once it has ended
	err  error         // how it ended; after done
}

// launch starts a process, with standard output and error appended to two
// files.
func launch(name, out, log string, env []string, command ...string) (*child, error) {
	c := &child{name: name, out: out, cmd: exec.Command(command[0], command[1:]...), done: make(chan struct{})}
	c.cmd.Env = append(os.Environ(), env...)
	for _, one := range []struct {
		path string
		to   *io.Writer
	}{{out, &c.cmd.Stdout}, {log, &c.cmd.Stderr}} { // which may be the same file
		file, err := os.OpenFile(one.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, err
		}
		defer file.Close() // the process has its own
		*one.to = file
	}
	// A group of its own: the interrupt of a terminal is for us alone, who end
	// all in order.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) signal(s syscall.Signal) { _ = c.cmd.Process.Signal(s) }

// kill ends it with SIGKILL and waits for that. It reports whether it was alive.
func (c *child) kill() bool {
	alive := c.alive()
	c.signal(syscall.SIGKILL)
	<-c.done
	var status *exec.ExitError
	if errors.As(c.err, &status) {
		if w, ok := status.Sys().(syscall.WaitStatus); ok {
			return alive && w.Signaled() && w.Signal() == syscall.SIGKILL
		}
	}
	return false
}

// end asks it to end, and reports how long that took and whether it ended by
// itself within the time.
func (c *child) end(within time.Duration) (time.Duration, bool) {
	began := time.Now()
	c.signal(syscall.SIGTERM)
	select {
	case <-c.done:
		return time.Since(began), true
	case <-time.After(within):
		c.kill()
		return time.Since(began), false
	}
}

func (c *child) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// usage is what /proc says of a process.
type usage struct{ fds, threads, rss int64 }

func (c *child) usage() (u usage, err error) {
	proc := fmt.Sprintf("/proc/%d/", c.pid())
	fds, err := os.ReadDir(proc + "fd")
	if err != nil {
		return u, err
	}
	u.fds = int64(len(fds))
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		switch name {
		case "VmRSS":
			u.rss = n << 10
		case "Threads":
			u.threads = n
		}
	}
	return u, nil
}

// tail returns the last lines of a file.
func tail(path string, lines int) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// ports hands out ports that are free, each once. A Redis Cluster's nodes talk
// on a second one, 10000 above, which is free too.
type ports struct {
	mu   sync.Mutex
	next int
}

func (p *ports) get() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		p.next++
		if p.next > 22700 {
			panic("no free port is left")
		}
		if free(p.next) && free(p.next+10000) {
			return p.next
		}
	}
}

func free(port int) bool {
	l, err := net.Listen("tcp", local(port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
