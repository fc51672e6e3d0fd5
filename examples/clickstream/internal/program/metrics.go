package program

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"
)

// A Metric is one family of the Prometheus text exposition format, version
// 0.0.4: https://prometheus.io/docs/instrumenting/exposition_formats/.
type Metric struct {
	Name    string // letters, digits and underscores
	Help    string
	Type    string // "counter", "gauge" or "histogram"
	Samples []Sample
}

// A Sample is one value of a Metric.
type Sample struct {
	Suffix string // "_bucket", "_sum" and "_count" of a histogram
	Labels []Label
	Value  float64
}

// A Label tells samples of one Metric apart.
type Label struct{ Name, Value string }

// Counter returns a Metric of one value that never falls while the process
// lives.
func Counter(name, help string, n int64) Metric {
	return Metric{name, help, "counter", []Sample{{Value: float64(n)}}}
}

// Gauge returns a Metric of one value that may fall.
func Gauge(name, help string, x float64) Metric {
	return Metric{name, help, "gauge", []Sample{{Value: x}}}
}

// Add adds a sample to m.
func (m *Metric) Add(x float64, labels ...Label) {
	m.Samples = append(m.Samples, Sample{Labels: labels, Value: x})
}

var (
	helpEscapes  = strings.NewReplacer("\\", `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`)
)

// AppendMetrics appends metrics, those that have samples, to b in the text
// format.
func AppendMetrics(b []byte, metrics []Metric) []byte {
	for _, m := range metrics {
		if len(m.Samples) == 0 {
			continue
		}
		b = append(b, "# HELP "+m.Name+" "+helpEscapes.Replace(m.Help)+"\n"...)
		b = append(b, "# TYPE "+m.Name+" "+m.Type+"\n"...)
		for _, s := range m.Samples {
			b = append(b, m.Name+s.Suffix...)
			for i, l := range s.Labels {
				b = append(b, "{,"[min(i, 1)])
				// The format is UTF-8; a label may come from outside.
				text := strings.ToValidUTF8(l.Value, "\ufffd")
				b = append(b, l.Name+`="`+labelEscapes.Replace(text)+`"`...)
			}
			if len(s.Labels) > 0 {
				b = append(b, '}')
			}
			b = append(b, ' ')
			b = strconv.AppendFloat(b, s.Value, 'f', -1, 64) // plain digits, for those who read it
			b = append(b, '\n')
		}
	}
	return b
}

// ServeMetrics answers a request with metrics.
func ServeMetrics(w http.ResponseWriter, metrics []Metric) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	bytes.NewReader(AppendMetrics(nil, metrics)).WriteTo(w)
}
