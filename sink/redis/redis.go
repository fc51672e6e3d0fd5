package redis

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

// Config says where counts are kept.
type Config struct {
	// Client is connected to a Redis server, or to a Redis Cluster. The sink
	// shares it, and the caller closes it after the last use. Required.
	Client rueidis.Client

	// Name is what the keys begin with: counts under different names have
	// nothing to do with each other. Any bytes but { and }. Required.
	Name string

	// Shards is the number of shards, from 1 to 256, that a sink divides its
	// counts among when it stores the first under Name; it never changes after.
	// 0 takes the number that is stored, and 16 if none is. Any other number
	// must be the stored one.
	Shards int

	// Timeout ends a call whose context has no deadline. Defaults to 10
	// seconds.
	Timeout time.Duration

	// CacheTTL is how long the client's cache may hold what a Reader read. The
	// server tells the client of every change, so this bounds memory, not
	// staleness. Defaults to 10 minutes.
	CacheTTL time.Duration

	// AllowEviction makes Open accept a server whose maxmemory-policy lets it
	// drop any key, or that does not tell its policy. Counts that it drops are
	// lost and not noticed, unless their checkpoints go with them.
	AllowEviction bool
}

const (
	defaultShards = 16
	// openTimeout is what Open may take: whoever starts a program watches.
	openTimeout = 4 * time.Second
)

// Sink keeps counts in Redis, and reads them. It implements [tumble.Sink] and
// [tumble.Reader], is safe for concurrent use, and holds nothing that needs to
// be closed. As a Reader it needs no Open: it learns from Redis what is stored
// under its name.
type Sink struct {
	client rueidis.Client
	cfg    Config
	known  atomic.Pointer[layout] // the last that was read
}

var (
	_ tumble.Sink   = (*Sink)(nil)
	_ tumble.Reader = (*Sink)(nil)
)

