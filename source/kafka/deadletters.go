package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/tumblestream/tumble/internal/rarely"
	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// DeadLettersConfig says where DeadLetters writes. Brokers and Topic are
// required.
type DeadLettersConfig struct {
	// Brokers are addresses, "host:port", of some of the cluster's brokers.
	Brokers []string
	// Transport connects to the brokers, and may be that of a [Config]. The caller
	// closes it. Defaults to a Transport of the DeadLetters' own.
	Transport kafkago.RoundTripper
	// ClientID names this process in the brokers' logs and quotas. Defaults to
	// "tumble".
	ClientID string
	// Topic is the topic to write to, another one than that of the rejected
	// records. It must exist: writing never creates it.
	Topic string
	// Timeout bounds one call of Write. Defaults to 10 seconds.
	Timeout time.Duration
	// Logger is told of records that did not fit whole. Defaults to
	// slog.Default().
	Logger *slog.Logger
}

// The headers of a dead letter follow those of the record. If the record has one of
// the same name, the last one is the letter's.
const (
	HeaderTopic     = "tumble-topic"     // where the record was read
	HeaderPartition = "tumble-partition" // a decimal number
	HeaderOffset    = "tumble-offset"    // a decimal number
	HeaderCause     = "tumble-cause"     // why it was rejected, 1,024 bytes at most
	HeaderTime      = "tumble-time"      // the record's timestamp, RFC 3339, missing if it had none

	// Only in the letter of a record that did not fit whole.
	HeaderSize    = "tumble-size"    // bytes of its value, which is cut off in the letter
	HeaderDropped = "tumble-dropped" // "key", "headers" or "key headers" that did not fit either
)

// DeadLetters writes rejected records to a topic: its Write is made for
// [Config.OnReject].
//
//	letters, err := kafka.NewDeadLetters(kafka.DeadLettersConfig{Brokers: brokers, Topic: "clicks-rejected"})
//	...
//	defer letters.Close()
//	source, err := kafka.New(kafka.Config{OnReject: letters.Write, ...})
//
// A letter has the record's key, value and headers, the headers HeaderTopic to
// HeaderTime, and the time at which it was written. It goes to the partition of
// the record's number, modulo how many the topic has. Letters are written at
// least once: one whose acknowledgement was lost, or that a crash or a rebalance
// has rejected again, comes twice, and topic, partition and offset tell.
//
// A record that the topic refuses as too large is cut until it fits: HeaderSize
// says so, and the log. Should not even its headers fit, Write fails.
//
// The user as whom the Transport logs in needs the permission Write on the topic.
// DeadLetters is safe for concurrent use.
type DeadLetters struct {
	cfg    DeadLettersConfig
	client *client
	most   int                // bytes of a batch that a broker may take
	own    *kafkago.Transport // closed by Close, nil if it is the caller's
	cuts   rarely.Line

	mu  sync.Mutex
	lay *topicLayout // nil until asked for
}

// NewDeadLetters returns DeadLetters, or an error that names the field of cfg
// that is wrong. It does not connect.
func NewDeadLetters(cfg DeadLettersConfig) (*DeadLetters, error) {
	if cfg.ClientID == "" {
		cfg.ClientID = "tumble"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	err := checkBrokers("DeadLettersConfig", cfg.Brokers)
	if err == nil {
		err = checkTopic("DeadLettersConfig", cfg.Topic)
	}
	if err == nil && (cfg.Timeout < time.Millisecond || cfg.Timeout > maxTimeout) {
		err = fmt.Errorf("DeadLettersConfig.Timeout is %v, must be from 1ms to %v", cfg.Timeout, maxTimeout)
	}
	if err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	d := &DeadLetters{cfg: cfg, most: maxRequest - 1<<10}
	if cfg.Transport == nil {
		d.own = newTransport(cfg.Brokers, cfg.ClientID, cfg.Topic)
		cfg.Transport = d.own
	}
	d.client = &client{
		Client: wire.Client{Transport: cfg.Transport, Addr: kafkago.TCP(cfg.Brokers...), ID: cfg.ClientID},
		topic:  cfg.Topic, timeout: min(4*time.Second, cfg.Timeout),
	}
	return d, nil
}

// Close closes the connections, unless they belong to a Transport of the
// caller's. It is called when nobody calls Write any more.
func (d *DeadLetters) Close() {
	if d.own != nil {
		d.own.CloseIdleConnections()
	}
}

// Check returns an error if letters cannot be written, because no broker answers
// or the topic does not exist, say. It takes 4 seconds at most.
func (d *DeadLetters) Check(ctx context.Context) error {
	d.forget()
	lay, err := d.layout(ctx)
	if err == nil && lay.operations != notTold && lay.operations&mayWrite == 0 {
		err = fmt.Errorf("%w: the permission Write is needed", codeError(int16(kafkago.TopicAuthorizationFailed)))
	}
	return d.explain(err)
}

// Write writes the letter of one record and returns once every replica in sync
// has it. After an error it may have been written or not.
func (d *DeadLetters) Write(ctx context.Context, r Rejected) error {
	if r.Topic == d.cfg.Topic {
		return d.explain(errors.New("it is the topic whose records are rejected: it would be rejected again for ever"))
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timeout)
	defer cancel()
	l := newLetter(r)
	err := d.produce(ctx, r.Partition, l)
	for limit := l.size() / 2; tooLarge(err); limit /= 2 {
		cut := l.cut(limit)
		if err = d.produce(ctx, r.Partition, cut); err == nil {
			if silence, ok := d.cuts.Now(); ok {
				d.cfg.Logger.Warn("dead letter cut off: the record is too large for the topic of dead letters", "letters", d.cfg.Topic,
					"topic", r.Topic, "partition", r.Partition, "offset", r.Offset, "bytes", len(l.value), "kept", len(cut.value), "unreported", silence)
			}
		}
		if cut.least() {
			break
		}
	}
	return d.explain(err)
}

func (d *DeadLetters) explain(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, errNoTopic) {
		err = fmt.Errorf("it does not exist at %v", d.client.Addr)
	}
	return fmt.Errorf("kafka: dead letters to topic %q: %w", d.cfg.Topic, err)
}

