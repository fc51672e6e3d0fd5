package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// A fault is a way to break something and to make it whole again.
type fault struct {
	name   string
	what   string
	weight int // how often it is chosen, among those of its kind
	run    func(ctx context.Context, b *breaker) error
}

// A kind of fault is what breaks: no two of one kind are broken at a time.
type kind int

const (
	consumers kind = iota
	stores
	brokers
)

// A breaker runs faults of one kind, one after another, as its seed says.
type breaker struct {
	lab    *lab
	rand   *rand.Rand
	kind   kind
	fleet  *fleet // nil: of all
	faults []fault
	gap    [2]time.Duration // between one and the next: least and most
}

// between returns a time between two.
func (b *breaker) between(least, most time.Duration) time.Duration {
	return least + time.Duration(b.rand.Int64N(int64(most-least)+1))
}

func (b *breaker) choose() fault {
	sum := 0
	for _, f := range b.faults {
		sum += f.weight
	}
	n := b.rand.IntN(sum)
	for _, f := range b.faults {
		if n -= f.weight; n < 0 {
			return f
		}
	}
	panic("not reached")
}

// affected returns the fleets that the breaker's faults are for.
func (b *breaker) affected() []*fleet {
	if b.fleet != nil {
		return []*fleet{b.fleet}
	}
	return b.lab.fleets
}

// victim returns a consumer that is neither spared nor broken already, for the
// caller to unlock.
func (b *breaker) victim() *consumer {
	all := b.fleet.all()
	b.rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for _, c := range all {
		if c.spared || !c.busy.TryLock() {
			continue
		}
		if c.running() != nil {
			return c
		}
		c.busy.Unlock()
	}
	return nil
}

const second = time.Second

var consumerFaults = []fault{
	{"consumer killed", "kill -9, started again after 0 to 6 s", 6, func(_ context.Context, b *breaker) error {
		return b.kill(1)
	}},
	{"two consumers killed", "kill -9 of two at once, started again after 0 to 6 s", 3, func(_ context.Context, b *breaker) error {
		return b.kill(2)
	}},
	{"zombie", "SIGSTOP for 12 to 17 s, longer than the session of 10 s, then SIGCONT", 2, func(_ context.Context, b *breaker) error {
		return b.pause(12*second, 17*second)
	}},
	{"consumer held up", "SIGSTOP for 1 to 5 s, then SIGCONT", 1, func(_ context.Context, b *breaker) error {
		return b.pause(second, 5*second)
	}},
	{"consumer leaves", "SIGTERM, started again after 1 to 6 s", 2, func(_ context.Context, b *breaker) error {
		wait := b.between(second, 6*second)
		c := b.victim()
		if c == nil {
			return nil
		}
		defer c.busy.Unlock()
		c.leave()
		time.Sleep(wait)
		return c.start()
	}},
	{"consumer added", "one more for 4 to 10 s, then removed: SIGTERM or kill -9", 1, func(_ context.Context, b *breaker) error {
		stay, kill := b.between(4*second, 10*second), b.rand.IntN(2) == 0
		c, err := b.fleet.join(false)
		if err != nil {
			return err
		}
		c.busy.Lock()
		defer c.busy.Unlock()
		time.Sleep(stay)
		if kill {
			b.lab.killed(c.kill())
			return nil
		}
		c.leave()
		return nil
	}},
}

func (b *breaker) kill(n int) error {
	wait := b.between(0, 6*second)
	var victims []*consumer
	for range n {
		if c := b.victim(); c != nil {
			defer c.busy.Unlock()
			victims = append(victims, c)
		}
	}
	for _, c := range victims {
		b.lab.killed(c.kill())
	}
	time.Sleep(wait)
	for _, c := range victims {
		if err := c.start(); err != nil {
			return err
		}
	}
	return nil
}

func (b *breaker) pause(least, most time.Duration) error {
	d := b.between(least, most)
	if c := b.victim(); c != nil {
		defer c.busy.Unlock()
		c.pause(d)
	}
	return nil
}

// networkFaults break the connections between consumers and servers.
func networkFaults(server string, proxies func(b *breaker) []*proxy) []fault {
	one := func(b *breaker) *proxy {
		all := proxies(b)
		return all[b.rand.IntN(len(all))]
	}
	return []fault{
		{server + " connections cut", "in the middle of an answer, all or about half of them", 3, func(_ context.Context, b *breaker) error {
			var wg sync.WaitGroup
			for _, p := range proxies(b) {
				half := b.rand.IntN(2) == 0
				wg.Go(func() { p.cutAll(half) })
			}
			wg.Wait()
			return nil
		}},
		{server + " silent", "no byte passes to or from one server for 2 to 7 s; then all goes on", 1, func(_ context.Context, b *breaker) error {
			d := b.between(2*second, 7*second)
			one(b).silence(d, false)
			return nil
		}},
		{server + " silent, then cut", "no byte passes to or from one server for 1 to 6 s, then its connections are reset", 1, func(_ context.Context, b *breaker) error {
			d := b.between(second, 6*second)
			one(b).silence(d, true)
			return nil
		}},
	}
}

