package program

import (
	"encoding/json"
	"io"

	"github.com/tumblestream/tumble"
)

// books is the closing line: read is the sum of the six after it and pending;
// late and ahead are of counted.
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

// WriteBooks writes a pipeline's books as one line of JSON.
func WriteBooks(w io.Writer, s tumble.Stats) error {
	return json.NewEncoder(w).Encode(books{
		Read: s.Read, Counted: s.Counted, DroppedLate: s.DroppedLate, Expired: s.Expired,
		Rejected: s.Rejected, Skipped: s.Skipped, Replayed: s.Replayed, Pending: s.Pending,
		Late: s.Late, Ahead: s.Ahead, Lost: s.Lost,
	})
}

// BookMetrics are a pipeline's books, and where it stands in each partition
// that it reads.
func BookMetrics(s tumble.Stats) []Metric {
	metrics := []Metric{
		Counter("tumble_read_total", "Events, and records that gave none, that were read.", s.Read),
		Counter("tumble_counted_total", "Events whose counts are in the store.", s.Counted),
		Counter("tumble_dropped_late_total", "Events of a closed window that were not counted.", s.DroppedLate),
		Counter("tumble_expired_total", "Events of a window past retention, not counted.", s.Expired),
		Counter("tumble_rejected_total", "Records that could not be understood.", s.Rejected),
		Counter("tumble_skipped_total", "Records with nothing to count.", s.Skipped),
		Counter("tumble_replayed_total", "Events read again, or counted by another process.", s.Replayed),
		Gauge("tumble_pending", "Events read whose counts are not yet in the store.", float64(s.Pending)),
		Counter("tumble_late_total", "Counted events that came after their window was closed.", s.Late),
		Counter("tumble_ahead_total", "Counted events too far beyond the wall clock.", s.Ahead),
		Counter("tumble_lost_total", "Offsets that could no longer be read, or were counted and then cut off the log.", s.Lost),
		Gauge("tumble_increments", "Increments held in memory.", float64(s.Increments)),
		Counter("tumble_flushes_total", "Batches that the store applied.", s.Flushes),
		Counter("tumble_conflicts_total", "Batches that the store refused because another process was ahead.", s.Conflicts),
		Counter("tumble_retries_total", "Calls repeated after an error.", s.Retries),
	}
	offset := Metric{Name: "tumble_partition_offset", Help: "Next offset to read.", Type: "gauge"}
	lag := Metric{Name: "tumble_partition_lag", Help: "Offsets between the next to read and the end of the log.", Type: "gauge"}
	behind := Metric{Name: "tumble_partition_uncommitted", Help: "Offsets read that are not yet counted in every shard.", Type: "gauge"}
	watermark := Metric{Name: "tumble_partition_watermark_seconds", Help: "Watermark, in seconds since the Unix epoch.", Type: "gauge"}
	failing := Metric{Name: "tumble_partition_failing", Help: "1 while the last call for the partition failed.", Type: "gauge"}
	for _, p := range s.Partitions {
		label := []Label{{"partition", p.ID}}
		offset.Add(float64(p.Offset), label...)
		if p.End >= 0 {
			lag.Add(float64(max(p.End-p.Offset, 0)), label...)
		}
		if p.Committed >= 0 {
			behind.Add(float64(max(p.Offset-p.Committed, 0)), label...)
		}
		if !p.Watermark.IsZero() {
			watermark.Add(float64(p.Watermark.UnixMilli())/1000, label...)
		}
		bad := 0.0
		if p.Err != nil {
			bad = 1
		}
		failing.Add(bad, label...)
	}
	return append(metrics, offset, lag, behind, watermark, failing)
}
