package redis

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

var (
	//go:embed script/common.lua
	commonScript string
	//go:embed script/load.lua
	loadScript string
	//go:embed script/apply.lua
	applyScript string

	// rueidis sends none of them again by itself: whoever calls decides.
	loadLua  = rueidis.NewLuaScript(commonScript + loadScript)
	applyLua = rueidis.NewLuaScript(commonScript + applyScript)
)

// maxKnown bounds the windows of which a shard remembers the sizes.
const maxKnown = 4096

// shard is one shard, as one Open sees it.
type shard struct {
	sink   *Sink
	def    tumble.Definition
	levels []tumble.Rollup // of def
	fields []string        // the definition as it is stored
	number int
	shards string
	base   string
	keys   []string // of both scripts

	backlog atomic.Bool // see Backlog

	mu    sync.Mutex
	id    string         // of the stored definition, when it was last seen
	sizes map[place]size // of windows, when they were last seen: may be wrong
}

// A place is a window of a level.
type place struct {
	level  int
	window int64 // its start, in milliseconds since the epoch
}

// size is how many buckets and keys a window has.
type size struct{ buckets, keys uint32 }

func newShard(s *Sink, def tumble.Definition, shards, number int) *shard {
	return &shard{
		sink:   s,
		def:    def,
		levels: def.Levels(),
		fields: fields(def, shards, number),
		number: number,
		shards: strconv.Itoa(shards),
		base:   baseKey(s.cfg.Name, number),
		keys:   scriptKeys(baseKey(s.cfg.Name, number)),
		sizes:  make(map[place]size),
	}
}

// scriptKeys returns the keys that a script is called with. The second one never
// exists. While a slot moves from one master to another, key by key and in any
// order, neither of them has all keys of the shard; a script on either would
// take what is on the other for missing, and say so, or write it anew. A Redis
// that knows of one missing key refuses the call until the slot has moved.
func scriptKeys(base string) []string { return []string{base, base + ":none"} }

// fail says where an error comes from.
func (s *shard) fail(ctx context.Context, what string, err error) error {
	return fmt.Errorf("redis: %s: shard %d: %s: %w", s.sink.cfg.Name, s.number, what, s.sink.explain(ctx, err))
}

// Backlog reports whether the last call left windows that are past retention. See
// [tumble.Cleaner].
func (s *shard) Backlog() bool { return s.backlog.Load() }

// Load stores missing checkpoints. See [tumble.Shard].
func (s *shard) Load(ctx context.Context, r tumble.LoadRequest) (tumble.ShardState, error) {
	ctx, cancel := s.sink.bounded(ctx)
	defer cancel()
	args, err := s.loadArgs(r)
	if err != nil {
		return tumble.ShardState{}, s.fail(ctx, "load", err)
	}
	reply, err := loadLua.Exec(ctx, s.sink.client, s.keys, args).AsStrSlice()
	if err != nil {
		return tumble.ShardState{}, s.fail(ctx, "load", err)
	}
	if len(reply) > 0 && reply[0] == "definition" {
		return tumble.ShardState{}, s.fail(ctx, "load", s.differs(reply[1:]))
	}
	id, state, err := parseState(reply)
	if err != nil {
		return tumble.ShardState{}, s.fail(ctx, "load", err)
	}
	s.mu.Lock()
	s.id = id
	s.mu.Unlock()
	s.backlog.Store(reply[5] == "1")
	return state, nil
}

// loadArgs returns the arguments of load.lua.
func (s *shard) loadArgs(r tumble.LoadRequest) ([]string, error) {
	args := make([]string, 0, 6+len(s.fields)+4*len(r.Init)+2*len(r.Announce)+2*len(r.Object))
	args = append(args, fmt.Sprintf("%016x", rand.Uint64()), retentions(s.def), strconv.Itoa(len(s.fields)/2))
	args = append(args, s.fields...)
	args = append(args, strconv.Itoa(len(r.Init)))
	for partition, c := range r.Init {
		form, err := storedForm(s.def, c)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", partition, err)
		}
		args = append(args, partition, form.set, form.mark, form.record(0))
	}
	args = append(args, strconv.Itoa(len(r.Announce)))
	for _, tokens := range []map[string]uint64{r.Announce, r.Object} {
		for partition, token := range tokens {
			args = append(args, partition, strconv.FormatUint(token, 16))
		}
	}
	return args, nil
}

