// Command rebalance measures how long partitions stand still while members of a group
// come, leave and die. Records come to every partition all the time, and the example's
// consumers count them. It wants a Kafka and a Redis:
//
//	eval "$(../scripts/servers env)"
//	go run ./rebalance -changes 50
//
// A partition stands still while the count of its key does not move in Redis. Each
// pause is booked for who had the partition before and after the change: the same process, two
// that live, or one that was killed.
package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/rueidis"
	"github.com/segmentio/kafka-go"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

var (
	brokers    = flag.String("brokers", cmp.Or(os.Getenv("TUMBLE_KAFKA"), "localhost:9092"), "`addresses` of Kafka")
	server     = flag.String("redis", cmp.Or(os.Getenv("TUMBLE_REDIS"), "localhost:6379"), "`address` of Redis")
	changes    = flag.Int("changes", 50, "how many joins, leaves and kills")
	partitions = flag.Int("partitions", 12, "of the topic")
	session    = flag.Duration("session", 6*time.Second, "session timeout of the group")
	seed       = flag.Uint64("seed", 1, "of the changes")
	consumer   = flag.String("consumer", "", "`path` of the consumer, such as one of another version; empty: it is built")
)

const (
	pace  = 20 * time.Millisecond // between two records of a partition
	flush = 20 * time.Millisecond
	calm  = 2 * time.Second // after which a change is over
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "rebalance:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	name := fmt.Sprintf("rebalance-%x", rand.Uint64())
	admin := &kafka.Client{Addr: kafka.TCP(strings.Split(*brokers, ",")...)}
	made, err := admin.CreateTopics(ctx, &kafka.CreateTopicsRequest{Topics: []kafka.TopicConfig{{Topic: name, NumPartitions: *partitions, ReplicationFactor: 1}}})
	if err == nil {
		err = made.Errors[name]
	}
	if err != nil {
		return err
	}
	defer admin.DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: []string{name}})
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{*server}, DisableCache: true})
	if err != nil {
		return err
	}
	defer client.Close()
	counts, err := redis.New(redis.Config{Client: client, Name: name})
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rebalance")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin := *consumer
	if bin == "" {
		bin = filepath.Join(dir, "consumer")
		if err := build(bin); err != nil {
			return err
		}
	}

	f := &fleet{bin: bin, name: name}
	defer f.killAll()
	var background sync.WaitGroup
	defer background.Wait()
	defer cancel()
	background.Go(func() { produce(ctx, name) })
	w := &watcher{last: map[string]time.Time{}, at: map[string]int64{}}
	background.Go(func() { w.run(ctx, counts) })

	for range 3 {
		if err := f.join(); err != nil {
			return err
		}
	}
	if err := f.settle(ctx); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(*seed, 0))
	all := map[string][]time.Duration{}
	for i := range *changes {
		before := f.owners()
		what := f.change(rng)
		began := time.Now()
		if what == "kill" {
			sleep(ctx, *session)
		}
		if err := f.settle(ctx); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		after := f.owners()
		pauses := w.since(began)
		worst := map[string]time.Duration{}
		for p := range *partitions {
			old, now := before[p], after[p]
			class := "moved"
			switch {
			case old == now:
				class = "kept"
			case old.killed():
				class = "dead"
			}
			pause := pauses[fmt.Sprintf("user_%d", p)]
			worst[class] = max(worst[class], pause)
			all[class] = append(all[class], pause)
		}
		fmt.Printf("%3d %-5s of %d: kept %v, moved %v, dead %v\n", i+1, what, len(f.living()), worst["kept"].Round(time.Millisecond), worst["moved"].Round(time.Millisecond), worst["dead"].Round(time.Millisecond))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	fmt.Println("\nlongest pause of a partition in one change (records every 20 ms, flushes every 20 ms)")
	for _, class := range []string{"kept", "moved", "dead"} {
		list := all[class]
		if len(list) == 0 {
			continue
		}
		slices.Sort(list)
		fmt.Printf("%-5s %4d times: median %v, 99 of 100 %v, longest %v\n", class, len(list),
			list[len(list)/2].Round(time.Millisecond), list[len(list)*99/100].Round(time.Millisecond), list[len(list)-1].Round(time.Millisecond))
	}
	return nil
}

