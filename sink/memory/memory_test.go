package memory_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/sink/sinktest"
)

func TestRules(t *testing.T) {
	for _, shards := range []int{1, 4} {
		t.Run(fmt.Sprint(shards, " shards"), func(t *testing.T) {
			var mu sync.Mutex
			sinks := make(map[string]*memory.Sink)
			get := func(name string) *memory.Sink {
				mu.Lock()
				defer mu.Unlock()
				if sinks[name] == nil {
					sinks[name] = &memory.Sink{Shards: shards}
				}
				return sinks[name]
			}
			sinktest.Test(t, sinktest.Config{
				Open: func(_ context.Context, name string) (sinktest.Sink, error) { return get(name), nil },
				Lose: func(_ context.Context, name string) error { get(name).Clear(); return nil },
			})
		})
	}
}
