package sourcetest_test

import (
	"context"
	"fmt"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/channel"
	"github.com/tumblestream/tumble/source/sourcetest"
)

// In a test, Test runs all rules; here is one by hand.
func Example() {
	cfg := sourcetest.Config{New: func(context.Context) (*sourcetest.Log, error) {
		events := make(chan tumble.Event, 10_000)
		source, err := channel.New(channel.Config{ID: "clicks", Events: events})
		return &sourcetest.Log{
			Source:     source,
			Partitions: []string{"clicks"},
			Append: func(ctx context.Context, _ string, all ...tumble.Event) error {
				for _, e := range all {
					events <- e
				}
				return nil
			},
			Lost: func(err error) int64 {
				if lost, ok := err.(*channel.LostError); ok {
					return lost.Events
				}
				return 0
			},
		}, err
	}}
	for _, r := range sourcetest.Rules() {
		if r.Name == "Chunk/Next" {
			fmt.Println(r.Doc)
			fmt.Println("broken by:", r.Check(context.Background(), cfg))
		}
	}
	// Output:
	// Next is the offset to fetch next. It is beyond every Offset, perhaps also beyond records that gave no event.
	// broken by: <nil>
}
