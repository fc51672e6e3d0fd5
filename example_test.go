package tumble_test

import (
	"context"
	"fmt"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/memory"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/channel"
	"github.com/tumblestream/tumble/source/kafka"
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

// Clicks in a Kafka topic are counted per user and minute into Redis. Several such
// processes share the topic; each click is counted once, whichever of them crash.
func Example_kafkaToRedis() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	source, err := kafka.New(kafka.Config{
		Brokers: []string{"localhost:9092"},
		Topic:   "clicks",
		Group:   "click-counts",
		Decode:  kafka.JSON("user_id", "timestamp"),
	})
	if err != nil {
		log.Fatal(err)
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"localhost:6379"}})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: "clicks"})
	if err != nil {
		log.Fatal(err)
	}
	pipeline, err := tumble.New(tumble.Config{
		Source:    source,
		Sink:      counts,
		Window:    tumble.Window{Size: time.Minute},
		Retention: 7 * 24 * time.Hour,
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := pipeline.Run(ctx); err != nil { // until ctx ends
		log.Fatal(err)
	}
	c, err := counts.Count(context.Background(), "user_1", time.Now())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Key, c.Start, c.N, c.State)
}

// A service that stops closes its channel, once nobody sends any more, and waits
// for Run. Every event that was sent is counted then.
func ExamplePipeline_Run() {
	events := make(chan tumble.Event, 1024)
	source, err := channel.New(channel.Config{ID: "pod-0", Events: events})
	if err != nil {
		log.Fatal(err)
	}
	pipeline, err := tumble.New(tumble.Config{
		Source: source,
		Sink:   memory.New(memory.Config{}),
		Window: tumble.Window{Size: time.Minute},
	})
	if err != nil {
		log.Fatal(err)
	}
	// The context of Run is for giving up. If it ends first, Run returns an error
	// that says how many events were lost.
	ended := make(chan error, 1)
	go func() { ended <- pipeline.Run(context.Background()) }()

	var senders sync.WaitGroup
	for range 4 {
		senders.Go(func() {
			for range 1000 {
				events <- tumble.Event{Key: "user_1", Time: time.Now()}
			}
		})
	}
	senders.Wait()
	close(events)
	if err := <-ended; err != nil {
		log.Fatal(err)
	}
	fmt.Println("counted", pipeline.Stats().Counted)
	// Output: counted 4000
}

// The last of these events is late: its minute was closed by the one before it.
// By default it is counted, and what is closed can still grow. With DropLate it is
// not, and what is closed is final.
func ExampleState() {
	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	for _, dropLate := range []bool{false, true} {
		events := make(chan tumble.Event, 4)
		for _, second := range []int{0, 30, 70, 45} {
			events <- tumble.Event{Key: "user_1", Time: noon.Add(time.Duration(second) * time.Second)}
		}
		close(events)
		source, err := channel.New(channel.Config{ID: "clicks", Events: events})
		if err != nil {
			log.Fatal(err)
		}
		counts := memory.New(memory.Config{})
		pipeline, err := tumble.New(tumble.Config{Source: source, Sink: counts, Window: tumble.Window{Size: time.Minute}, DropLate: dropLate})
		if err != nil {
			log.Fatal(err)
		}
		if err := pipeline.Run(context.Background()); err != nil {
			log.Fatal(err)
		}
		minutes, err := counts.Range(context.Background(), "user_1", noon, noon.Add(time.Hour))
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("DropLate:", dropLate)
		for _, c := range minutes {
			fmt.Println(c.Start.Format(time.TimeOnly), c.N, c.State)
		}
	}
	// Output:
	// DropLate: false
	// 12:00:00 3 closed
	// 12:01:00 1 open
	// DropLate: true
	// 12:00:00 2 final
	// 12:01:00 1 open
}

