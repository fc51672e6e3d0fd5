package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A readAPI answers GET /clicks/USER/MINUTE.
type readAPI struct {
	name  string
	load  func(context.Context) error // puts its counts into Redis
	start func(ctx context.Context, address string) (*exec.Cmd, error)
	warm  int64 // requests before it is measured
}

// reads measures how many counts a second and core an API reads, one a request:
// that of examples/clickstream, with the counts in its client's cache and without one,
// and the tutorial's.
func reads(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("reads", flag.ExitOnError)
	n := f.Int("n", 1_000_000, "`number` of clicks that were counted")
	users := f.Int("users", 1000, "`number` of users: each count of theirs is an entry of the client's cache")
	rounds := f.Int("rounds", 3, "`times` that each runs, in turns")
	conns := f.Int("connections", 32, "`number` of connections")
	lasts := f.Duration("for", 5*time.Second, "`time` to measure")
	where := declareServers(f)
	if err := f.Parse(args); err != nil {
		return err
	}
	up, err := where.start(ctx)
	if err != nil {
		return err
	}
	defer up.stop()
	t := topic{"plain", clicks{*n, *users, 1}, *n, partitions}
	if err := t.write(ctx, up.kafka); err != nil {
		return err
	}
	want := t.clicks.truth(t.n)
	apis, cleanup, err := readAPIs(up, t)
	if err != nil {
		return err
	}
	defer cleanup()

	results := make([][]readResult, len(apis))
	for range *rounds {
		for i, api := range apis {
			if _, err := flush(ctx, up.db); err != nil {
				return err
			}
			if err := api.load(ctx); err != nil {
				return fmt.Errorf("%s: %w", api.name, err)
			}
			r, err := api.measure(ctx, up, want, *conns, *lasts)
			if err != nil {
				return fmt.Errorf("%s: %w", api.name, err)
			}
			results[i] = append(results[i], r)
		}
	}
	column := func(rs []readResult, of func(readResult) float64) string {
		values := make([]float64, len(rs))
		for i, r := range rs {
			values[i] = of(r)
		}
		return spread(sorted(values))
	}
	fmt.Println("| API | requests/s | requests/s and core of the server process | server CPU us/request | Redis CPU us/request |\n| --- | --- | --- | --- | --- |")
	for i, api := range apis {
		fmt.Printf("| %s | %s | %s | %s | %s |\n", api.name,
			column(results[i], func(r readResult) float64 { return float64(r.requests) / r.took.Seconds() }),
			column(results[i], func(r readResult) float64 { return float64(r.requests) / r.cpu.Seconds() }),
			column(results[i], func(r readResult) float64 { return float64(r.cpu.Microseconds()) / float64(r.requests) }),
			column(results[i], func(r readResult) float64 { return float64(r.redis.Microseconds()) / float64(r.requests) }))
	}
	return nil
}

// readAPIs returns those that can run here.
func readAPIs(up *servers, t topic) ([]readAPI, func(), error) {
	root, err := repository()
	if err != nil {
		return nil, nil, err
	}
	bin, err := os.MkdirTemp("", "tumble-bench-")
	if err != nil {
		return nil, nil, err
	}
	cleanup := func() { os.RemoveAll(bin) }
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "api"), "./examples/clickstream/api")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		cleanup()
		return nil, nil, fmt.Errorf("go build: %w\n%s", err, out)
	}
	load := func(ctx context.Context) error {
		cmd, err := self(ctx, "contend", "-kafka", up.kafka, "-redis", up.redis, "-topic", t.name(),
			"-n", strconv.Itoa(t.n), "-group", fmt.Sprintf("reads-%d", time.Now().UnixNano()), "tumble")
		if err != nil {
			return err
		}
		cmd.Stderr = os.Stderr
		return cmd.Run()
	}
	ours := func(options ...string) func(context.Context, string) (*exec.Cmd, error) {
		return func(ctx context.Context, address string) (*exec.Cmd, error) {
			return exec.CommandContext(ctx, filepath.Join(bin, "api"), append(options, "-addr", address, "-redis", up.redis, "-name", tumbleName)...), nil
		}
	}
	apis := []readAPI{
		{name: "tumble, counts in the client's cache", warm: 300_000, load: load, start: ours()}, // so many that nearly all are
		{name: "tumble, every count from Redis (-redis-no-cache)", warm: 1000, load: load, start: ours("-redis-no-cache")},
	}
	if why := pythonMissing(); why != "" {
		fmt.Printf("The tutorial's API did not run: %s\n", why)
		return apis, cleanup, nil
	}
	for _, parser := range []string{"h11", "httptools"} {
		apis = append(apis, readAPI{
			name: "FastAPI, redis-py, uvicorn with " + parser,
			warm: 1000,
			load: func(ctx context.Context) error { return loadStrings(ctx, up, t) },
			start: func(ctx context.Context, address string) (*exec.Cmd, error) {
				interpreter, err := python()
				if err != nil {
					return nil, err
				}
				host, port, err := net.SplitHostPort(address)
				if err != nil {
					return nil, err
				}
				cmd := exec.CommandContext(ctx, interpreter, "-m", "uvicorn", "api:app", "--host", host, "--port", port, "--http", parser, "--no-access-log", "--log-level", "warning")
				cmd.Dir = filepath.Join(root, "bench", "python")
				cmd.Env = append(os.Environ(), "REDIS="+up.redis)
				return cmd, nil
			},
		})
	}
	return apis, cleanup, nil
}

