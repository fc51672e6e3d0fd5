// Command chaos shows that the counts are exact whatever breaks. It starts real
// Kafka brokers, a real Redis and a real Redis Cluster, lets the example
// programs count while it kills, stops and cuts off all of them, and then
// compares every count in Redis with what an independent consumer finds in the
// topic. Any difference, and anything that does not recover, makes it exit with
// another status than 0.
//
//	go run -C bench ./chaos -short                    about 90 seconds
//	go run -C bench ./chaos -for 5m -kills 100
//	go run -C bench ./chaos -soak 10m                 about 13 minutes
//	go run -C bench ./chaos -readers 8 -short         about a minute, see below
//
// Two groups of consumers count the same topic, one into each store. A schedule
// from the seed decides what breaks; how it turns out depends on the moment, so
// a seed repeats what was done and not every outcome of it. First each fault
// comes alone, to measure how long it takes to recover; then they come as they
// may, several at a time.
//
// At intervals, while all goes on, each shard is read in one step and compared
// with what the log holds up to the shard's own checkpoints: this is exact at
// any moment. At the end, everything is compared with the whole log.
//
// With -soak faults are few, one after another has healed, and windows are
// deleted as others come. What a consumer that lives throughout and Redis use in
// the minute before the faults is compared with the minute after them: more,
// beyond a bound that is printed, is a failure.
//
// With -readers it is what readers are told that is checked, while stores fall
// back to earlier states, of servers, writers and a log of its own: two final
// counts under one term that differ, or anything that goes back though nothing
// was lost, is a failure, and so is a fault that had no effect. Then -for is the
// time for each fault.
//
//	go run -C bench ./chaos -readers 8 -for 3m
//	go run -C bench ./chaos -readers 8 -for 1m -faults lag,sentinel -finals 100000
//
// The consumers are the example's, with one file laid over it that tells their
// heap and goroutines. One consumer of each group is never killed or stopped
// itself, so that what a process holds after many faults can be seen.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	_ "embed"
)

//go:embed inspect.go.txt
var inspect []byte

