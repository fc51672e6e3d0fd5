package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/sourcetest"
)

// lines makes an event of each line: milliseconds, a blank, the key.
func lines(dst []tumble.Event, m Message) ([]tumble.Event, error) {
	for line := range strings.Lines(string(m.Value)) {
		at, key, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		ms, err := strconv.ParseInt(at, 10, 64)
		if !ok || err != nil {
			return dst, errors.New("not a line of ours")
		}
		dst = append(dst, tumble.Event{Key: key, Time: time.UnixMilli(ms)})
	}
	return dst, nil
}

// rulesConfig is how the rules get at a Source on c.
func (c cluster) rulesConfig(t *testing.T, change func(*Config)) sourcetest.Config {
	cl := c.client(t, kgo.DisableIdempotentWrite()) // a broker that lost records would refuse the next ones
	return sourcetest.Config{New: func(ctx context.Context) (*sourcetest.Log, error) {
		topic := c.create(t, 3)
		cfg := c.config(topic)
		cfg.Decode = lines
		change(&cfg)
		source := func(cfg Config) func(context.Context) (tumble.Source, error) {
			return func(context.Context) (tumble.Source, error) { return New(cfg) }
		}
		s, err := New(cfg)
		if err != nil {
			return nil, err
		}
		number := func(id string) int32 {
			n, err := strconv.Atoi(strings.TrimPrefix(id, topic+"/"))
			require.NoError(t, err)
			return int32(n)
		}
		write := func(ctx context.Context, id string, value []byte) error {
			return cl.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: number(id), Value: value}).FirstErr()
		}
		record := func(ctx context.Context, id string, events ...tumble.Event) error {
			var b strings.Builder
			for _, e := range events {
				fmt.Fprintf(&b, "%d %s\n", e.Time.UnixMilli(), e.Key)
			}
			return write(ctx, id, []byte(b.String()))
		}
		l := &sourcetest.Log{
			Source:     s,
			Partitions: []string{topic + "/0", topic + "/1", topic + "/2"},
			Append: func(ctx context.Context, id string, events ...tumble.Event) error {
				for _, e := range events {
					if err := record(ctx, id, e); err != nil {
						return err
					}
				}
				return nil
			},
			AppendRecord: record,
			Reject:       func(ctx context.Context, id string) error { return write(ctx, id, []byte("what?")) },
			Skip:         func(ctx context.Context, id string) error { return write(ctx, id, nil) },
			Forget: func(_ context.Context, id string, before int64) error {
				c.deleteBefore(t, topic, number(id), before)
				return nil
			},
			Another: source(cfg),
			Latest: func(context.Context) (tumble.Source, error) {
				cfg := cfg
				cfg.Start = Latest
				return New(cfg)
			},
		}
		if c.fake != nil {
			l.Elect = func(_ context.Context, id string) error {
				return c.fake.MoveTopicPartition(topic, number(id), c.fake.LeaderFor(topic, number(id)))
			}
		}
		return l, nil
	}}
}

// runRules checks the contract of a Source in each way to run one.
func runRules(t *testing.T, c cluster) {
	for name, change := range map[string]func(*Config){
		"all":    func(*Config) {},
		"go on":  func(cfg *Config) { cfg.OnGap, cfg.OnTruncated = GoOn, GoOn },
		"listed": func(cfg *Config) { cfg.Partitions = []int32{0, 1, 2} },
		"group":  func(cfg *Config) { cfg.Group, cfg.SessionTimeout = newTopic(), 6*time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sourcetest.Test(t, c.rulesConfig(t, change))
		})
	}
}

func TestRules(t *testing.T) { runRules(t, fakeCluster(t)) }
