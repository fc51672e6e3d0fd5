package prom

import (
	"fmt"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/metrics"
)

// Config configures a Collector.
type Config struct {
	// Pipelines are those whose books are exported, in any number. New copies the
	// slice.
	Pipelines []Pipeline
}

// A Pipeline gives a pipeline the name that its metrics are labelled with.
type Pipeline struct {
	// Name is the value of the label "pipeline". Processes that share the partitions
	// of one topic share it, too: dashboard and alerts add them up by it. It must be
	// valid UTF-8, and unique in a Collector. Required.
	Name string

	// Stats returns the books: the method of a [tumble.Pipeline]. It is called once a
	// scrape, by several goroutines at a time if several scrapes overlap. Required.
	Stats func() tumble.Stats
}

// A Collector exports the books of pipelines. It implements
// [prometheus.Collector], and its methods are safe for concurrent use. It owns no
// goroutine and nothing to close. The pipelines stay their owner's, and may be
// run, stopped and run again while it collects.
type Collector struct {
	pipelines []Pipeline
	table     []row
}

// A row is a metric as the client library describes it.
type row struct {
	metrics.Metric
	desc *prometheus.Desc
	typ  prometheus.ValueType
}

// New returns a Collector, or an error that names the wrong field of cfg.
func New(cfg Config) (*Collector, error) {
	at := map[string]int{} // of each name
	for i, p := range cfg.Pipelines {
		switch first, taken := at[p.Name]; {
		case p.Name == "":
			return nil, fmt.Errorf("prom: Pipelines[%d].Name is empty, must name the pipeline", i)
		case !utf8.ValidString(p.Name):
			return nil, fmt.Errorf("prom: Pipelines[%d].Name is %q, must be valid UTF-8", i, p.Name)
		case taken:
			return nil, fmt.Errorf("prom: Pipelines[%d].Name is %q, as that of Pipelines[%d], must be unique", i, p.Name, first)
		case p.Stats == nil:
			return nil, fmt.Errorf("prom: Pipelines[%d].Stats is nil, must be the pipeline's method", i)
		}
		at[p.Name] = i
	}
	c := &Collector{pipelines: slices.Clone(cfg.Pipelines)}
	for _, m := range metrics.All() {
		labels := []string{"pipeline"}
		if m.Partition != nil {
			labels = append(labels, "partition")
		}
		typ := prometheus.GaugeValue
		if m.Type == metrics.Counter {
			typ = prometheus.CounterValue
		}
		c.table = append(c.table, row{m, prometheus.NewDesc(m.Name, m.Help, labels, nil), typ})
	}
	return c, nil
}

// Describe sends the whole table, also metrics that have no value yet.
func (c *Collector) Describe(descs chan<- *prometheus.Desc) {
	for _, r := range c.table {
		descs <- r.desc
	}
}

// Collect takes the books of each pipeline once, and sends what they say. It does
// no I/O. Values that are unknown, such as the watermark of a partition that has
// none, are left out.
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	for _, p := range c.pipelines {
		s := p.Stats()
		for _, r := range c.table {
			if r.Value != nil {
				to <- prometheus.MustNewConstMetric(r.desc, r.typ, r.Value(s), p.Name)
				continue
			}
			for _, part := range s.Partitions {
				if x, known := r.Partition(part); known {
					to <- prometheus.MustNewConstMetric(r.desc, r.typ, x, p.Name, label(part.ID))
				}
			}
		}
	}
}

// label returns the ID of a partition as the value of a label, which must be valid
// UTF-8. Not strings.ToValidUTF8, which makes one of two: two samples with the
// same labels are an error of the whole scrape.
func label(id string) string {
	if utf8.ValidString(id) {
		return id
	}
	return strconv.QuoteToASCII(id)
}
