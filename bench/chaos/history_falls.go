package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// A fall is a way in which a store falls back to an earlier state, or partitions
// change, and where that is tried.
type fall struct {
	name, what string
	loses      bool // counts
	others     bool // partitions end and go on, or are added
	ends       bool // some partitions have a writer of their own
	waits      bool // most of the time
	late       bool // events are counted
	retention  time.Duration
	shards     int // 0: 3
	least      int // strikes; 0: 1
	prepare    func(context.Context, *trial) error
	strike     func(context.Context, *trial, *rand.Rand) error
}

var falls = []fall{
	{name: "lag", what: "failover behind one address, to a replica that was cut off 0.3 to 1.5 s before",
		loses: true, prepare: preparePair, strike: failOver},
	{name: "sentinel", what: "the master is killed; Sentinel promotes a replica that was cut off 0.3 to 1.5 s before",
		loses: true, prepare: prepareSentinel, strike: killMaster},
	{name: "snapshot", what: "kill -9, started from a snapshot that is 0.3 to 2 s old",
		loses: true, prepare: prepareOne(), strike: olderSnapshot},
	{name: "aof", what: "kill -9, the append-only file cut at a random byte of the last 0.3 to 2 s",
		loses: true, prepare: prepareOne("--appendonly", "yes", "--appendfsync", "everysec", "--aof-load-truncated", "yes"), strike: cutLog},
	{name: "node", what: "one of three cluster nodes starts from an older snapshot, the others stay",
		loses: true, shards: 6, prepare: prepareCluster, strike: olderNode},
	{name: "late", what: "as lag, but late events are counted, so that closed windows grow; the replica has them as they were",
		loses: true, late: true, shards: 1, prepare: preparePair, strike: failOver},
	{name: "retention", what: "as lag, with windows kept for 1 s: those that fall back bring deleted ones back",
		loses: true, retention: time.Second, prepare: preparePair, strike: failOver},
	{name: "ended", what: "partitions are ended by EndPartition and go on later; every other time a failover forgets the end",
		loses: true, others: true, ends: true, waits: true, least: 2, prepare: preparePair, strike: endAndGoOn},
	{name: "growth", what: "a partition is added; every other time a failover forgets it",
		loses: true, others: true, least: 2, prepare: preparePair, strike: addOne},
}

func fallNames() string {
	var names []string
	for _, f := range falls {
		names = append(names, f.name)
	}
	return strings.Join(names, ", ")
}

// A ground is the servers of a trial.
type ground struct {
	exits    []func()
	nodes    []*node  // of a pair: master and replica
	proxy    *proxy   // of a pair behind one address
	sentinel string   // log of one of those that watch over it
	of       [][]bool // by node of a cluster: which shards are on it
}

func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)+1))
}

// node starts a server.
func (t *trial) node(ctx context.Context, name string, args ...string) (*node, error) {
	n, err := newNode(t.lab, t.fall.name+"-"+name, args...)
	if err != nil {
		return nil, err
	}
	if err := n.start(); err != nil {
		return nil, err
	}
	t.ground.exits = append(t.ground.exits, func() { n.child.kill() })
	t.lab.onExit(func() { n.child.kill() })
	return n, n.answers(ctx)
}

func (n *node) answers(ctx context.Context) error {
	return eventually(ctx, 30*time.Second, n.name+" did not answer", func(ctx context.Context) error { return n.must(ctx, "PING") })
}

// asks makes a server the one that is asked by the layout.
func (t *trial) asks(n *node) { t.master.Store(&store{nodes: []*node{n}}) }

// all marks every shard.
func (t *trial) all() []bool {
	all := make([]bool, t.shards)
	for i := range all {
		all[i] = true
	}
	return all
}

// lose notes what a fall back undoes. It is called when everything is ready, and
// calls do, after which nobody is answered from what is lost.
func (t *trial) lose(ctx context.Context, shards []bool, after []shardMark, do func() error) error {
	before, err := t.store().marks(ctx, t.name, t.shards)
	if err != nil {
		return err
	}
	note := func() {
		checkpoints, windows, hot := fell(before, after, t.def.Window.Size.Milliseconds())
		t.checkpoints += checkpoints
		t.windows += windows
		t.judge.strikes(hot)
	}
	if after != nil {
		note()
	}
	over := t.judge.lose(t.since(), shards)
	err = do()
	if err == nil && after == nil {
		err = eventually(ctx, healing, "the store does not answer", func(ctx context.Context) (err error) {
			after, err = t.store().marks(ctx, t.name, t.shards)
			return err
		})
		if err == nil {
			note()
		}
	}
	// A client may not have noticed yet that its connection has ended.
	over(t.since() + time.Second)
	return err
}

