package redis

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

// How a read keeps its promises with a cache in between. All keys of a shard are
// in one slot, for which the client has one connection to a server, with a cache
// of its own. The server's notices that a key has changed come over that
// connection, in order with the replies. So what a lookup gives, from the cache
// or not, is what the server held at some moment, and of two lookups, one after
// the other, the second gives that of a moment no earlier.
//
// The server may fall back to an earlier state at any time, by a failover, say,
// and count again what it has lost. A count is called closed only if the finality
// says so before and after it was looked up, under the same term: then both looks
// and the count are of one history, see tumble.Shard. The second look also tells
// whether the window went past retention, and so may have been deleted before
// the count was looked up.
//
// A 0 proves less than a number does. It may come of a bucket that the window
// has in another life alone: a server that fell back knows fewer buckets. So a 0
// of a closed window is confirmed in a transaction, which see (Sink.atomic).
//
// In a cluster the second look may come from the cache of a server that is no
// longer the shard's master, while the count was redirected to the new one. If
// the client has asked a server for any part of the count, so is the second look
// asked for (Sink.lookAgain). If that contradicts the cache, reads go past the
// cache until it shows something else. A Sink knows of its own second looks only:
// two that read one name through one client of a cluster do not warn each other.

const (
	// maxTries bounds how often a read begins anew because the layout changed.
	maxTries = 20
	// pageOfWindows is how many windows Range reads at a time.
	pageOfWindows = 512
	// windowsAtOnce is how many windows a transaction confirms: more would hold
	// up other calls.
	windowsAtOnce = 128
)

var errUnstable = errors.New("what is stored was replaced while it was read")

// Definition returns the meaning of the counts. See [tumble.Reader]. Its Retention is
// the one that is in force in the first shard.
func (s *Sink) Definition(ctx context.Context) (tumble.Definition, error) {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	l, err := s.layout(ctx)
	if s.assumes(err) {
		return s.assumed()
	}
	if err != nil {
		return tumble.Definition{}, err
	}
	def := l.whole
	text, err := s.client.DoCache(ctx, s.cached("HGET", l.bases[0], "retention"), s.cfg.CacheTTL).ToString()
	if err == nil {
		def, err = keeping(def, text)
	} else if rueidis.IsRedisNil(err) {
		err = nil // the first shard is lost: as another one has it
	}
	if err == nil && s.level != nil {
		def, err = levelOf(def, *s.level)
	}
	if err != nil {
		return tumble.Definition{}, fmt.Errorf("redis: %s: definition: %w", s.cfg.Name, s.explain(ctx, err))
	}
	return def, nil
}

// levelOf returns the definition of the level that counts a window.
func levelOf(def tumble.Definition, w tumble.Window) (tumble.Definition, error) {
	level, err := def.LevelOf(w)
	if err != nil {
		return tumble.Definition{}, err
	}
	return def.Level(level), nil
}

// Rollup returns the Reader of a window's counts. See [tumble.Reader].
func (s *Sink) Rollup(w tumble.Window) (tumble.Reader, error) {
	if err := w.Validate(); err != nil {
		return nil, fmt.Errorf("redis: %s: roll-up: %w", s.cfg.Name, err)
	}
	return &Sink{core: s.core, level: &w}, nil
}

// Count returns the count of key in the window that holds at. See [tumble.Reader].
func (s *Sink) Count(ctx context.Context, key string, at time.Time) (tumble.Count, error) {
	var count tumble.Count
	err := s.stable(ctx, "count", func(ctx context.Context, l *layout, try int) (bool, error) {
		start, end, err := l.def.Window.Find(at)
		if err != nil {
			return false, err
		}
		shard, ms, field := l.shardOf(key), start.UnixMilli(), fieldOf(key)
		guess := uint32(1)
		set := func(n int64, f finality) {
			count = tumble.Count{Key: key, Start: start, End: end, N: n, State: f.state(l.def, end.UnixMilli()), Term: f.term}
		}
		if try == 0 && !s.doubts(ctx, l.sites[shard]) {
			var n int64
			var f finality
			var ok bool
			n, guess, f, ok, err = s.cachedCount(ctx, l, shard, ms, end.UnixMilli(), field)
			if err != nil {
				return false, err
			}
			if ok {
				set(n, f)
				return true, nil
			}
		}
		counts, f, ok, err := s.exactly(ctx, l.sites[shard], []int64{ms}, []uint32{guess}, field)
		if err != nil || !ok {
			return false, err
		}
		set(counts[0], f)
		return s.proves(ctx, l, map[int]finality{shard: f})
	})
	if s.assumes(err) {
		return s.emptyCount(key, at)
	}
	if err != nil {
		return tumble.Count{}, err
	}
	return count, nil
}

// cachedCount looks a count up, and how many buckets its window has. It reports
// false if the count must be read in one transaction.
func (s *Sink) cachedCount(ctx context.Context, l *layout, shard int, start, end int64, field string) (n int64, buckets uint32, f finality, ok bool, err error) {
	at := l.sites[shard]
	before, err := s.look(ctx, at)
	if err != nil {
		return 0, 1, nothing, false, err
	}
	n, buckets, cached, err := s.lookup(ctx, at.data, start, field)
	if err != nil {
		return 0, 1, nothing, false, err
	}
	after, err := s.lookAgain(ctx, at, before, cached || n > 0 && end > before.closed)
	if err != nil {
		return 0, 1, nothing, false, err
	}
	f, ok = before.with(after)
	if ok && !l.knows(shard, f) {
		ok, err = s.proves(ctx, l, map[int]finality{shard: f})
	}
	if n == 0 && end <= f.closed && end > f.floor {
		ok = false // not yet
	}
	return n, buckets, f, ok, err
}