func (d *DeadLetters) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lay = nil
}

// layout returns where the topic's partitions are, as last heard. At most one
// asks at a time.
func (d *DeadLetters) layout(ctx context.Context) (topicLayout, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lay == nil {
		lay, err := d.client.layout(ctx)
		if err != nil {
			return lay, err
		}
		d.lay = &lay
	}
	return *d.lay, nil
}

const (
	// maxRequest is a broker's default of socket.request.max.bytes. It closes the
	// connection at more.
	maxRequest = 100 << 20
	// compressAbove is the size from which on a letter is compressed, as its record
	// may have been: a topic's limit is one for compressed batches.
	compressAbove = 16 << 10
)

// tooLarge reports whether a smaller letter could be written.
func tooLarge(err error) bool {
	return errors.Is(err, kafkago.MessageSizeTooLarge) || errors.Is(err, kafkago.RecordListTooLarge)
}

// produce writes l to the partition of that number or, where that has no leader,
// to the next one that has.
func (d *DeadLetters) produce(ctx context.Context, partition int32, l letter) error {
	lay, err := d.layout(ctx)
	if err != nil {
		return err
	}
	n := int32(len(lay.partitions))
	leader := int32(-1)
	var to int32
	for i := int32(0); i < n && leader < 0; i++ {
		to = (partition%n + i) % n
		if p, ok := lay.partitions[to]; ok {
			leader = p.leader
		}
	}
	if leader < 0 {
		d.forget()
		return errNoLeader
	}
	batch := l.batch(time.Now())
	if len(batch) > d.most {
		return fmt.Errorf("%w (%d bytes)", kafkago.MessageSizeTooLarge, len(batch))
	}
	if err = d.send(ctx, leader, to, batch); err != nil && !tooLarge(err) {
		d.forget() // the leader may be another one now
	}
	return err
}

// send writes a record batch to a partition that broker leads.
func (d *DeadLetters) send(ctx context.Context, broker, partition int32, batch []byte) error {
	b := make(wire.Appender, 0, len(batch)+len(d.cfg.Topic)+64)
	b.Nullable("") // no transaction
	b.Int16(-1)    // acknowledged by all replicas in sync
	b.Int32(int32(d.cfg.Timeout.Milliseconds()))
	b.Int32(1)
	b.Text(d.cfg.Topic)
	b.Int32(1)
	b.Int32(partition)
	b.Bytes(batch)
	r, err := d.client.Do(ctx, &wire.Request{API: wire.Produce, Node: broker, Timeout: d.cfg.Timeout, Body: b})
	if err != nil {
		return err
	}
	var code int16
	var says string
	answered := false
	for range r.Array() {
		r.Text() // topic
		for range r.Array() {
			r.Int32() // partition
			code, answered = r.Int16(), true
			r.Int64() // offset
			r.Int64() // time
			r.Int64() // start of the log
			for range r.Array() {
				r.Int32() // record
				r.Text()
			}
			says = r.Text()
		}
	}
	switch {
	case r.Err() != nil:
		return fmt.Errorf("broker %d: %w", broker, r.Err())
	case !answered:
		return fmt.Errorf("broker %d does not answer for partition %d", broker, partition)
	case code != 0 && says != "":
		return fmt.Errorf("partition %d: %w: %s", partition, codeError(code), says)
	case code != 0:
		return fmt.Errorf("partition %d: %w", partition, codeError(code))
	}
	return nil
}
