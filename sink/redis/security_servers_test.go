//go:build servers

package redis_test

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// documented returns the words of the rule that the package documentation gives
// for a user.
func documented(t testing.TB, user string) []string {
	source, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	_, text, found := strings.Cut(string(source), "//\tACL SETUSER "+user+" ")
	require.True(t, found)
	rule := strings.Fields("ACL SETUSER " + user)
	for line := range strings.Lines("//\t" + text) {
		words, found := strings.CutPrefix(strings.TrimSpace(line), "//\t")
		if !found {
			return rule
		}
		rule = append(rule, strings.Fields(words)...)
	}
	require.FailNow(t, "the rule does not end")
	return nil
}

// without returns rule less one word.
func without(rule []string, word string) []string {
	return slices.DeleteFunc(slices.Clone(rule), func(w string) bool { return w == word })
}

// as connects as the user of a rule.
func (s *server) as(user string) (rueidis.Client, error) {
	return rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{s.addr}, Username: user, Password: "SECRET"})
}

// write does all that a counting process does: it opens a name of which nothing
// is stored, splits buckets, closes windows and deletes what is past retention.
func write(ctx context.Context, client rueidis.Client, name string) error {
	s, err := redis.New(redis.Config{Client: client, Name: name, Shards: 1})
	if err != nil {
		return err
	}
	shards, err := s.Open(ctx, tumble.Definition{Window: minutes.Window, Retention: time.Minute})
	if err != nil {
		return err
	}
	state, err := shards[0].Load(ctx, tumble.LoadRequest{Init: map[string]tumble.Checkpoint{"p/0": {Log: "log"}}})
	if err != nil {
		return err
	}
	from := state.Checkpoints["p/0"]
	for i := range 6 {
		at := noon.Add(time.Duration(i) * time.Minute)
		for _, keys := range []int{1, 500} {
			to := from
			to.Offset++
			to.Watermark = at
			b := tumble.Batch{Partition: "p/0", From: from, To: to}
			for k := range keys {
				b.Deltas = append(b.Deltas, tumble.Delta{Start: at, Key: strconv.Itoa(k), N: 1})
			}
			if err := shards[0].Apply(ctx, b); err != nil {
				return err
			}
			from = to
		}
	}
	return end(ctx, shards[0], from)
}

// end ends p/0 by an announcement, after another one that somebody objected to.
func end(ctx context.Context, sh tumble.Shard, from tumble.Checkpoint) error {
	for _, r := range []tumble.LoadRequest{
		{Announce: map[string]uint64{"p/0": 1}, Object: map[string]uint64{"p/0": 1}},
		{Announce: map[string]uint64{"p/0": 2}},
	} {
		if _, err := sh.Load(ctx, r); err != nil {
			return err
		}
	}
	to := from
	to.Ended, to.Watermark = true, from.Watermark.Add(time.Minute) // by another writer, which draws a term
	if err := sh.Apply(ctx, tumble.Batch{Partition: "p/0", Writer: 1, Token: 2, From: from, To: to}); err != nil {
		return err
	}
	back := to
	back.Ended = false
	return sh.Apply(ctx, tumble.Batch{Partition: "p/0", Writer: 2, From: to, To: back})
}

// read does all that a reading process does.
func read(ctx context.Context, client rueidis.Client, name string) error {
	s, err := redis.New(redis.Config{Client: client, Name: name})
	if err != nil {
		return err
	}
	if _, err := s.Definition(ctx); err != nil {
		return err
	}
	at := noon.Add(5 * time.Minute)
	c, err := s.Count(ctx, "1", at)
	if err != nil {
		return err
	}
	few, err := s.Range(ctx, "1", at, at.Add(time.Minute))
	if err != nil {
		return err
	}
	many, err := s.Range(ctx, "1", at, at.Add(1000*time.Hour))
	if err != nil {
		return err
	}
	top, err := s.Top(ctx, at, 3)
	if err != nil {
		return err
	}
	scan, err := s.Scan(ctx, at, "", 1000)
	if err != nil {
		return err
	}
	if c.N != 1 || len(few) != 1 || len(many) != 1 || len(top.Counts) != 3 || len(scan.Counts) != 500 {
		return fmt.Errorf("count %v, ranges %v and %v, top %d, scan %d", c, few, many, len(top.Counts), len(scan.Counts))
	}
	return nil
}

// refusal is what an error says where a command is not allowed. The scripts' do
// not name it before Redis 7.2, but the line of the script.
func refusal(err error, command string) bool {
	text := err.Error()
	switch command {
	case "multi", "exec", "pttl":
		return strings.Contains(text, "may not run MULTI, EXEC or PTTL")
	}
	return strings.Contains(text, "NOPERM") && strings.Contains(text, "'"+command+"'") ||
		strings.Contains(text, "may not run a command of the script")
}

