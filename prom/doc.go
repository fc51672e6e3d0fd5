// Package prom exports the books of pipelines to Prometheus, through its client
// library. A [Collector] is registered like any other:
//
//	collector, err := prom.New(prom.Config{Pipelines: []prom.Pipeline{{Name: "clicks", Stats: pipeline.Stats}}})
//	if err != nil {
//		return err
//	}
//	prometheus.MustRegister(collector)
//
// Names, types and help are those of package metrics. Each metric has the label
// "pipeline", and those of a partition the label "partition" too. A process that
// counts with several pipelines gives them to one Collector.
//
// A scrape takes the books of each pipeline once, under a lock that is held for a
// copy of them, and calls neither the source nor the sink: it answers while these
// are away. The books begin anew with each Run, which Prometheus takes for the
// restart of a process. A partition that the pipeline does not read at the moment
// has no metrics, so that after a rebalance it is found in one process alone.
//
// # Dashboard and alerts
//
// Beside this package lie dashboard.json, to be imported into Grafana, and
// alerts.yaml, a file of rules for Prometheus. They need these metrics alone, and
// follow a partition from process to process with
// max by (pipeline, partition). Each alert says what to do, and links to
// docs/operations.md.
package prom
