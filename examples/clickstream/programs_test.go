package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kfake"
)

// bin holds the programs as a user would build them.
var bin string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "clickstream")
		if err == nil {
			defer os.RemoveAll(dir)
			bin = dir
			var out []byte
			if out, err = exec.Command("go", "build", "-o", dir+string(filepath.Separator), "./...").CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// A process is one of the programs, running.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended

	mu     sync.Mutex
	stdout []string // lines
	stderr []string
}

// start starts a program; it is killed when the test ends, if it still runs.
func start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(filepath.Join(bin, name), args...), done: make(chan struct{})}
	stdout, err := p.cmd.StdoutPipe()
	require.NoError(t, err)
	stderr, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	var reading sync.WaitGroup
	read := func(from io.Reader, to *[]string) {
		for s := bufio.NewScanner(from); s.Scan(); {
			p.mu.Lock()
			*to = append(*to, s.Text())
			p.mu.Unlock()
		}
	}
	reading.Go(func() { read(stdout, &p.stdout) })
	reading.Go(func() { read(stderr, &p.stderr) })
	go func() {
		defer close(p.done)
		reading.Wait()
		_ = p.cmd.Wait() // its exit code is read from ProcessState
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may have ended
		<-p.done
		if t.Failed() {
			t.Logf("%s %v\nstdout: %q\nstderr: %q", name, args, last(p.stdout), last(p.stderr))
		}
	})
	return p
}

func last(lines []string) []string { return lines[max(0, len(lines)-20):] }

// wait returns the exit code, or fails the test after limit.
func (p *process) wait(t *testing.T, limit time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		t.Fatalf("%v still runs after %v", p.cmd.Args, limit)
		return -1
	}
}

// stop asks the program to end and returns the books that it prints.
func (p *process) stop(t *testing.T, sig os.Signal, limit time.Duration) books {
	t.Helper()
	require.NoError(t, p.cmd.Process.Signal(sig))
	require.Zero(t, p.wait(t, limit))
	return p.books(t)
}

// books are the closing line, which must be the only one on stdout.
type books struct {
	Read, Counted, Expired, Rejected, Skipped, Replayed, Pending, Late, Ahead, Lost int64

	DroppedLate int64 `json:"dropped_late"`
}

var booksLine = regexp.MustCompile(`^\{"read":\d+,"counted":\d+,"dropped_late":\d+,"expired":\d+,"rejected":\d+,"skipped":\d+,"replayed":\d+,"pending":\d+,"late":\d+,"ahead":\d+,"lost":\d+\}$`)

func (p *process) books(t *testing.T) (b books) {
	t.Helper()
	require.Len(t, p.stdout, 1)
	require.Regexp(t, booksLine, p.stdout[0])
	require.NoError(t, json.Unmarshal([]byte(p.stdout[0]), &b))
	require.Equal(t, b.Read, b.Counted+b.DroppedLate+b.Expired+b.Rejected+b.Skipped+b.Replayed+b.Pending)
	return b
}

// line waits for a line on stderr that matches, and returns its groups.
func (p *process) line(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, l := range p.stderr {
			if found = re.FindStringSubmatch(l); found != nil {
				return true
			}
		}
		return false
	}, 30*time.Second, 10*time.Millisecond, pattern)
	return found
}

// fails runs a program that must end with code and one line on stderr, within
// the 5 seconds that a user is promised.
func fails(t *testing.T, code int, says string, name string, args ...string) {
	t.Helper()
	p := start(t, name, args...)
	require.Equal(t, code, p.wait(t, 5*time.Second), "%v", args)
	require.Len(t, p.stderr, 1)
	require.Contains(t, p.stderr[0], says)
	require.Empty(t, p.stdout)
}

func fetch(t *testing.T, url string, to any) {
	t.Helper()
	body := text(t, url)
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(to), body)
}

func text(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	require.NoError(t, err)
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode, string(body))
	return string(body)
}

