package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestMain makes the test's binary the program, where program asks for it. With a
// binary that it built itself, go test would not notice that main has changed.
func TestMain(m *testing.M) {
	if os.Getenv("TUMBLE_RUN_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program returns the program with its flags, to be started.
func program(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	// The race detector would let each process sleep for a second at its end.
	cmd.Env = append(os.Environ(), "TUMBLE_RUN_MAIN=1", "GORACE=atexit_sleep_ms=0")
	return cmd
}

// A process is the program, running.
type process struct {
	cmd    *exec.Cmd
	stderr *bufio.Reader
	url    string
}

func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{cmd: program(append([]string{"-addr", "localhost:0"}, args...)...)}
	stderr, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // it may have ended
	p.stderr = bufio.NewReader(stderr)
	line, err := p.stderr.ReadString('\n')
	require.NoError(t, err)
	_, at, ok := strings.Cut(strings.TrimSpace(line), "counter: on ")
	require.True(t, ok, line)
	p.url = at
	return p
}

// stop asks the program to end, which it must within 10 seconds, and returns how
// many hits it says it counted.
func (p *process) stop(t *testing.T, sig os.Signal) (hits int64) {
	t.Helper()
	defer time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Kill() }).Stop()
	require.NoError(t, p.cmd.Process.Signal(sig))
	out, err := io.ReadAll(p.stderr)
	require.NoError(t, err)
	require.NoError(t, p.cmd.Wait(), "%s", out)
	_, err = fmt.Sscanf(string(out), "counter: counted %d hits\n", &hits)
	require.NoError(t, err, "%s", out)
	require.Equal(t, 1, strings.Count(string(out), "\n"), "%s", out)
	return hits
}

// client keeps its connections, so that many hits are under way at any time.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}

// hit posts a hit and returns the answer's status.
func (p *process) hit(page string) (int, error) {
	answer, err := client.Post(p.url+"/hit?page="+url.QueryEscape(page), "", nil)
	if err != nil {
		return 0, err
	}
	return answer.StatusCode, answer.Body.Close()
}

type count struct {
	Page  string
	Start time.Time
	Hits  int64
	State string
}

// count returns how often page was hit in the window that holds at.
func (p *process) count(t *testing.T, page string, at time.Time) (c count) {
	t.Helper()
	answer, err := http.Get(p.url + "/count?" + url.Values{"page": {page}, "at": {at.Format(time.RFC3339)}}.Encode())
	require.NoError(t, err)
	defer answer.Body.Close()
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&c))
	return c
}

func TestCounts(t *testing.T) {
	const decade = 87_600 * time.Hour // a window that will not end during the test
	p := start(t, "-window", decade.String())
	now := time.Now()
	first := now.Add(-time.Duration(now.UnixNano() % int64(decade))).UTC()
	const clients, each = 8, 50
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for range each {
				status, err := p.hit([]string{"home", "a/b&c=d"}[i%2])
				if err != nil || status != http.StatusAccepted {
					t.Errorf("a hit: %d, %v", status, err)
				}
			}
		})
	}
	wg.Wait()
	for _, page := range []string{"home", "a/b&c=d"} {
		require.Eventually(t, func() bool { return p.count(t, page, now).Hits == clients/2*each }, 10*time.Second, 10*time.Millisecond)
		require.Equal(t, count{page, first, clients / 2 * each, "open"}, p.count(t, page, now))
	}
	require.Zero(t, p.count(t, "elsewhere", now).Hits)
	require.Zero(t, p.count(t, "home", now.Add(-decade)).Hits)

	for _, bad := range []string{"/count?at=yesterday", "/count?at=0001-01-01T00:00:00Z"} {
		answer, err := http.Get(p.url + bad)
		require.NoError(t, err)
		require.NoError(t, answer.Body.Close())
		require.Equal(t, http.StatusBadRequest, answer.StatusCode, bad)
	}
	status, err := p.hit("")
	require.NoError(t, err)
	require.Equal(t, http.StatusBadRequest, status)
	require.EqualValues(t, clients*each, p.stop(t, os.Interrupt))
}

// Clients hit without a pause while the service is stopped. What it accepted it
// counts; a hit whose answer was cut off may be counted or not. What may be lost
// when it stops in a wrong order is a moment's hits, so it is stopped 20 times.
func TestStopLosesNothing(t *testing.T) {
	for range 20 {
		p := start(t)
		var accepted, unknown atomic.Int64
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				for {
					switch status, err := p.hit("home"); {
					case errors.Is(err, syscall.ECONNREFUSED):
						return
					case err != nil:
						unknown.Add(1)
					case status == http.StatusAccepted:
						accepted.Add(1)
					default:
						t.Errorf("a hit: %d", status)
						return
					}
				}
			})
		}
		for accepted.Load() < 100 {
			time.Sleep(time.Millisecond)
		}
		counted := p.stop(t, syscall.SIGTERM)
		wg.Wait()
		require.GreaterOrEqual(t, counted, accepted.Load())
		require.LessOrEqual(t, counted, accepted.Load()+unknown.Load())
	}
}

func TestErrorsNameTheCause(t *testing.T) {
	l, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	defer l.Close()
	for says, args := range map[string][]string{
		l.Addr().String():     {"-addr", l.Addr().String()},
		"Window.Size is -1s,": {"-window", "-1s"},
	} {
		out, err := program(args...).CombinedOutput()
		require.Error(t, err)
		require.Contains(t, string(out), says)
		require.Equal(t, 1, strings.Count(string(out), "\n"), "%s", out)
	}
}
