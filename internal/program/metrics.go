package program

import (
	"net/http"
	"strconv"
	"strings"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/metrics"
)

// Metrics is a page in the Prometheus text format, version 0.0.4:
// https://prometheus.io/docs/instrumenting/exposition_formats/. The zero value is
// an empty page.
type Metrics struct{ text []byte }

var (
	helpEscapes  = strings.NewReplacer("\\", `\\`, "\n", `\n`)
	labelEscapes = strings.NewReplacer("\\", `\\`, "\n", `\n`, `"`, `\"`)
)

// Family begins a family of samples. typ is "counter", "gauge" or "histogram".
func (m *Metrics) Family(name, help, typ string) {
	m.text = append(m.text, "# HELP "+name+" "+helpEscapes.Replace(help)+"\n# TYPE "+name+" "+typ+"\n"...)
}

// Sample adds a value to the family. labels are names and values by turns.
func (m *Metrics) Sample(name string, x float64, labels ...string) {
	m.text = append(m.text, name...)
	for i := 0; i < len(labels); i += 2 {
		m.text = append(m.text, "{,"[min(i, 1)])
		text := strings.ToValidUTF8(labels[i+1], "\ufffd") // a label may come from outside
		m.text = append(m.text, labels[i]+`="`+labelEscapes.Replace(text)+`"`...)
	}
	if len(labels) > 0 {
		m.text = append(m.text, '}')
	}
	m.text = append(m.text, ' ')
	m.text = strconv.AppendFloat(m.text, x, 'f', -1, 64) // plain digits, for people
	m.text = append(m.text, '\n')
}

// Pipeline adds every metric of a pipeline. A family without a known value is left
// out.
func (m *Metrics) Pipeline(s tumble.Stats) {
	for _, row := range metrics.All() {
		if row.Value != nil {
			m.Family(row.Name, row.Help, string(row.Type))
			m.Sample(row.Name, row.Value(s))
			continue
		}
		begun := false
		for _, p := range s.Partitions {
			x, known := row.Partition(p)
			if known && !begun {
				m.Family(row.Name, row.Help, string(row.Type))
				begun = true
			}
			if known {
				m.Sample(row.Name, x, "partition", p.ID)
			}
		}
	}
}

// ServeHTTP answers with the page.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write(m.text) // an error is the client's
}