var singleFaults = append([]fault{
	{"Redis killed, older state", "kill -9, started from a snapshot that is 2 to 8 s old", 4, func(ctx context.Context, b *breaker) error {
		age, wait := b.between(2*second, 8*second), b.between(0, 3*second)
		n := b.fleet.store.nodes[0]
		if err := n.save(ctx); err != nil {
			return err
		}
		time.Sleep(age)
		b.lab.killed(n.child.kill())
		time.Sleep(wait)
		if err := n.restore(); err != nil {
			return err
		}
		defer n.forget()
		return b.restarted(ctx, n)
	}},
	{"Redis killed, empty", "kill -9, started with nothing", 2, func(ctx context.Context, b *breaker) error {
		wait := b.between(0, 3*second)
		n := b.fleet.store.nodes[0]
		b.lab.killed(n.child.kill())
		time.Sleep(wait)
		n.forget()
		return b.restarted(ctx, n)
	}},
	{"FLUSHALL", "", 2, func(ctx context.Context, b *breaker) error {
		return b.fleet.store.nodes[0].must(ctx, "FLUSHALL")
	}},
	{"Redis hangs", "SIGSTOP for 2 to 7 s, then SIGCONT", 1, func(_ context.Context, b *breaker) error {
		d := b.between(2*second, 7*second)
		b.fleet.store.nodes[0].child.pause(d)
		return nil
	}},
}, networkFaults("Redis", func(b *breaker) []*proxy { return []*proxy{b.fleet.store.nodes[0].proxy} })...)

// restarted starts a server again and waits until its store is whole.
func (b *breaker) restarted(ctx context.Context, n *node) error {
	if b.fleet.store.cluster {
		n.forget()
	}
	if err := n.start(); err != nil {
		return err
	}
	return b.fleet.store.healthy(ctx)
}

func (c *child) pause(d time.Duration) {
	c.signal(syscall.SIGSTOP)
	time.Sleep(d)
	c.signal(syscall.SIGCONT)
}

var clusterFaults = append([]fault{
	{"master killed, replica takes over", "kill -9; the old one is started again, as a replica", 4, func(ctx context.Context, b *breaker) error {
		which := b.rand.IntN(3)
		master, replica, err := b.fleet.store.pair(ctx, which)
		if err != nil {
			return err
		}
		b.lab.killed(master.node.child.kill())
		if err := b.fleet.store.takesOver(ctx, replica); err != nil {
			return err
		}
		return b.restarted(ctx, master.node)
	}},
	{"master killed, back at once", "kill -9 and started with nothing, before its replica takes over", 2, func(ctx context.Context, b *breaker) error {
		which := b.rand.IntN(3)
		master, _, err := b.fleet.store.pair(ctx, which)
		if err != nil {
			return err
		}
		b.lab.killed(master.node.child.kill())
		return b.restarted(ctx, master.node)
	}},
	{"replica killed", "kill -9 and started again", 1, func(ctx context.Context, b *breaker) error {
		which := b.rand.IntN(3)
		_, replica, err := b.fleet.store.pair(ctx, which)
		if err != nil {
			return err
		}
		b.lab.killed(replica.node.child.kill())
		return b.restarted(ctx, replica.node)
	}},
	{"planned failover", "CLUSTER FAILOVER", 1, func(ctx context.Context, b *breaker) error {
		which := b.rand.IntN(3)
		_, replica, err := b.fleet.store.pair(ctx, which)
		if err != nil {
			return err
		}
		if err := replica.node.must(ctx, "CLUSTER", "FAILOVER"); err != nil {
			return err
		}
		return b.fleet.store.takesOver(ctx, replica)
	}},
	{"slots moved", "the slots of 1 to 5 shards, one after another, to other masters, 8 keys at a time in any order", 4, func(ctx context.Context, b *breaker) error {
		some := b.rand.Perm(shards)[:1+b.rand.IntN(5)]
		pause := b.between(5*time.Millisecond, 100*time.Millisecond)
		for _, shard := range some {
			if err := b.fleet.store.move(ctx, b.rand, slots[shard], pause); err != nil {
				return err
			}
		}
		return nil
	}},
	{"a master loses all", "FLUSHALL on one of them", 1, func(ctx context.Context, b *breaker) error {
		which := b.rand.IntN(3)
		master, _, err := b.fleet.store.pair(ctx, which)
		if err != nil {
			return err
		}
		return master.node.must(ctx, "FLUSHALL")
	}},
	{"master hangs", "SIGSTOP for 2 s, or for 12 s and its replica takes over; then SIGCONT", 2, func(ctx context.Context, b *breaker) error {
		which, long := b.rand.IntN(3), b.rand.IntN(2) == 0
		master, _, err := b.fleet.store.pair(ctx, which)
		if err != nil {
			return err
		}
		d := 2 * second
		if long {
			d = 12 * second
		}
		master.node.child.pause(d)
		return nil
	}},
}, networkFaults("Cluster", func(b *breaker) (all []*proxy) {
	for _, n := range b.fleet.store.nodes {
		all = append(all, n.proxy)
	}
	return all
})...)