// A pair behind one address.

func preparePair(ctx context.Context, t *trial) error {
	if err := t.pair(ctx); err != nil {
		return err
	}
	p, err := newProxy(t.lab.ports.get(), local(t.ground.nodes[0].port))
	if err != nil {
		return err
	}
	t.ground.proxy = p
	t.clients = rueidis.ClientOption{InitAddress: []string{local(p.port)}, ForceSingleClient: true}
	return nil
}

// pair starts a master and a replica.
func (t *trial) pair(ctx context.Context, args ...string) error {
	args = append(args, "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
	for _, name := range []string{"a", "b"} {
		n, err := t.node(ctx, name, args...)
		if err != nil {
			return err
		}
		t.ground.nodes = append(t.ground.nodes, n)
	}
	t.asks(t.ground.nodes[0])
	if err := t.ground.nodes[1].must(ctx, "REPLICAOF", "127.0.0.1", strconv.Itoa(t.ground.nodes[0].port)); err != nil {
		return err
	}
	return t.follows(ctx)
}

// follows waits until the replica has all that the master has.
func (t *trial) follows(ctx context.Context) error {
	return eventually(ctx, 30*time.Second, "the replica does not follow", func(ctx context.Context) error {
		f, err := t.ground.nodes[1].info(ctx, "replication")
		if err != nil {
			return err
		}
		if f["role"] != "slave" || f["master_link_status"] != "up" {
			return fmt.Errorf("its role is %s, its link %s", f["role"], f["master_link_status"])
		}
		return nil
	})
}

// failOver makes the replica, as it was some time ago, the master.
func failOver(ctx context.Context, t *trial, r *rand.Rand) error {
	after, err := t.detach(ctx)
	if err != nil {
		return err
	}
	if t.fall.late {
		// The windows that are closed there grow, and are stored in another way.
		t.tape.burst()
	}
	time.Sleep(between(r, 300*time.Millisecond, 1500*time.Millisecond))
	return t.switchOver(ctx, after)
}

// detach cuts the replica off, and returns what it holds from then on.
func (t *trial) detach(ctx context.Context) ([]shardMark, error) {
	if err := t.follows(ctx); err != nil {
		return nil, err
	}
	b := t.ground.nodes[1]
	if err := b.must(ctx, "REPLICAOF", "NO", "ONE"); err != nil {
		return nil, err
	}
	return t.kept(ctx, b)
}

// kept returns what a server holds that the store will fall back to.
func (t *trial) kept(ctx context.Context, n *node) ([]shardMark, error) {
	marks, err := (&store{nodes: []*node{n}}).marks(ctx, t.name, t.shards)
	if err == nil {
		t.aim.Store(marks[0].closed)
	}
	return marks, err
}

// switchOver makes the replica, which was cut off, the master.
func (t *trial) switchOver(ctx context.Context, after []shardMark) error {
	a, b := t.ground.nodes[0], t.ground.nodes[1]
	err := t.lose(ctx, t.all(), after, func() error {
		t.ground.proxy.retarget(local(b.port))
		t.asks(b)
		return nil
	})
	if err != nil {
		return err
	}
	t.ground.nodes = []*node{b, a}
	return a.must(ctx, "REPLICAOF", "127.0.0.1", strconv.Itoa(b.port))
}

// retarget has the proxy lead elsewhere, and cuts all connections.
func (p *proxy) retarget(to string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = to
	for l := range p.links {
		l.close(true)
		p.cuts++
	}
}

// Sentinel.

const masterSet = "counts"

func prepareSentinel(ctx context.Context, t *trial) error {
	// The replica has a user of its own, so that it can be cut off.
	err := t.pair(ctx, "--masteruser", "replica", "--masterauth", "secret", "--user", "replica", "on", ">secret", "~*", "&*", "+@all")
	if err != nil {
		return err
	}
	var addresses []string
	for i := range 3 {
		port := t.lab.ports.get()
		dir := filepath.Join(t.lab.work, fmt.Sprintf("%s-s%d", t.fall.name, i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		file := filepath.Join(dir, "sentinel.conf")
		text := fmt.Sprintf("port %d\nbind 127.0.0.1\ndir %s\nsentinel monitor %s 127.0.0.1 %d 2\nsentinel down-after-milliseconds %s 2000\nsentinel failover-timeout %s 3000\n",
			port, dir, masterSet, t.ground.nodes[0].port, masterSet, masterSet)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
		log := filepath.Join(dir, "log")
		c, err := launch("sentinel", log, log, nil, "redis-server", file, "--sentinel")
		if err != nil {
			return err
		}
		t.ground.exits = append(t.ground.exits, func() { c.kill() })
		t.lab.onExit(func() { c.kill() })
		addresses = append(addresses, local(port))
		t.ground.sentinel = log
	}
	t.clients = rueidis.ClientOption{InitAddress: addresses, Sentinel: rueidis.SentinelOption{MasterSet: masterSet}}
	return eventually(ctx, 30*time.Second, "the sentinels do not see each other", func(ctx context.Context) error {
		for _, address := range addresses {
			c, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{address}, ForceSingleClient: true, DisableCache: true})
			if err != nil {
				return err
			}
			info, err := c.Do(ctx, c.B().Arbitrary("SENTINEL", "MASTER", masterSet).Build()).AsStrMap()
			c.Close()
			if err != nil {
				return err
			}
			if info["num-slaves"] != "1" || info["num-other-sentinels"] != "2" {
				return fmt.Errorf("%s sees %s replicas and %s others", address, info["num-slaves"], info["num-other-sentinels"])
			}
		}
		return nil
	})
}

// killMaster cuts the replica off and kills the master some time later.
func killMaster(ctx context.Context, t *trial, r *rand.Rand) error {
	if err := t.follows(ctx); err != nil {
		return err
	}
	a, b := t.ground.nodes[0], t.ground.nodes[1]
	if err := a.must(ctx, "ACL", "SETUSER", "replica", "off"); err != nil {
		return err
	}
	if err := a.must(ctx, "CLIENT", "KILL", "TYPE", "replica"); err != nil {
		return err
	}
	after, err := t.kept(ctx, b)
	if err != nil {
		return err
	}
	time.Sleep(between(r, 300*time.Millisecond, 1500*time.Millisecond))
	err = t.lose(ctx, t.all(), after, func() error {
		t.lab.killed(a.child.kill())
		t.asks(b)
		return eventually(ctx, 60*time.Second, "Sentinel promoted nobody", func(ctx context.Context) error {
			f, err := b.info(ctx, "replication")
			if err == nil && f["role"] != "master" {
				err = fmt.Errorf("its role is %s", f["role"])
			}
			return err
		})
	})
	if err != nil {
		return err
	}
	t.ground.nodes = []*node{b, a}
	a.forget()
	a.args = append(without(a.args, "--replicaof", 2), "--replicaof", "127.0.0.1", strconv.Itoa(b.port))
	return a.start()
}

// unasked returns an error if Sentinel has failed over more often than it was made
// to: that lost something that nobody noted.
func (t *trial) unasked() error {
	if t.ground.sentinel == "" {
		return nil
	}
	text, err := os.ReadFile(t.ground.sentinel)
	if err != nil {
		return err
	}
	if n := strings.Count(string(text), "+switch-master"); n > t.strikes {
		return fmt.Errorf("redis-sentinel has failed over %d times, %d were asked for: what is wrong may come of that; is the machine too slow?", n, t.strikes)
	}
	return nil
}

// without returns args without an option and its values.
func without(args []string, option string, values int) []string {
	args = slices.Clone(args)
	if i := slices.Index(args, option); i >= 0 {
		args = slices.Delete(args, i, i+1+values)
	}
	return args
}

// One server.

func prepareOne(args ...string) func(context.Context, *trial) error {
	return func(ctx context.Context, t *trial) error {
		n, err := t.node(ctx, "redis", args...)
		if err != nil {
			return err
		}
		t.ground.nodes = []*node{n}
		t.asks(n)
		t.clients = rueidis.ClientOption{InitAddress: []string{local(n.port)}, ForceSingleClient: true}
		return nil
	}
}

// olderSnapshot kills the server and starts it with what it held some time ago.
func olderSnapshot(ctx context.Context, t *trial, r *rand.Rand) error {
	return t.older(ctx, r, t.ground.nodes[0], t.all())
}

func (t *trial) older(ctx context.Context, r *rand.Rand, n *node, shards []bool) error {
	if err := n.save(ctx); err != nil {
		return err
	}
	t.aim.Store(t.edge.Load())
	time.Sleep(between(r, 300*time.Millisecond, 2*time.Second))
	return t.lose(ctx, shards, nil, func() error {
		t.lab.killed(n.child.kill())
		if err := n.restore(); err != nil {
			return err
		}
		defer n.forget()
		if err := n.start(); err != nil {
			return err
		}
		return n.answers(ctx)
	})
}

// cutLog kills the server and cuts what it appended last to its log.
//
// The log is written anew first. Redis cuts one that ends within a command after
// the last whole command, be that in the middle of a transaction, and appends the
// next transaction to it. When it starts once more, it takes both for one
// ("MULTI calls can not be nested"), and does half of what it had undone.
func cutLog(ctx context.Context, t *trial, r *rand.Rand) error {
	n := t.ground.nodes[0]
	if err := n.rewrite(ctx); err != nil {
		return err
	}
	_, before, err := n.appended()
	if err != nil {
		return err
	}
	t.aim.Store(t.edge.Load())
	time.Sleep(between(r, 300*time.Millisecond, 2*time.Second))
	return t.lose(ctx, t.all(), nil, func() error {
		t.lab.killed(n.child.kill())
		file, size, err := n.appended()
		if err != nil {
			return err
		}
		if size <= before {
			return fmt.Errorf("%s did not grow", file)
		}
		if err := os.Truncate(file, before+r.Int64N(size-before)); err != nil {
			return err
		}
		if err := n.start(); err != nil {
			return err
		}
		return n.answers(ctx)
	})
}

// rewrite has the server write its log anew.
func (n *node) rewrite(ctx context.Context) error {
	file, _, err := n.appended()
	if err != nil {
		return err
	}
	if err := n.must(ctx, "BGREWRITEAOF"); err != nil {
		return err
	}
	return eventually(ctx, healing, n.name+" did not write its log anew", func(context.Context) error {
		now, _, err := n.appended()
		if err == nil && now == file {
			err = errors.New("it still appends to " + file)
		}
		return err
	})
}

// appended returns the file that the server appends to, and its size.
func (n *node) appended() (file string, size int64, err error) {
	all, err := filepath.Glob(filepath.Join(n.dir, "appendonlydir", "*.incr.aof"))
	if err == nil && len(all) != 1 {
		err = fmt.Errorf("%s: the server appends to %q, should be one file", n.name, all)
	}
	if err != nil {
		return "", 0, err
	}
	info, err := os.Stat(all[0])
	if err != nil {
		return "", 0, err
	}
	return all[0], info.Size(), nil
}

// A cluster of three masters.

func prepareCluster(ctx context.Context, t *trial) error {
	s, err := startNodes(ctx, t.lab, t.fall.name, 0)
	if err != nil {
		return err
	}
	t.ground.nodes = s.nodes
	for _, n := range s.nodes {
		t.ground.exits = append(t.ground.exits, func() { n.child.kill() })
	}
	t.master.Store(s)
	t.clients = rueidis.ClientOption{InitAddress: strings.Split(s.addresses(), ",")}
	for _, n := range s.nodes {
		on := make([]bool, t.shards)
		for _, role := range s.roles(ctx) {
			for shard := range on {
				on[shard] = on[shard] || role.node == n && role.serves(slots[shard])
			}
		}
		if !slices.Contains(on, true) {
			return fmt.Errorf("no shard is on %s", n.name)
		}
		t.ground.of = append(t.ground.of, on)
	}
	return nil
}

// olderNode has one node fall back.
func olderNode(ctx context.Context, t *trial, r *rand.Rand) error {
	i := r.IntN(len(t.ground.nodes))
	if err := t.older(ctx, r, t.ground.nodes[i], t.ground.of[i]); err != nil {
		return err
	}
	return t.store().healthy(ctx)
}

// Partitions that change.

// endAndGoOn ends partitions while nobody reads them, and has them go on, one
// after the other: the first would hold the frontier for the others.
func endAndGoOn(ctx context.Context, t *trial, r *rand.Rand) error {
	for _, w := range t.extras {
		w.end()
	}
	stopped, err := t.store().marks(ctx, t.name, t.shards)
	if err != nil {
		return err
	}
	after, err := t.endAll(ctx, r)
	if err != nil {
		return err
	}
	ended, err := t.store().marks(ctx, t.name, t.shards)
	if err != nil {
		return err
	}
	hot := make([]span, t.shards)
	for shard, m := range ended {
		for _, w := range t.extras {
			if m.records[w.ends].state != "ended" {
				return fmt.Errorf("shard %d: %s has not ended", shard, w.ends)
			}
		}
		// What closed because they had ended.
		hot[shard] = span{stopped[shard].closed, m.closed}
	}
	t.judge.strikes(hot)
	// If a failover forgets the end, it does so before, while or after they go on.
	forgetAt := r.IntN(len(t.extras) + 1)
	for i := range len(t.extras) + 1 {
		if i == forgetAt && after != nil {
			if err := t.switchOver(ctx, after); err != nil {
				return err
			}
		}
		if i < len(t.extras) {
			w := t.extras[i]
			w.line = between(r, 0, 250*time.Millisecond)
			if err := w.start(); err != nil {
				return err
			}
			time.Sleep(between(r, 200*time.Millisecond, time.Second))
		}
	}
	err = eventually(ctx, healing, "the partitions did not go on", func(ctx context.Context) error {
		marks, err := t.store().marks(ctx, t.name, t.shards)
		if err != nil {
			return err
		}
		for shard, m := range marks {
			for _, w := range t.extras {
				if m.records[w.ends].state != "live" || m.records[w.ends].offset <= ended[shard].records[w.ends].offset {
					return fmt.Errorf("shard %d: %s is %v", shard, w.ends, m.records[w.ends])
				}
			}
		}
		return nil
	})
	if err == nil {
		t.other += int64(len(t.extras))
	}
	return err
}

// endAll ends the partitions that end. Every other time it cuts the replica off
// at about the moment, and returns what that holds.
func (t *trial) endAll(ctx context.Context, r *rand.Rand) (after []shardMark, err error) {
	var wg sync.WaitGroup
	errs := make([]error, len(t.extras)+1)
	for i, w := range t.extras {
		wg.Go(func() { errs[i] = t.endPartition(ctx, w.ends) })
	}
	if t.strikes%2 == 1 {
		wg.Go(func() {
			time.Sleep(between(r, 14*time.Second, 15*time.Second))
			after, errs[len(errs)-1] = t.detach(ctx)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	time.Sleep(between(r, 500*time.Millisecond, 2*time.Second))
	return after, nil
}

func (t *trial) endPartition(ctx context.Context, id string) error {
	client, err := rueidis.NewClient(t.option(true, 0))
	if err != nil {
		return err
	}
	defer client.Close()
	sink, err := redis.New(redis.Config{Client: client, Name: t.name})
	if err != nil {
		return err
	}
	return tumble.EndPartition(ctx, sink, id)
}

// mostAdded bounds the partitions that are added.
const mostAdded = 40

// addOne adds a partition.
func addOne(ctx context.Context, t *trial, r *rand.Rand) error {
	forgets := t.strikes%2 == 1
	var after []shardMark
	before, err := t.store().marks(ctx, t.name, t.shards)
	if err != nil {
		return err
	}
	if forgets {
		if after, err = t.detach(ctx); err != nil {
			return err
		}
	}
	id := ""
	if t.other < mostAdded {
		id = fmt.Sprintf("added/%d", t.other)
		t.other++
		t.tape.add(id, false, 60)
		t.mu.Lock()
		t.dealt = append(t.dealt, id)
		turn := t.turn
		t.mu.Unlock()
		t.deal(turn, false)
	}
	known := func(marks []shardMark) error {
		for shard, m := range marks {
			if _, ok := m.records[id]; !ok && id != "" {
				return fmt.Errorf("shard %d does not know %s", shard, id)
			}
		}
		return nil
	}
	counted := func(ctx context.Context) error {
		marks, err := t.store().marks(ctx, t.name, t.shards)
		if err != nil {
			return err
		}
		return known(marks)
	}
	if err := eventually(ctx, healing, "the new partition is not registered", counted); err != nil {
		return err
	}
	time.Sleep(between(r, 300*time.Millisecond, time.Second))
	if !forgets {
		now, err := t.store().marks(ctx, t.name, t.shards)
		if err != nil {
			return err
		}
		hot := make([]span, t.shards)
		for shard := range hot {
			hot[shard] = span{before[shard].closed, now[shard].closed}
		}
		t.judge.strikes(hot)
		return nil
	}
	if err := t.switchOver(ctx, after); err != nil {
		return err
	}
	return eventually(ctx, healing, "the new partition is not registered again", counted)
}
