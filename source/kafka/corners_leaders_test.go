//go:build servers

package kafka

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A broker is a process of a cluster that a test starts for itself, to be able
// to kill it.
type broker struct {
	id         int
	addr       string
	properties string // file
	log        *os.File
	cmd        *exec.Cmd
}

// patience is for clusters on a machine that does other things too.
const patience = 90 * time.Second

// freeAddr is one on which nobody listens.
func freeAddr(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

// startBrokers starts a cluster of three, of which the first is the controller
// too. Whoever is silent for 3 seconds is no leader any more.
func startBrokers(t testing.TB) (cluster, []*broker) {
	controller := freeAddr(t)
	brokers := make([]*broker, 3)
	var c cluster
	var wg sync.WaitGroup
	errs := make([]error, len(brokers))
	for i := range brokers {
		b := &broker{id: i + 1, addr: freeAddr(t)}
		brokers[i] = b
		c.brokers = append(c.brokers, b.addr)
		dir := t.TempDir()
		b.properties = filepath.Join(dir, "server.properties")
		roles, listeners := "broker", "PLAINTEXT://"+b.addr
		if i == 0 {
			roles, listeners = "broker,controller", listeners+",CONTROLLER://"+controller
		}
		lines := []string{
			"process.roles=" + roles, "node.id=" + fmt.Sprint(b.id), "controller.quorum.voters=1@" + controller,
			"listeners=" + listeners, "advertised.listeners=PLAINTEXT://" + b.addr, "controller.listener.names=CONTROLLER",
			"listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT", "log.dirs=" + filepath.Join(dir, "log"),
			"broker.session.timeout.ms=3000", "broker.heartbeat.interval.ms=500", "group.initial.rebalance.delay.ms=0",
			"broker.rack=" + rack(b.id), "replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector",
			"offsets.topic.num.partitions=3", "auto.leader.rebalance.enable=false", "controlled.shutdown.enable=false",
		}
		require.NoError(t, os.WriteFile(b.properties, []byte(strings.Join(lines, "\n")), 0o600))
		var err error
		b.log, err = os.Create(filepath.Join(dir, "output"))
		require.NoError(t, err)
		t.Cleanup(func() {
			b.kill()
			if t.Failed() {
				text, _ := os.ReadFile(b.log.Name())
				t.Logf("broker %d:\n%s", b.id, text[max(0, len(text)-600):])
			}
			b.log.Close()
		})
		format := exec.CommandContext(t.Context(), "java", "-Xmx128m", "-XX:TieredStopAtLevel=1", "-cp", jars(t),
			"kafka.tools.StorageTool", "format", "-t", "dHVtYmxlLXRlc3RzLTAwMg", "-c", b.properties)
		format.Stdout, format.Stderr = b.log, b.log
		wg.Go(func() {
			if errs[i] = format.Run(); errs[i] == nil {
				errs[i] = b.start(jars(t))
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	cl := c.client(t)
	require.Eventually(t, func() bool {
		res, err := kmsg.NewPtrMetadataRequest().RequestWith(t.Context(), cl)
		return err == nil && len(res.Brokers) == len(brokers)
	}, patience, 200*time.Millisecond)
	return c, brokers
}

// rack is where a broker is.
func rack(broker int) string { return fmt.Sprint("rack-", broker) }

func (b *broker) start(jars string) error {
	b.cmd = exec.Command("java", "-Xmx256m", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN", "-cp", jars, "kafka.Kafka", b.properties)
	b.cmd.Stdout, b.cmd.Stderr = b.log, b.log
	return b.cmd.Start()
}

// kill is a crash.
func (b *broker) kill() {
	if b.cmd != nil && b.cmd.Process != nil {
		b.cmd.Process.Kill()
		b.cmd.Wait()
		b.cmd = nil
	}
}

// createReplicated makes a topic that every broker holds, whose partitions are
// led by the brokers in turn.
func (c cluster) createReplicated(t testing.TB, partitions int) string {
	req := kmsg.NewPtrCreateTopicsRequest()
	rt := kmsg.NewCreateTopicsRequestTopic()
	rt.Topic, rt.NumPartitions, rt.ReplicationFactor = newTopic(), -1, -1
	for p := range partitions {
		rt.ReplicaAssignment = append(rt.ReplicaAssignment, kmsg.CreateTopicsRequestTopicReplicaAssignment{
			Partition: int32(p), Replicas: replicas(p),
		})
	}
	two := "2"
	rt.Configs = []kmsg.CreateTopicsRequestTopicConfig{{Name: "min.insync.replicas", Value: &two}}
	req.Topics = append(req.Topics, rt)
	req.TimeoutMillis = 10000
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	require.Zero(t, res.Topics[0].ErrorCode)
	return rt.Topic
}

// replicas are all brokers, one of them first.
func replicas(first int) []int32 {
	all := []int32{1, 2, 3}
	return slices.Concat(all[first%3:], all[:first%3])
}

func (c cluster) leaders(t testing.TB, topic string) map[int32]int32 {
	req := kmsg.NewPtrMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{{Topic: &topic}}
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	leaders := map[int32]int32{}
	for _, p := range res.Topics[0].Partitions {
		leaders[p.Partition] = p.Leader
	}
	return leaders
}

// prefer makes another broker the preferred leader of each partition, and then
// the leader. It reports whether every one has come to lead.
func (c cluster) prefer(t testing.TB, topic string, partitions, shift int) bool {
	cl := c.client(t)
	alter := kmsg.NewPtrAlterPartitionAssignmentsRequest()
	alter.TimeoutMillis = 10000
	elect := kmsg.NewPtrElectLeadersRequest()
	elect.TimeoutMillis = 10000
	at := kmsg.AlterPartitionAssignmentsRequestTopic{Topic: topic}
	et := kmsg.ElectLeadersRequestTopic{Topic: topic}
	for p := range partitions {
		at.Partitions = append(at.Partitions, kmsg.AlterPartitionAssignmentsRequestTopicPartition{Partition: int32(p), Replicas: replicas(p + shift)})
		et.Partitions = append(et.Partitions, int32(p))
	}
	alter.Topics = append(alter.Topics, at)
	elect.Topics = append(elect.Topics, et)
	_, err := alter.RequestWith(t.Context(), cl)
	require.NoError(t, err)
	_, err = elect.RequestWith(t.Context(), cl)
	require.NoError(t, err)
	for p, leader := range c.leaders(t, topic) {
		if leader != replicas(int(p) + shift)[0] {
			return false
		}
	}
	return true
}

// Leaders move from broker to broker, as an operator has them do and because
// brokers are killed, the group's coordinator among them: every record is read
// once, in order, and the member of a group goes on.
func TestLeadersMoveOnRealBrokers(t *testing.T) {
	begin := time.Now()
	c, brokers := startBrokers(t)
	t.Logf("three brokers after %v", time.Since(begin))
	const partitions = 3
	topic := c.createReplicated(t, partitions)

	cl := c.client(t, kgo.RequiredAcks(kgo.AllISRAcks()))
	writing, stop := context.WithCancel(t.Context())
	want := map[string][]string{}
	written := make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			p := int32(i % partitions)
			r := &kgo.Record{Topic: topic, Partition: p, Value: fmt.Append(nil, i)}
			// A record under way is waited for: it may be in the log.
			if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				written <- err
				return
			}
			id := fmt.Sprint(topic, "/", p)
			want[id] = append(want[id], string(r.Value))
			if writing.Err() != nil {
				written <- nil
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	alone := follow(t, c.config(topic), nil)
	cfg := c.config(topic)
	cfg.Group, cfg.SessionTimeout = newTopic(), 6*time.Second
	member := follow(t, cfg, nil)
	cfg = c.config(topic)
	cfg.Rack = rack(3)
	bytes := make(map[int32]*atomic.Int64)
	for _, b := range brokers {
		bytes[int32(b.id)] = new(atomic.Int64)
	}
	s, err := New(cfg)
	require.NoError(t, err)
	s.delivered = func(broker int32, n int) { bytes[broker].Add(int64(n)) }
	near := followSource(t, s, nil)
	// share is what came from other racks since it was asked before, and from its own.
	share := func() (distant, near int64) {
		return bytes[1].Swap(0) + bytes[2].Swap(0), bytes[3].Swap(0)
	}

	// progress is made if every partition is read on by both.
	progress := func(why string) {
		t.Helper()
		begin := time.Now()
		for _, tl := range []*tail{alone, member, near} {
			var had map[string]int64
			next := func() map[string]int64 {
				tl.mu.Lock()
				defer tl.mu.Unlock()
				now := map[string]int64{}
				for id, n := range tl.next {
					now[id] = n
				}
				return now
			}
			had = next()
			require.Eventually(t, func() bool {
				now := next()
				for p := range partitions {
					id := fmt.Sprint(topic, "/", p)
					if now[id] < had[id]+5 {
						return false
					}
				}
				return true
			}, patience, 10*time.Millisecond, why)
		}
		t.Logf("%s: read on after %v, leaders %v", why, time.Since(begin).Round(time.Millisecond), c.leaders(t, topic))
	}
	progress("start")
	share()
	progress("from the same rack")
	distant, close := share()
	require.Greater(t, close, 20*distant, "bytes from its own rack, and from others")
	require.Eventually(t, func() bool { // although the replica's end is behind the leader's
		near.mu.Lock()
		defer near.mu.Unlock()
		return near.caught[fmt.Sprint(topic, "/0")]
	}, patience, time.Millisecond)
	for shift := 1; shift <= 2; shift++ {
		require.Eventually(t, func() bool { return c.prefer(t, topic, partitions, shift) }, patience, 200*time.Millisecond)
		progress(fmt.Sprint("moved by ", shift))
	}
	for _, b := range brokers[1:] {
		was := c.leaders(t, topic)
		require.Contains(t, []int32{was[0], was[1], was[2]}, int32(b.id), "it leads something")
		b.kill()
		require.Eventually(t, func() bool {
			for _, leader := range c.leaders(t, topic) {
				if leader == int32(b.id) || leader < 0 {
					return false
				}
			}
			return true
		}, patience, 100*time.Millisecond)
		progress(fmt.Sprint("killed ", b.id))
		require.NoError(t, b.start(jars(t)))
		require.Eventually(t, func() bool { return c.prefer(t, topic, partitions, 0) }, patience, 500*time.Millisecond)
		progress(fmt.Sprint("back ", b.id))
	}
	stop()
	require.NoError(t, <-written)

	total := 0
	for _, values := range want {
		total += len(values)
	}
	got := func(tl *tail) map[string][]string {
		all := map[string][]string{}
		last := map[string]int64{}
		for _, e := range tl.snapshot() {
			if n, ok := last[e.id]; !ok || e.offset != n { // read again by the next generation of a group
				all[e.id] = append(all[e.id], e.key)
			}
			last[e.id] = e.offset
		}
		return all
	}
	for _, tl := range []*tail{alone, near} {
		tl.await(t, total)
		require.Equal(t, total, len(tl.snapshot()), "none comes twice")
		require.True(t, reflect.DeepEqual(want, got(tl)), "in order")
	}
	require.Eventually(t, func() bool {
		n := 0
		for _, values := range got(member) {
			n += len(values)
		}
		return n >= total
	}, 10*time.Second, 10*time.Millisecond)
	require.True(t, reflect.DeepEqual(want, got(member)), "in order")
	t.Logf("%d records, %v in all", total, time.Since(begin).Round(time.Second))
}
