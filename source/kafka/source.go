package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/tumblestream/tumble"
)

// Start is where counting begins in a topic of which the sink knows nothing.
type Start int

// Earliest is the first record that is still there, Latest the end of the log.
const (
	Earliest Start = iota
	Latest
)

// A Policy says what becomes of a checkpoint whose log is no longer what it
// was.
type Policy int

// Fail stops the pipeline with an error that names what is lost. GoOn counts
// what is there.
const (
	Fail Policy = iota
	GoOn
)

// Config says what a Source reads, and how. Brokers, Topic and Decode are
// required.
type Config struct {
	// Brokers are addresses, "host:port", of some of the cluster's brokers; the
	// others are found through them.
	Brokers []string
	// Transport connects to the brokers: TLS and SASL are set there. Its
	// MetadataTopics should be Topic alone and its MetadataTTL about 2 seconds.
	// The caller closes it. Defaults to a Transport of the Source's own.
	Transport kafkago.RoundTripper
	// ClientID is what the brokers call this process in logs and quotas.
	// Defaults to "tumble".
	ClientID string

	// Topic is read. It must exist; it is never created by reading it.
	Topic string
	// Group, a consumer group, shares the partitions out between processes. All
	// of them must count into the same place by the same definition, or each
	// place would hold a part of the events. A process whose sink has another
	// name, store or definition than its members' does not join: Run returns an
	// error that names both. A new name needs a new Group.
	//
	// This is not checked of consumers of another make in the group, nor while
	// one of these, or the broker, shares the partitions out. And it cannot be
	// noticed if two processes of one name have different Decodes: see there.
	Group string
	// InstanceID makes this process a static member of Group: a restart within
	// SessionTimeout keeps its partitions and moves nobody else's. It must
	// differ between the processes of a group. Defaults to a dynamic member.
	InstanceID string
	// SessionTimeout is after how long a silence the group gives the partitions
	// of this process to others. Defaults to 45 seconds.
	SessionTimeout time.Duration
	// RebalanceTimeout bounds how long the group waits for members that flush.
	// Defaults to 60 seconds.
	RebalanceTimeout time.Duration
	// Partitions is what this process reads if there is no Group. Defaults to
	// all of the topic, also those that are added later.
	Partitions []int32

	// Decode makes events of records, see JSON. It decides what is counted, and
	// is no part of what the sink compares: two processes that count under one
	// name with different Decodes, or one that is started with another Decode
	// than before, mix two kinds of counts, and nothing can notice. Another
	// Decode needs a new name, and a new Group.
	Decode Decode
	// MaxAhead is how far beyond its record's timestamp an event may be; one
	// further ahead is rejected with its record. A record without a timestamp
	// is not judged. Defaults to 1 hour; negative: no limit.
	MaxAhead time.Duration
	// OnReject is told of each record that Decode could not understand or whose
	// event time is out of range, such as DeadLetters.Write. The record is
	// passed, and counted as rejected, once OnReject has returned nil: that is
	// once per process, unless reading goes elsewhere before it is noticed.
	//
	// After an error it is called again, 50 milliseconds later, doubling to 5
	// seconds. Meanwhile the partition waits in front of the record, its state
	// in Stats tells the error, and other partitions go on. ctx ends when the
	// partition must be given up: a record that OnReject has not returned nil
	// for is not passed then, and is rejected again by whoever goes on. So each
	// is told of at least once. OnReject must return soon after ctx has ended,
	// as Run waits for it. It is called by one goroutine at a time for each
	// partition, and by those of several partitions at once.
	//
	// Defaults to a line in the log, one in 10 seconds at most.
	OnReject func(ctx context.Context, r Rejected) error
	// FailOnReject stops the pipeline at such a record, after OnReject was told
	// of it. It is not passed.
	FailOnReject bool

	// Start is where counting begins if the sink holds nothing of this topic.
	// Defaults to Earliest.
	Start Start
	// OnGap says what happens when retention has deleted records before they
	// were counted: Fail, the default, stops Run with an error that names their
	// offsets. GoOn counts from the earliest record that is left and adds the
	// deleted ones to Stats.Lost.
	OnGap Policy
	// OnTruncated says what happens when the log no longer holds records that
	// were counted, as after an unclean leader election or a broker's power
	// loss: Fail, the default, stops Run with an error that names the offsets.
	// GoOn goes on at the offset where the logs part. The counts of the removed
	// records stay and are added to Stats.Lost; the records written in their
	// place are counted. A log that has grown past the counted offset since is
	// recognized by its leader epochs. Only where a broker or the sink does not
	// know them, the log must end before that offset to be recognized, and the
	// logs are taken to part at its end.
	OnTruncated Policy
	// OnRecreated says what happens when the topic was deleted and created
	// again: Fail, the default, stops Run with an error. GoOn counts the new
	// topic from its start, in addition to what was counted, and adds to
	// Stats.Lost what of the old one may not have been.
	OnRecreated Policy
	// UntilEnd ends each partition (io.EOF) once it was read up to where it
	// ended when Partitions was first called, and Run when all of them have.
	UntilEnd bool

	// MaxWait is how long a broker may wait for records before it answers that
	// there are none. Records that arrive are not held back by it. Defaults to
	// 250 milliseconds; at most 400.
	MaxWait time.Duration
	// MaxBuffered bounds the bytes of records read ahead, over all partitions.
	// What a single batch needs comes on top. Defaults to 64 MiB; at least 1 MiB.
	MaxBuffered int
	// MaxBatchBytes bounds one record batch, also when decompressed. A larger
	// one cannot be read. Defaults to 64 MiB; at least 1 MiB.
	MaxBatchBytes int

	// Logger receives what an operator should see. Defaults to slog.Default().
	Logger *slog.Logger
}

