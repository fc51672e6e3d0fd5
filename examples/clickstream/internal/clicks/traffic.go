package clicks

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tumblestream/tumble/examples/clickstream/internal/program"
)

// recorder remembers the code of an answer.
type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// bounds are the upper ends of the buckets of answer times.
var bounds = [...]time.Duration{
	250 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond,
	100 * time.Millisecond, 500 * time.Millisecond, 2500 * time.Millisecond,
}

type latency struct {
	buckets [len(bounds)]int64 // not cumulative; what is slower is in count alone
	count   int64
	sum     time.Duration
}

type outcome struct {
	pattern string
	code    int
}

// traffic counts requests. Its zero value is ready; it is safe for concurrent
// use. Labels are patterns, never paths, so that their number is bounded.
type traffic struct {
	mu        sync.Mutex
	outcomes  map[outcome]int64
	latencies map[string]*latency // by pattern
}

func (t *traffic) add(pattern string, code int, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.outcomes == nil {
		t.outcomes = map[outcome]int64{}
		t.latencies = map[string]*latency{}
	}
	t.outcomes[outcome{pattern, code}]++
	l := t.latencies[pattern]
	if l == nil {
		l = new(latency)
		t.latencies[pattern] = l
	}
	l.count++
	l.sum += took
	for i, b := range bounds {
		if took <= b {
			l.buckets[i]++
			break
		}
	}
}

func (t *traffic) metrics() []program.Metric {
	t.mu.Lock()
	defer t.mu.Unlock()
	requests := program.Metric{Name: "clicks_http_requests_total", Type: "counter",
		Help: "Requests answered, by route and status code; an unknown route is empty."}
	for o, n := range t.outcomes {
		requests.Add(float64(n), program.Label{Name: "route", Value: o.pattern}, program.Label{Name: "code", Value: strconv.Itoa(o.code)})
	}
	slices.SortFunc(requests.Samples, func(a, b program.Sample) int {
		return cmp.Or(cmp.Compare(a.Labels[0].Value, b.Labels[0].Value), cmp.Compare(a.Labels[1].Value, b.Labels[1].Value))
	})
	seconds := program.Metric{Name: "clicks_http_request_seconds", Type: "histogram",
		Help: "Time from a request to its answer, by route."}
	patterns := make([]string, 0, len(t.latencies))
	for p := range t.latencies {
		patterns = append(patterns, p)
	}
	slices.Sort(patterns)
	for _, p := range patterns {
		l := t.latencies[p]
		route := program.Label{Name: "route", Value: p}
		sum := int64(0)
		add := func(suffix string, x float64, labels ...program.Label) {
			seconds.Samples = append(seconds.Samples, program.Sample{Suffix: suffix, Labels: labels, Value: x})
		}
		for i, b := range bounds {
			sum += l.buckets[i]
			add("_bucket", float64(sum), route, program.Label{Name: "le", Value: strconv.FormatFloat(b.Seconds(), 'g', -1, 64)})
		}
		add("_bucket", float64(l.count), route, program.Label{Name: "le", Value: "+Inf"})
		add("_sum", l.sum.Seconds(), route)
		add("_count", float64(l.count), route)
	}
	return []program.Metric{requests, seconds}
}