func build(bin string) error {
	out, err := exec.Command("go", "build", "-o", bin, "github.com/tumblestream/tumble/examples/clickstream/consumer").CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// produce writes a record to each partition, again and again.
func produce(ctx context.Context, topic string) {
	w := &kafka.Writer{
		Addr: kafka.TCP(strings.Split(*brokers, ",")...), Topic: topic, RequiredAcks: kafka.RequireOne, BatchTimeout: time.Millisecond, Async: true,
		Balancer: kafka.BalancerFunc(func(m kafka.Message, _ ...int) int { n, _ := strconv.Atoi(string(m.Key)); return n }),
	}
	defer w.Close()
	for ctx.Err() == nil {
		var list []kafka.Message
		for p := range *partitions {
			value := fmt.Sprintf(`{"user_id":"user_%d","timestamp":%q,"page":"/"}`, p, time.Now().UTC().Format(time.RFC3339Nano))
			list = append(list, kafka.Message{Key: []byte(strconv.Itoa(p)), Value: []byte(value)})
		}
		_ = w.WriteMessages(ctx, list...) // what is missing is missing as a pause
		sleep(ctx, pace)
	}
}

// A watcher notes when the count of each partition's key moves.
type watcher struct {
	mu    sync.Mutex
	at    map[string]int64
	last  map[string]time.Time
	moves []move
}

// A move ended a pause of a partition.
type move struct {
	key   string
	at    time.Time
	pause time.Duration
}

// run asks for the counts of this minute and the one before, of which each partition
// has one key. Its checkpoints would not do: shards without news of a partition hear of
// its progress every few seconds only.
func (w *watcher) run(ctx context.Context, r tumble.Reader) {
	var keys []string
	for p := range *partitions {
		keys = append(keys, fmt.Sprintf("user_%d", p))
	}
	for ctx.Err() == nil {
		asked := time.Now()
		sums := map[string]int64{}
		for _, at := range []time.Time{asked, asked.Add(-time.Minute)} {
			counts, err := r.Counts(ctx, at, keys...)
			if err != nil && !errors.Is(err, tumble.ErrNoDefinition) && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "rebalance: counts:", err)
			}
			for _, c := range counts {
				sums[c.Key] += c.N
			}
		}
		w.mu.Lock()
		for key, n := range sums {
			if n == w.at[key] {
				continue
			}
			if last := w.last[key]; !last.IsZero() {
				w.moves = append(w.moves, move{key, asked, asked.Sub(last)})
			}
			w.at[key], w.last[key] = n, asked
		}
		w.mu.Unlock()
		sleep(ctx, 10*time.Millisecond)
	}
}

// since returns the longest pause of each partition that ended after a time, and
// forgets all.
func (w *watcher) since(t time.Time) map[string]time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := map[string]time.Duration{}
	for _, m := range w.moves {
		if m.at.After(t) {
			longest[m.key] = max(longest[m.key], m.pause)
		}
	}
	w.moves = nil
	return longest
}

// A fleet is the consumers of the group.
type fleet struct {
	bin, name string
	all       []*member
}

type member struct {
	cmd  *exec.Cmd
	done chan struct{}

	mu    sync.Mutex
	has   []int
	heard time.Time // when it was last assigned something
	dead  bool      // by a kill
	left  bool
}

func (m *member) killed() bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

var joined = regexp.MustCompile(`msg=joined .*partitions="?\[([0-9 ]*)\]`)

func (f *fleet) join() error {
	m := &member{done: make(chan struct{})}
	m.cmd = exec.Command(f.bin, "-brokers", *brokers, "-redis", *server, "-topic", f.name, "-group", f.name, "-name", f.name,
		"-session", session.String(), "-flush", flush.String())
	out, err := m.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	f.all = append(f.all, m)
	go func() {
		defer close(m.done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			found := joined.FindStringSubmatch(lines.Text())
			if found == nil {
				continue
			}
			var has []int
			for _, word := range strings.Fields(found[1]) {
				n, _ := strconv.Atoi(word)
				has = append(has, n)
			}
			m.mu.Lock()
			m.has, m.heard = has, time.Now()
			m.mu.Unlock()
		}
		_ = m.cmd.Wait() // killed, perhaps
	}()
	return nil
}

func (f *fleet) living() (list []*member) {
	for _, m := range f.all {
		m.mu.Lock()
		if !m.dead && !m.left {
			list = append(list, m)
		}
		m.mu.Unlock()
	}
	return list
}

// change lets a member join, leave or die, or be killed and start again.
func (f *fleet) change(rng *rand.Rand) string {
	living := f.living()
	m := living[rng.IntN(len(living))]
	what := []string{"join", "leave", "kill", "back"}[rng.IntN(4)]
	switch {
	case len(living) <= 2:
		what = "join"
	case len(living) >= 6 && what == "join":
		what = "leave"
	}
	switch what {
	case "join":
		_ = f.join()
	case "leave":
		m.mu.Lock()
		m.left = true
		m.mu.Unlock()
		_ = m.cmd.Process.Signal(syscall.SIGTERM)
	default:
		m.mu.Lock()
		m.dead = true
		m.mu.Unlock()
		_ = m.cmd.Process.Kill()
		if what == "back" { // at once, while the group waits for the one before
			_ = f.join()
		}
	}
	return what
}

func (f *fleet) killAll() {
	for _, m := range f.all {
		_ = m.cmd.Process.Kill()
		<-m.done
	}
}

// owners returns who has each partition.
func (f *fleet) owners() map[int]*member {
	owners := map[int]*member{}
	for _, m := range f.living() {
		m.mu.Lock()
		for _, p := range m.has {
			owners[p] = m
		}
		m.mu.Unlock()
	}
	return owners
}

// settle waits until every partition has one owner, and nobody has been assigned
// anything for a while.
func (f *fleet) settle(ctx context.Context) error {
	for end := time.Now().Add(*session + time.Minute); time.Now().Before(end) && ctx.Err() == nil; sleep(ctx, 20*time.Millisecond) {
		n, idle, latest := 0, false, time.Time{}
		for _, m := range f.living() {
			m.mu.Lock()
			n += len(m.has)
			idle = idle || m.heard.IsZero()
			if m.heard.After(latest) {
				latest = m.heard
			}
			m.mu.Unlock()
		}
		if n == *partitions && !idle && len(f.owners()) == n && time.Since(latest) > calm {
			return nil
		}
	}
	return errors.Join(ctx.Err(), errors.New("the group does not settle"))
}
