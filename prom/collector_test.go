package prom_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/metrics"
	"github.com/tumblestream/tumble/prom"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

// fixed are books that stay as they are.
func fixed(s tumble.Stats) func() tumble.Stats { return func() tumble.Stats { return s } }

// gather returns all samples, by name and labels, as a pedantic registry finds
// them: it wants each to be described, and none twice.
func gather(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	families, err := registry.Gather()
	require.NoError(t, err)
	problems, err := testutil.GatherAndLint(registry)
	require.NoError(t, err)
	require.Empty(t, problems)
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName() + "{"
			for _, l := range m.Label {
				name += fmt.Sprintf("%s=%q ", l.GetName(), l.GetValue())
			}
			all[name+"}"] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

func TestRefused(t *testing.T) {
	stats := fixed(tumble.Stats{})
	for _, c := range []struct {
		pipelines []prom.Pipeline
		says      string
	}{
		{[]prom.Pipeline{{"a", stats}, {"b", stats}, {"a", stats}}, `prom: Pipelines[2].Name is "a", as that of Pipelines[0], must be unique`},
		{[]prom.Pipeline{{"a", stats}, {"", stats}}, "prom: Pipelines[1].Name is empty, must name the pipeline"},
		{[]prom.Pipeline{{"a\xff", stats}}, `prom: Pipelines[0].Name is "a\xff", must be valid UTF-8`},
		{[]prom.Pipeline{{"a", nil}}, "prom: Pipelines[0].Stats is nil, must be the pipeline's method"},
	} {
		_, err := prom.New(prom.Config{Pipelines: c.pipelines})
		require.EqualError(t, err, c.says)
	}
}

// Every row of the table is there for each pipeline, with the table's value, help
// and type.
func TestTable(t *testing.T) {
	parts := []tumble.PartitionStats{
		{ID: "clicks/0", Offset: 10, End: 25, Committed: 8, Watermark: time.UnixMilli(1696163640500), Err: errors.New("away")},
		{ID: "clicks/1", Offset: -1, End: -1, Committed: -1},
	}
	books := map[string]tumble.Stats{
		"clicks": {Read: 7, Counted: 3, Rejected: 1, Pending: 3, Lost: 9, Partitions: parts},
		"orders": {Read: 1, Counted: 1, Partitions: parts[:1]},
		"idle":   {},
	}
	var cfg prom.Config
	for name, s := range books {
		cfg.Pipelines = append(cfg.Pipelines, prom.Pipeline{Name: name, Stats: fixed(s)})
	}
	c, err := prom.New(cfg)
	require.NoError(t, err)

	want := map[string]float64{}
	for name, s := range books {
		for _, m := range metrics.All() {
			if m.Value != nil {
				want[fmt.Sprintf("%s{pipeline=%q }", m.Name, name)] = m.Value(s)
				continue
			}
			for _, p := range s.Partitions {
				if x, known := m.Partition(p); known {
					want[fmt.Sprintf("%s{partition=%q pipeline=%q }", m.Name, p.ID, name)] = x
				}
			}
		}
	}
	require.Len(t, want, 3*17+7+4+7)
	require.Equal(t, want, gather(t, c))

	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	require.NoError(t, err)
	help, types := map[string]string{}, map[string]string{}
	for _, f := range families {
		help[f.GetName()], types[f.GetName()] = f.GetHelp(), f.GetType().String()
	}
	for _, m := range metrics.All() {
		require.Equal(t, m.Help, help[m.Name])
		require.Equal(t, map[metrics.Type]string{metrics.Counter: "COUNTER", metrics.Gauge: "GAUGE"}[m.Type], types[m.Name])
	}
}

// Describe sends each row once, also without a single pipeline: a second
// Collector in one registry is refused, and the first can be taken out.
func TestDescribe(t *testing.T) {
	c, err := prom.New(prom.Config{})
	require.NoError(t, err)
	require.Empty(t, gather(t, c))
	descs := make(chan *prometheus.Desc, 100)
	c.Describe(descs)
	require.Len(t, descs, len(metrics.All()))
	registry := prometheus.NewRegistry()
	require.NoError(t, registry.Register(c))
	other, err := prom.New(prom.Config{})
	require.NoError(t, err)
	require.ErrorAs(t, registry.Register(other), &prometheus.AlreadyRegisteredError{})
	require.True(t, registry.Unregister(c))
	require.NoError(t, registry.Register(other))
}

// IDs may be any bytes. They must not break the scrape of everything else.
func TestStrangeIDs(t *testing.T) {
	var s tumble.Stats
	for _, id := range []string{"", "a\xff", "a\xfe", "a\xff\xff", "it's \"quoted\"\n日本"} {
		s.Partitions = append(s.Partitions, tumble.PartitionStats{ID: id, End: -1, Committed: -1})
	}
	c, err := prom.New(prom.Config{Pipelines: []prom.Pipeline{{"clicks", fixed(s)}}})
	require.NoError(t, err)
	all := gather(t, c)
	require.Len(t, all, 17+4*5)
	require.Contains(t, all, fmt.Sprintf("tumble_partition_offset{partition=%q pipeline=%q }", `"a\xff"`, "clicks"))
	require.Contains(t, all, fmt.Sprintf("tumble_partition_offset{partition=%q pipeline=%q }", "it's \"quoted\"\n日本", "clicks"))
}

// Scrapes that overlap, while the pipelines run and end.
func TestConcurrent(t *testing.T) {
	var cfg prom.Config
	var running sync.WaitGroup
	for i := range 3 {
		events := make(chan tumble.Event)
		source, err := channel.New(channel.Config{ID: "part", Events: events, Final: true})
		require.NoError(t, err)
		p, err := tumble.New(tumble.Config{Source: source, Sink: memory.New(memory.Config{}), Window: tumble.Window{Size: time.Minute},
			FlushInterval: time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		cfg.Pipelines = append(cfg.Pipelines, prom.Pipeline{Name: fmt.Sprint("p", i), Stats: p.Stats})
		running.Go(func() {
			if err := p.Run(context.Background()); err != nil {
				t.Error(err)
			}
		})
		running.Go(func() {
			defer close(events)
			for n := range 5000 {
				events <- tumble.Event{Key: "user_1", Time: time.Unix(int64(n), 0)}
			}
		})
	}
	c, err := prom.New(cfg)
	require.NoError(t, err)
	cfg.Pipelines[0].Stats = nil // New has copied the slice
	registry := prometheus.NewPedanticRegistry()
	require.NoError(t, registry.Register(c))
	ended := make(chan struct{})
	var scraping sync.WaitGroup
	for range 4 {
		scraping.Go(func() {
			for done := false; !done; {
				select {
				case <-ended:
					done = true
				default:
				}
				if _, err := registry.Gather(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
	close(ended)
	scraping.Wait()
	all := gather(t, c)
	for i := range 3 {
		require.EqualValues(t, 5000, all[fmt.Sprintf("tumble_counted_total{pipeline=%q }", fmt.Sprint("p", i))])
	}
	require.Len(t, all, 3*17, "the partitions are read no more")
}
