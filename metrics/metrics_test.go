package metrics_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/metrics"
)

// Names and types are those that Prometheus' own linter asks for.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range metrics.All() {
		require.Regexp(t, `^tumble_[a-z_]+[a-z]$`, m.Name)
		require.False(t, seen[m.Name], m.Name)
		seen[m.Name] = true
		require.Regexp(t, `^[A-Z0-9].*\.$`, m.Help, m.Name)
		require.Contains(t, []metrics.Type{metrics.Counter, metrics.Gauge}, m.Type, m.Name)
		require.Equal(t, m.Type == metrics.Counter, strings.HasSuffix(m.Name, "_total"), m.Name)
		require.Equal(t, m.Unit == "seconds", strings.HasSuffix(m.Name, "_seconds"), m.Name)
		require.NotEqual(t, m.Value == nil, m.Partition == nil, "%s has one of both", m.Name)
		require.Equal(t, m.Partition != nil, strings.HasPrefix(m.Name, "tumble_partition_"), m.Name)
	}
}

// Every number of the books is one metric, also one that is yet to come.
func TestEveryNumberIsThere(t *testing.T) {
	var s tumble.Stats
	v := reflect.ValueOf(&s).Elem()
	want := map[float64]string{}
	for i := range v.NumField() {
		if v.Field(i).CanInt() {
			v.Field(i).SetInt(int64(100 + i))
			want[float64(100+i)] = v.Type().Field(i).Name
		}
	}
	require.Len(t, want, v.NumField()-1, "all but Partitions")
	for _, m := range metrics.All() {
		if m.Value == nil {
			continue
		}
		field, ok := want[m.Value(s)]
		require.True(t, ok, "%s is %v", m.Name, m.Value(s))
		name := strings.TrimSuffix(strings.TrimPrefix(m.Name, "tumble_"), "_total")
		require.Equal(t, strings.ToLower(field), strings.ReplaceAll(name, "_", ""))
		delete(want, m.Value(s))
	}
	require.Empty(t, want)
}

func TestPartition(t *testing.T) {
	values := func(p tumble.PartitionStats) map[string]float64 {
		all := map[string]float64{}
		for _, m := range metrics.All() {
			if m.Partition == nil {
				continue
			}
			if x, ok := m.Partition(p); ok {
				all[strings.TrimPrefix(m.Name, "tumble_partition_")] = x
			}
		}
		return all
	}
	require.Equal(t, map[string]float64{"offset": 10, "lag": 15, "uncommitted": 2, "watermark_seconds": 1696163640.5, "waiting": 1, "failing": 1, "uncounted": 0},
		values(tumble.PartitionStats{Offset: 10, End: 25, Committed: 8, Watermark: time.UnixMilli(1696163640500), Waits: "a quota", Err: errors.New("away")}))
	require.Equal(t, map[string]float64{"offset": -1, "waiting": 0, "failing": 0, "uncounted": 0},
		values(tumble.PartitionStats{Offset: -1, End: -1, Committed: -1}), "the rest is unknown")
	require.Equal(t, map[string]float64{"offset": 10, "lag": 0, "uncommitted": 0, "waiting": 0, "failing": 0, "uncounted": 0},
		values(tumble.PartitionStats{Offset: 10, End: 9, Committed: 11}), "read at different moments, never negative")
	require.Equal(t, map[string]float64{"watermark_seconds": 1696163640.5, "waiting": 0, "failing": 0, "uncounted": 1},
		values(tumble.PartitionStats{Offset: 7, End: -1, Committed: 7, Watermark: time.UnixMilli(1696163640500), Uncounted: true}),
		"every process tells the watermark of a partition that nobody has")
}

func TestAllIsACopy(t *testing.T) {
	metrics.All()[0].Name = "other"
	require.Equal(t, "tumble_read_total", metrics.All()[0].Name)
}

// An exporter in a few lines.
func Example() {
	stats := tumble.Stats{Read: 7, Partitions: []tumble.PartitionStats{{ID: "clicks/0", Offset: 7, End: 9, Committed: 7}}}
	for _, m := range metrics.All() {
		if m.Value != nil {
			if x := m.Value(stats); x > 0 {
				fmt.Println(m.Name, m.Type, x)
			}
			continue
		}
		for _, p := range stats.Partitions {
			if x, ok := m.Partition(p); ok {
				fmt.Println(m.Name, m.Type, p.ID, x)
			}
		}
	}
	// Output:
	// tumble_read_total counter 7
	// tumble_partition_offset gauge clicks/0 7
	// tumble_partition_lag gauge clicks/0 2
	// tumble_partition_uncommitted gauge clicks/0 0
	// tumble_partition_waiting gauge clicks/0 0
	// tumble_partition_failing gauge clicks/0 0
	// tumble_partition_uncounted gauge clicks/0 0
}
