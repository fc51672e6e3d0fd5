package redis

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
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

	// Name is the beginning of the keys: counts under different names have
	// nothing to do with each other. Any bytes but { and }. Required.
	Name string

	// Shards is the number of shards, from 1 to 256, that a sink divides its
	// counts among when it stores the first under Name. It never changes after, and
	// a Redis Cluster divides a name among as many masters at most. 0 takes the number
	// that is stored, and if none is 16 in a Redis Cluster and 4 on a single server,
	// where each costs a call a flush and spares nothing. Any other number must be the
	// stored one.
	Shards int

	// Timeout ends a call whose context has no deadline. Defaults to 10
	// seconds.
	Timeout time.Duration

	// CacheTTL is how long the client's cache may hold what a Reader read. The
	// server tells the client of every change, so this bounds memory, not
	// staleness. Defaults to 10 minutes.
	CacheTTL time.Duration

	// Definition, if its Window is set, guides a Reader while nothing is
	// stored under Name: it answers zeros that are open, before the first count
	// and after the server lost everything. What is stored overrules it. By
	// default such reads are an error that wraps [tumble.ErrNoDefinition].
	Definition tumble.Definition

	// AllowEviction makes Open accept a server whose maxmemory-policy lets it
	// drop any key, or that does not tell its policy. Counts that it drops are
	// lost and not noticed, unless their checkpoints go with them.
	AllowEviction bool
}

const (
	clusterShards = 16
	serverShards  = 4 // of one server: bench's latency and steady tell what more of them cost
	// openTimeout bounds Open: whoever starts a program watches.
	openTimeout = 4 * time.Second
)

// Sink keeps counts in Redis, and reads them. It implements [tumble.Sink] and
// [tumble.Reader], is safe for concurrent use, and holds nothing that needs to
// be closed. As a Reader it needs no Open: it learns from Redis what is stored
// under its name.
type Sink struct {
	*core
	level *tumble.Window // nil: the finest. See Rollup
}

// core is what a Sink and the Readers of its roll-ups share.
type core struct {
	client rueidis.Client
	cfg    Config
	known  atomic.Pointer[layout] // the last that was read

	// doubted holds by a shard's base key a finality that the client's cache
	// still showed when the server had gone back behind it, see Sink.doubt.
	doubted sync.Map
}

var (
	_ tumble.Sink       = (*Sink)(nil)
	_ tumble.Identifier = (*Sink)(nil)
	_ tumble.Reader     = (*Sink)(nil)
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
		// Redis would take the text between them for the hash tag.
		return nil, fmt.Errorf("redis: Config.Name is %q, must be without { and }", cfg.Name)
	case cfg.Shards < 0 || cfg.Shards > maxShards:
		return nil, fmt.Errorf("redis: Config.Shards is %d, must be from 1 to %d, or 0", cfg.Shards, maxShards)
	case cfg.Timeout < 0:
		return nil, fmt.Errorf("redis: Config.Timeout is %v, must not be negative", cfg.Timeout)
	case cfg.CacheTTL < 0:
		return nil, fmt.Errorf("redis: Config.CacheTTL is %v, must not be negative", cfg.CacheTTL)
	}
	if cfg.Definition.Window != (tumble.Window{}) {
		if err := cfg.Definition.Validate(); err != nil {
			return nil, fmt.Errorf("redis: Config.Definition: %w", err)
		}
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	cfg.CacheTTL = cmp.Or(cfg.CacheTTL, 10*time.Minute)
	return &Sink{core: &core{client: cfg.Client, cfg: cfg}}, nil
}

// Open checks the servers and the stored definition. See [tumble.Sink]. It
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
		n := cmp.Or(s.cfg.Shards, serverShards)
		if s.cfg.Shards == 0 && s.client.Mode() == rueidis.ClientModeCluster {
			n = clusterShards
		}
		if stored != nil {
			// Before anything is written: of a store that lost a part the first
			// shard may have no definition, and must not get another one.
			if !stored.whole.Same(def) {
				return nil, fmt.Errorf("redis: %s: open: %w", s.cfg.Name, &tumble.DefinitionError{Stored: stored.whole, Wanted: def})
			}
			if s.cfg.Shards != 0 && s.cfg.Shards != stored.shards {
				return nil, fmt.Errorf("redis: %s: open: %w: stored are %d shards, wanted %d",
					s.cfg.Name, tumble.ErrDefinition, stored.shards, s.cfg.Shards)
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

// Identity returns the name, the id of the first shard and the definition. See
// [tumble.Identifier]. It asks the server, not the client's cache.
func (s *Sink) Identity(ctx context.Context) (tumble.Identity, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	fail := func(err error) (tumble.Identity, error) {
		return tumble.Identity{}, fmt.Errorf("redis: %s: identity: %w", s.cfg.Name, err)
	}
	stored, err := s.readFields(ctx, 0)
	if err != nil {
		return fail(err)
	}
	if len(stored) == 0 {
		// Other shards may have theirs, but nobody else would ask them.
		return fail(fmt.Errorf("%w in the first shard", tumble.ErrNoDefinition))
	}
	l, err := parseLayout(s.cfg.Name, stored)
	if err != nil {
		return fail(err)
	}
	return tumble.Identity{Name: s.cfg.Name, Store: l.id, Definition: l.whole}, nil
}

// open writes the definition to n shards, or finds it there.
func (s *Sink) open(ctx context.Context, def tumble.Definition, n int) ([]tumble.Shard, error) {
	shards := make([]tumble.Shard, n)
	errs := make([]error, n)
	load := func(i int) {
		sh := newShard(s, def, n, i)
		shards[i] = sh
		_, errs[i] = sh.Load(ctx, tumble.LoadRequest{})
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

// bounded returns ctx with a deadline.
func (s *Sink) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.cfg.Timeout)
}
