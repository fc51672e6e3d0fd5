package web

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tumblestream/tumble/internal/program"
)

// bounds are the upper ends of the buckets of answer times.
var bounds = [...]time.Duration{
	250 * time.Microsecond, time.Millisecond, 5 * time.Millisecond, 25 * time.Millisecond,
	100 * time.Millisecond, 500 * time.Millisecond, 2500 * time.Millisecond,
}

// traffic counts requests by route. Routes are patterns, never paths, so that their
// number is bounded. The zero value is ready. It is safe for concurrent use.
type traffic struct {
	mu     sync.Mutex
	routes map[string]*route
}

type route struct {
	answers map[int]int64      // by status code
	buckets [len(bounds)]int64 // not cumulative. Slower answers are in count alone
	count   int64
	sum     time.Duration
}

// count returns a handler that counts its answers. Those of codes are counted from 0,
// because a counter that begins at 1 raises no alert.
func (t *traffic) count(path string, h http.HandlerFunc, codes ...int) http.HandlerFunc {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.routes == nil {
		t.routes = map[string]*route{}
	}
	if t.routes[path] == nil {
		t.routes[path] = &route{answers: map[int]int64{}}
	}
	for _, code := range codes {
		t.routes[path].answers[code] = 0
	}
	return func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		answer := &recorder{ResponseWriter: w, code: http.StatusOK}
		h(answer, r)
		t.add(path, answer.code, time.Since(began))
	}
}

// recorder remembers the status code of an answer.
type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap lets a handler reach what is behind: see [http.ResponseController].
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (t *traffic) add(path string, code int, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.routes[path]
	r.answers[code]++
	r.count++
	r.sum += took
	if i, _ := slices.BinarySearch(bounds[:], took); i < len(bounds) {
		r.buckets[i]++
	}
}

func (t *traffic) write(m *program.Metrics) {
	t.mu.Lock()
	defer t.mu.Unlock()
	paths := slices.Sorted(maps.Keys(t.routes))
	const requests, seconds = "tumble_http_requests_total", "tumble_http_request_seconds"
	m.Family(requests, "Requests answered, by route and status code; an unknown route is empty.", "counter")
	for _, path := range paths {
		for _, code := range slices.Sorted(maps.Keys(t.routes[path].answers)) {
			m.Sample(requests, float64(t.routes[path].answers[code]), "route", path, "code", strconv.Itoa(code))
		}
	}
	m.Family(seconds, "Time from a request to its answer, by route.", "histogram")
	for _, path := range paths {
		r, sum := t.routes[path], int64(0)
		for i, b := range bounds {
			sum += r.buckets[i]
			m.Sample(seconds+"_bucket", float64(sum), "route", path, "le", strconv.FormatFloat(b.Seconds(), 'g', -1, 64))
		}
		m.Sample(seconds+"_bucket", float64(r.count), "route", path, "le", "+Inf")
		m.Sample(seconds+"_sum", r.sum.Seconds(), "route", path)
		m.Sample(seconds+"_count", float64(r.count), "route", path)
	}
}
