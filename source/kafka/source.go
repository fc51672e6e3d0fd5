package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/source/kafka/internal/wire"
)

// A Source reads one topic. It is for one pipeline at a time: another one may run
// with it after Run has returned.
type Source struct {
	cfg    Config
	log    *slog.Logger
	client *client
	own    *kafkago.Transport // closed by Run, nil if it is the caller's

	running atomic.Bool // Run is
	latest  atomic.Bool // the log was told that counting starts at the end

	mu      sync.Mutex
	share   func(context.Context) (tumble.Identity, error) // of the pipeline's sink, nil if not known
	ends    map[int32]int64                                // with UntilEnd: where to stop, nil until known
	reports map[int32]*report
	bounds  map[int32]bounds
	warned  bool // of a compacted topic

	pool    *pool // of prefetched records
	rejects rejectLog

	delivered func(broker int32, bytes int) // told of each answer with records; for tests
}

const (
	maxTimeout = 24 * 24 * time.Hour // the protocol has milliseconds of 32 bits
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
	defaults(&cfg.MaxSkew, time.Hour)
	defaults(&cfg.MaxWait, 250*time.Millisecond)
	if cfg.MaxKey == 0 {
		cfg.MaxKey = tumble.DefaultMaxKey
	}
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
		pool:    new(pool),
		reports: map[int32]*report{},
		bounds:  map[int32]bounds{},
	}
	if cfg.Transport == nil {
		s.own = newTransport(cfg.Brokers, cfg.ClientID, cfg.Topic)
		cfg.Transport = s.own
	}
	s.rejects.log = s.log
	s.client = &client{
		Client: wire.Client{Transport: cfg.Transport, Addr: kafkago.TCP(cfg.Brokers...), ID: cfg.ClientID},
		topic:  cfg.Topic, timeout: 4 * time.Second,
	}
	return s, nil
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
		// Brokers learn one after the other of a topic that was just created.
		all, err = s.partitions(asked, stored)
		if !transient(err) && !(errors.Is(err, errNoTopic) && time.Since(begin) < quiet) || !pause(asked, retryAfter) {
			break
		}
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
	case unanswered(err):
		if asked.Err() != nil && !transient(err) {
			err = fmt.Errorf("no answer from %v in time: %w", s.client.Addr, err)
		}
		return nil, fmt.Errorf("kafka: %w: %w", err, tumble.ErrUnavailable)
	case errors.Is(err, errNoTopic):
		return nil, fmt.Errorf("kafka: topic %q does not exist at %v", s.cfg.Topic, s.client.Addr)
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
			s.log.Debug("cleanup policy of the topic is unknown", "error", err)
		} else if yes {
			s.log.Warn("the topic is compacted: records that compaction removed cannot be counted again, so after a loss in the sink counts may be too low")
		}
	}
	if which == latest && s.latest.CompareAndSwap(false, true) {
		s.log.Info("nothing is stored of the topic and Config.Start is Latest: counting starts at its end and skips the records before it, also those since a loss of the store")
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

// errExited is the error of a partition whose goroutine was ended (runtime.Goexit), as a
// test's FailNow does: Run must not wait for it.
var errExited = errors.New("the goroutine that consumed a partition was ended")

// Share implements [tumble.Sharer].
func (s *Source) Share(identity func(context.Context) (tumble.Identity, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.share = identity
}

// Run implements [tumble.Source]. Besides consume's errors it returns those
// that close the group to this process, such as members that count elsewhere, and
// the record at which FailOnReject stops.
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
		all := make(chan []int32, 1)
		all <- s.cfg.Partitions
		err = s.serve(run, f, all, true, consume)
	default:
		err = s.serve(run, f, f.partitions, true, consume)
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
		wire:       s.client.Client,
		id:         s.cfg.Group,
		instanceID: s.cfg.InstanceID,
		topic:      s.cfg.Topic,
		session:    s.cfg.SessionTimeout,
		rebalance:  s.cfg.RebalanceTimeout,
		logger:     s.cfg.Logger,
		partitions: func(ctx context.Context) (int, error) {
			lay, err := s.client.layout(ctx)
			return len(lay.partitions), err
		},
	})
	f.unsure = g.unsure.Load
	return g.run(ctx, func(ctx context.Context, shares <-chan assignment) error {
		var own held
		stop := s.commit(ctx, f, g, &own)
		defer stop()
		return s.serve(ctx, f, own.followed(ctx, shares), false, consume)
	})
}

// commitInterval is how often positions are shown to the group.
const commitInterval = 5 * time.Second

// commit shows the positions of the partitions that are held to the group, now and
// then, and a last time when stop is called. Nothing depends on it.
func (s *Source) commit(ctx context.Context, f *fetcher, g *group, own *held) (stop func()) {
	shown := map[int32]int64{}
	show := func(ctx context.Context) {
		a := own.Load()
		if a == nil {
			return
		}
		offsets := f.committed(a.partitions, shown)
		if len(offsets) == 0 {
			return
		}
		if err := g.commit(ctx, *a, offsets); err != nil {
			s.log.Debug("commit of offsets failed", "error", err)
			return
		}
		maps.Copy(shown, offsets)
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