// A Source reads one topic. After a pipeline's Run has returned another one may
// run with it; two at the same time is an error.
type Source struct {
	cfg    Config
	log    *slog.Logger
	addr   net.Addr
	client *client
	own    *kafkago.Transport // closed by Run; nil: the caller's

	running atomic.Bool // Run is

	mu      sync.Mutex
	share   func(context.Context) (tumble.Identity, error) // of the pipeline's sink; nil: not known
	ends    map[int32]int64                                // with UntilEnd: where to stop; nil: not known yet
	reports map[int32]*report
	bounds  map[int32]bounds
	warned  bool // of a compacted topic

	pool    *pool // of what is read ahead
	rejects rejectLog
}

const (
	dialTimeout = 3 * time.Second
	maxTimeout  = 24 * 24 * time.Hour // the protocol has milliseconds of 32 bits
)

// New returns a Source, or an error that names the field of cfg that is wrong.
// It does not connect.
func New(cfg Config) (*Source, error) {
	defaults := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	defaults(&cfg.SessionTimeout, 45*time.Second)
	defaults(&cfg.RebalanceTimeout, 60*time.Second)
	defaults(&cfg.MaxAhead, time.Hour)
	defaults(&cfg.MaxWait, 250*time.Millisecond)
	if cfg.MaxBuffered == 0 {
		cfg.MaxBuffered = 64 << 20
	}
	if cfg.MaxBatchBytes == 0 {
		cfg.MaxBatchBytes = 64 << 20
	}
	if cfg.ClientID == "" {
		cfg.ClientID = "tumble"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("kafka: %w", err)
	}
	cfg.Partitions = slices.Clone(cfg.Partitions)
	s := &Source{
		cfg:     cfg,
		log:     cfg.Logger.With("topic", cfg.Topic),
		addr:    kafkago.TCP(cfg.Brokers...),
		pool:    new(pool),
		reports: map[int32]*report{},
		bounds:  map[int32]bounds{},
	}
	if cfg.Transport == nil {
		s.own = newTransport(cfg.Brokers, cfg.ClientID, cfg.Topic)
		cfg.Transport = s.own
	}
	s.rejects.log = s.log
	s.client = &client{transport: cfg.Transport, addr: s.addr, clientID: cfg.ClientID, topic: cfg.Topic, timeout: 4 * time.Second, known: &knownAbilities{}}
	return s, nil
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
	case c.MaxBuffered < 1<<20 || c.MaxBuffered > 1<<40:
		return fmt.Errorf("Config.MaxBuffered is %d, must be from 1 MiB to 1 TiB", c.MaxBuffered)
	case c.MaxBatchBytes < 1<<20 || c.MaxBatchBytes > maxFrame/2:
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

func (s *Source) id(partition int32) string {
	return s.cfg.Topic + "/" + strconv.Itoa(int(partition))
}

// Partitions implements [tumble.Source]. It fails within 5 seconds if no broker
// answers, with an error that wraps [tumble.ErrUnavailable], and if the topic
// does not exist.
func (s *Source) Partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	// Less than the 5 seconds for all questions together.
	asked, cancel := context.WithTimeout(ctx, s.client.timeout+500*time.Millisecond)
	defer cancel()
	var all map[string]tumble.Checkpoint
	var err error
	for begin := time.Now(); ; {
		// Of a topic made a moment ago brokers know little, one after the other.
		all, err = s.partitions(asked, stored)
		if !passing(err) && !(errors.Is(err, errNoTopic) && time.Since(begin) < quiet) {
			break
		}
		select {
		case <-asked.Done():
		case <-time.After(backoff):
			continue
		}
		break
	}
	if err == nil {
		return all, nil
	}
	if s.own != nil && !s.running.Load() { // nobody may call Run now, which closes them
		s.own.CloseIdleConnections()
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case silent(err):
		if asked.Err() != nil && !passing(err) {
			err = fmt.Errorf("no answer from %v in time: %w", s.addr, err)
		}
		return nil, fmt.Errorf("kafka: %w: %w", err, tumble.ErrUnavailable)
	case errors.Is(err, errNoTopic):
		return nil, fmt.Errorf("kafka: topic %q does not exist at %v", s.cfg.Topic, s.addr)
	}
	return nil, fmt.Errorf("kafka: %w", err)
}

