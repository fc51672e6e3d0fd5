//go:build servers

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/redis/rueidis"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
	"github.com/tumblestream/tumble/source/kafka"
)

// TestAudit counts a topic, changes what is stored in each way that there is, and wants
// each told.
func TestAudit(t *testing.T) {
	brokers := os.Getenv("TUMBLE_KAFKA")
	name := fmt.Sprintf("audit-%x", rand.Uint32())
	kafkaClient := &kafkago.Client{Addr: kafkago.TCP(brokers)}
	created, err := kafkaClient.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: name, NumPartitions: 3, ReplicationFactor: 1}}})
	require.NoError(t, err)
	require.NoError(t, created.Errors[name])
	t.Cleanup(func() {
		_, _ = kafkaClient.DeleteTopics(context.Background(), &kafkago.DeleteTopicsRequest{Topics: []string{name}})
	})
	writer := &kafkago.Writer{Addr: kafkago.TCP(brokers), Topic: name, RequiredAcks: kafkago.RequireAll, BatchTimeout: 10 * time.Millisecond}
	defer writer.Close()
	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	var messages []kafkago.Message
	for i := range 3000 {
		value := fmt.Sprintf(`{"user_id":"user_%d","timestamp":%q,"bytes":%d}`, i%40, noon.Add(time.Duration(i)*time.Second).Format(time.RFC3339), 1+i%9)
		messages = append(messages, kafkago.Message{Value: []byte(value)})
	}
	messages = append(messages, kafkago.Message{Value: []byte("no click")})
	require.NoError(t, writer.WriteMessages(t.Context(), messages...))

	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server}})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	sink, err := redis.New(redis.Config{Client: client, Name: name})
	require.NoError(t, err)
	t.Cleanup(func() { forget(t, client, name) })
	source, err := kafka.New(kafka.Config{
		Brokers: []string{brokers}, Topic: name, UntilEnd: true, Decode: kafka.Fields{Key: "user_id", Time: "timestamp", N: "bytes"}.Decode(),
	})
	require.NoError(t, err)
	pipeline, err := tumble.New(tumble.Config{
		Source: source, Sink: sink, Window: tumble.Window{Size: time.Minute}, Sum: true, Idle: -1,
		Rollups: []tumble.Rollup{{Window: tumble.Window{Size: time.Hour}}},
	})
	require.NoError(t, err)
	require.NoError(t, pipeline.Run(t.Context()))

	audit := func(more ...string) (string, string, int) {
		t.Helper()
		return call(t, "", append([]string{"-redis", server, "audit", name, "-brokers", brokers, "-topic", name, "-sum", "bytes"}, more...)...)
	}
	out, errs, code := audit()
	require.Zero(t, code, "%s %s", out, errs)
	require.Regexp(t, `^51 windows, \d+ counts, 0 differences\n$`, out)

	// Fields that do not fit are no difference in the counts.
	out, errs, code = audit("-time-unit", "s")
	require.Equal(t, 1, code, "%s %s", out, errs)
	require.Empty(t, out)
	require.Regexp(t, `none of 3001 records can be understood, the first is `+name+`/\d@0: field "timestamp".*: -key, -time, -time-unit and -sum must be as they were`, errs)
	_, errs, code = call(t, "", "-redis", server, "audit", name, "-brokers", brokers, "-topic", name)
	require.Equal(t, 2, code)
	require.Contains(t, errs, "the counts of "+name+" are sums: -sum must name the field")

	// What was written since is not counted, and no difference. It is the lag.
	lag := func() (sum int64) {
		t.Helper()
		out, errs, code := call(t, "", "-redis", server, "show", name, "-brokers", brokers, "-json")
		require.Zero(t, code, "%s %s", out, errs)
		var s shown
		require.NoError(t, json.Unmarshal([]byte(out), &s))
		require.Len(t, s.Partitions, 3)
		for _, p := range s.Partitions {
			require.NotNil(t, p.Lag, p.Partition)
			sum += *p.Lag
		}
		return sum
	}
	require.Zero(t, lag())
	require.NoError(t, writer.WriteMessages(t.Context(), messages[:500]...))
	out, errs, code = audit()
	require.Zero(t, code, "%s %s", out, errs)
	require.EqualValues(t, 500, lag())
	out, _, code = call(t, "", "-redis", server, "show", name)
	require.Zero(t, code)
	require.NotContains(t, out, "lag", "no brokers were given")
	_, errs, code = call(t, "", "-redis", server, "show", name, "-brokers", brokers, "-topic", name+"x")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "does not exist")

	change := func(window time.Time, field string, to int64) {
		t.Helper()
		tags, err := client.Do(t.Context(), client.B().Keys().Pattern(name+":{*}:"+strconv.FormatInt(window.UnixMilli(), 10)+":0").Build()).AsStrSlice()
		require.NoError(t, err)
		require.NotEmpty(t, tags)
		for _, key := range tags {
			held, err := client.Do(t.Context(), client.B().Hexists().Key(key).Field(field).Build()).AsBool()
			require.NoError(t, err)
			if !held && to != 5 || held && to == 5 {
				continue
			}
			if to == 0 {
				require.NoError(t, client.Do(t.Context(), client.B().Hdel().Key(key).Field(field).Build()).Error())
			} else {
				require.NoError(t, client.Do(t.Context(), client.B().Hset().Key(key).FieldValue().FieldValue(field, strconv.FormatInt(to, 10)).Build()).Error())
			}
			return
		}
		require.Fail(t, "no such count")
	}
	one, err := sink.Count(t.Context(), "user_7", noon)
	require.NoError(t, err)
	change(noon, "user_7", one.N+1)              // one too many
	change(noon.Add(time.Minute), "user_27", 0)  // a missing one
	change(noon.Add(2*time.Minute), "nobody", 5) // one that the log does not hold
	out, errs, code = audit()
	require.Equal(t, 3, code, "%s %s", out, errs)
	require.Regexp(t, fmt.Sprintf(`(?m)^user_7 2023-10-01T12:00 stored %d counted %d$`, one.N+1, one.N), out)
	require.Regexp(t, `(?m)^user_27 2023-10-01T12:01 stored 0 counted \d+$`, out)
	require.Regexp(t, `(?m)^nobody 2023-10-01T12:02 stored 5 counted 0$`, out)
	require.Regexp(t, `\n51 windows, \d+ counts, 3 differences\n$`, out)

	_, errs, code = call(t, "", "-redis", server, "audit", name, "-brokers", brokers, "-topic", name)
	require.Equal(t, 2, code)
	require.Contains(t, errs, "-sum")
	_, errs, code = audit("-topic", name+"x")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "does not exist")
	_, errs, code = audit("-topic", "")
	require.Equal(t, 2, code)
	require.Contains(t, errs, "-topic")
	created, err = kafkaClient.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: name + "-other", NumPartitions: 1, ReplicationFactor: 1}}})
	require.NoError(t, err)
	require.NoError(t, created.Errors[name+"-other"])
	t.Cleanup(func() {
		_, _ = kafkaClient.DeleteTopics(context.Background(), &kafkago.DeleteTopicsRequest{Topics: []string{name + "-other"}})
	})
	_, errs, code = audit("-topic", name+"-other")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "nothing of topic "+name+"-other is counted under "+name)
}