type count struct {
	UserID string `json:"user_id"`
	Minute string
	Clicks int64
	State  string
}

type userClicks struct {
	UserID string `json:"user_id"`
	Clicks int64
}

type top struct {
	Minute string
	State  string
	Users  int
	Clicks int64
	Top    []userClicks
}

// clicksOf adds up all clicks.
func clicksOf(users []userClicks) (n int64) {
	for _, u := range users {
		n += u.Clicks
	}
	return n
}

func TestEmbedded(t *testing.T) {
	p := start(t, "clickstream", "-addr", "localhost:0", "-window", "1s", "-rate", "200", "-users", "5")
	found := p.line(t, `curl (http://localhost:\d+)/clicks/(user_[1-5])/(\S+)$`)
	url, user, minute := found[1], found[2], found[3]

	var first count
	fetch(t, found[0][len("curl "):], &first)
	require.Equal(t, user, first.UserID)
	require.Equal(t, minute, first.Minute)
	require.Positive(t, first.Clicks, "it said that there is a count")

	require.Eventually(t, func() bool {
		fetch(t, url+"/clicks/"+user+"/"+minute, &first)
		return first.State == "closed"
	}, 10*time.Second, 50*time.Millisecond, "the window closes")
	var again top
	fetch(t, url+"/minutes/"+minute+"/top", &again)
	require.Equal(t, "closed", again.State)
	require.Len(t, again.Top, again.Users)
	require.Equal(t, again.Clicks, clicksOf(again.Top))
	require.Contains(t, again.Top, userClicks{user, first.Clicks})

	var health map[string]string
	for _, path := range []string{"/healthz", "/readyz"} {
		fetch(t, url+path, &health)
		require.Equal(t, "ok", health["status"])
	}
	metrics := text(t, url+"/metrics")
	require.Regexp(t, `(?m)^tumble_counted_total [1-9]\d*$`, metrics)
	require.Contains(t, metrics, `tumble_partition_lag{partition="clicks"}`)

	books := p.stop(t, os.Interrupt, time.Second)
	require.Positive(t, books.Counted)
	require.Equal(t, books.Read, books.Counted, "nothing is left over")
	require.Empty(t, p.stderr[1:], "nothing went wrong")
}

func TestEmbeddedAsFastAsPossible(t *testing.T) {
	p := start(t, "clickstream", "-addr", "localhost:0", "-rate", "0", "-seed", "7", "-users", "1000")
	p.line(t, `curl http`)
	time.Sleep(300 * time.Millisecond)
	books := p.stop(t, syscall.SIGTERM, 3*time.Second)
	require.Greater(t, books.Read, int64(10_000))
	require.Equal(t, books.Read, books.Counted)
}

func TestEmbeddedErrors(t *testing.T) {
	p := start(t, "clickstream", "-addr", "localhost:0")
	addr := strings.TrimPrefix(p.line(t, `curl (http://localhost:\d+)/`)[1], "http://")
	fails(t, 1, addr, "clickstream", "-addr", addr)
	for _, flag := range []string{"-window=0s", "-rate=-1", "-users=0", "-addr=nowhere", "-seed=x", "-nonsense"} {
		name, _, _ := strings.Cut(flag, "=")
		fails(t, 2, name, "clickstream", flag)
	}
	fails(t, 2, "stray", "clickstream", "stray")
}

