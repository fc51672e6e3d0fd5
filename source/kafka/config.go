package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// Start is where counting begins in a topic that the sink knows nothing of.
type Start int

// Earliest is the first record that is still there, Latest the end of the log.
const (
	Earliest Start = iota
	Latest
)

// A Policy decides about a checkpoint whose log has lost records since.
type Policy int

// Fail stops the pipeline with a [LostError]. GoOn counts the records that are
// there.
const (
	Fail Policy = iota
	GoOn
)

// Config configures a Source. Brokers, Topic and Decode are required.
type Config struct {
	// Brokers are addresses, "host:port", of some of the cluster's brokers. The
	// others are found through them.
	Brokers []string
	// Transport connects to the brokers: TLS and SASL are set there. Its
	// MetadataTopics should be Topic alone and its MetadataTTL about 2 seconds.
	// The caller closes it. Defaults to a Transport of the Source's own.
	Transport kafkago.RoundTripper
	// ClientID names this process in the brokers' logs and quotas. Defaults to
	// "tumble".
	ClientID string

	// Rack is where this process is, as brokers name it in broker.rack: the
	// availability zone, usually. Brokers with a replica.selector.class for it
	// then name a replica to read from that is in the same rack, if it has what is
	// asked for (KIP-392), which saves traffic between zones. That the end of the log is
	// reached only the leader says, who is asked whenever a replica has no more.
	// Records come a little later, as a replica learns from the leader's next answer
	// what is committed. Defaults to reading from leaders.
	Rack string

	// Topic is the topic to read. It must exist: reading never creates it.
	Topic string
	// Group is a consumer group that shares the partitions out between processes.
	// All of them must count into the same place by the same definition, or each
	// place would hold a part of the events. A process whose sink has another
	// name, store or definition than its members' does not join: Run returns an
	// error that names both. A new name needs a new Group.
	//
	// A group is for processes that count: consumers of another make, whose
	// partitions would not be counted, and this process exclude each other, and who
	// comes second gets an error. One that speaks the newer protocol of KIP-848 is not
	// excluded by the brokers: keep it out. Nor can different Decodes under one name be
	// noticed: see Decode.
	Group string
	// InstanceID makes this process a static member of Group: a restart within
	// SessionTimeout keeps its partitions and moves nobody else's. It must be
	// unique in the group. Defaults to a dynamic member.
	InstanceID string
	// SessionTimeout is the silence after which the group gives the partitions of
	// this process to others. Defaults to 45 seconds.
	SessionTimeout time.Duration
	// RebalanceTimeout bounds how long the group waits for members to join again,
	// which they do within a second unless they hang. All go on counting meanwhile.
	// Defaults to 60 seconds.
	RebalanceTimeout time.Duration
	// Partitions are those to read if there is no Group. Defaults to all of the
	// topic, also those that are added later.
	Partitions []int32

	// Decode makes events of records, see JSON. The sink cannot compare it: two
	// processes that count under one name with different Decodes, or one that is
	// started with another Decode than before, mix two kinds of counts unnoticed.
	// Another Decode needs a new name and a new Group.
	Decode Decode
	// MaxSkew is how far an event's time may lie beyond the timestamp of its
	// record. A record with an event further ahead is rejected. Records without a
	// timestamp are not checked. Defaults to 1 hour. Negative means no limit. Unlike
	// tumble.Config.MaxAhead it does not look at the wall clock.
	MaxSkew time.Duration
	// MaxKey is the length of the longest key in bytes. A record with an event of a
	// longer one is rejected as a whole, and so is one whose keys have more than 8 MiB
	// together. If tumble.Config.MaxKey is set this must be the same. Defaults to 1,024.
	MaxKey int
	// OnReject, such as DeadLetters.Write, is called for each record that Decode
	// could not understand or that has an event time out of range. Reading goes
	// past the record, and counts it as rejected, once OnReject has returned nil:
	// once per process, unless reading moves elsewhere before that is noticed.
	//
	// After an error it is called again with back-off, from 50 milliseconds to 5
	// seconds. Meanwhile the partition waits in front of the record, Stats shows
	// the error, and other partitions go on. ctx ends when the partition must be
	// given up. The record is then rejected again by the next owner, so that each
	// is told of at least once. OnReject must return soon after ctx has ended, as
	// Run waits for it. Calls for one partition never overlap, those for several
	// partitions do.
	//
	// Defaults to a line in the log, one in 10 seconds at most.
	OnReject func(ctx context.Context, r Rejected) error
	// FailOnReject stops the pipeline in front of such a record, after OnReject
	// has returned nil.
	FailOnReject bool

	// Start is where counting begins if the sink holds nothing of this topic.
	// Defaults to Earliest. With Latest, a restart after the sink has lost
	// everything skips the records in between.
	Start Start
	// OnGap decides when retention has deleted records before they were counted.
	// Fail, the default, stops Run with a LostError. GoOn counts from the earliest
	// record that is left and adds the deleted ones to Stats.Lost.
	OnGap Policy
	// OnTruncated decides when the log no longer holds records that were counted,
	// as after an unclean leader election or a broker's power loss. Fail, the
	// default, stops Run with a LostError. GoOn continues at the offset where the
	// logs diverge. The counts of the removed records stay and are added to
	// Stats.Lost. The records written in their place are counted.
	//
	// Leader epochs reveal the truncation even if the log has grown past the
	// counted offset since. If a broker or the sink does not know them, only a log
	// that ends before that offset is recognized, and its end is taken for the
	// point where the logs diverge.
	OnTruncated Policy
	// OnRecreated decides when the topic was deleted and created again. Fail, the
	// default, stops Run with a LostError. GoOn counts the new topic from its
	// start, in addition to the old one, and adds to Stats.Lost the records of the
	// old one that may not have been counted.
	OnRecreated Policy
	// UntilEnd ends each partition (io.EOF) once it was read up to where it
	// ended when Partitions was first called, and Run when all of them have.
	UntilEnd bool

	// MaxWait is how long a broker may wait for records before it answers that
	// there are none. Records that arrive are not held back by it. Defaults to
	// 250 milliseconds, at most 400.
	MaxWait time.Duration
	// MaxBuffered bounds the bytes of prefetched records, over all partitions. A
	// single batch that does not fit comes on top. Defaults to 64 MiB, at least 1
	// MiB.
	MaxBuffered int
	// MaxBatchBytes bounds one record batch, also when decompressed. A larger
	// one cannot be read. Defaults to 64 MiB, at least 1 MiB.
	MaxBatchBytes int

	// Logger receives warnings and news for an operator. Defaults to
	// slog.Default().
	Logger *slog.Logger
}

