package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
)

// DeadLettersConfig says where DeadLetters writes. Brokers and Topic are
// required.
type DeadLettersConfig struct {
	// Brokers are addresses, "host:port", of some of the cluster's brokers.
	Brokers []string
	// Transport connects to the brokers, as in [Config]; it may be the same. The
	// caller closes it. Defaults to a Transport of the DeadLetters' own.
	Transport kafkago.RoundTripper
	// ClientID is what the brokers call this process in logs and quotas.
	// Defaults to "tumble".
	ClientID string
	// Topic is written to. It must exist; it is never created by writing to it.
	// It must not be the topic whose records are rejected.
	Topic string
	// Timeout bounds one call of Write. Defaults to 10 seconds.
	Timeout time.Duration
	// Logger is told of records that did not fit whole. Defaults to
	// slog.Default().
	Logger *slog.Logger
}

// The headers of a dead letter. They follow those that the record had; should it
// have had one of the same name, the last one is that of this letter.
const (
	HeaderTopic     = "tumble-topic"     // where the record was read
	HeaderPartition = "tumble-partition" // a decimal number
	HeaderOffset    = "tumble-offset"    // a decimal number
	HeaderCause     = "tumble-cause"     // why it was rejected; 1,024 bytes at most
	HeaderTime      = "tumble-time"      // the record's timestamp, RFC 3339; missing if it had none

	// Only in the letter of a record that did not fit whole.
	HeaderSize    = "tumble-size"    // how many bytes its value had; the letter's is cut off
	HeaderDropped = "tumble-dropped" // "key", "headers" or "key headers": what did not fit either
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
	client *client            // asks where the partitions are
	writer *client            // writes, which takes longer
	most   int                // bytes of a batch that a broker may take
	own    *kafkago.Transport // closed by Close; nil: the caller's
	cuts   rarely

	mu  sync.Mutex
	lay *topicLayout // nil: to be asked for
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
	of := func(timeout time.Duration) *client {
		return &client{transport: cfg.Transport, addr: kafkago.TCP(cfg.Brokers...), clientID: cfg.ClientID, topic: cfg.Topic, timeout: timeout}
	}
	d.client, d.writer = of(min(4*time.Second, cfg.Timeout)), of(cfg.Timeout)
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
			if silence, ok := d.cuts.now(); ok {
				d.cfg.Logger.Warn("a rejected record is too large for the topic of dead letters: it was cut off", "letters", d.cfg.Topic,
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
		err = fmt.Errorf("it does not exist at %v", d.client.addr)
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
	mayWrite       = 1 << 4
	produceVersion = 8 // the last without tagged fields, the first with messages to errors: Kafka 2.4

	// maxRequest is what a broker takes at most by default
	// (socket.request.max.bytes): it closes the connection at more.
	maxRequest = 100 << 20
	// compressAbove is from how many bytes on a letter is compressed: its record
	// may have been, and the limit of a topic is one for what is compressed.
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
	b := make(appender, 0, len(batch)+len(d.cfg.Topic)+64)
	b.int16(-1) // no transaction
	b.int16(-1) // acknowledged by all replicas in sync
	b.int32(int32(d.cfg.Timeout.Milliseconds()))
	b.int32(1)
	b.string(d.cfg.Topic)
	b.int32(1)
	b.int32(partition)
	b.int32(int32(len(batch)))
	b = append(b, batch...)
	var code int16
	var says string
	answered := false
	err := d.writer.roundTrip(ctx, &call{broker: broker, key: protocol.Produce, version: produceVersion, body: b, read: func(r *reader) {
		for topics := r.int32(); topics > 0 && r.err == nil; topics-- {
			r.string()
			for parts := r.int32(); parts > 0 && r.err == nil; parts-- {
				r.int32() // partition
				code, answered = r.int16(), true
				r.int64() // offset
				r.int64() // time
				r.int64() // start of the log
				for bad := r.int32(); bad > 0 && r.err == nil; bad-- {
					r.int32() // record
					r.string()
				}
				says = r.string()
			}
		}
		r.int32() // throttle
	}})
	switch {
	case err != nil:
		return err
	case !answered:
		return fmt.Errorf("broker %d does not answer for partition %d", broker, partition)
	case code != 0 && says != "":
		return fmt.Errorf("partition %d: %w: %s", partition, codeError(code), says)
	case code != 0:
		return fmt.Errorf("partition %d: %w", partition, codeError(code))
	}
	return nil
}

// A letter is a record to write.
type letter struct {
	key, value   []byte // nil: null
	headers, own []letterHeader
}

type letterHeader struct {
	key   string
	value []byte // nil: null
}

const maxCause = 1 << 10

func newLetter(r Rejected) letter {
	l := letter{key: r.Message.Key, value: r.Message.Value}
	for k, v := range r.Message.Headers() {
		l.headers = append(l.headers, letterHeader{k, v})
	}
	cause := "unknown"
	if r.Cause != nil {
		cause = r.Cause.Error()
	}
	if len(cause) > maxCause {
		cause = cause[:maxCause]
	}
	l.add(HeaderTopic, r.Topic)
	l.add(HeaderPartition, strconv.Itoa(int(r.Partition)))
	l.add(HeaderOffset, strconv.FormatInt(r.Offset, 10))
	l.add(HeaderCause, strings.ToValidUTF8(cause, ""))
	if at := r.Message.Time; !at.IsZero() {
		l.add(HeaderTime, at.UTC().Format(time.RFC3339Nano))
	}
	return l
}

func (l *letter) add(key, value string) { l.own = append(l.own, letterHeader{key, []byte(value)}) }

// size is about how many bytes the letter takes, if it is not compressed.
func (l *letter) size() int { return len(l.key) + len(l.value) + sizeOf(l.headers) + sizeOf(l.own) }

func sizeOf(headers []letterHeader) (n int) {
	for _, h := range headers {
		n += len(h.key) + len(h.value) + 4
	}
	return n
}

// least reports whether there is nothing left to cut.
func (l *letter) least() bool { return len(l.key) == 0 && len(l.value) == 0 && len(l.headers) == 0 }

// cut returns a letter of at most limit bytes that has the beginning of l's
// value and, if these fit, its key and headers. What tells where the record is
// found is always in it, even if the limit is less.
func (l *letter) cut(limit int) letter {
	c := letter{own: slices.Clone(l.own)}
	c.add(HeaderSize, strconv.Itoa(len(l.value)))
	room := limit - sizeOf(c.own) - len(HeaderDropped) - 16
	var dropped []string
	if len(l.key) <= max(room, 0) {
		c.key = l.key
		room -= len(l.key)
	} else {
		dropped = append(dropped, "key")
	}
	if n := sizeOf(l.headers); n <= room/2 {
		c.headers = l.headers
		room -= n
	} else if n > 0 {
		dropped = append(dropped, "headers")
	}
	if len(dropped) > 0 {
		c.add(HeaderDropped, strings.Join(dropped, " "))
	}
	c.value = l.value[:min(len(l.value), max(room, 0))]
	return c
}

var letterEncoder = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		panic(err) // of options that never change
	}
	return e
})