// loadStrings stores the counts as the tutorial does.
func loadStrings(ctx context.Context, up *servers, t topic) error {
	cmd, err := self(ctx, "contend", "-kafka", up.kafka, "-redis", up.redis, "-topic", t.name(),
		"-n", strconv.Itoa(t.n), "-group", fmt.Sprintf("reads-%d", time.Now().UnixNano()), "franz-go-loop")
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	return cmd.Run()
}

// readResult is what one run of an API came to.
type readResult struct {
	requests   int64
	took       time.Duration
	cpu, redis time.Duration
}

func (a readAPI) measure(ctx context.Context, up *servers, want *tally, conns int, lasts time.Duration) (r readResult, err error) {
	address, err := freeAddress()
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	server, err := a.start(ctx, address)
	if err != nil {
		return r, err
	}
	var said bytes.Buffer
	server.Stderr = &said
	if err := server.Start(); err != nil {
		return r, err
	}
	defer func() {
		cancel() // kills it
		_ = server.Wait()
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, said.String())
		}
	}()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			return r, err
		}
	}

	var answered atomic.Int64
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for i := range conns {
		wg.Go(func() {
			if err := ask(address, uint64(i), want, &answered, stop); err != nil {
				mu.Lock()
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	read := func() (n int64, at time.Time, cpu time.Duration, redis redisUse, err error) {
		n, at = answered.Load(), time.Now()
		if cpu, err = cpuOf(server.Process.Pid); err == nil {
			redis, err = info(ctx, up.db)
		}
		return
	}
	for answered.Load() < a.warm && ctx.Err() == nil {
		time.Sleep(10 * time.Millisecond)
		mu.Lock()
		over := failed != nil
		mu.Unlock()
		if over {
			break
		}
	}
	n0, t0, c0, r0, err := read()
	if err == nil {
		time.Sleep(lasts)
		var n1 int64
		var t1 time.Time
		var c1 time.Duration
		var r1 redisUse
		n1, t1, c1, r1, err = read()
		r = readResult{n1 - n0, t1.Sub(t0), c1 - c0, r1.cpu - r0.cpu}
	}
	close(stop)
	wg.Wait()
	if err = errors.Join(err, failed); err == nil && (r.requests == 0 || r.cpu == 0) {
		err = errors.New("nothing was answered")
	}
	return r, err
}

// ask sends one request after the other over one connection, and compares every
// answer.
func ask(address string, seed uint64, want *tally, answered *atomic.Int64, stop <-chan struct{}) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := rand.New(rand.NewPCG(seed, 1))
	in := bufio.NewReader(conn)
	var request, body []byte
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		user, minute := r.IntN(want.users), r.IntN(minutes)
		request = append(request[:0], "GET /clicks/"...)
		request = append(request, userName(user)...)
		request = append(request, '/')
		request = epoch.Add(time.Duration(minute)*time.Minute).AppendFormat(request, minuteOf)
		request = append(request, " HTTP/1.1\r\nHost: bench\r\n\r\n"...)
		if _, err := conn.Write(request); err != nil {
			return err
		}
		if body, err = answer(in, body); err != nil {
			return err
		}
		wanted := strconv.AppendUint([]byte(`"clicks":`), uint64(want.counts[minute*want.users+user]), 10)
		at := bytes.Index(body, wanted)
		if at < 0 || len(body) > at+len(wanted) && body[at+len(wanted)] >= '0' && body[at+len(wanted)] <= '9' {
			return fmt.Errorf("%s answered %q, without %s", bytes.TrimSpace(request), body, wanted)
		}
		answered.Add(1)
	}
}

// answer reads an HTTP answer with a Content-Length into body. net/http would
// cost more than what is measured.
func answer(in *bufio.Reader, body []byte) ([]byte, error) {
	status, err := in.ReadSlice('\n')
	if err != nil {
		return body, err
	}
	ok := bytes.HasPrefix(status, []byte("HTTP/1.1 200 "))
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return body, err
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return body, err
			}
		}
	}
	body = append(body[:0], make([]byte, length)...)
	if _, err := io.ReadFull(in, body); err != nil {
		return body, err
	}
	if !ok {
		return body, fmt.Errorf("not answered with 200 but %q", body)
	}
	return body, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