func (s *Source) partitions(ctx context.Context, stored map[string]tumble.Checkpoint) (map[string]tumble.Checkpoint, error) {
	lay, err := s.client.layout(ctx)
	if err != nil {
		return nil, err
	}
	if lay.operations != notTold && lay.operations&mayRead == 0 {
		return nil, fmt.Errorf("topic %q: %w: the permission Read is needed", s.cfg.Topic, codeError(int16(kafkago.TopicAuthorizationFailed)))
	}
	for _, p := range s.cfg.Partitions {
		if _, ok := lay.partitions[p]; !ok {
			return nil, &fatalError{fmt.Errorf("Config.Partitions holds %d, topic %q has %d partitions", p, s.cfg.Topic, len(lay.partitions))}
		}
	}
	known := false
	for id := range stored {
		known = known || s.owns(id)
	}
	which := int64(earliest)
	if s.cfg.Start == Latest && !known {
		which = latest
	}
	from, err := s.client.allOffsets(ctx, lay, which)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	askEnds, warn := s.cfg.UntilEnd && s.ends == nil, !s.warned
	s.warned = true
	s.mu.Unlock()
	if askEnds {
		ends, err := s.client.allOffsets(ctx, lay, latest)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		s.ends = map[int32]int64{}
		for p, at := range ends {
			s.ends[p] = at.Offset
		}
		s.mu.Unlock()
	}
	if warn {
		// Not worth failing for: it needs a permission that reading does not.
		if yes, err := s.client.compacted(ctx); err != nil {
			s.log.Debug("could not read the topic's cleanup policy", "error", err)
		} else if yes {
			s.log.Warn("the topic is compacted: records that compaction removed cannot be counted again, so after a loss in the sink counts may be too low")
		}
	}
	all := make(map[string]tumble.Checkpoint, len(from))
	for p, at := range from {
		all[s.id(p)] = tumble.Checkpoint{Log: lay.id.String(), Origin: at.Offset, Offset: at.Offset, Epoch: at.Epoch}
	}
	return all, nil
}

// owns reports whether id is the ID of a partition of this topic.
func (s *Source) owns(id string) bool {
	n, ok := strings.CutPrefix(id, s.cfg.Topic+"/")
	if !ok {
		return false
	}
	_, err := strconv.ParseInt(n, 10, 32)
	return err == nil
}

// errExhausted ends Run without an error.
var errExhausted = errors.New("every partition was read to its end")

