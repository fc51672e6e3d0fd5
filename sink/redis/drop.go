package redis

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

//go:embed script/drop.lua
var dropScript string

var dropLua = rueidis.NewLuaScript(commonScript + dropScript)

// dropped stands in place of the version of the layout while a name is deleted.
const dropped = "dropped"

// quietTime is how long nobody must have asked for a retention in a shard before it
// is taken for one that nobody counts into. A process that counts asks every 5 s, and
// is noted each time.
const quietTime = 10 * time.Second

// ErrCounted is wrapped by [Sink.Drop] when some process counts under the name, or
// did until a few seconds ago.
var ErrCounted = errors.New("counted at the moment, or until a few seconds ago")

// Names returns the names under which there are counts on the client's servers,
// sorted. It looks at every key that they hold.
func Names(ctx context.Context, client rueidis.Client) ([]string, error) {
	var names []string
	err := eachKey(ctx, client, "*:{*}", func(key string) error {
		name, tag, ok := strings.Cut(strings.TrimSuffix(key, "}"), ":{")
		if ok && slices.Contains(tags[:], tag) && !strings.ContainsAny(name, "{}") {
			names = append(names, key)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("redis: names: %w", err)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	// Another program may have keys that look like ours.
	cmds := make([]rueidis.Completed, len(names))
	for i, key := range names {
		cmds[i] = client.B().Arbitrary("HGET").Keys(key).Args("tags").Build().ToRetryable()
	}
	ours := names[:0]
	for i, r := range client.DoMulti(ctx, cmds...) {
		_, err := r.ToString()
		if _, other := rueidis.IsRedisErr(err); err != nil && !other {
			return nil, fmt.Errorf("redis: names: %w", err)
		}
		if err == nil {
			name, _, _ := strings.Cut(names[i], ":{")
			ours = append(ours, name)
		}
	}
	slices.Sort(ours) // with their tags they may be in another order
	return slices.Compact(ours), nil
}

// A Size is what a name takes.
type Size struct {
	Shards int
	Keys   int64 // of Redis
	Bytes  int64 // as MEMORY USAGE has it
}

// Size returns what the sink's name takes. It looks at every key of it.
func (s *Sink) Size(ctx context.Context) (Size, error) {
	fail := func(err error) (Size, error) { return Size{}, fmt.Errorf("redis: %s: size: %w", s.cfg.Name, err) }
	l, err := s.layout(ctx)
	if err != nil {
		return Size{}, err
	}
	seen := make(map[string]bool) // a key may come twice
	err = s.eachKey(ctx, func(_, key string) error { seen[key] = true; return nil })
	if err != nil {
		return fail(err)
	}
	size := Size{Shards: l.shards, Keys: int64(len(seen))}
	for part := range slices.Chunk(slices.Collect(maps.Keys(seen)), 1000) {
		cmds := make([]rueidis.Completed, len(part))
		for i, key := range part {
			cmds[i] = s.client.B().Arbitrary("MEMORY", "USAGE").Keys(key).Build().ToRetryable()
		}
		for _, r := range s.client.DoMulti(ctx, cmds...) {
			n, err := r.AsInt64()
			if err != nil && !rueidis.IsRedisNil(err) { // nil: deleted since
				return fail(s.explain(ctx, err))
			}
			size.Bytes += n
		}
	}
	return size, nil
}

// Drop deletes all that is stored under the sink's name. An error wraps ErrCounted
// if it is in use, and [tumble.ErrNoDefinition] if nothing is stored. After any other error Drop must be called again: until it has
// returned nil nobody can count under the name.
//
// No shard loses a count before every shard has lost its definition, without which
// nobody counts. So the keys that are left after an error are never taken for counts.
func (s *Sink) Drop(ctx context.Context) error {
	fail := func(err error) error { return fmt.Errorf("redis: %s: drop: %w", s.cfg.Name, err) }
	bases := make(map[string]bool)
	if err := s.eachKey(ctx, func(base, _ string) error { bases[base] = true; return nil }); err != nil {
		return fail(err)
	}
	if len(bases) == 0 {
		return fail(tumble.ErrNoDefinition)
	}
	for _, quiet := range []string{"none", strconv.FormatInt(quietTime.Milliseconds(), 10)} { // look at all of them first
		for base := range bases {
			age, err := dropLua.Exec(ctx, s.client, scriptKeys(base), []string{quiet}).AsInt64()
			if err != nil {
				return fail(s.explain(ctx, err))
			}
			if ago := time.Duration(age) * time.Millisecond; age >= 0 && ago < quietTime {
				return fail(fmt.Errorf("%w: a process asked %v ago, %v must have passed", ErrCounted, ago.Round(100*time.Millisecond), quietTime))
			}
		}
	}
	unlink := func(key string) error { return s.client.Do(ctx, s.client.B().Unlink().Key(key).Build()).Error() }
	err := s.eachKey(ctx, func(base, key string) error {
		if key == base {
			return nil
		}
		return unlink(key)
	})
	if err != nil {
		return fail(s.explain(ctx, err))
	}
	for base := range bases {
		if err := unlink(base); err != nil {
			return fail(s.explain(ctx, err))
		}
	}
	return nil
}

// eachKey calls f for every key that is stored under the sink's name, perhaps more
// than once.
func (s *Sink) eachKey(ctx context.Context, f func(base, key string) error) error {
	bases := make(map[string]bool)
	for i := range maxShards {
		bases[baseKey(s.cfg.Name, i)] = true
	}
	return eachKey(ctx, s.client, escapes.Replace(s.cfg.Name)+":{*}*", func(key string) error {
		base, _, _ := strings.Cut(key, "}")
		if base += "}"; bases[base] && (key == base || strings.HasPrefix(key, base+":")) {
			return f(base, key)
		}
		return nil
	})
}

// escapes lets a glob-style pattern match a text that holds special characters.
var escapes = strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, "]", `\]`)

// eachKey calls f for the keys on all servers that match a pattern.
func eachKey(ctx context.Context, client rueidis.Client, pattern string, f func(key string) error) error {
	for addr, node := range client.Nodes() {
		for cursor := uint64(0); ; {
			page, err := node.Do(ctx, node.B().Scan().Cursor(cursor).Match(pattern).Count(1000).Build()).AsScanEntry()
			if err != nil {
				return fmt.Errorf("%s: %w", addr, err)
			}
			for _, key := range page.Elements {
				if err := f(key); err != nil {
					return err
				}
			}
			if cursor = page.Cursor; cursor == 0 {
				break
			}
		}
	}
	return nil
}