func (c *Config) validate() error {
	if err := checkBrokers("Config", c.Brokers); err != nil {
		return err
	}
	if err := checkTopic("Config", c.Topic); err != nil {
		return err
	}
	switch {
	case c.Decode == nil:
		return errors.New("Config.Decode is nil")
	case c.Group != "" && len(c.Partitions) != 0:
		return errors.New("Config.Partitions does not go with Config.Group, which shares them out")
	case c.Group == "" && c.InstanceID != "":
		return errors.New("Config.InstanceID goes with a Config.Group only")
	case c.SessionTimeout < 0 || c.SessionTimeout > maxTimeout:
		return fmt.Errorf("Config.SessionTimeout is %v, must be positive and at most %v", c.SessionTimeout, maxTimeout)
	case c.RebalanceTimeout < 0 || c.RebalanceTimeout > maxTimeout:
		return fmt.Errorf("Config.RebalanceTimeout is %v, must be positive and at most %v", c.RebalanceTimeout, maxTimeout)
	case c.MaxKey < 0 || c.MaxKey > tumble.MostMaxKey:
		return fmt.Errorf("Config.MaxKey is %d, must be from 1 to %d bytes, or 0 for %d", c.MaxKey, tumble.MostMaxKey, tumble.DefaultMaxKey)
	case c.Start != Earliest && c.Start != Latest:
		return fmt.Errorf("Config.Start is %d, must be Earliest or Latest", c.Start)
	case c.OnGap != Fail && c.OnGap != GoOn:
		return fmt.Errorf("Config.OnGap is %d, must be Fail or GoOn", c.OnGap)
	case c.OnTruncated != Fail && c.OnTruncated != GoOn:
		return fmt.Errorf("Config.OnTruncated is %d, must be Fail or GoOn", c.OnTruncated)
	case c.OnRecreated != Fail && c.OnRecreated != GoOn:
		return fmt.Errorf("Config.OnRecreated is %d, must be Fail or GoOn", c.OnRecreated)
	case c.MaxWait < time.Millisecond || c.MaxWait > 400*time.Millisecond:
		return fmt.Errorf("Config.MaxWait is %v, must be from 1ms to 400ms", c.MaxWait)
	case c.MaxBuffered < 1<<20 || int64(c.MaxBuffered) > 1<<40:
		return fmt.Errorf("Config.MaxBuffered is %d, must be from 1 MiB to 1 TiB", c.MaxBuffered)
	case c.MaxBatchBytes < 1<<20 || c.MaxBatchBytes > wire.MaxStream/2:
		return fmt.Errorf("Config.MaxBatchBytes is %d, must be from 1 MiB to 512 MiB", c.MaxBatchBytes)
	}
	seen := map[int32]bool{}
	for _, p := range c.Partitions {
		if p < 0 || seen[p] {
			return fmt.Errorf("Config.Partitions holds %d, must be different numbers from 0 on", p)
		}
		seen[p] = true
	}
	return nil
}

func checkBrokers(config string, brokers []string) error {
	if len(brokers) == 0 {
		return fmt.Errorf("%s.Brokers is empty, must name at least one \"host:port\"", config)
	}
	for _, b := range brokers {
		if _, port, err := net.SplitHostPort(b); err != nil || port == "" {
			return fmt.Errorf("%s.Brokers holds %q, must be \"host:port\"", config, b)
		}
	}
	return nil
}

func checkTopic(config, topic string) error {
	switch {
	case topic == "":
		return fmt.Errorf("%s.Topic is empty", config)
	case len(topic) > 249 || strings.ContainsFunc(topic, badInTopic) || topic == "." || topic == "..":
		return fmt.Errorf("%s.Topic is %q, must be at most 249 of a-z A-Z 0-9 . _ -", config, topic)
	}
	return nil
}

func badInTopic(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
}