func TestHelp(t *testing.T) {
	for name, flags := range map[string]string{
		"clickstream": "addr localhost:8000,rate 1000,users 3,window 1m,seed 0",
		"producer":    "brokers localhost:9092,topic clickstream,users 3,rate 1,count 0,start now,step real,seed 0,quiet false",
		"consumer": "brokers localhost:9092,topic clickstream,group clickstream-group,session 10s,redis localhost:6379,name clickstream,key user_id,time timestamp," +
			`window 1m,grace 0s,retention 0,drop-late false,start earliest,idle 10s,flush 100ms,instance "",dead-letters "",metrics "",until-end false,max-key 1024,allow-eviction false,redis-no-cache false,time-unit rfc3339,sum "",rollup none`,
		"api": "addr localhost:8000,redis localhost:6379,name clickstream,redis-no-cache false",
	} {
		p := start(t, name, "-h")
		require.Zero(t, p.wait(t, 5*time.Second))
		text := strings.Join(p.stdout, "\n")
		for _, flag := range strings.Split(flags, ",") {
			flag, standard, _ := strings.Cut(flag, " ")
			require.Regexp(t, `(?m)^  -`+flag+`( \S+)?\n.*\(default `+regexp.QuoteMeta(standard), text, name)
		}
		require.Equal(t, strings.Count(flags, ",")+1, strings.Count(text, "\n  -"), "no other flags")
	}
}

// TestFlagsBeforeServers checks that a bad flag is said before a server is
// asked for anything.
func TestFlagsBeforeServers(t *testing.T) {
	for name, flags := range map[string][]string{
		"producer": {"-users=0", "-rate=-1", "-rate=x", "-count=-1", "-start=foo", "-step=-1s", "-step=x", "-seed=x", "-brokers=x", "-brokers=", "-topic=", "-quiet=x", "-x"},
		"consumer": {"-window=0s", "-window=fortnight", "-grace=-1s", "-grace=1us", "-retention=-1s", "-start=foo", "-idle=0s", "-flush=0s", "-flush=-1s", "-metrics=x",
			"-brokers=x", "-topic=", "-topic=a b", "-group=", "-redis=x", "-redis=http://x", "-name=", "-key=", "-time=", "-drop-late=x", "-until-end=x", "-x"},
		"api": {"-addr=x", "-addr=", "-redis=", "-name=", "-x"},
	} {
		for _, flag := range flags {
			named, _, _ := strings.Cut(flag, "=")
			fails(t, 2, named, name, flag)
		}
	}
}

func TestUnreachableServers(t *testing.T) {
	fails(t, 1, "localhost:1", "producer", "-brokers", "localhost:1")
	fails(t, 1, "localhost:1", "consumer", "-brokers", "localhost:1")
	fails(t, 1, "localhost:1", "api", "-addr", "localhost:0", "-redis", "localhost:1")
}

// A producer whose brokers have gone says which clicks they did not take, also when
// it is stopped meanwhile.
func TestProducerSaysWhatIsNotDelivered(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(2, "clicks"))
	require.NoError(t, err)
	defer cluster.Close()
	p := start(t, "producer", "-brokers", cluster.ListenAddrs()[0], "-topic", "clicks", "-rate", "50")
	require.Eventually(t, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.stdout) > 10
	}, 30*time.Second, 10*time.Millisecond)
	cluster.Close()
	time.Sleep(100 * time.Millisecond)
	require.NoError(t, p.cmd.Process.Signal(os.Interrupt))
	require.Equal(t, 1, p.wait(t, closing+5*time.Second))
	found := regexp.MustCompile(`(?m)^producer: (\d+) clicks delivered, ([1-9]\d*) failed\nproducer: .*\b(\d+) of (\d+) clicks were not delivered to clicks$`).
		FindStringSubmatch(strings.Join(p.stderr, "\n"))
	require.NotNil(t, found)
	require.Equal(t, strconv.Itoa(len(p.stdout)), found[1], "a report for each")
	require.Equal(t, found[2], found[3])
}

// closing is how long a producer may take for its last clicks.
const closing = 10 * time.Second

// TestEmbeddedNeedsNothingElse holds the promise that the embedded defaults
// compile nothing but this module and the standard library.
func TestEmbeddedNeedsNothingElse(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		t.Fatalf("%s", exit.Stderr)
	}
	require.NoError(t, err)
	for _, path := range strings.Fields(string(out)) {
		first, _, _ := strings.Cut(path, "/")
		outside := strings.Contains(first, ".") && !strings.HasPrefix(path, "github.com/tumblestream/tumble")
		require.False(t, outside, path)
	}
}