// A lab is all that is started, and what was seen.
type lab struct {
	seed          uint64
	window        time.Duration
	retention     time.Duration
	soak          time.Duration // 0: a storm
	early, late   time.Duration // how far dirt's event times are beside now, at most
	maxPartitions int
	root          string // of the repository
	work          string // folder for everything
	began         time.Time
	ports         ports
	kafka         *kafka
	truth         *truth
	fleets        []*fleet
	producer      *child
	silence       func() // ends all that produces

	mu       sync.Mutex
	exits    []func()
	kills    int
	enough   int // kills
	reached  chan struct{}
	broken   []*broken
	produced int // times that the producer was started
	checks   int // verdicts under way
	compared int64
	final    []string // lines of the report
}

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", 0, "what breaks, and in what order; 0: another each time")
	flag.DurationVar(&o.storm, "for", 3*time.Minute, "how long faults come as they may")
	flag.IntVar(&o.kills, "kills", 0, "go on, beyond -for, until so many processes were killed with -9")
	flag.StringVar(&o.redis, "redis", "both", "single, cluster or both")
	flag.IntVar(&o.brokers, "brokers", 3, "Kafka brokers")
	flag.IntVar(&o.partitions, "partitions", 4, "of the topic, to begin with; up to 4 are added")
	flag.IntVar(&o.consumers, "consumers", 3, "in each group")
	flag.Float64Var(&o.rate, "rate", 1500, "clicks a second")
	flag.IntVar(&o.users, "users", 1000, "who click")
	flag.DurationVar(&o.window, "window", 10*time.Second, "length of a window, of whole seconds")
	flag.DurationVar(&o.retention, "retention", 0, "how long windows are kept, in event time, at least 2m; 0: for ever")
	flag.BoolVar(&o.each, "each", true, "first each fault alone")
	flag.BoolVar(&o.race, "race", false, "consumers with the race detector")
	flag.BoolVar(&o.short, "short", false, "-each=false -brokers 1 -for 45s")
	flag.DurationVar(&o.soak, "soak", 0, "instead of a storm, few faults for so long, at least 1m, and a verdict on what is used;\n-each=false, and unless given -redis single -brokers 1 -consumers 2 -rate 3000 -users 20000 -window 5s -retention 40s")
	flag.BoolVar(&o.keep, "keep", false, "keep the folder with all logs, which is kept on a failure anyway")
	var h historyCheck
	flag.IntVar(&h.readers, "readers", 0, "check what so many readers are told, instead of all else")
	flag.Int64Var(&h.finals, "finals", 0, "with -readers: go on to the next fault after so many final counts; 0: after -for")
	faults := flag.String("faults", "", "with -readers: those to try, separated by commas: "+fallNames()+"; empty: all")
	flag.Parse()
	if o.short {
		o.each, o.brokers, o.storm = false, 1, 45*time.Second
	}
	l := &lab{early: 20 * time.Second, late: 40 * time.Second}
	if o.soak != 0 {
		o.each = false
		for name, value := range soakDefaults {
			if !given(name) {
				_ = flag.Set(name, value)
			}
		}
		// Nothing may be expired when it is counted first. The producer gives
		// a record up after 10 seconds, and so does dirt.
		l.early, l.late = 3*time.Second, 7*time.Second
	}
	if flag.NArg() > 0 || !slices.Contains([]string{"single", "cluster", "both"}, o.redis) || o.consumers < 2 || o.brokers < 1 ||
		o.window < time.Second || o.window%time.Second != 0 || o.retention != 0 && o.retention < 2*(l.early+l.late) || o.soak != 0 && (o.soak < time.Minute || o.short || o.kills > 0) {
		flag.Usage()
		os.Exit(2)
	}
	if o.seed == 0 {
		o.seed = rand.Uint64() >> 32
	}
	if h.readers != 0 {
		h.seed, h.lasts, h.short = o.seed, o.storm, o.short
		if h.short {
			h.lasts = 3 * time.Second
		}
		if h.readers < 0 || h.finals < 0 || o.soak != 0 || o.kills != 0 {
			flag.Usage()
			os.Exit(2)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := o.run
	if h.readers > 0 {
		run = func(ctx context.Context, l *lab) error {
			return l.inFolder(&o, func() error { return l.histories(ctx, h, *faults) })
		}
	}
	if err := run(ctx, l); err != nil {
		fmt.Printf("\nFAILED: %v\n", err)
		os.Exit(1)
	}
}

// soakDefaults are those of a soak.
var soakDefaults = map[string]string{
	"redis": "single", "brokers": "1", "consumers": "2", "rate": "3000", "users": "20000", "window": "5s", "retention": "40s",
}

// given reports whether a flag was set by who started the program.
func given(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

type options struct {
	seed                                  uint64
	storm, soak, window, retention        time.Duration
	kills, brokers, partitions, consumers int
	users                                 int
	redis                                 string
	rate                                  float64
	each, race, short, keep               bool
}

func (o *options) run(ctx context.Context, l *lab) error {
	l.seed, l.window, l.retention, l.soak, l.maxPartitions = o.seed, o.window, o.retention, o.soak, o.partitions+4
	l.enough, l.reached = o.kills, make(chan struct{})
	if o.kills == 0 {
		close(l.reached)
	}
	return l.inFolder(o, func() error {
		if err := l.setUp(ctx, o); err != nil {
			return err
		}
		err := l.play(ctx, o)
		l.report()
		if err == nil && ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		return err
	})
}

// inFolder runs f in a folder of its own, which is kept if it fails, and ends
// all that f has started.
func (l *lab) inFolder(o *options, f func() error) (err error) {
	l.began = time.Now()
	l.ports.next = 20000 + rand.IntN(200)*10
	if l.work, err = os.MkdirTemp("", "tumble-chaos-"); err != nil {
		return err
	}
	defer func() {
		l.exit()
		if err == nil && !o.keep {
			os.RemoveAll(l.work)
		} else {
			fmt.Printf("\nAll logs are in %s.\n", l.work)
		}
	}()
	fmt.Printf("seed %d, %s\n", o.seed, strings.Join(os.Args[1:], " "))
	return f()
}

// log says what happens, and when.
func (l *lab) log(format string, args ...any) {
	fmt.Printf("%7.1fs  %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, args...))
}

func (l *lab) onExit(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.exits = append(l.exits, f)
}

// exit ends all that was started.
func (l *lab) exit() {
	l.mu.Lock()
	exits := l.exits
	l.mu.Unlock()
	for _, f := range slices.Backward(exits) {
		f()
	}
}

// killed counts what was killed with -9.
func (l *lab) killed(was bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !was {
		return
	}
	l.kills++
	if l.kills == l.enough {
		close(l.reached)
	}
}

func (l *lab) struck(b *broken) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = append(l.broken, b)
}

// setUp builds and starts everything, and waits until all count.
func (l *lab) setUp(ctx context.Context, o *options) (err error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tumblestream/tumble").Output()
	if err != nil {
		return fmt.Errorf("run it from the folder bench: %w", err)
	}
	l.root = strings.TrimSpace(string(out))
	if out, err := exec.Command(filepath.Join(l.root, "scripts/install"), "java=default-jre-headless", "redis-server").CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	if err := l.build(ctx, o.race); err != nil {
		return err
	}
	var wg sync.WaitGroup
	var kafkaErr, singleErr, clusterErr error
	var single, cluster *store
	wg.Go(func() { l.kafka, kafkaErr = startKafka(ctx, l, o.brokers, o.partitions) })
	if o.redis != "cluster" {
		wg.Go(func() { single, singleErr = startSingle(ctx, l) })
	}
	if o.redis != "single" {
		wg.Go(func() { cluster, clusterErr = startCluster(ctx, l) })
	}
	wg.Wait()
	if err := errors.Join(kafkaErr, singleErr, clusterErr); err != nil {
		return err
	}
	for _, s := range []struct {
		name  string
		store *store
	}{{"single", single}, {"cluster", cluster}} {
		if s.store != nil {
			f := &fleet{name: s.name, store: s.store, lab: l}
			f.watch = &watch{fleet: f, partitions: map[string]*progress{}}
			l.fleets = append(l.fleets, f)
		}
	}
	l.truth = newTruth(o.window)
	reading, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.truth.read(reading, l.kafka.direct(), l.kafka.topic, nil)
	}()
	l.onExit(func() { stop(); <-ended })
	if err := l.produce(o); err != nil {
		return err
	}
	for _, f := range l.fleets {
		l.onExit(func() {
			for _, c := range f.all() {
				if p := c.take(); p != nil {
					p.kill()
				}
			}
		})
		for i := range o.consumers {
			if _, err := f.join(i == 0); err != nil {
				return err
			}
		}
		looking, stop := context.WithCancel(context.Background())
		go f.watch.run(looking)
		l.onExit(stop)
	}
	for _, f := range l.fleets {
		if err := f.heal(ctx, time.Now()); err != nil {
			return err
		}
	}
	l.log("%d brokers, %d partitions, %d groups of %d consumers: all count", o.brokers, o.partitions, len(l.fleets), o.consumers)
	return nil
}

// build builds the example programs.
func (l *lab) build(ctx context.Context, race bool) error {
	added := filepath.Join(l.work, "inspect.go")
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(l.root, "examples/clickstream/consumer/inspect.go"): added}})
	if err != nil {
		return err
	}
	file := filepath.Join(l.work, "overlay.json")
	if err := errors.Join(os.WriteFile(added, inspect, 0o644), os.WriteFile(file, overlay, 0o644), os.MkdirAll(filepath.Join(l.work, "bin"), 0o755)); err != nil {
		return err
	}
	args := []string{"build", "-buildvcs=false", "-overlay", file, "-o", filepath.Join(l.work, "bin") + "/"}
	if race {
		args = append(args, "-race")
	}
	build := exec.CommandContext(ctx, "go", append(args, "./examples/clickstream/consumer", "./examples/clickstream/producer")...)
	build.Dir = l.root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the programs: %w\n%s", err, out)
	}
	return nil
}

// produce starts the producer, and another one when it gives up.
func (l *lab) produce(o *options) error {
	start := func() error {
		l.produced++
		log := filepath.Join(l.work, "producer.log")
		var err error
		l.producer, err = launch("producer", log, log, nil, filepath.Join(l.work, "bin/producer"), "-brokers", strings.Join(l.kafka.direct(), ","),
			"-topic", l.kafka.topic, "-users", fmt.Sprint(o.users), "-rate", fmt.Sprint(o.rate), "-seed", fmt.Sprint(o.seed<<8+uint64(l.produced)), "-quiet")
		return err
	}
	if err := start(); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.dirt(ctx) })
	wg.Go(func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-l.producer.done:
				time.Sleep(time.Second)
				l.log("the producer gave up: %s", tail(l.producer.out, 1))
				if err := start(); err != nil {
					l.log("%v", err)
				}
			}
		}
	})
	l.silence = sync.OnceFunc(func() {
		stop()
		wg.Wait()
		l.producer.end(20 * time.Second)
	})
	l.onExit(l.silence)
	return nil
}