// OnLate is told of each late event. The windows here wait for 10 seconds, so an
// event that is only out of order is not late.
func ExampleLate() {
	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	events := make(chan tumble.Event, 4)
	events <- tumble.Event{Key: "user_1", Time: noon.Add(65 * time.Second)}
	events <- tumble.Event{Key: "user_2", Time: noon.Add(50 * time.Second)} // out of order
	events <- tumble.Event{Key: "user_1", Time: noon.Add(75 * time.Second)} // closes the minute of noon
	events <- tumble.Event{Key: "user_3", Time: noon.Add(40 * time.Second)} // late
	close(events)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	if err != nil {
		log.Fatal(err)
	}
	pipeline, err := tumble.New(tumble.Config{
		Source:   source,
		Sink:     memory.New(memory.Config{}),
		Window:   tumble.Window{Size: time.Minute},
		Grace:    10 * time.Second,
		DropLate: true,
		OnLate: func(l tumble.Late) {
			fmt.Printf("%s is %v late for %s, counted: %v\n", l.Event.Key, l.Watermark.Sub(l.End), l.Start.Format(time.TimeOnly), l.Counted)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := pipeline.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	// Output: user_3 is 15s late for 12:00:00, counted: false
}

// countedClicks stands for a sink that a pipeline counts into, a redis.Sink say,
// in this process or another one.
func countedClicks() tumble.Reader {
	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	events := make(chan tumble.Event, 1024)
	for minute, users := range [][]int{{1, 2, 3}, {5, 0, 1}, {}, {4}} {
		for i, clicks := range users {
			for range clicks {
				events <- tumble.Event{Key: fmt.Sprintf("user_%d", i+1), Time: noon.Add(time.Duration(minute) * time.Minute)}
			}
		}
	}
	close(events)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events, Final: true})
	if err != nil {
		log.Fatal(err)
	}
	counts := memory.New(memory.Config{})
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: counts, Window: tumble.Window{Size: time.Minute}, DropLate: true})
	if err != nil {
		log.Fatal(err)
	}
	if err := pipeline.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	return counts
}