// parseState reads the answer of load.lua.
func parseState(reply []string) (id string, s tumble.ShardState, err error) {
	bad := func(what string, err error) (string, tumble.ShardState, error) {
		return "", tumble.ShardState{}, fmt.Errorf("%s: %w", what, err)
	}
	if len(reply) < 7 || reply[0] != "ok" {
		return bad(fmt.Sprintf("the script answered %.200q", reply), errSyntax)
	}
	if s.Frontier, err = parseNanos(reply[2]); err != nil {
		return bad(fmt.Sprintf("the frontier is %q", reply[2]), err)
	}
	for _, word := range strings.Split(reply[3], " ") {
		floor, err := parseMillis(word)
		if err != nil {
			return bad(fmt.Sprintf("the floors are %q", reply[3]), err)
		}
		s.Floors = append(s.Floors, floor)
	}
	if s.Retentions, err = parseRetentions(reply[6]); err != nil {
		return bad(fmt.Sprintf("the retentions are %q", reply[6]), err)
	}
	n, err := strconv.Atoi(reply[4])
	pairs := reply[7:]
	if err != nil || n < 0 || 2*n > len(pairs) || len(pairs)%2 != 0 {
		return bad(fmt.Sprintf("the script answered %q announcements", reply[4]), errSyntax)
	}
	s.Announced = make(map[string]uint64, n)
	for pair := range slices.Chunk(pairs[:2*n], 2) {
		if s.Announced[pair[0]], err = strconv.ParseUint(pair[1], 16, 64); err != nil {
			return bad(fmt.Sprintf("the announced token of %s is %q", pair[0], pair[1]), err)
		}
	}
	s.Checkpoints = make(map[string]tumble.Checkpoint, len(pairs)/2-n)
	for pair := range slices.Chunk(pairs[2*n:], 2) {
		if s.Checkpoints[pair[0]], err = parseRecord(pair[1]); err != nil {
			return bad(fmt.Sprintf("the stored checkpoint of %s is %q", pair[0], pair[1]), err)
		}
	}
	return reply[1], s, nil
}

// differs returns the error about a stored definition that is another one.
func (s *shard) differs(stored []string) error {
	m := make(map[string]string)
	for pair := range slices.Chunk(stored, 2) {
		if len(pair) == 2 {
			m[pair[0]] = pair[1]
		}
	}
	l, err := parseLayout(s.sink.cfg.Name, m)
	switch {
	case errors.Is(err, tumble.ErrDefinition):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", tumble.ErrDefinition, err)
	case !l.whole.Same(s.def):
		return &tumble.DefinitionError{Stored: l.whole, Wanted: s.def}
	}
	return fmt.Errorf("%w: stored is shard %s of %d, wanted is shard %d of %s", tumble.ErrDefinition, m["shard"], l.shards, s.number, s.shards)
}

// Apply adds counts and moves a checkpoint. See [tumble.Shard].
func (s *shard) Apply(ctx context.Context, b tumble.Batch) error {
	ctx, cancel := s.sink.bounded(ctx)
	defer cancel()
	what := "apply " + b.Partition
	args, err := s.applyArgs(b)
	if err != nil {
		return s.fail(ctx, what, err)
	}
	for try := 0; ; try++ {
		s.mu.Lock()
		args[argID] = s.id
		s.mu.Unlock()
		reply, err := applyLua.Exec(ctx, s.sink.client, s.keys, args).ToArray()
		if err == nil && len(reply) == 0 {
			err = fmt.Errorf("the script answered nothing: %w", errSyntax)
		}
		if err != nil {
			return s.fail(ctx, what, err)
		}
		verdict, err := reply[0].ToString()
		switch {
		case err != nil:
			return s.fail(ctx, what, err)
		case verdict == "ok" && len(reply) > 1:
			more, _ := reply[1].AsInt64()
			s.backlog.Store(more == 1)
			s.learn(reply[2:])
			return nil
		case verdict != "id":
			return s.fail(ctx, what, refusal(verdict, reply[1:], b))
		case try > 0:
			return s.fail(ctx, what, errors.New("the definition changes all the time"))
		}
		// All was lost and written again, perhaps by a program that counts
		// something else. Nothing has been changed.
		if _, err := s.Load(ctx, tumble.LoadRequest{}); err != nil {
			return err
		}
	}
}

