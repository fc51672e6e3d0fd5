package redis

import (
	"context"
	"crypto/sha1" // no secrets: it spreads keys over buckets
	"encoding/binary"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"

	"github.com/tumblestream/tumble"
)

const (
	version   = "5"
	maxShards = 256
	slots     = 16384
	// marker is the field of a bucket that says how many buckets its window
	// had when the bucket was last split. In bucket 0 it says how many it has. It is
	// no key's field, see fieldOf.
	marker = "\x00"
	// longField is from how many bytes on a field is hashed by SHA-1.
	longField = 64
)

// tags are the hash tags of the shards: of shard i the smallest number whose
// slot lies in the one of 256 equal ranges of slots that i names with its bits
// reversed. So any number of shards are spread evenly over the slots, and the
// tag of a shard does not depend on their number.
var tags = func() (tags [maxShards]string) {
	for n, missing := 0, maxShards; missing > 0; n++ {
		tag := strconv.Itoa(n)
		i := bits.Reverse8(uint8(slot(tag) / (slots / maxShards)))
		if tags[i] == "" {
			tags[i] = tag
			missing--
		}
	}
	return tags
}()

// slot returns the slot of a hash tag: CRC-16/XMODEM, as Redis Cluster has it.
func slot(tag string) uint16 {
	var crc uint16
	for i := range len(tag) {
		crc ^= uint16(tag[i]) << 8
		for range 8 {
			carry := crc & 0x8000
			crc <<= 1
			if carry != 0 {
				crc ^= 0x1021
			}
		}
	}
	return crc % slots
}

// baseKey returns the key that the keys of a shard begin with.
func baseKey(name string, shard int) string { return name + ":{" + tags[shard] + "}" }

// bucketKey returns the key of a bucket.
func bucketKey(base string, window int64, bucket uint32) string {
	key := make([]byte, 0, len(base)+32)
	key = append(key, base...)
	key = append(key, ':')
	key = strconv.AppendInt(key, window, 10)
	key = append(key, ':')
	key = strconv.AppendUint(key, uint64(bucket), 10)
	return string(key)
}

// fieldOf returns the field that holds the count of a key: the key, with a
// zero byte before it if it begins with one.
func fieldOf(key string) string {
	if strings.HasPrefix(key, marker) {
		return marker + key
	}
	return key
}

// keyOf is the inverse of fieldOf.
func keyOf(field string) string { return strings.TrimPrefix(field, marker) }

// hashOf returns the hash of a field that decides about its bucket: a polynomial
// modulo 2^32. Its upper half is the better one, so the halves change places, once
// before a last step and once after it. A script computes the same in doubles,
// which are exact below 2^53: the multiplier, that of the generator ranqd1 in
// Numerical Recipes, must not be much larger. SHA-1, which Redis has, took a third
// of the time to encode an increment (BenchmarkEncode). For a long field it is the
// faster one by far in a script, where each byte costs as much as a hundred in C.
func hashOf(field string) uint32 {
	if len(field) > longField {
		sum := sha1.Sum([]byte(field))
		return binary.BigEndian.Uint32(sum[:])
	}
	var h uint32
	for i := range len(field) {
		h = (h + uint32(field[i])) * 1664525
	}
	return bits.RotateLeft32(bits.RotateLeft32(h, 16)*1664525, 16)
}

// bucketOf returns which of n buckets a hash belongs to, by linear hashing.
func bucketOf(hash, n uint32) uint32 {
	p := uint64(1) << (bits.Len32(n) - 1)
	i := uint64(hash) & (2*p - 1)
	if i >= uint64(n) {
		i -= p
	}
	return uint32(i)
}

// layout is the stored definition of a name. But for the retention none of it ever
// changes.
type layout struct {
	id     string // of the shard that was read, random: another one if all was lost and written again
	shards int
	whole  tumble.Definition // with the retentions in force when it was read
	def    tumble.Definition // of the level that is read
	bases  []string          // of the shards
	sites  []site            // of the shards
	proven []atomic.Value    // of the shards: the id under which the shard has this definition
	levels []*layout         // the same as seen by who reads each level
}

// A site is where the counts of one level are in a shard.
type site struct {
	base  string // the shard's own key
	data  string // what the keys of the level's windows begin with
	level int
}

// siteOf returns the site of a level in the shard with the key base.
func siteOf(base string, level int) site {
	if level == 0 {
		return site{base, base, 0}
	}
	return site{base, base + ":r" + strconv.Itoa(level), level}
}