// Range reads one key over time. Windows without a count are left out.
func ExampleReader_range() {
	counts := countedClicks()
	from := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	minutes, err := counts.Range(context.Background(), "user_1", from, from.Add(time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	for _, c := range minutes {
		fmt.Println(c.Start.Format(time.TimeOnly), c.N, c.State)
	}
	// Output:
	// 12:00:00 1 final
	// 12:01:00 5 final
	// 12:03:00 4 final
}

// Top reads the highest counts of one window.
func ExampleReader_top() {
	counts := countedClicks()
	page, err := counts.Top(context.Background(), time.Date(2023, 10, 1, 12, 0, 59, 0, time.UTC), 2)
	if err != nil {
		log.Fatal(err)
	}
	for i, c := range page.Counts {
		fmt.Println(i+1, c.Key, c.N)
	}
	fmt.Println(page.Start.Format(time.TimeOnly), page.State)
	// Output:
	// 1 user_3 3
	// 2 user_2 2
	// 12:00:00 final
}

// Scan reads all counts of one window, a page at a time, in no order.
func ExampleReader_scan() {
	counts := countedClicks()
	at := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	keys, clicks := 0, int64(0)
	for cursor := ""; ; {
		page, err := counts.Scan(context.Background(), at, cursor, 2)
		if err != nil {
			log.Fatal(err)
		}
		for _, c := range page.Counts {
			keys++
			clicks += c.N
		}
		if cursor = page.Cursor; cursor == "" {
			break
		}
	}
	fmt.Println(keys, "users clicked", clicks, "times")
	// Output: 3 users clicked 6 times
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

// Every event that was read is in one of these numbers.
func ExampleStats() {
	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	events := make(chan tumble.Event, 4)
	events <- tumble.Event{Key: "a", Time: noon}
	events <- tumble.Event{Key: "b", Time: noon.Add(2 * time.Minute)}
	events <- tumble.Event{Key: "a", Time: noon} // late
	events <- tumble.Event{Key: "c"}             // no time
	close(events)
	source, err := channel.New(channel.Config{ID: "clicks", Events: events})
	if err != nil {
		log.Fatal(err)
	}
	pipeline, err := tumble.New(tumble.Config{
		Source:   source,
		Sink:     memory.New(memory.Config{}),
		Window:   tumble.Window{Size: time.Minute},
		DropLate: true,
		Logger:   slog.New(slog.DiscardHandler), // it would tell of the event without a time
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := pipeline.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
	s := pipeline.Stats() // also at any time while it runs
	fmt.Println("read", s.Read)
	fmt.Println("counted", s.Counted)
	fmt.Println("late and dropped", s.DroppedLate)
	fmt.Println("rejected", s.Rejected)
	fmt.Println("all", s.Read == s.Counted+s.DroppedLate+s.Expired+s.Rejected+s.Skipped+s.Replayed+s.Pending)
	// Output:
	// read 4
	// counted 2
	// late and dropped 1
	// rejected 1
	// all true
}

// countsOfTwoPods returns what pod-0 and pod-1 have counted. pod-1 was killed in
// the minute that begins at start.
func countsOfTwoPods(start time.Time) *memory.Sink {
	counts := memory.New(memory.Config{})
	count := func(id string, times ...time.Time) {
		events := make(chan tumble.Event, len(times))
		for _, t := range times {
			events <- tumble.Event{Key: "user_1", Time: t}
		}
		source, err := channel.New(channel.Config{ID: id, Events: events})
		if err != nil {
			log.Fatal(err)
		}
		pipeline, err := tumble.New(tumble.Config{Source: source, Sink: counts, Window: tumble.Window{Size: time.Minute}, Idle: -1})
		if err != nil {
			log.Fatal(err)
		}
		ctx, kill := context.WithTimeout(context.Background(), time.Second)
		defer kill()
		if err := pipeline.Run(ctx); err != nil {
			log.Fatal(err)
		}
	}
	count("pod-1", start)
	count("pod-0", start, start.Add(90*time.Second))
	return counts
}

// A pod is gone for good and did not close its channel, so that every window waits
// for it. Nothing does once its partition has ended.
func ExampleEndPartition() {
	minute := time.Now().Add(-time.Hour).Truncate(time.Minute)
	counts := countsOfTwoPods(minute) // a redis.Sink, say, of any process
	before, err := counts.Count(context.Background(), "user_1", minute)
	if err != nil {
		log.Fatal(err)
	}
	// This takes 15 seconds, in which the pod may object if it lives.
	if err := tumble.EndPartition(context.Background(), counts, "pod-1"); err != nil {
		log.Fatal(err)
	}
	after, err := counts.Count(context.Background(), "user_1", minute)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(before.State, after.State)
	// It prints: open closed
}

// That example takes 15 seconds, but not of fake time.
func TestExampleEndPartition(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	stdout := os.Stdout
	defer func() { os.Stdout = stdout }()
	os.Stdout = w
	synctest.Test(t, func(*testing.T) { ExampleEndPartition() })
	require.NoError(t, w.Close())
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	require.Equal(t, "open closed\n", string(out))
}

// The README's Go code is that of examples/kafka-redis, word for word, and each of
// its commands is one that scripts/readme runs.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	example, err := os.ReadFile("examples/kafka-redis/main.go")
	require.NoError(t, err)
	kinds := map[string]int{}
	for _, b := range code.FindAllStringSubmatch(string(readme), -1) {
		kind, text := b[1], b[2]
		kinds[kind]++
		switch kind {
		case "go":
			require.True(t, holds(string(example), text), "examples/kafka-redis/main.go does not hold this part of README.md:\n%s", text)
		case "sh":
			for line := range strings.Lines(text) {
				line = strings.TrimSpace(line)
				require.Regexp(t, `^(go run \./examples/clickstream|go test \./\.\.\.$|curl "http://localhost:8000/)`, line, "a command that scripts/readme does not know")
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
		"/metrics":           nil,
		"/web":               {module + "/metrics", module + "/internal/program"},
		"/internal/faketest": nil,
	}
	shared := []string{module + "/internal/rarely"} // by the root and adapters
	for path, third := range allowed {
		out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+path).Output()
		require.NoError(t, err, path)
		for _, dep := range strings.Fields(string(out)) {
			ok := dep == module || dep == module+path || strings.HasPrefix(dep, module+path+"/internal/")
			for _, prefix := range slices.Concat(third, shared) {
				ok = ok || strings.HasPrefix(dep, prefix)
			}
			require.True(t, ok, "%s imports %s", module+path, dep)
		}
	}
}

// Every example is shown beside something: go doc passes over, without a word, one
// whose name it can place nowhere, such as that of an interface's method.
func TestExamplesAreShown(t *testing.T) {
	shown, dirs := 0, 0
	require.NoError(t, filepath.WalkDir(".", func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if dir != "." && strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"bench", "examples", "internal", "testdata"}, d.Name()) {
			return fs.SkipDir
		}
		names, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || names == nil {
			return err
		}
		dirs++
		fset := token.NewFileSet()
		var files []*ast.File
		var written []string
		for _, name := range names {
			file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			files = append(files, file)
			if strings.HasSuffix(name, "_test.go") {
				for _, example := range doc.Examples(file) {
					written = append(written, example.Name)
				}
			}
		}
		pkg, err := doc.NewFromFiles(fset, files, dir)
		if err != nil {
			return err
		}
		var placed []string
		place := func(examples []*doc.Example) {
			for _, example := range examples {
				placed = append(placed, example.Name)
			}
		}
		place(pkg.Examples)
		for _, f := range pkg.Funcs {
			place(f.Examples)
		}
		for _, typ := range pkg.Types {
			place(typ.Examples)
			for _, f := range slices.Concat(typ.Funcs, typ.Methods) {
				place(f.Examples)
			}
		}
		require.ElementsMatch(t, written, placed, "examples of %s", dir)
		shown += len(placed)
		return nil
	}))
	require.GreaterOrEqual(t, dirs, 7)
	require.GreaterOrEqual(t, shown, 20)
}
