package prom_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/prom"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

// handler serves the metrics of two pipelines.
func handler(clicks, orders *tumble.Pipeline) (http.Handler, error) {
	collector, err := prom.New(prom.Config{Pipelines: []prom.Pipeline{
		{Name: "clicks", Stats: clicks.Stats},
		{Name: "orders", Stats: orders.Stats},
	}})
	if err != nil {
		return nil, err
	}
	registry := prometheus.NewRegistry()
	if err := registry.Register(collector); err != nil {
		return nil, err
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), nil
}

func Example() {
	// Two pipelines, of which one counts three events.
	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	var pipelines []*tumble.Pipeline
	for _, name := range []string{"clicks", "orders"} {
		events := make(chan tumble.Event, 3)
		source, err := channel.New(channel.Config{ID: name, Events: events})
		if err != nil {
			panic(err)
		}
		pipeline, err := tumble.New(tumble.Config{Source: source, Sink: memory.New(memory.Config{}), Window: tumble.Window{Size: time.Minute}})
		if err != nil {
			panic(err)
		}
		pipelines = append(pipelines, pipeline)
		if name == "clicks" {
			for range 3 {
				events <- tumble.Event{Key: "user_1", Time: noon}
			}
		}
		close(events)
	}
	metrics, err := handler(pipelines[0], pipelines[1])
	if err != nil {
		panic(err)
	}
	for _, pipeline := range pipelines {
		if err := pipeline.Run(context.Background()); err != nil {
			panic(err)
		}
	}

	page := httptest.NewRecorder()
	metrics.ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for lines := bufio.NewScanner(page.Body); lines.Scan(); {
		if strings.Contains(lines.Text(), "tumble_counted_total") {
			fmt.Println(lines.Text())
		}
	}
	// Output:
	// # HELP tumble_counted_total Events whose counts are in the store.
	// # TYPE tumble_counted_total counter
	// tumble_counted_total{pipeline="clicks"} 3
	// tumble_counted_total{pipeline="orders"} 0
}