// split sets up l as a reader of level 0 sees it, and its levels.
func (l *layout) split() {
	l.levels = make([]*layout, 1+len(l.whole.Rollups))
	for i := range l.levels {
		seen := *l
		seen.def, seen.sites = l.whole.Level(i), nil
		for _, base := range l.bases {
			seen.sites = append(seen.sites, siteOf(base, i))
		}
		l.levels[i] = &seen
	}
	l.def, l.sites = l.levels[0].def, l.levels[0].sites
}

// of returns l as a reader of a window sees it, nil for the finest.
func (l *layout) of(w *tumble.Window) (*layout, error) {
	if w == nil {
		return l, nil
	}
	level, err := l.whole.LevelOf(*w)
	if err != nil {
		return nil, err
	}
	return l.levels[level], nil
}

// fields returns the fields of a shard's own key, names and values by turns, but
// for the id and the retention.
func fields(def tumble.Definition, shards, shard int) []string {
	var rollups []string
	for _, level := range def.Levels()[1:] {
		rollups = append(rollups, level.Window.String())
	}
	return []string{
		"version", version,
		"window", def.Window.String(),
		"grace", strconv.FormatInt(def.Grace.Milliseconds(), 10),
		"droplate", strconv.FormatBool(def.DropLate),
		"sum", strconv.FormatBool(def.Sum),
		"maxkey", strconv.Itoa(def.Longest()),
		"rollups", strings.Join(rollups, ","),
		"shards", strconv.Itoa(shards),
		"shard", strconv.Itoa(shard),
		"tags", strings.Join(tags[:shards], " "),
	}
}

// parseLayout reads the fields of a shard's own key.
func parseLayout(name string, stored map[string]string) (*layout, error) {
	if v := stored["version"]; v == dropped {
		return nil, fmt.Errorf("%w: the name %s is being deleted: call Drop again to finish that, then everything is counted again from the log", tumble.ErrDefinition, name)
	} else if v != version {
		return nil, fmt.Errorf("%w: the keys %s:{*} are of version %.20q of the layout, this is version %s: "+
			"count under another name, or delete the keys, and everything is counted again from the log",
			tumble.ErrDefinition, name, v, version)
	}
	l := &layout{id: stored["id"]}
	var err error
	bad := func(field string, err error) (*layout, error) {
		return nil, fmt.Errorf("the stored %s is %q: %w", field, stored[field], err)
	}
	if l.id == "" || strings.ContainsAny(l.id, " ") {
		return bad("id", errSyntax)
	}
	if l.whole.Window, err = tumble.ParseWindow(stored["window"]); err != nil {
		return bad("window", err)
	}
	if l.whole.Grace, err = parseDuration(stored["grace"]); err != nil {
		return bad("grace", err)
	}
	if text := stored["rollups"]; text != "" {
		for _, name := range strings.Split(text, ",") {
			w, err := tumble.ParseWindow(name)
			if err != nil {
				return bad("rollups", err)
			}
			l.whole.Rollups = append(l.whole.Rollups, tumble.Rollup{Window: w})
		}
	}
	if l.whole, err = keeping(l.whole, stored["retention"]); err != nil {
		return bad("retention", err)
	}
	for _, f := range []struct {
		name string
		to   *bool
	}{{"droplate", &l.whole.DropLate}, {"sum", &l.whole.Sum}} {
		if *f.to = stored[f.name] == "true"; !*f.to && stored[f.name] != "false" {
			return bad(f.name, errSyntax)
		}
	}
	if l.whole.MaxKey, err = strconv.Atoi(stored["maxkey"]); err != nil || l.whole.MaxKey < 1 {
		return bad("maxkey", errSyntax)
	}
	if l.shards, err = strconv.Atoi(stored["shards"]); err != nil || l.shards < 1 || l.shards > maxShards {
		return bad("shards", errSyntax)
	}
	if stored["tags"] != strings.Join(tags[:l.shards], " ") {
		return bad("tags", errSyntax)
	}
	if err := l.whole.Validate(); err != nil {
		return nil, fmt.Errorf("the stored definition: %w", err)
	}
	for i := range l.shards {
		l.bases = append(l.bases, baseKey(name, i))
	}
	l.proven = make([]atomic.Value, l.shards)
	l.split()
	return l, nil
}

// retentions writes those of a definition by level, in whole milliseconds.
func retentions(def tumble.Definition) string {
	var list []string
	for _, level := range def.Levels() {
		list = append(list, strconv.FormatInt(level.Retention.Milliseconds(), 10))
	}
	return strings.Join(list, " ")
}

// parseRetentions reads what retentions wrote.
func parseRetentions(text string) (list []time.Duration, err error) {
	for _, word := range strings.Split(text, " ") {
		retention, err := parseDuration(word)
		if err != nil {
			return nil, err
		}
		list = append(list, retention)
	}
	return list, nil
}