// TestAuditTruncated counts a short topic and deletes its oldest records: what is left is
// compared, but for an hour of it, and where nothing is left there is nothing to differ.
func TestAuditTruncated(t *testing.T) {
	brokers := os.Getenv("TUMBLE_KAFKA")
	name := fmt.Sprintf("cut-%x", rand.Uint32())
	kafkaClient := &kafkago.Client{Addr: kafkago.TCP(brokers)}
	created, err := kafkaClient.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{{Topic: name, NumPartitions: 1, ReplicationFactor: 1}}})
	require.NoError(t, err)
	require.NoError(t, created.Errors[name])
	t.Cleanup(func() {
		_, _ = kafkaClient.DeleteTopics(context.Background(), &kafkago.DeleteTopicsRequest{Topics: []string{name}})
	})
	writer := &kafkago.Writer{Addr: kafkago.TCP(brokers), Topic: name, RequiredAcks: kafkago.RequireAll, BatchTimeout: 10 * time.Millisecond, BatchSize: 10}
	defer writer.Close()
	noon := time.Date(2023, 10, 1, 12, 0, 0, 0, time.UTC)
	var messages []kafkago.Message
	for i := range 600 {
		value := fmt.Sprintf(`{"user_id":"user_%d","timestamp":%q}`, i%40, noon.Add(time.Duration(i)*time.Minute).Format(time.RFC3339))
		messages = append(messages, kafkago.Message{Value: []byte(value)})
	}
	require.NoError(t, writer.WriteMessages(t.Context(), messages...))

	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server}})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	sink, err := redis.New(redis.Config{Client: client, Name: name})
	require.NoError(t, err)
	t.Cleanup(func() { forget(t, client, name) })
	source, err := kafka.New(kafka.Config{Brokers: []string{brokers}, Topic: name, UntilEnd: true, Decode: kafka.Fields{Key: "user_id", Time: "timestamp"}.Decode()})
	require.NoError(t, err)
	pipeline, err := tumble.New(tumble.Config{Source: source, Sink: sink, Window: tumble.Window{Size: time.Minute}, Idle: -1})
	require.NoError(t, err)
	require.NoError(t, pipeline.Run(t.Context()))

	for _, cut := range []struct {
		to   int
		want string
	}{
		{0, "600 windows, 600 counts, 0 differences\n"},
		{5, "476 windows, 476 counts, 0 differences\n"}, // without 5 that are gone, 59 that tell the time, and an hour
		{590, "0 windows, 0 counts, 0 differences\n"},
		{600, "0 windows, 0 counts, 0 differences\n"},
	} {
		truncate(t, brokers, name, int64(cut.to))
		out, errs, code := call(t, "", "-redis", server, "audit", name, "-brokers", brokers, "-topic", name)
		require.Zero(t, code, "cut to %d: %s %s", cut.to, out, errs)
		require.Equal(t, cut.want, out, "cut to %d", cut.to)
	}
}

// truncate deletes the records of partition 0 before an offset, as retention does.
func truncate(t *testing.T, brokers, topic string, offset int64) {
	client, err := kgo.NewClient(kgo.SeedBrokers(brokers))
	require.NoError(t, err)
	defer client.Close()
	req := kmsg.NewPtrDeleteRecordsRequest()
	req.TimeoutMillis = 10000
	req.Topics = []kmsg.DeleteRecordsRequestTopic{{Topic: topic, Partitions: []kmsg.DeleteRecordsRequestTopicPartition{{Offset: offset}}}}
	res, err := req.RequestWith(t.Context(), client)
	require.NoError(t, err)
	require.Zero(t, res.Topics[0].Partitions[0].ErrorCode)
}
