//go:build servers

package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
)

// lettersIn reads n records of a topic with a client of another make, as
// "value partition@offset cause".
func lettersIn(t *testing.T, topic string, n int) (all []string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers), kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	require.NoError(t, err)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for len(all) < n {
		fetches := client.PollFetches(ctx)
		require.NoError(t, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			h := map[string]string{}
			for _, one := range r.Headers {
				h[one.Key] = string(one.Value)
			}
			require.NotEmpty(t, h["tumble-cause"])
			all = append(all, fmt.Sprintf("%s %s/%s@%s", r.Value, h["tumble-topic"], h["tumble-partition"], h["tumble-offset"]))
		})
	}
	require.Len(t, all, n)
	return all
}

// Rejected records go to the topic of dead letters, which is created, and to
// stderr as ever.
func TestDeadLetters(t *testing.T) {
	f := newFlow(t, server, 1)
	topic := f.name + "-rejected"
	t.Cleanup(func() {
		client := &kafka.Client{Addr: kafka.TCP(brokers)}
		_, err := client.DeleteTopics(context.Background(), &kafka.DeleteTopicsRequest{Topics: []string{topic}})
		require.NoError(t, err)
	})
	good := `{"user_id":"a","timestamp":"2023-10-01T12:34:56Z"}`
	ancient := `{"user_id":"u","timestamp":"1600-01-01T00:00:00Z"}`
	f.put(t, 0, []byte(good), []byte("bad1"), []byte(good), []byte(ancient), nil, []byte(good))
	c := f.consume(t, "-until-end", "-dead-letters", topic)
	require.Zero(t, c.wait(t, patience))
	b := c.books(t)
	require.EqualValues(t, 3, b.Counted)
	require.EqualValues(t, 2, b.Rejected)
	require.EqualValues(t, 1, b.Skipped)
	require.Equal(t, []string{"bad1 " + f.name + "/0@1", ancient + " " + f.name + "/0@3"}, lettersIn(t, topic, 2))
	text := strings.Join(c.stderr, "\n")
	require.Contains(t, text, "consumer: created topic "+topic)
	require.Contains(t, text, "consumer: rejected "+f.name+"/0@1: ")
	require.Contains(t, text, "consumer: rejected "+f.name+"/0@3: ")

	begin := time.Now()
	fails(t, 2, "-dead-letters", "consumer", "-brokers", brokers, "-topic", f.name, "-redis", server, "-dead-letters", f.name)
	fails(t, 2, "-dead-letters", "consumer", "-brokers", brokers, "-topic", f.name, "-redis", server, "-dead-letters", "a/b")
	fails(t, 2, "-session", "consumer", "-session", "0s")
	require.Less(t, time.Since(begin), 15*time.Second)
}

// A consumer that counts under another name does not join the group, and says
// both names; the one that is there counts on.
func TestOtherNameInOneGroup(t *testing.T) {
	f := newFlow(t, server, 3)
	p := f.produce(t, "-count", "300", "-rate", "0", "-quiet")
	require.Zero(t, p.wait(t, patience))
	c := f.consume(t, "-instance", "pod-1", "-session", "6s")
	c.line(t, `msg=joined`)
	for _, other := range []string{f.name + "-other", f.name + "-another"} {
		begin := time.Now()
		stranger := f.consume(t, "-name", other, "-window", "1h")
		require.Equal(t, 1, stranger.wait(t, patience))
		require.Less(t, time.Since(begin), 10*time.Second)
		require.Zero(t, stranger.books(t).Read, "it says so, too")
		last := stranger.stderr[len(stranger.stderr)-1]
		require.Contains(t, last, "group "+f.name)
		require.Contains(t, last, fmt.Sprintf("%q", f.name))
		require.Contains(t, last, fmt.Sprintf("%q", other))
	}
	p = f.produce(t, "-count", "300", "-rate", "0", "-quiet")
	require.Zero(t, p.wait(t, patience))
	time.Sleep(2 * time.Second)
	require.EqualValues(t, 600, c.stop(t, os.Interrupt, 5*time.Second).Counted)
	require.Equal(t, 1, strings.Count(strings.Join(c.stderr, "\n"), "msg=joined"), "it was not disturbed")
}
