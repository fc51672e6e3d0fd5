package sinktest_test

import (
	"context"
	"fmt"

	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/sink/sinktest"
)

// In a test, Test runs all rules; here is one by hand.
func Example() {
	sinks := make(map[string]*memory.Sink)
	cfg := sinktest.Config{Open: func(_ context.Context, name string) (sinktest.Sink, error) {
		if sinks[name] == nil {
			sinks[name] = memory.New(memory.Config{})
		}
		return sinks[name], nil
	}}
	for _, r := range sinktest.Rules() {
		if r.Name == "Open/keys by hash" {
			fmt.Println(r.Doc)
			fmt.Println("broken by:", r.Check(context.Background(), cfg))
		}
	}
	// Output:
	// Key k belongs to shard Hash(k) % len(shards).
	// broken by: <nil>
}