// Share implements [tumble.Sharer].
func (s *Source) Share(identity func(context.Context) (tumble.Identity, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.share = identity
}

// Run implements [tumble.Source]. Besides consume's errors it returns what
// closes the group to this process, such as members that count elsewhere, and the
// record at which FailOnReject stops.
func (s *Source) Run(ctx context.Context, consume func(context.Context, tumble.Partition) error) error {
	if !s.running.CompareAndSwap(false, true) {
		return fmt.Errorf("kafka: topic %q is being read by another Run of this Source, which is for one pipeline at a time", s.cfg.Topic)
	}
	defer s.running.Store(false)
	if s.own != nil {
		defer s.own.CloseIdleConnections()
	}
	if err := s.learnEnds(ctx); err != nil {
		return s.stopped(ctx, err)
	}
	run, stop := context.WithCancelCause(ctx)
	f := newFetcher(s, stop)
	var background sync.WaitGroup
	background.Go(func() { f.run(run) })
	defer background.Wait()
	defer stop(nil)

	var err error
	switch {
	case s.cfg.Group != "":
		err = s.runGroup(run, f, consume)
	case s.cfg.Partitions != nil:
		err = s.serve(run, f, s.cfg.Partitions, nil, consume)
	default:
		err = s.serve(run, f, nil, f.partitions, consume)
	}
	// A partition that cannot go on has ended run with its reason.
	if fatal := new(fatalError); errors.As(context.Cause(run), &fatal) {
		return fatal.err
	}
	return s.stopped(ctx, err)
}

func (s *Source) stopped(ctx context.Context, err error) error {
	if errors.Is(err, errExhausted) || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

// learnEnds makes sure of s.ends if Partitions was not called before.
func (s *Source) learnEnds(ctx context.Context) error {
	s.mu.Lock()
	missing := s.cfg.UntilEnd && s.ends == nil
	s.mu.Unlock()
	if !missing {
		return nil
	}
	_, err := s.Partitions(ctx, nil)
	return err
}

func (s *Source) runGroup(ctx context.Context, f *fetcher, consume func(context.Context, tumble.Partition) error) error {
	s.mu.Lock()
	identity := s.share
	s.share = nil // the next run's pipeline may have a sink without
	s.mu.Unlock()
	g := newGroup(groupConfig{
		identity:   identity,
		transport:  s.client.transport,
		addr:       s.addr,
		id:         s.cfg.Group,
		instanceID: s.cfg.InstanceID,
		topic:      s.cfg.Topic,
		clientID:   s.cfg.ClientID,
		session:    s.cfg.SessionTimeout,
		rebalance:  s.cfg.RebalanceTimeout,
		logger:     s.cfg.Logger,
		partitions: func(ctx context.Context) (int, error) {
			lay, err := s.client.layout(ctx)
			return len(lay.partitions), err
		},
	})
	return g.run(ctx, func(ctx context.Context, a assignment) error {
		stop := s.commit(ctx, f, g, a)
		defer stop()
		if len(a.partitions) == 0 && !s.cfg.UntilEnd {
			<-ctx.Done()
			return nil
		}
		return s.serve(ctx, f, a.partitions, nil, consume)
	})
}

// serve consumes the partitions of list, or those that more names from time to
// time until ctx ends. It returns consume's first error, errExhausted if all
// consumers returned of their own accord, nil once ctx ended.
func (s *Source) serve(ctx context.Context, f *fetcher, list []int32, more <-chan []int32, consume func(context.Context, tumble.Partition) error) error {
	served, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var first error
	var once sync.Once
	started := map[int32]bool{}
	ended := make(chan struct{}, 1)
	live := 0
	start := func(list []int32) {
		for _, n := range list {
			if started[n] {
				continue
			}
			started[n] = true
			live++
			p := f.add(n)
			p.served = served
			wg.Go(func() {
				defer func() {
					select {
					case ended <- struct{}{}:
					case <-served.Done():
					}
				}()
				defer f.remove(p)
				defer p.endTelling()
				if err := consume(served, p); err != nil {
					once.Do(func() { first = err; cancel() })
				}
			})
		}
	}
	start(list)
	named := more == nil
	for (!named || live > 0) && served.Err() == nil {
		select {
		case <-served.Done():
		case list := <-more:
			named = true
			start(list)
		case <-ended:
			live--
		}
	}
	stopped := served.Err() != nil
	cancel()
	wg.Wait()
	switch {
	case first != nil:
		return first
	case stopped:
		return nil
	}
	return errExhausted
}

// commitInterval is how often positions are shown to the group.
const commitInterval = 5 * time.Second

// commit shows the positions of f's partitions to the group, now and then, and
// a last time when stop is called. Nothing depends on it.
func (s *Source) commit(ctx context.Context, f *fetcher, g *group, a assignment) (stop func()) {
	shown := map[int32]int64{}
	show := func(ctx context.Context) {
		offsets := f.committed(a.partitions, shown)
		if len(offsets) == 0 {
			return
		}
		if err := g.commit(ctx, a, offsets); err != nil {
			s.log.Debug("could not show positions to the group", "error", err)
			return
		}
		for p, o := range offsets {
			shown[p] = o
		}
	}
	var wg sync.WaitGroup
	done := make(chan struct{})
	wg.Go(func() {
		t := time.NewTicker(commitInterval)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				show(ctx)
			case <-done:
				return
			case <-ctx.Done():
				return
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		show(last)
	}
}

var (
	_ tumble.Source = (*Source)(nil)
	_ tumble.Sharer = (*Source)(nil)
)