// keeping returns def with the retentions that text holds.
func keeping(def tumble.Definition, text string) (tumble.Definition, error) {
	levels := def.Levels()
	list, err := parseRetentions(text)
	if err != nil || len(list) != len(levels) {
		return def, errSyntax
	}
	for i := range levels {
		levels[i].Retention = list[i]
	}
	if def.Retention, def.Rollups = levels[0].Retention, nil; len(levels) > 1 {
		def.Rollups = levels[1:]
	}
	return def, nil
}

// parseDuration reads whole milliseconds.
func parseDuration(text string) (time.Duration, error) {
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil || ms < 0 || ms > int64(1<<63-1)/int64(time.Millisecond) {
		return 0, errSyntax
	}
	return time.Duration(ms) * time.Millisecond, nil
}

// knows reports whether a shard that says f of its windows is known to have the
// definition of l. One that has said nothing needs none.
func (l *layout) knows(shard int, f finality) bool {
	return f.id == "" || f.shards == l.shards && l.proven[shard].Load() == f.id
}

// shardOf returns the shard of a key.
func (l *layout) shardOf(key string) int { return int(tumble.Hash(key) % uint64(l.shards)) }

// readLayout asks the servers for the definition under the sink's name. An error
// wraps tumble.ErrNoDefinition if it is nothing.
func (s *Sink) readLayout(ctx context.Context) (*layout, error) {
	fail := func(err error) (*layout, error) {
		return nil, fmt.Errorf("redis: %s: %w", s.cfg.Name, err)
	}
	// The client does not look at the answer when it has the server note what
	// it caches, and without that the cache is told of no change.
	err := s.client.Do(ctx, s.client.B().ClientCaching().Yes().Build()).Error()
	if reply, ok := rueidis.IsRedisErr(err); ok && denied(reply.Error()) {
		return fail(s.explain(ctx, err))
	}
	stored, err := s.readFields(ctx, 0)
	if err != nil {
		return fail(err)
	}
	for i := 1; len(stored) == 0; {
		// The server that holds the first shard may have lost its data.
		if i, err = s.findShard(ctx, i); err != nil {
			return fail(err)
		}
		if stored, err = s.readFields(ctx, i); err != nil {
			return fail(err)
		}
		i++
	}
	l, err := parseLayout(s.cfg.Name, stored)
	if err != nil {
		return fail(err)
	}
	s.known.Store(l)
	return l, nil
}

// readFields returns the fields of the shard's own key, none if it is missing.
func (s *Sink) readFields(ctx context.Context, shard int) (map[string]string, error) {
	stored, err := s.client.Do(ctx, s.read("HGETALL", baseKey(s.cfg.Name, shard))).AsStrMap()
	if err != nil {
		return nil, s.explain(ctx, err)
	}
	return stored, nil
}

// findShard returns the first shard, of those from i on, that has an id.
func (s *Sink) findShard(ctx context.Context, i int) (int, error) {
	var cmds []rueidis.CacheableTTL
	for n := i; n < maxShards; n++ {
		cmds = append(cmds, rueidis.CT(s.cached("HGET", baseKey(s.cfg.Name, n), "id"), s.cfg.CacheTTL))
	}
	for n, r := range s.client.DoMultiCache(ctx, cmds...) {
		switch err := r.Error(); {
		case err == nil:
			return i + n, nil
		case !rueidis.IsRedisNil(err):
			return 0, s.explain(ctx, err)
		}
	}
	return 0, tumble.ErrNoDefinition
}

// layout returns the definition under the sink's name, as readLayout does, but
// asks the client's cache first.
func (s *Sink) layout(ctx context.Context) (*layout, error) {
	id, err := s.client.DoCache(ctx, s.cached("HGET", baseKey(s.cfg.Name, 0), "id"), s.cfg.CacheTTL).ToString()
	if err != nil && !rueidis.IsRedisNil(err) {
		return nil, fmt.Errorf("redis: %s: %w", s.cfg.Name, s.explain(ctx, err))
	}
	if l := s.known.Load(); err == nil && l != nil && l.id == id {
		return l, nil
	}
	return s.readLayout(ctx)
}

// read returns a command that reads from the master, wherever the client sends
// what it knows to be reading: a replica that lags behind the one that answered
// before would show a final window without all its counts.
func (s *Sink) read(command, key string, args ...string) rueidis.Completed {
	return s.client.B().Arbitrary(command).Keys(key).Args(args...).Build().ToRetryable()
}

// cached returns a command like read's for the client's cache.
func (s *Sink) cached(command, key string, args ...string) rueidis.Cacheable {
	return rueidis.Cacheable(s.client.B().Arbitrary(command).Keys(key).Args(args...).Build())
}
