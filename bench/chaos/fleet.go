package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A fleet is the consumers of one group, which count into one store.
type fleet struct {
	name  string // of the group, and of the counts
	store *store
	lab   *lab

	mu        sync.Mutex
	consumers []*consumer
	books     books // the sum of those that ended in order
	ended     int   // how many did
	killed    int   // took theirs with them
	refused   int   // starts that found no server, and said so
	wrong     []string
	watch     *watch
}

// A consumer is a place in a fleet, with one process after another.
type consumer struct {
	fleet   *fleet
	number  int
	spared  bool // never killed or stopped: what it holds is looked at over time
	metrics int
	inspect int

	busy sync.Mutex // held by who does something to it

	mu     sync.Mutex
	child  *child // nil while there shall be none
	starts int
}

// books are a consumer's closing line.
type books struct {
	Read        int64 `json:"read"`
	Counted     int64 `json:"counted"`
	DroppedLate int64 `json:"dropped_late"`
	Expired     int64 `json:"expired"`
	Rejected    int64 `json:"rejected"`
	Skipped     int64 `json:"skipped"`
	Replayed    int64 `json:"replayed"`
	Pending     int64 `json:"pending"`
	Late        int64 `json:"late"`
	Ahead       int64 `json:"ahead"`
	Lost        int64 `json:"lost"`
}

func (b *books) add(o books) {
	b.Read += o.Read
	b.Counted += o.Counted
	b.DroppedLate += o.DroppedLate
	b.Expired += o.Expired
	b.Rejected += o.Rejected
	b.Skipped += o.Skipped
	b.Replayed += o.Replayed
	b.Pending += o.Pending
	b.Late += o.Late
	b.Ahead += o.Ahead
	b.Lost += o.Lost
}

func (b books) closed() bool {
	return b.Read == b.Counted+b.DroppedLate+b.Expired+b.Rejected+b.Skipped+b.Replayed+b.Pending
}

// fail notes what should not have happened.
func (f *fleet) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	f.lab.log("%s: WRONG: %s", f.name, text)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrong = append(f.wrong, text)
}

// join adds a consumer and starts it.
func (f *fleet) join(spared bool) (*consumer, error) {
	c := &consumer{fleet: f, spared: spared, metrics: f.lab.ports.get(), inspect: f.lab.ports.get()}
	f.mu.Lock()
	c.number = len(f.consumers) + 1
	f.consumers = append(f.consumers, c)
	f.mu.Unlock()
	return c, c.start()
}

// all returns the consumers there have been.
func (f *fleet) all() []*consumer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*consumer(nil), f.consumers...)
}

func (c *consumer) String() string { return fmt.Sprintf("%s consumer %d", c.fleet.name, c.number) }

func (c *consumer) path(kind string) string {
	return filepath.Join(c.fleet.lab.work, fmt.Sprintf("%s-consumer-%d.%s", c.fleet.name, c.number, kind))
}

// start starts a process; if it cannot work yet, another, and so on.
func (c *consumer) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.launch()
}

func (c *consumer) launch() error {
	l := c.fleet.lab
	c.starts++
	p, err := launch(c.String(), c.path("out"), c.path("err"), []string{"TUMBLE_CHAOS_INSPECT=" + local(c.inspect), "GOTRACEBACK=all"},
		filepath.Join(l.work, "bin/consumer"), "-brokers", l.kafka.proxied(), "-topic", l.kafka.topic, "-group", c.fleet.name, "-name", c.fleet.name,
		"-redis", c.fleet.store.addresses(), "-window", l.window.String(), "-retention", l.retention.String(), "-rollup", l.rollup(), "-metrics", local(c.metrics))
	if err != nil {
		return err
	}
	c.child = p
	go c.supervise(p)
	return nil
}

// supervise starts another process when one has ended that should not have.
func (c *consumer) supervise(p *child) {
	began := time.Now()
	<-p.done
	time.Sleep(time.Second)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.child != p {
		return // somebody wanted that
	}
	last := tail(c.path("err"), 1)
	if info, err := os.Stat(c.path("out")); p.cmd.ProcessState.ExitCode() == 1 && err == nil && info.Size() == 0 {
		// It found no server when it started: once it has read something it
		// ends with its books.
		c.fleet.mu.Lock()
		c.fleet.refused++
		c.fleet.mu.Unlock()
		c.fleet.lab.log("%s could not start: %s", c, last)
	} else {
		c.fleet.fail("%s ended by itself after %v: %v: %s", c, time.Since(began).Round(time.Second), p.err, last)
	}
	if err := c.launch(); err != nil {
		c.fleet.fail("%s: %v", c, err)
	}
}

// give takes the process away from supervision and returns it.
func (c *consumer) take() *child {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.child
	c.child = nil
	return p
}

func (c *consumer) running() *child {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.child
}

// kill kills it. It reports whether there was something to kill.
func (c *consumer) kill() bool {
	p := c.take()
	if p == nil || !p.kill() {
		return false
	}
	c.fleet.mu.Lock()
	c.fleet.killed++
	c.fleet.mu.Unlock()
	return true
}

// leave asks it to end, and keeps its books.
func (c *consumer) leave() {
	p := c.take()
	if p == nil {
		return
	}
	if !p.alive() {
		return // it could not start
	}
	took, itself := p.end(20 * time.Second)
	if !itself {
		c.fleet.fail("%s did not end within %v of being asked to", c, took)
		return
	}
	lines := strings.Split(tail(c.path("out"), 1), "\n")
	var b books
	decoder := json.NewDecoder(strings.NewReader(lines[0]))
	decoder.DisallowUnknownFields()
	switch err := decoder.Decode(&b); {
	case p.err != nil:
		c.fleet.fail("%s, asked to end: %v: %s", c, p.err, tail(c.path("err"), 1))
	case err != nil:
		// Asked to before it had begun, it has no books.
	case !b.closed():
		c.fleet.fail("%s: its books are not closed: %s", c, lines[0])
	case b.Lost != 0:
		c.fleet.fail("%s: has lost: %s", c, lines[0])
	default:
		c.fleet.mu.Lock()
		c.fleet.books.add(b)
		c.fleet.ended++
		c.fleet.mu.Unlock()
	}
	if err := os.Truncate(c.path("out"), 0); err != nil {
		c.fleet.fail("%s: %v", c, err)
	}
}

// pause stops it for a while, in the sense of SIGSTOP.
func (c *consumer) pause(d time.Duration) {
	p := c.running()
	if p == nil {
		return
	}
	p.signal(syscall.SIGSTOP)
	time.Sleep(d)
	p.signal(syscall.SIGCONT)
}

// ask gets a page of a consumer's own.
func ask(ctx context.Context, port int, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, "GET", "http://"+local(port)+path, nil)
	if err != nil {
		return "", err
	}
	request.Close = true // no connection that it must keep
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var body bytes.Buffer
	_, err = io.Copy(&body, answer.Body)
	return body.String(), err
}

// rollup is the roll-up that consumers count, kept as long as the finest windows.
func (l *lab) rollup() string {
	window := (rolledUp * l.window).String()
	if l.retention == 0 {
		return window // for ever
	}
	return window + ":" + l.retention.String()
}
