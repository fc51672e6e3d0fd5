// Package simulation tests the pipeline against a model: several processes count
// the same logs into one store while everything breaks, in fake time, and what is
// left is compared with a plain loop over the logs. It has no code but tests.
//
//	go test ./internal/simulation                                   the seeds of every day
//	go test ./internal/simulation -seeds 10000 -timeout 0           as many as that
//	go test ./internal/simulation -run TestSimulation -seed 4711    one of them
//	go test ./internal/simulation -seed 4711 -shrink 2m             it is cut down for longer
//
// TestModel draws what happens as it goes along. TestSimulation knows far more
// ways to fail, and draws a schedule of them beforehand. When a seed fails, it
// looks for the shortest schedule that fails as well, for as long as -shrink says
// (20 seconds by default), and prints its steps.
//
// A seed fixes the schedule and all that the doubles draw. The order in which
// goroutines run at one instant is not fixed, so that a seed that fails may
// pass at times.
package simulation