// stable calls read with the layout until it says that what it read is of one
// piece. From its second try on read does not ask the cache.
func (s *Sink) stable(ctx context.Context, what string, read func(ctx context.Context, l *layout, try int) (bool, error)) error {
	ctx, cancel := s.bounded(ctx)
	defer cancel()
	l, err := s.layout(ctx)
	for try := 0; err == nil && try < maxTries; try++ {
		seen, err := l.of(s.level)
		ok := false
		if err == nil {
			ok, err = read(ctx, seen, try)
		}
		if err != nil {
			return fmt.Errorf("redis: %s: %s: %w", s.cfg.Name, what, s.explain(ctx, err))
		}
		if ok {
			return nil
		}
		// The notice that the layout has changed comes over a connection of its
		// own, so do not ask the cache again.
		if l, err = s.readLayout(ctx); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("redis: %s: %s: %w", s.cfg.Name, what, errUnstable)
}

// look returns the finality of the shard.
func (s *Sink) look(ctx context.Context, at site) (finality, error) {
	f, err := finalityOf(s.client.DoCache(ctx, s.cached("GET", at.base+":finality"), s.cfg.CacheTTL).ToString())
	return f.at(at.level), err
}

// lookAgain is the second look. cached says that the cache had all that was
// looked up since the first one, or that nothing depends on it.
func (s *Sink) lookAgain(ctx context.Context, at site, before finality, cached bool) (finality, error) {
	if cached || s.client.Mode() != rueidis.ClientModeCluster {
		return s.look(ctx, at)
	}
	f, err := finalityOf(s.client.Do(ctx, s.read("GET", at.base+":finality")).ToString())
	if err == nil && (f.id != before.id || f.term != before.term || f.closed < before.closed) {
		s.doubted.Store(at.base, before.at(0))
	}
	return f.at(at.level), err
}

// doubts reports whether the cache still shows a finality that the server has
// contradicted. Then counts that are in the cache cannot be judged by it.
func (s *Sink) doubts(ctx context.Context, at site) bool {
	doubted, ok := s.doubted.Load(at.base)
	if !ok {
		return false
	}
	if f, err := s.look(ctx, at); err != nil || f.at(0) == doubted {
		return true
	}
	s.doubted.CompareAndDelete(at.base, doubted)
	return false
}

// proves reports whether shards that say this of their windows count by the
// definition of l. It asks a shard once for each id, which it never changes.
func (s *Sink) proves(ctx context.Context, l *layout, said map[int]finality) (bool, error) {
	var shards []int
	var cmds []rueidis.Completed
	for shard, f := range said {
		if f.id != "" && f.shards != l.shards {
			return false, nil
		}
		if !l.knows(shard, f) {
			shards = append(shards, shard)
			cmds = append(cmds, s.read("HGETALL", l.bases[shard]))
		}
	}
	if len(cmds) == 0 {
		return true, nil
	}
	for i, r := range s.client.DoMulti(ctx, cmds...) {
		shard := shards[i]
		stored, err := r.AsStrMap()
		if err != nil {
			return false, err
		}
		if len(stored) == 0 {
			return false, nil
		}
		own, err := parseLayout(s.cfg.Name, stored)
		if err != nil {
			return false, err
		}
		if own.id != said[shard].id || !own.whole.Same(l.whole) || own.shards != l.shards {
			return false, nil
		}
		l.proven[shard].Store(own.id)
	}
	return true, nil
}

// lookup returns the count of a field in a window, how many buckets that has,
// and whether the cache had all of this.
func (s *Sink) lookup(ctx context.Context, data string, window int64, field string) (count int64, n uint32, cached bool, err error) {
	r := s.client.DoCache(ctx, s.cached("HGET", bucketKey(data, window, 0), marker), s.cfg.CacheTTL)
	if n, err = buckets(r.ToMessage()); err != nil {
		return 0, 1, false, err
	}
	cached = r.IsCacheHit()
	hash := hashOf(field)
	for {
		i := bucketOf(hash, n)
		r := s.client.DoCache(ctx, s.cached("HMGET", bucketKey(data, window, i), field, marker), s.cfg.CacheTTL)
		pair, err := r.ToArray()
		if err != nil {
			return 0, 1, false, err
		}
		count, now, err := parsePair(pair)
		if err != nil {
			return 0, 1, false, err
		}
		cached = cached && r.IsCacheHit()
		// The bucket may have been split since n was read, and the field be in
		// one that came of it. The bucket itself says so.
		if now <= n || bucketOf(hash, now) == i {
			return count, n, cached, nil
		}
		n = now
	}
}

// buckets parses a marker. A window without one has one bucket.
func buckets(m rueidis.RedisMessage, err error) (uint32, error) {
	if rueidis.IsRedisNil(err) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	return bucketsOf(m)
}

// bucketsOf parses a marker, which may be missing.
func bucketsOf(m rueidis.RedisMessage) (uint32, error) {
	if m.IsNil() {
		return 1, nil
	}
	text, err := m.ToString()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("a number of buckets is %q: %w", text, errSyntax)
	}
	return uint32(n), nil
}

// parsePair parses a count and a marker, both of which may be missing: 0.
func parsePair(pair []rueidis.RedisMessage) (count int64, n uint32, err error) {
	if len(pair) != 2 {
		return 0, 0, errSyntax
	}
	if count, err = countOf(pair[0]); err == nil && !pair[1].IsNil() {
		n, err = bucketsOf(pair[1])
	}
	return count, n, err
}

// countOf parses a count, 0 if it is missing.
func countOf(m rueidis.RedisMessage) (int64, error) {
	if m.IsNil() {
		return 0, nil
	}
	text, err := m.ToString()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("a count is %.80q: %w", text, errSyntax)
	}
	return n, nil
}
