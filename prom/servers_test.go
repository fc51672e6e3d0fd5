//go:build servers

package prom_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/prom"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

// A process is what Prometheus scrapes: a pipeline with a partition of its own.
type process struct {
	events chan tumble.Event
	away   atomic.Bool // the store
	server *httptest.Server
}

// awaySink refuses while its process says so.
type awaySink struct {
	tumble.Sink
	away *atomic.Bool
}

func (s awaySink) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	shards, err := s.Sink.Open(ctx, def)
	for i := range shards {
		shards[i] = awayShard{shards[i], s.away}
	}
	return shards, err
}

type awayShard struct {
	tumble.Shard
	away *atomic.Bool
}

func (s awayShard) Apply(ctx context.Context, b tumble.Batch) error {
	if s.away.Load() {
		return errors.New("away")
	}
	return s.Shard.Apply(ctx, b)
}

func startProcess(t *testing.T, n int) *process {
	p := &process{events: make(chan tumble.Event, 100)}
	source, err := channel.New(channel.Config{ID: fmt.Sprintf("clicks/%d", n), Events: p.events})
	require.NoError(t, err)
	pipeline, err := tumble.New(tumble.Config{
		Source: source, Sink: awaySink{memory.New(memory.Config{}), &p.away}, Window: tumble.Window{Size: time.Minute}, Idle: -1,
		FlushInterval: 10 * time.Millisecond, ShutdownTimeout: time.Second, Logger: slog.New(slog.DiscardHandler),
	})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- pipeline.Run(ctx) }()
	collector, err := prom.New(prom.Config{Pipelines: []prom.Pipeline{{Name: "clicks", Stats: pipeline.Stats}}})
	require.NoError(t, err)
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(collector))
	p.server = httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	t.Cleanup(func() {
		cancel()
		<-done // with the events that a store which was away has lost
		p.server.Close()
	})
	return p
}

// startPrometheus scrapes the processes, and returns its address.
func startPrometheus(t *testing.T, processes ...*process) string {
	dir := t.TempDir()
	var targets []string
	for _, p := range processes {
		targets = append(targets, `"`+p.server.Listener.Addr().String()+`"`)
	}
	rules, err := filepath.Abs("alerts.yaml")
	require.NoError(t, err)
	config := fmt.Sprintf("global: {scrape_interval: 200ms, evaluation_interval: 200ms}\nrule_files: [%q]\nscrape_configs:\n  - job_name: tumble\n    static_configs: [{targets: [%s]}]\n",
		rules, strings.Join(targets, ", "))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yml"), []byte(config), 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	var log bytes.Buffer
	cmd := exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+addr)
	cmd.Stderr = &log
	require.NoError(t, cmd.Start(), "Debian's package prometheus must be installed")
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	require.Eventually(t, func() bool {
		answer, err := http.Get("http://" + addr + "/-/ready")
		if err != nil {
			return false
		}
		answer.Body.Close()
		return answer.StatusCode == http.StatusOK
	}, time.Minute, 100*time.Millisecond)
	return addr
}

// ask returns how many series an expression has now.
func ask(t *testing.T, addr, expr string) int {
	t.Helper()
	answer, err := http.Get("http://" + addr + "/api/v1/query?query=" + url.QueryEscape(expr))
	require.NoError(t, err)
	defer answer.Body.Close()
	var said struct {
		Status, Error string
		Data          struct{ Result []json.RawMessage }
	}
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&said))
	require.Equal(t, "success", said.Status, "%s: %s", expr, said.Error)
	return len(said.Data.Result)
}

// expressions returns those of the alerts, by name, and those of the dashboard.
func expressions(t *testing.T) (alerts map[string]string, panels []string) {
	text, err := os.ReadFile("alerts.yaml")
	require.NoError(t, err)
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	require.NoError(t, yaml.Unmarshal(text, &rules))
	operations, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	alerts = map[string]string{}
	for _, r := range rules.Groups[0].Rules {
		alerts[r.Alert] = r.Expr
		require.NotEmpty(t, r.Annotations["summary"])
		require.NotEmpty(t, r.Annotations["description"])
		require.Contains(t, string(operations), "| `"+r.Alert+"` |", "what to do")
	}
	text, err = os.ReadFile("dashboard.json")
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct{ Targets []struct{ Expr string } }
	}
	require.NoError(t, json.Unmarshal(text, &dashboard))
	for _, p := range dashboard.Panels {
		require.NotEmpty(t, p.Targets)
		for _, q := range p.Targets {
			// As Grafana puts in what is chosen on the page.
			panels = append(panels, strings.NewReplacer("$pipeline", ".*", "$__rate_interval", "1m").Replace(q.Expr))
		}
	}
	return alerts, panels
}

// Three processes in health and in trouble, seen by a real Prometheus.
func TestPrometheus(t *testing.T) {
	alerts, panels := expressions(t)
	require.Len(t, alerts, 10)
	var all []*process
	for n := range 3 {
		all = append(all, startProcess(t, n))
	}
	addr := startPrometheus(t, all...)
	send := func(p *process, ago time.Duration, key string) {
		p.events <- tumble.Event{Key: key, Time: time.Now().Add(-ago)}
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		require.Eventually(t, ok, 30*time.Second, 200*time.Millisecond, what)
	}
	for _, p := range all {
		send(p, 0, "ada")
	}
	for _, expr := range panels {
		eventually(expr, func() bool { return ask(t, addr, expr) > 0 })
	}
	eventually("three partitions", func() bool { return ask(t, addr, "max by (pipeline, partition) (tumble_partition_offset)") == 3 })
	for name, expr := range alerts {
		require.Zero(t, ask(t, addr, expr), "%s in health", name)
	}

	// Each trouble as it comes about, where that takes no minutes.
	fires := func(name string) {
		t.Helper()
		eventually(name, func() bool { return ask(t, addr, alerts[name]) > 0 })
	}
	send(all[0], time.Hour, strings.Repeat("x", 2000)) // too long a key
	fires("TumbleRejected")
	for range 10 {
		send(all[0], time.Hour, "ada") // behind the watermark
	}
	fires("TumbleLate")
	old := startProcess(t, 3)
	all[2].server.Close() // its place is taken by one that reads old events
	old.server.Close()
	l, err := net.Listen("tcp", all[2].server.Listener.Addr().String())
	require.NoError(t, err)
	old.server = &httptest.Server{Listener: l, Config: &http.Server{Handler: old.server.Config.Handler}}
	old.server.Start()
	send(old, time.Hour, "ada")
	fires("TumbleBehind")
	fires("TumbleNotCounted") // clicks/2
	all[1].away.Store(true)
	send(all[1], 0, "ada")
	// It must have failed for as long as the rule looks back.
	eventually("failing", func() bool { return ask(t, addr, strings.ReplaceAll(alerts["TumbleFailing"], "[2m]", "[1s]")) > 0 })
}

// What is exported is what promtool and its rules want.
func TestPromtool(t *testing.T) {
	p := startProcess(t, 0)
	answer, err := http.Get(p.server.URL)
	require.NoError(t, err)
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	for _, args := range [][]string{{"check", "metrics"}, {"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.Command("promtool", args...)
		if args[1] == "metrics" {
			cmd.Stdin = bytes.NewReader(page)
		}
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "promtool %v: %s", args, out)
	}
}