// batch returns a record batch, format version 2, that holds l alone.
func (l *letter) batch(at time.Time) []byte {
	var r appender
	r.int8(0)           // attributes
	r = append(r, 0, 0) // deltas of time and offset
	r.varbytes(l.key)
	r.varbytes(l.value)
	r = binary.AppendVarint(r, int64(len(l.headers)+len(l.own)))
	for _, h := range slices.Concat(l.headers, l.own) {
		r.varbytes([]byte(h.key))
		r.varbytes(h.value)
	}
	records := binary.AppendVarint(make([]byte, 0, len(r)+binary.MaxVarintLen64), int64(len(r)))
	records = append(records, r...)
	attributes := int16(codecNone)
	if len(records) > compressAbove {
		records, attributes = letterEncoder().EncodeAll(records, nil), codecZstd
	}
	b := make(appender, 0, batchHeader+len(records))
	b.int64(0) // base offset
	b.int32(int32(batchHeader - batchPrefix + len(records)))
	b.int32(-1) // leader epoch: the broker's to set
	b.int8(2)   // magic
	b.int32(0)  // checksum, below
	covered := len(b)
	b.int16(attributes)
	b.int32(0) // last delta
	b.int64(at.UnixMilli())
	b.int64(at.UnixMilli())
	b.int64(-1) // no producer id
	b.int16(-1)
	b.int32(-1)
	b.int32(1) // records
	b = append(b, records...)
	binary.BigEndian.PutUint32(b[covered-4:], crc32.Checksum(b[covered:], castagnoli))
	return b
}

// varbytes writes what a record holds, nil as null.
func (a *appender) varbytes(v []byte) {
	if v == nil {
		*a = binary.AppendVarint(*a, -1)
		return
	}
	*a = binary.AppendVarint(*a, int64(len(v)))
	*a = append(*a, v...)
}

// newTransport returns one for questions about a topic.
func newTransport(brokers []string, clientID, topic string) *kafkago.Transport {
	// The brokers are tried one after the other, in any order: one that is cut
	// off must leave time for the others.
	one := net.Dialer{Timeout: max(500*time.Millisecond, dialTimeout/time.Duration(len(brokers)))}
	return &kafkago.Transport{
		ClientID:       clientID,
		Dial:           one.DialContext,
		DialTimeout:    dialTimeout,
		MetadataTTL:    2 * time.Second,
		MetadataTopics: []string{topic},
	}
}
