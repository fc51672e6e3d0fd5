package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// A store is a Redis server or a Redis Cluster. Consumers reach it through
// proxies, all else directly.
type store struct {
	sync.Mutex // held by who breaks it, until all is well again
	cluster    bool
	nodes      []*node
}

// shards is how many a name has by default.
func (s *store) shards() int {
	if s.cluster {
		return shards
	}
	return serverShards
}

// A node is one Redis server.
type node struct {
	name  string
	port  int
	dir   string
	proxy *proxy
	args  []string
	log   string
	child *child

	mu     sync.Mutex
	client rueidis.Client // direct; nil until it is needed
}

func newNode(l *lab, name string, args ...string) (*node, error) {
	n := &node{name: name, port: l.ports.get(), dir: filepath.Join(l.work, name), log: filepath.Join(l.work, name+".log")}
	var err error
	if n.proxy, err = newProxy(l.ports.get(), local(n.port)); err != nil {
		return nil, err
	}
	n.args = append([]string{"redis-server", "--port", strconv.Itoa(n.port), "--bind", "127.0.0.1", "--dir", n.dir,
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--rdb-del-sync-files", "yes"}, args...)
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return nil, err
	}
	return n, nil
}

// start starts it with what is in its folder. That is nothing, unless it was
// put there: what a replica got from its master would be old by now, and could
// hold keys of slots that are others' since.
func (n *node) start() (err error) {
	n.child, err = launch(n.name, n.log, n.log, nil, n.args...)
	return err
}

// connected returns a client of this server alone, which sends nothing twice.
func (n *node) connected() (rueidis.Client, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.client != nil {
		return n.client, nil
	}
	client, err := rueidis.NewClient(rueidis.ClientOption{
		InitAddress: []string{local(n.port)}, ForceSingleClient: true, DisableRetry: true, DisableCache: true,
		Dialer: net.Dialer{Timeout: time.Second}, ConnWriteTimeout: 2 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	n.client = client
	return client, nil
}

// do sends a command and returns the answer.
func (n *node) do(ctx context.Context, words ...string) (rueidis.RedisMessage, error) {
	client, err := n.connected()
	if err != nil {
		return rueidis.RedisMessage{}, err
	}
	return client.Do(ctx, client.B().Arbitrary(words...).Build()).ToMessage()
}

// must sends a command whose answer says nothing.
func (n *node) must(ctx context.Context, words ...string) error {
	if _, err := n.do(ctx, words...); err != nil {
		return fmt.Errorf("%s: %s: %w", n.name, strings.Join(words[:min(2, len(words))], " "), err)
	}
	return nil
}

// text sends a command that answers a text.
func (n *node) text(ctx context.Context, words ...string) (string, error) {
	answer, err := n.do(ctx, words...)
	if err != nil {
		return "", err
	}
	text, err := answer.ToString()
	return strings.TrimPrefix(text, "txt:"), err // the format of a verbatim string
}

// info returns the fields of a section of INFO.
func (n *node) info(ctx context.Context, section string) (map[string]string, error) {
	text, err := n.text(ctx, "INFO", section)
	return fields(text), err
}

// fields reads lines of name:value.
func fields(text string) map[string]string {
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			all[name] = value
		}
	}
	return all
}

// startSingle starts one server.
func startSingle(ctx context.Context, l *lab) (*store, error) {
	n, err := newNode(l, "redis")
	if err != nil {
		return nil, err
	}
	if err := n.start(); err != nil {
		return nil, err
	}
	l.onExit(func() { n.child.kill() })
	s := &store{nodes: []*node{n}}
	return s, s.healthy(ctx)
}

// addresses returns what consumers are told.
func (s *store) addresses() string {
	var list []string
	for _, n := range s.nodes {
		list = append(list, local(n.proxy.port))
	}
	return strings.Join(list, ",")
}

// healthy waits until all servers answer and, in a cluster, all slots are served
// and each master has a replica that follows it.
func (s *store) healthy(ctx context.Context) error {
	return eventually(ctx, 90*time.Second, "Redis did not recover", func(ctx context.Context) error {
		masters, replicas := 0, 0
		for _, n := range s.nodes {
			if _, err := n.do(ctx, "PING"); err != nil {
				return fmt.Errorf("%s: %w", n.name, err)
			}
			if !s.cluster {
				continue
			}
			text, err := n.text(ctx, "CLUSTER", "INFO")
			if err != nil {
				return err
			}
			if f := fields(text); f["cluster_state"] != "ok" || f["cluster_size"] != "3" || f["cluster_slots_ok"] != "16384" {
				return fmt.Errorf("%s: state %s, size %s, slots %s", n.name, f["cluster_state"], f["cluster_size"], f["cluster_slots_ok"])
			}
			role, err := n.info(ctx, "replication")
			if err != nil {
				return err
			}
			if role["role"] == "master" {
				masters++
			} else if role["master_link_status"] == "up" {
				replicas++
			}
		}
		if s.cluster && (masters != 3 || replicas != len(s.nodes)-3) {
			return fmt.Errorf("%d masters, %d replicas that follow", masters, replicas)
		}
		return nil
	})
}

// eval runs a script where the key is.
func (s *store) eval(ctx context.Context, script, key string, args ...string) (answer rueidis.RedisMessage, err error) {
	for _, n := range s.nodes {
		if answer, err = n.do(ctx, append([]string{"EVAL", script, "1", key}, args...)...); err == nil {
			return answer, nil
		}
	}
	return answer, err
}

// offsets returns how far each partition is counted in all shards, of those
// shards that answered; -1 where one knows nothing of a partition. ok reports
// whether all did.
func (s *store) offsets(ctx context.Context, name string) (least map[string]int64, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	found := make([]map[string]string, s.shards())
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, n := range s.nodes {
		wg.Go(func() {
			client, err := n.connected()
			if err != nil {
				return
			}
			var commands rueidis.Commands
			for i := range s.shards() {
				commands = append(commands, client.B().Hgetall().Key(baseKey(name, i)+":checkpoints").Build())
			}
			for i, result := range client.DoMulti(ctx, commands...) {
				stored, err := result.AsStrMap()
				if err != nil {
					continue
				}
				mu.Lock()
				if found[i] == nil || len(stored) > len(found[i]) {
					found[i] = stored
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	least, ok = map[string]int64{}, true
	counts := map[string]int{}
	for _, stored := range found {
		ok = ok && stored != nil
		for partition, record := range stored {
			r, err := parseRecord(record)
			if err != nil {
				continue
			}
			if had, any := least[partition]; !any || r.offset < had {
				least[partition] = r.offset
			}
			counts[partition]++
		}
	}
	for partition, n := range counts {
		if n < s.shards() {
			least[partition] = -1
		}
	}
	return least, ok
}

// memory returns what all servers use.
func (s *store) memory(ctx context.Context) (bytes int64, err error) {
	for _, n := range s.nodes {
		info, err := n.info(ctx, "memory")
		if err != nil {
			return 0, err
		}
		used, err := strconv.ParseInt(info["used_memory"], 10, 64)
		if err != nil {
			return 0, err
		}
		bytes += used
	}
	return bytes, nil
}

// keys returns all keys of a name.
func (s *store) keys(ctx context.Context, name string) (map[string]bool, error) {
	all := map[string]bool{}
	for _, n := range s.nodes {
		if role, err := n.info(ctx, "replication"); err != nil {
			return nil, err
		} else if role["role"] != "master" {
			continue
		}
		answer, err := n.do(ctx, "KEYS", name+":*")
		if err != nil {
			return nil, err
		}
		list, err := answer.AsStrSlice()
		if err != nil {
			return nil, err
		}
		for _, key := range list {
			all[key] = true
		}
	}
	return all, nil
}

// Snapshots of a single server.

func (n *node) rdb() string { return filepath.Join(n.dir, "dump.rdb") }

// save keeps what the server holds now beside its folder.
func (n *node) save(ctx context.Context) error {
	if err := n.must(ctx, "SAVE"); err != nil {
		return err
	}
	return os.Rename(n.rdb(), n.rdb()+".kept")
}

// restore makes what was kept what the server starts with. It is dead.
func (n *node) restore() error { return os.Rename(n.rdb()+".kept", n.rdb()) }

// forget makes it start with nothing.
func (n *node) forget() { _ = os.Remove(n.rdb()) }