var kafkaFaults = append([]fault{
	{"broker killed", "kill -9, started again after 0 to 5 s", 4, func(_ context.Context, b *breaker) error {
		k, wait := b.lab.kafka, b.between(0, 5*second)
		one := k.brokers[b.rand.IntN(len(k.brokers))]
		b.lab.killed(one.child.kill())
		time.Sleep(wait)
		return one.start()
	}},
	{"broker restarted", "SIGTERM, started again", 1, func(_ context.Context, b *breaker) error {
		k := b.lab.kafka
		one := k.brokers[b.rand.IntN(len(k.brokers))]
		one.child.end(30 * second)
		return one.start()
	}},
	{"broker hangs", "SIGSTOP for 2 to 12 s, then SIGCONT", 1, func(_ context.Context, b *breaker) error {
		k, d := b.lab.kafka, b.between(2*second, 12*second)
		k.brokers[b.rand.IntN(len(k.brokers))].child.pause(d)
		return nil
	}},
	{"partition added", "", 1, func(ctx context.Context, b *breaker) error {
		n, err := b.lab.kafka.partitions(ctx)
		if err != nil || n >= b.lab.maxPartitions {
			return err
		}
		return b.lab.kafka.grow(ctx)
	}},
}, networkFaults("Kafka", func(b *breaker) (all []*proxy) {
	for _, one := range b.lab.kafka.brokers {
		all = append(all, one.proxy)
	}
	return all
})...)

// breakers returns one for each kind of thing that breaks. What each does, and
// in what order, depends on the seed alone.
func (l *lab) breakers() []*breaker {
	var all []*breaker
	add := func(k kind, f *fleet, faults []fault, least, most time.Duration) {
		all = append(all, &breaker{lab: l, rand: rand.New(rand.NewPCG(l.seed, uint64(len(all)))), kind: k, fleet: f, faults: faults, gap: [2]time.Duration{least, most}})
	}
	for _, f := range l.fleets {
		if l.soak > 0 {
			gap := l.pause()
			add(consumers, f, soakFaults[consumers], gap, gap)
			add(stores, f, soakFaults[stores], gap, gap)
			add(brokers, nil, soakFaults[brokers], gap, gap)
			continue
		}
		add(consumers, f, consumerFaults, second, 8*second)
		if f.store.cluster {
			add(stores, f, clusterFaults, 2*second, 12*second)
		} else {
			add(stores, f, singleFaults, 2*second, 12*second)
		}
	}
	if l.soak == 0 {
		add(brokers, nil, kafkaFaults, 4*second, 20*second)
	}
	return all
}

// A broken is a fault that took place.
type broken struct {
	fault    string
	fleets   []*fleet
	alone    bool
	from, to time.Time // to: all is whole again, and may still have to catch up
	healed   time.Time // every partition of these fleets has caught up; zero: another came in between
	err      error
}

// strike runs one fault, with the lock of what it breaks.
func (b *breaker) strike(ctx context.Context, f fault, alone bool) *broken {
	switch b.kind {
	case brokers:
		b.lab.kafka.Lock()
		defer b.lab.kafka.Unlock()
	case stores:
		b.fleet.store.Lock()
		defer b.fleet.store.Unlock()
	}
	who := "all"
	if b.fleet != nil {
		who = b.fleet.name
	}
	b.lab.log("%s: %s", who, f.name)
	done := &broken{fault: f.name, fleets: b.affected(), alone: alone, from: time.Now()}
	done.err = f.run(ctx, b)
	if done.err == nil {
		switch b.kind {
		case brokers:
			done.err = b.lab.kafka.healthy(ctx)
		case stores:
			done.err = b.fleet.store.healthy(ctx)
		}
	}
	done.to = time.Now()
	if done.err != nil {
		b.lab.log("%s: %s: %v", who, f.name, done.err)
		done.err = fmt.Errorf("%s: %s: %w", who, f.name, done.err)
	}
	b.lab.struck(done)
	return done
}

// storm strikes again and again until ctx ends. What it cannot make whole again
// ends it all.
func (b *breaker) storm(ctx context.Context, stop func()) {
	for ctx.Err() == nil {
		f, gap := b.choose(), b.between(b.gap[0], b.gap[1])
		if done := b.strike(context.WithoutCancel(ctx), f, false); done.err != nil {
			stop()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(gap):
		}
	}
}

// each strikes with each fault once, and waits after each until all is counted.
func (b *breaker) each(ctx context.Context) error {
	for _, f := range b.faults {
		if ctx.Err() != nil {
			return nil
		}
		done := b.strike(context.WithoutCancel(ctx), f, true)
		if done.err != nil {
			return done.err
		}
		for _, fleet := range done.fleets {
			if err := fleet.heal(ctx, done.to); err != nil {
				return fmt.Errorf("after %q: %w", f.name, err)
			}
		}
		done.healed = time.Now()
	}
	return nil
}