// Users whose rules are those of the documentation can do their work, and with
// one command less get an error that says so.
func TestDocumentedRules(t *testing.T) {
	srv := start(t)
	admin := srv.connect(t)
	const name = "clicks"
	require.NoError(t, write(t.Context(), admin, name))
	for user, work := range map[string]func(ctx context.Context, client rueidis.Client, name string) error{
		"counter": func(ctx context.Context, client rueidis.Client, _ string) error {
			do(t, admin, "FLUSHALL")
			do(t, admin, "SCRIPT", "FLUSH")
			return cmp.Or(write(ctx, client, name), read(ctx, client, name))
		},
		"reader": read,
	} {
		rule := documented(t, user)
		run := func(t *testing.T, rule []string, name string) error {
			do(t, admin, rule...)
			began := time.Now()
			client, err := srv.as(user)
			if err == nil {
				defer client.Close()
				err = work(t.Context(), client, name)
			}
			require.Less(t, time.Since(began), 5*time.Second)
			return err
		}
		commands := 0
		for _, word := range rule {
			command, found := strings.CutPrefix(word, "+")
			if !found {
				continue
			}
			commands++
			t.Run(user+" may not "+command, func(t *testing.T) {
				err := run(t, without(rule, word), name)
				require.Error(t, err)
				require.True(t, refusal(err, command), "%v", err)
			})
		}
		require.Greater(t, commands, 5)
		require.NoError(t, run(t, rule, name))
		t.Run(user+" elsewhere", func(t *testing.T) {
			client, err := srv.as(user)
			require.NoError(t, err)
			defer client.Close()
			for _, other := range []string{"click", "other"} {
				require.ErrorContains(t, write(t.Context(), client, other), "NOPERM")
				require.ErrorContains(t, read(t.Context(), client, other), "NOPERM")
			}
			if user == "reader" {
				require.ErrorContains(t, write(t.Context(), client, name), "NOPERM")
			}
		})
	}
}

// In a cluster the users need a little more.
func TestDocumentedRulesInCluster(t *testing.T) {
	addrs := startCluster(t)
	admin := connect(t, addrs)
	do := func(addr string, words ...string) {
		t.Helper()
		node := admin.Nodes()[addr]
		require.NoError(t, node.Do(t.Context(), node.B().Arbitrary(words...).Build()).Error(), words)
	}
	as := func(user string, rule []string, work func(context.Context, rueidis.Client, string) error, name string) error {
		for _, addr := range addrs {
			do(addr, rule...)
		}
		client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: addrs, Username: user, Password: "SECRET"})
		if err != nil {
			return err
		}
		defer client.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		return work(ctx, client, name)
	}
	const slots, asking = "+cluster|slots", "+asking"
	counter, reader := append(documented(t, "counter"), slots, asking), append(documented(t, "reader"), slots, asking)
	require.NoError(t, as("counter", counter, write, "clicks"))
	require.NoError(t, as("reader", reader, read, "clicks"))
	for user, rule := range map[string][]string{"counter": counter, "reader": reader} {
		require.ErrorContains(t, as(user, without(rule, slots), read, "clicks"), "'cluster|slots'")
	}

	// The slot of the first shard moves: who asks for what is not there any more
	// is sent to where it goes.
	slot, err := admin.Do(t.Context(), admin.B().ClusterKeyslot().Key("clicks:{460}").Build()).AsInt64()
	require.NoError(t, err)
	var from, to string
	for _, addr := range addrs {
		node := admin.Nodes()[addr]
		n, err := node.Do(t.Context(), node.B().ClusterCountkeysinslot().Slot(slot).Build()).AsInt64()
		require.NoError(t, err)
		if n > 0 {
			from = addr
		} else {
			to = addr
		}
	}
	id := func(addr string) string {
		node := admin.Nodes()[addr]
		s, err := node.Do(t.Context(), node.B().ClusterMyid().Build()).ToString()
		require.NoError(t, err)
		return s
	}
	do(to, "CLUSTER", "SETSLOT", fmt.Sprint(slot), "IMPORTING", id(from))
	do(from, "CLUSTER", "SETSLOT", fmt.Sprint(slot), "MIGRATING", id(to))
	err = as("counter", without(counter, asking), write, "clicks:moves")
	require.Error(t, err)
	require.NotContains(t, err.Error(), "TRYAGAIN")
	require.ErrorContains(t, as("counter", counter, write, "clicks:moves"), "TRYAGAIN") // it waits for that
	require.NotErrorIs(t, as("reader", without(reader, asking), read, "clicks:moves"), tumble.ErrNoDefinition)
	require.ErrorIs(t, as("reader", reader, read, "clicks:moves"), tumble.ErrNoDefinition)
	do(to, "CLUSTER", "SETSLOT", fmt.Sprint(slot), "NODE", id(to))
	do(from, "CLUSTER", "SETSLOT", fmt.Sprint(slot), "NODE", id(to))
	require.NoError(t, as("counter", counter, write, "clicks:moves"))
	require.NoError(t, as("reader", reader, read, "clicks:moves"))
}