// argID is where the id is among the arguments of apply.lua.
const argID = 9

// applyArgs returns the arguments of apply.lua.
func (s *shard) applyArgs(b tumble.Batch) ([]string, error) {
	from, err := storedForm(s.def, b.From)
	if err != nil { // so it cannot be the stored one
		return nil, fmt.Errorf("%w: %w", tumble.ErrConflict, err)
	}
	to, err := storedForm(s.def, b.To)
	if err != nil {
		return nil, err
	}
	increments, err := s.encode(b)
	if err != nil {
		return nil, err
	}
	token := ""
	if b.Token != 0 {
		token = strconv.FormatUint(b.Token, 16)
	}
	term := strconv.FormatUint(max(rand.Uint64(), 1), 16)
	return []string{
		b.Partition, from.state, to.record(b.Writer),
		from.set, from.member(b.Partition), to.set, to.member(b.Partition),
		token, term, "", s.shards, increments,
	}, nil
}

// refusal returns the error about a batch that the script has not applied.
func refusal(verdict string, about []rueidis.RedisMessage, b tumble.Batch) error {
	words := make([]string, 3)
	for i := range min(len(about), len(words)) {
		words[i], _ = about[i].ToString()
	}
	switch verdict {
	case "conflict":
		return conflict(words[0], b.From)
	case "passed":
		if frontier, err := parseSortable(words[0]); err == nil {
			return fmt.Errorf("%w: the frontier is %v, the batch goes on at %v", tumble.ErrPassed, frontier, b.To)
		}
		return tumble.ErrPassed
	case "objected":
		return tumble.ErrObjected
	case "overflow":
		start, _ := parseMillis(words[0])
		end, _ := parseMillis(words[1])
		return overflow(keyOf(words[2]), start, end)
	}
	return fmt.Errorf("the script answered %q: %w", verdict, errSyntax)
}

// overflow returns the error about a window that would hold too much with a key.
func overflow(key string, start, end time.Time) error {
	return fmt.Errorf("%w: with %.80q in the window from %s to %s", tumble.ErrOverflow, key, start.Format(time.RFC3339Nano), end.Format(time.RFC3339Nano))
}

// conflict returns the error about another stored checkpoint than from.
func conflict(stored string, from tumble.Checkpoint) error {
	if stored == "" {
		return fmt.Errorf("%w: none is stored, the batch starts from %v", tumble.ErrConflict, from)
	}
	c, err := parseRecord(stored)
	if err != nil {
		return fmt.Errorf("%w: stored is %q, the batch starts from %v", tumble.ErrConflict, stored, from)
	}
	return fmt.Errorf("%w: stored is %v, the batch starts from %v", tumble.ErrConflict, c, from)
}

// learn remembers the sizes of windows.
func (s *shard) learn(answer []rueidis.RedisMessage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sizes) > maxKnown {
		clear(s.sizes)
	}
	for words := range slices.Chunk(answer, 4) {
		if len(words) < 4 {
			return
		}
		level, _ := words[0].AsInt64()
		start, _ := words[1].ToString()
		n, _ := words[2].AsInt64()
		keys, _ := words[3].AsInt64()
		if ms, err := strconv.ParseInt(start, 10, 64); err == nil && n > 0 {
			s.sizes[place{int(level), ms}] = size{uint32(n), uint32(keys)}
		}
	}
}
