package memory_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
)

func Example() {
	ctx := context.Background()
	counts := memory.New(memory.Config{})
	shards, err := counts.Open(ctx, tumble.Definition{Window: tumble.Window{Size: time.Minute}})
	if err != nil {
		panic(err)
	}

	// What a pipeline does: say where counting begins, then add counts and move
	// the checkpoint in one step.
	begin := tumble.Checkpoint{Log: "log"}
	if _, err := shards[0].Load(ctx, tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"clicks/0": begin}}); err != nil {
		panic(err)
	}
	minute := time.Date(2024, 3, 1, 12, 34, 0, 0, time.UTC)
	batch := tumble.Batch{
		Partition: "clicks/0",
		Writer:    rand.Uint64(),
		From:      begin,
		To:        tumble.Checkpoint{Log: "log", Offset: 7, Watermark: minute.Add(time.Minute)},
		Deltas: []tumble.Delta{
			{Start: minute, Key: "user_1", N: 3},
			{Start: minute, Key: "user_2", N: 4},
		},
	}
	if err := shards[0].Apply(ctx, batch); err != nil {
		panic(err)
	}
	fmt.Println("again:", shards[0].Apply(ctx, batch) != nil)

	// What a reader does.
	top, err := counts.Top(ctx, minute.Add(30*time.Second), 10)
	if err != nil {
		panic(err)
	}
	for _, c := range top.Counts {
		fmt.Println(c.Key, c.N)
	}
	fmt.Println(top.State) // late events are counted: not final
	// Output:
	// again: true
	// user_2 4
	// user_1 3
	// closed
}
