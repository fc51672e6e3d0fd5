package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// startCluster starts a Redis Cluster of three masters with a replica each.
func startCluster(ctx context.Context, l *lab) (*store, error) {
	return startNodes(ctx, l, "cluster", 3)
}

// startNodes starts a Redis Cluster of three masters and some replicas of theirs.
func startNodes(ctx context.Context, l *lab, name string, replicas int) (*store, error) {
	s := &store{cluster: true}
	for i := range 3 + replicas {
		n, err := newNode(l, fmt.Sprintf("%s-%d", name, i+1), "--cluster-enabled", "yes", "--cluster-node-timeout", "5000",
			"--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
		if err != nil {
			return nil, err
		}
		// Others are told of the proxy, clients too.
		n.args = append(n.args, "--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", strconv.Itoa(n.proxy.port),
			"--cluster-announce-bus-port", strconv.Itoa(n.port+10000))
		if err := n.start(); err != nil {
			return nil, err
		}
		l.onExit(func() { n.child.kill() })
		s.nodes = append(s.nodes, n)
	}
	first := s.nodes[0]
	for i, n := range s.nodes {
		if err := eventually(ctx, 30*time.Second, n.name+" did not answer", func(ctx context.Context) error { return n.must(ctx, "PING") }); err != nil {
			return nil, err
		}
		if i < 3 {
			if err := n.must(ctx, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*16384/3), strconv.Itoa((i+1)*16384/3-1)); err != nil {
				return nil, err
			}
		}
		// Epochs of their own, as redis-cli gives them.
		if err := n.must(ctx, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1)); err != nil {
			return nil, err
		}
	}
	for _, n := range s.nodes[1:] {
		if err := first.must(ctx, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(n.port), strconv.Itoa(n.port+10000)); err != nil {
			return nil, err
		}
	}
	for i, n := range s.nodes[3:] {
		err := eventually(ctx, 30*time.Second, "the cluster did not form", func(ctx context.Context) error {
			id, err := s.nodes[i].id(ctx)
			if err != nil {
				return err
			}
			return n.must(ctx, "CLUSTER", "REPLICATE", id)
		})
		if err != nil {
			return nil, err
		}
	}
	return s, s.healthy(ctx)
}

func (n *node) id(ctx context.Context) (string, error) { return n.text(ctx, "CLUSTER", "MYID") }

// A role is where a node stands in its cluster, by itself.
type role struct {
	node   *node
	id     string
	master string // the id of a replica's master
	slots  [][2]int
}

func (r role) serves(slot int) bool {
	for _, s := range r.slots {
		if s[0] <= slot && slot <= s[1] {
			return true
		}
	}
	return false
}

// roles asks every node about itself, those that answer.
func (s *store) roles(ctx context.Context) []role {
	var all []role
	for _, n := range s.nodes {
		text, err := n.text(ctx, "CLUSTER", "NODES")
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			words := strings.Fields(line)
			if len(words) < 8 || !strings.Contains(words[2], "myself") {
				continue
			}
			r := role{node: n, id: words[0]}
			if words[3] != "-" {
				r.master = words[3]
			}
			for _, word := range words[8:] {
				from, to, many := strings.Cut(word, "-")
				a, err := strconv.Atoi(from)
				if err != nil {
					continue // one that moves
				}
				b := a
				if many {
					b, _ = strconv.Atoi(to)
				}
				r.slots = append(r.slots, [2]int{a, b})
			}
			all = append(all, r)
		}
	}
	return all
}

// pair returns a master, the n-th, and its replica.
func (s *store) pair(ctx context.Context, n int) (master, replica role, err error) {
	all := s.roles(ctx)
	var masters []role
	for _, r := range all {
		if len(r.slots) > 0 {
			masters = append(masters, r)
		}
	}
	if len(masters) == 0 {
		return master, replica, fmt.Errorf("no master answers")
	}
	master = masters[n%len(masters)]
	for _, r := range all {
		if r.master == master.id {
			return master, r, nil
		}
	}
	return master, replica, fmt.Errorf("%s has no replica", master.node.name)
}

// takesOver waits until a replica serves slots itself.
func (s *store) takesOver(ctx context.Context, replica role) error {
	return eventually(ctx, 60*time.Second, replica.node.name+" did not take over", func(ctx context.Context) error {
		for _, r := range s.roles(ctx) {
			if r.id == replica.id && len(r.slots) > 0 {
				return nil
			}
		}
		return fmt.Errorf("it serves no slot")
	})
}

// move moves the slot of a shard to another master, as resharding does: a few
// keys at a time and, since which comes first is no promise of Redis, in any
// order.
func (s *store) move(ctx context.Context, r *rand.Rand, slot int, pause time.Duration) error {
	all := s.roles(ctx)
	var from, to role
	var others []role
	for _, one := range all {
		if one.serves(slot) {
			from = one
		} else if len(one.slots) > 0 {
			others = append(others, one)
		}
	}
	if from.node == nil || len(others) == 0 {
		return fmt.Errorf("slot %d: found no two masters", slot)
	}
	to = others[r.IntN(len(others))]
	at := strconv.Itoa(slot)
	if err := to.node.must(ctx, "CLUSTER", "SETSLOT", at, "IMPORTING", from.id); err != nil {
		return err
	}
	if err := from.node.must(ctx, "CLUSTER", "SETSLOT", at, "MIGRATING", to.id); err != nil {
		return err
	}
	for {
		answer, err := from.node.do(ctx, "CLUSTER", "GETKEYSINSLOT", at, "1000")
		if err != nil {
			return err
		}
		keys, err := answer.AsStrSlice()
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		r.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
		keys = keys[:min(len(keys), 8)]
		command := []string{"MIGRATE", "127.0.0.1", strconv.Itoa(to.node.port), "", "0", "5000", "KEYS"}
		if err := from.node.must(ctx, append(command, keys...)...); err != nil {
			return fmt.Errorf("moving %q from %s to %s: %w", keys, from.node.name, to.node.name, err)
		}
		time.Sleep(pause)
	}
	for _, one := range append([]role{to, from}, others...) {
		if err := one.node.must(ctx, "CLUSTER", "SETSLOT", at, "NODE", to.id); err != nil {
			return err
		}
	}
	return nil
}
