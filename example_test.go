package tumble_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/source/channel"
)

func Example() {
	ctx := context.Background()
	events := make(chan tumble.Event, 1024)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events, Final: true})
	if err != nil {
		log.Fatal(err)
	}
	counts := memory.New(memory.Config{})
	pipeline, err := tumble.New(tumble.Config{
		Source:   source,
		Sink:     counts,
		Window:   tumble.Window{Size: time.Minute},
		Grace:    10 * time.Second, // for events that are out of order
		DropLate: true,             // those that come later still are not counted
	})
	if err != nil {
		log.Fatal(err)
	}

	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	go func() {
		defer close(events) // nothing more to come: with Final, the last windows close too
		for i := range 100 {
			events <- tumble.Event{Key: "user_1", Time: noon.Add(time.Duration(i) * time.Second)}
		}
	}()
	if err := pipeline.Run(ctx); err != nil { // until the channel is closed, or ctx ends
		log.Fatal(err)
	}

	c, err := counts.Count(ctx, "user_1", noon.Add(30*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Key, c.Start.Format(time.TimeOnly), c.N, c.State)
	// Output: user_1 12:00:00 60 final
}

// Calendar windows follow the local time of a zone: this day has 23 hours.
func ExampleWindow_Bounds() {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		log.Fatal(err)
	}
	day := tumble.Window{Calendar: tumble.Day, Zone: berlin}
	start, end := day.Bounds(time.Date(2024, 3, 31, 12, 0, 0, 0, berlin))
	fmt.Println(start.In(berlin), end.Sub(start))
	// Output: 2024-03-31 00:00:00 +0100 CET 23h0m0s
}

func ExampleParseWindow() {
	for _, s := range []string{"1m", "1h+15m", "week Europe/Berlin", "0s"} {
		w, err := tumble.ParseWindow(s)
		fmt.Println(w, err)
	}
	// Output:
	// 1m0s <nil>
	// 1h0m0s+15m0s <nil>
	// week Europe/Berlin <nil>
	// 0s window "0s": Window.Size is 0s, must be positive (want "1m", "1h+15m", or "day", "week", "month" and a zone: "day Europe/Berlin")
}

func ExampleStats() {
	events := make(chan tumble.Event, 2)
	events <- tumble.Event{Key: "a", Time: time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)}
	events <- tumble.Event{Key: "b"} // no time
	close(events)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	if err != nil {
		log.Fatal(err)
	}
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: memory.New(memory.Config{}), Window: tumble.Window{Size: time.Minute}, Logger: quiet})
	if err != nil {
		log.Fatal(err)
	}
	if err := pipeline.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	s := pipeline.Stats()
	fmt.Println(s.Read, s.Counted, s.Rejected)
	// Output: 2 1 1
}

// The README's Go code is an example's, word for word, and each of its commands
// is one that .ci/readme runs.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	examples, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	blocks := regexp.MustCompile("(?ms)^```(\\w*)\n(.*?)^```$").FindAllStringSubmatch(string(readme), -1)
	kinds := map[string]int{}
	for _, b := range blocks {
		kind, text := b[1], b[2]
		kinds[kind]++
		switch kind {
		case "go":
			indented := regexp.MustCompile(`(?m)^(.)`).ReplaceAllString(text, "\t$1")
			require.Contains(t, string(examples), indented)
		case "sh":
			for line := range strings.Lines(text) {
				line = strings.TrimSpace(line)
				require.Regexp(t, `^(go run \./examples/clickstream|go test \./\.\.\.$|curl "http://localhost:8000/)`, line, "a command that .ci/readme does not know")
			}
		default:
			require.Failf(t, "a block that nobody checks", "%s", b[0])
		}
	}
	require.Equal(t, 1, kinds["go"])
	require.GreaterOrEqual(t, kinds["sh"], 4)
}

// A program that counts from a channel into memory compiles nothing but the
// standard library, and adapters know the root and their own client.
func TestImports(t *testing.T) {
	const module = "github.com/tumblestream/tumble"
	allowed := map[string][]string{
		"":                   nil,
		"/source/channel":    nil,
		"/sink/memory":       nil,
		"/source/kafka":      {"github.com/segmentio/kafka-go", "github.com/klauspost/compress", "github.com/pierrec/lz4", "github.com/xdg-go", "golang.org/x"},
		"/sink/redis":        {"github.com/redis/rueidis", "golang.org/x/sys"},
		"/source/sourcetest": nil,
		"/sink/sinktest":     nil,
	}
	for path, third := range allowed {
		out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+path).Output()
		require.NoError(t, err, path)
		for _, dep := range strings.Fields(string(out)) {
			ok := dep == module || dep == module+path || strings.HasPrefix(dep, module+path+"/internal/")
			for _, prefix := range third {
				ok = ok || strings.HasPrefix(dep, prefix)
			}
			require.True(t, ok, "%s imports %s", module+path, dep)
		}
	}
}
