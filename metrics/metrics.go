// Package metrics is the table of a pipeline's metrics: the name, the meaning and
// the value of each number in [tumble.Stats]. It knows no exporter and no format.
// An exporter walks [All] and needs to know nothing else about a pipeline, so that
// dashboards and alerts find the same names wherever they come from.
package metrics

import (
	"slices"

	"github.com/tumblestream/tumble"
)

// A Type says how the values of a metric move.
type Type string

const (
	// Counter values never fall during a run of the pipeline.
	Counter Type = "counter"
	// Gauge values rise and fall.
	Gauge Type = "gauge"
)

// A Metric is one row of the table. Either Value or Partition is set.
type Metric struct {
	Name string // Name follows the conventions of Prometheus, such as "tumble_read_total".
	Help string // Help is one sentence.
	Unit string // Unit of the values, in the plural. "" if they are 0 and 1.
	Type Type   // Type of the values.

	// Value returns the value for the whole pipeline.
	Value func(tumble.Stats) float64

	// Partition returns the value for one of Stats.Partitions, and false while it
	// is unknown. Label the value with the partition's ID.
	Partition func(tumble.PartitionStats) (float64, bool)
}

// All returns the table. Metrics of the pipeline come before those of its
// partitions. The caller owns the slice.
func All() []Metric { return slices.Clone(table) }

var table = []Metric{
	counter("tumble_read_total", "events", "Events, and records without any, that were read.",
		func(s tumble.Stats) int64 { return s.Read }),
	counter("tumble_counted_total", "events", "Events whose counts are in the store.",
		func(s tumble.Stats) int64 { return s.Counted }),
	counter("tumble_sum_total", "units", "What the counted events add up to: their N if it is summed, else their number.",
		func(s tumble.Stats) int64 { return s.Sum }),
	counter("tumble_dropped_late_total", "events", "Events of a closed window that were dropped.",
		func(s tumble.Stats) int64 { return s.DroppedLate }),
	counter("tumble_expired_total", "events", "Events of a window past retention that were dropped.",
		func(s tumble.Stats) int64 { return s.Expired }),
	counter("tumble_rejected_total", "events", "Records that could not be understood.",
		func(s tumble.Stats) int64 { return s.Rejected }),
	counter("tumble_skipped_total", "events", "Records with nothing to count.",
		func(s tumble.Stats) int64 { return s.Skipped }),
	counter("tumble_replayed_total", "events", "Events that were read again, or counted by another process.",
		func(s tumble.Stats) int64 { return s.Replayed }),
	gauge("tumble_pending", "events", "Events read whose counts are not yet in the store.",
		func(s tumble.Stats) int64 { return s.Pending }),
	counter("tumble_late_total", "events", "Counted events that came after their window was closed.",
		func(s tumble.Stats) int64 { return s.Late }),
	counter("tumble_ahead_total", "events", "Counted events too far ahead of the wall clock.",
		func(s tumble.Stats) int64 { return s.Ahead }),
	counter("tumble_lost_total", "offsets", "Offsets that could no longer be read, or were counted and then truncated.",
		func(s tumble.Stats) int64 { return s.Lost }),
	gauge("tumble_increments", "increments", "Increments held in memory.",
		func(s tumble.Stats) int64 { return s.Increments }),
	gauge("tumble_key_bytes", "bytes", "Bytes of the keys of increments held in memory.",
		func(s tumble.Stats) int64 { return s.KeyBytes }),
	counter("tumble_flushes_total", "batches", "Batches that the store applied.",
		func(s tumble.Stats) int64 { return s.Flushes }),
	counter("tumble_conflicts_total", "batches", "Batches that the store refused because another process was ahead or it had lost data.",
		func(s tumble.Stats) int64 { return s.Conflicts }),
	counter("tumble_retries_total", "calls", "Calls repeated after an error.",
		func(s tumble.Stats) int64 { return s.Retries }),

	partition("tumble_partition_offset", "offsets", "Next offset to read.",
		func(p tumble.PartitionStats) (float64, bool) { return float64(p.Offset), !p.Uncounted }),
	partition("tumble_partition_lag", "offsets", "Offsets between the next one to read and the end of the log.",
		func(p tumble.PartitionStats) (float64, bool) { return float64(max(p.End-p.Offset, 0)), p.End >= 0 }),
	partition("tumble_partition_uncommitted", "offsets", "Offsets read that are not yet counted in every shard.",
		func(p tumble.PartitionStats) (float64, bool) {
			return float64(max(p.Offset-p.Committed, 0)), p.Committed >= 0 && !p.Uncounted
		}),
	partition("tumble_partition_watermark_seconds", "seconds", "Watermark, in seconds since the Unix epoch.",
		func(p tumble.PartitionStats) (float64, bool) {
			return float64(p.Watermark.UnixMilli()) / 1000, !p.Watermark.IsZero()
		}),
	flag("tumble_partition_waiting", "1 while a quota or an open transaction holds reading up.",
		func(p tumble.PartitionStats) bool { return p.Waits != "" }),
	flag("tumble_partition_failing", "1 while the last call for the partition failed.",
		func(p tumble.PartitionStats) bool { return p.Err != nil }),
	flag("tumble_partition_uncounted", "1 while no process counts the partition and windows wait for it. Every process says so.",
		func(p tumble.PartitionStats) bool { return p.Uncounted }),
}

func counter(name, unit, help string, value func(tumble.Stats) int64) Metric {
	return Metric{Name: name, Help: help, Unit: unit, Type: Counter,
		Value: func(s tumble.Stats) float64 { return float64(value(s)) }}
}

func gauge(name, unit, help string, value func(tumble.Stats) int64) Metric {
	m := counter(name, unit, help, value)
	m.Type = Gauge
	return m
}

func partition(name, unit, help string, value func(tumble.PartitionStats) (float64, bool)) Metric {
	return Metric{Name: name, Help: help, Unit: unit, Type: Gauge, Partition: value}
}

func flag(name, help string, value func(tumble.PartitionStats) bool) Metric {
	return partition(name, "", help, func(p tumble.PartitionStats) (float64, bool) {
		if value(p) {
			return 1, true
		}
		return 0, true
	})
}
