package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A kafka is a cluster of real brokers, each of which is its controllers'
// quorum, too. Consumers reach them through proxies, all else directly.
type kafka struct {
	sync.Mutex // held by who breaks a broker, until all is well again
	topic      string
	brokers    []*broker
	admin      *kadm.Client
}

type broker struct {
	id, port int
	proxy    *proxy
	dir      string
	jars     string
	logs     string
	child    *child
}

// jars returns the folder with Kafka's jars, fetched if it is missing. Which one
// it is scripts/servers decides, by its pom.
func jars(root string) (string, error) {
	pom, err := os.ReadFile(filepath.Join(root, "scripts/kafka/pom.xml"))
	if err != nil {
		return "", err
	}
	version := regexp.MustCompile(`<kafka\.version>(.*)</kafka\.version>`).FindSubmatch(pom)
	if version == nil {
		return "", fmt.Errorf("%s/scripts/kafka/pom.xml names no version of Kafka", root)
	}
	sum := sha256.Sum256(pom)
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		cache = filepath.Join(os.Getenv("HOME"), ".cache")
	}
	dir := filepath.Join(cache, "tumble", fmt.Sprintf("kafka-%s-%x", version[1], sum[:4]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	out, err := exec.Command(filepath.Join(root, "scripts/servers"), "kafka-tool", "kafka.tools.StorageTool", "random-uuid").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("fetching Kafka: %w\n%s", err, out)
	}
	_, err = os.Stat(dir)
	return dir, err
}

// startKafka starts n brokers and creates the topic.
func startKafka(ctx context.Context, l *lab, n, partitions int) (*kafka, error) {
	dir, err := jars(l.root)
	if err != nil {
		return nil, err
	}
	k := &kafka{topic: "clicks"}
	var voters []string
	controllers := make([]int, n)
	for i := range n {
		controllers[i] = l.ports.get()
		voters = append(voters, fmt.Sprintf("%d@%s", i+1, local(controllers[i])))
	}
	copies := min(n, 3)
	atLeast := max(copies-1, 1)
	var seeds []string
	for i := range n {
		b := &broker{id: i + 1, port: l.ports.get(), jars: dir, dir: filepath.Join(l.work, fmt.Sprintf("kafka-%d", i+1)), logs: l.work}
		back := l.ports.get() // where the proxy finds it
		if b.proxy, err = newProxy(l.ports.get(), local(back)); err != nil {
			return nil, err
		}
		if err := os.MkdirAll(b.dir, 0o755); err != nil {
			return nil, err
		}
		properties := fmt.Sprintf(`process.roles=broker,controller
node.id=%d
controller.quorum.voters=%s
listeners=DIRECT://127.0.0.1:%d,PROXIED://127.0.0.1:%d,CONTROLLER://127.0.0.1:%d
advertised.listeners=DIRECT://127.0.0.1:%d,PROXIED://127.0.0.1:%d
controller.listener.names=CONTROLLER
inter.broker.listener.name=DIRECT
listener.security.protocol.map=DIRECT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs=%s/log
log.retention.ms=-1
auto.create.topics.enable=false
default.replication.factor=%d
min.insync.replicas=%d
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=%d
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=%d
transaction.state.log.min.isr=%d
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
`, b.id, strings.Join(voters, ","), b.port, back, controllers[i], b.port, b.proxy.port, b.dir, copies, atLeast, copies, copies, atLeast)
		if err := os.WriteFile(b.properties(), []byte(properties), 0o644); err != nil {
			return nil, err
		}
		k.brokers = append(k.brokers, b)
		seeds = append(seeds, local(b.port))
	}
	for _, b := range k.brokers {
		format := exec.Command("java", "-Xmx128m", "-XX:+UseSerialGC", "-cp", dir+"/*", "kafka.tools.StorageTool", "format", "-t", "dHVtYmxlLWNoYW9zLTAwMQ", "-c", b.properties())
		if out, err := format.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("formatting Kafka's log folder: %w\n%s", err, out)
		}
	}
	for _, b := range k.brokers {
		if err := b.start(); err != nil {
			return nil, err
		}
		l.onExit(func() { b.child.kill() })
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(seeds...), kgo.MetadataMaxAge(2*time.Second), kgo.MetadataMinAge(200*time.Millisecond), kgo.RetryTimeout(20*time.Second))
	if err != nil {
		return nil, err
	}
	k.admin = kadm.NewClient(client)
	err = eventually(ctx, 120*time.Second, "Kafka did not start", func(ctx context.Context) error {
		found, err := k.admin.ListBrokers(ctx)
		if err == nil && len(found) < n {
			err = fmt.Errorf("%d of %d brokers", len(found), n)
		}
		if err != nil {
			return err
		}
		_, err = k.admin.CreateTopic(ctx, int32(partitions), int16(copies), nil, k.topic)
		if err != nil && strings.Contains(err.Error(), "TOPIC_ALREADY_EXISTS") {
			return nil
		}
		return err
	})
	return k, err
}