// New returns a sink, or an error that names the field of cfg that is wrong. It
// sends nothing to the server.
func New(cfg Config) (*Sink, error) {
	switch {
	case cfg.Client == nil:
		return nil, errors.New("redis: Config.Client is nil, it is required")
	case cfg.Name == "":
		return nil, errors.New("redis: Config.Name is empty, it is required")
	case strings.ContainsAny(cfg.Name, "{}"):
		// Redis would take what stands between them for the hash tag.
		return nil, fmt.Errorf("redis: Config.Name is %q, must be without { and }", cfg.Name)
	case cfg.Shards < 0 || cfg.Shards > maxShards:
		return nil, fmt.Errorf("redis: Config.Shards is %d, must be from 1 to %d, or 0", cfg.Shards, maxShards)
	case cfg.Timeout < 0:
		return nil, fmt.Errorf("redis: Config.Timeout is %v, must not be negative", cfg.Timeout)
	case cfg.CacheTTL < 0:
		return nil, fmt.Errorf("redis: Config.CacheTTL is %v, must not be negative", cfg.CacheTTL)
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.CacheTTL = cmp.Or(cfg.CacheTTL, 10*time.Minute)
	return &Sink{client: cfg.Client, cfg: cfg}, nil
}

// Open checks the servers and the stored definition; see [tumble.Sink]. It
// takes no longer than 4 seconds. An error names the servers that did not
// answer, and wraps [tumble.ErrDefinition] if another definition or another
// number of shards is stored.
func (s *Sink) Open(ctx context.Context, def tumble.Definition) ([]tumble.Shard, error) {
	if err := def.Validate(); err != nil {
		return nil, fmt.Errorf("redis: %s: open: %w", s.cfg.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := s.checkEviction(ctx); err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		stored, err := s.readLayout(ctx)
		if err != nil && !errors.Is(err, tumble.ErrNoDefinition) {
			return nil, err
		}
		n := cmp.Or(s.cfg.Shards, defaultShards)
		if stored != nil {
			// Before anything is written: of a store that lost a part the first
			// shard may have no definition, and must not get another one.
			if !stored.def.Same(def) {
				return nil, fmt.Errorf("redis: %s: open: stored is %v; wanted is %v: %w", s.cfg.Name, stored.def, def, tumble.ErrDefinition)
			}
			if s.cfg.Shards != 0 && s.cfg.Shards != stored.shards {
				return nil, fmt.Errorf("redis: %s: open: stored are %d shards, wanted %d: %w",
					s.cfg.Name, stored.shards, s.cfg.Shards, tumble.ErrDefinition)
			}
			n = stored.shards
		}
		shards, err := s.open(ctx, def, n)
		// Another process may have been first since, with another number.
		if errors.Is(err, tumble.ErrDefinition) && stored == nil && try == 0 {
			continue
		}
		return shards, err
	}
}

// open writes the definition to n shards, or finds it there.
func (s *Sink) open(ctx context.Context, def tumble.Definition, n int) ([]tumble.Shard, error) {
	shards := make([]tumble.Shard, n)
	errs := make([]error, n)
	load := func(i int) {
		sh := newShard(s, def, n, i)
		shards[i] = sh
		_, errs[i] = sh.Load(ctx, nil)
	}
	// The first decides between two processes that open at once.
	if load(0); errs[0] != nil {
		return nil, errs[0]
	}
	var wg sync.WaitGroup
	for i := 1; i < n; i++ {
		wg.Go(func() { load(i) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return shards, nil
}

// checkEviction refuses servers that drop keys when memory runs out: counts
// would go, and the checkpoints that claim them stay. The volatile policies
// drop only keys with a time to live, which none of ours has.
func (s *Sink) checkEviction(ctx context.Context) error {
	nodes := s.client.Nodes()
	addrs := slices.Sorted(maps.Keys(nodes))
	errs := make([]error, len(addrs))
	var wg sync.WaitGroup
	for i, addr := range addrs {
		wg.Go(func() { errs[i] = s.checkNode(ctx, addr, nodes[addr]) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (s *Sink) checkNode(ctx context.Context, addr string, node rueidis.Client) error {
	fail := func(err error) error {
		return fmt.Errorf("redis: %s: open: %s: %w", s.cfg.Name, addr, err)
	}
	// Not CONFIG GET, which managed servers refuse.
	info, err := node.Do(ctx, node.B().Info().Build()).ToString()
	reply, refused := rueidis.IsRedisErr(err)
	switch {
	case refused && denied(reply.Error()):
		if s.cfg.AllowEviction {
			return nil
		}
		return fail(fmt.Errorf("the maxmemory-policy cannot be read, INFO is not allowed (Config.AllowEviction accepts that): %w", err))
	case err != nil:
		return fail(hinted(err))
	}
	if role := field(info, "role"); role == "slave" || role == "replica" {
		return nil
	}
	policy := field(info, "maxmemory_policy")
	switch {
	case s.cfg.AllowEviction:
		return nil
	case policy == "":
		return fail(errors.New("INFO does not tell the maxmemory-policy (Config.AllowEviction accepts that)"))
	case strings.HasPrefix(policy, "allkeys"):
		return fail(fmt.Errorf("the maxmemory-policy is %s, which may drop counts whose checkpoints stay; "+
			"it must be noeviction or a volatile one (Config.AllowEviction accepts it)", policy))
	}
	return nil
}

// field returns a field of the reply to INFO.
func field(info, name string) string {
	for line := range strings.SplitSeq(info, "\r\n") {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return value
		}
	}
	return ""
}

// denied reports whether the server knows the command and does not let this
// user call it, or has it renamed away.
func denied(reply string) bool {
	return strings.HasPrefix(reply, "NOPERM") || strings.HasPrefix(reply, "ERR unknown command")
}

// bounded returns ctx with a deadline.
func (s *Sink) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.cfg.Timeout)
}

// explain adds to an error what it does not say itself: who did not answer, and
// what a person can do about an answer of the server.
func (s *Sink) explain(ctx context.Context, err error) error {
	if _, ok := rueidis.IsRedisErr(err); ok {
		return hinted(err)
	}
	if err = hinted(err); unanswered(err) {
		err = s.named(err)
	}
	if cause := ctx.Err(); cause != nil && !errors.Is(err, cause) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// named adds the servers' addresses to an error that names none.
func (s *Sink) named(err error) error {
	addrs := slices.Sorted(maps.Keys(s.client.Nodes()))
	text := err.Error()
	if slices.ContainsFunc(addrs, func(addr string) bool { return strings.Contains(text, addr) }) {
		return err
	}
	return fmt.Errorf("no answer from %s: %w", strings.Join(addrs, ", "), err)
}

// unanswered reports whether err is about a connection, not an answer. Many of
// these errors, such as the bare EOF of a connection that a server closed, do
// not say with whom it was.
func unanswered(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, rueidis.ErrDoCacheAborted) || errors.Is(err, rueidis.ErrClosing) ||
		errors.As(err, new(net.Error)) || errors.As(err, new(*tls.CertificateVerificationError))
}

// hinted adds what a person can do about an answer of the server.
func hinted(err error) error {
	if errors.Is(err, rueidis.ErrDoCacheAborted) {
		return fmt.Errorf("the user may not run MULTI, EXEC or PTTL, or the connection broke: %w", err)
	}
	if reply, ok := rueidis.IsRedisErr(err); ok {
		text := reply.Error()
		for word, hint := range hints {
			if strings.Contains(text, word) {
				return fmt.Errorf("%s: %w", hint, err)
			}
		}
	}
	return err
}

// hints by the word that an error of the server holds. Before version 7 it need
// not be the first one, when a script meets the error.
var hints = map[string]string{
	"OOM ":                                "the server has reached its maxmemory",
	"READONLY ":                           "the server is a replica",
	"NOAUTH ":                             "the client gives no password",
	"WRONGPASS ":                          "the client gives a wrong user name or password",
	"NOPERM ":                             "the user may not do that",
	"The user executing the script can't": "the user may not run a command of the script",
	"MISCONF ":                            "the server cannot save to its disk and takes no writes",
	"NOREPLICAS ":                         "the server has too few replicas and takes no writes",
	"LOADING ":                            "the server is loading its data",
	"BUSY ":                               "the server is busy with a script",
	"CLUSTERDOWN ":                        "the cluster does not serve all slots",
	"WRONGTYPE ":                          "a key under this name holds something else",
}