func (b *broker) properties() string { return filepath.Join(b.dir, "server.properties") }

func (b *broker) start() (err error) {
	log := filepath.Join(b.logs, fmt.Sprintf("kafka-%d.log", b.id))
	b.child, err = launch(fmt.Sprintf("broker %d", b.id), log, log, nil,
		"java", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN", "-cp", b.jars+"/*", "kafka.Kafka", b.properties())
	return err
}

// direct returns the addresses that no fault of the network touches.
func (k *kafka) direct() []string {
	var list []string
	for _, b := range k.brokers {
		list = append(list, local(b.port))
	}
	return list
}

// proxied returns the addresses for consumers.
func (k *kafka) proxied() string {
	var list []string
	for _, b := range k.brokers {
		list = append(list, local(b.proxy.port))
	}
	return strings.Join(list, ",")
}

// healthy waits until every partition has a leader and all its replicas.
func (k *kafka) healthy(ctx context.Context) error {
	return eventually(ctx, 120*time.Second, "Kafka did not recover", func(ctx context.Context) error {
		m, err := k.admin.Metadata(ctx, k.topic)
		if err != nil {
			return err
		}
		if len(m.Brokers) < len(k.brokers) {
			return fmt.Errorf("%d of %d brokers", len(m.Brokers), len(k.brokers))
		}
		for _, p := range m.Topics[k.topic].Partitions {
			if p.Err != nil {
				return p.Err
			}
			if p.Leader < 0 || len(p.ISR) < len(p.Replicas) {
				return fmt.Errorf("partition %d: leader %d, in sync %v of %v", p.Partition, p.Leader, p.ISR, p.Replicas)
			}
		}
		return nil
	})
}

// partitions returns how many there are.
func (k *kafka) partitions(ctx context.Context) (int, error) {
	m, err := k.admin.Metadata(ctx, k.topic)
	if err != nil {
		return 0, err
	}
	return len(m.Topics[k.topic].Partitions), m.Topics[k.topic].Err
}

// grow adds a partition.
func (k *kafka) grow(ctx context.Context) error {
	answers, err := k.admin.CreatePartitions(ctx, 1, k.topic)
	if err != nil {
		return err
	}
	return answers.Error()
}

// ends returns the offsets at which the partitions end, for who reads what is
// committed.
// limit gives the consumers a quota, in bytes a second. 0 takes it away.
func (k *kafka) limit(ctx context.Context, bytesASecond float64) error {
	client := "clickstream" // as the example programs call themselves
	answers, err := k.admin.AlterClientQuotas(ctx, []kadm.AlterClientQuotaEntry{{
		Entity: kadm.ClientQuotaEntity{{Type: "client-id", Name: &client}},
		Ops:    []kadm.AlterClientQuotaOp{{Key: "consumer_byte_rate", Value: bytesASecond, Remove: bytesASecond == 0}},
	}})
	for _, a := range answers {
		err = errors.Join(err, a.Err)
	}
	return err
}

func (k *kafka) ends(ctx context.Context) (map[int32]int64, error) {
	return offsets(k.admin.ListCommittedOffsets(ctx, k.topic))
}

// highWatermarks returns the offsets at which they end for others.
func (k *kafka) highWatermarks(ctx context.Context) (map[int32]int64, error) {
	return offsets(k.admin.ListEndOffsets(ctx, k.topic))
}

func offsets(listed kadm.ListedOffsets, err error) (map[int32]int64, error) {
	if err == nil {
		err = listed.Error()
	}
	if err != nil {
		return nil, err
	}
	ends := map[int32]int64{}
	listed.Each(func(o kadm.ListedOffset) { ends[o.Partition] = o.Offset })
	return ends, nil
}

// eventually tries again and again until it works, for at most so long.
func eventually(ctx context.Context, patience time.Duration, what string, try func(context.Context) error) error {
	end := time.Now().Add(patience)
	for {
		bounded, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := try(bounded)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s within %v: %w", what, patience, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}
