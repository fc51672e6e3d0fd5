// Package redis keeps counts in Redis, on one server or in a Redis Cluster, and
// reads them.
//
//	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{"localhost:6379"}})
//	sink, err := redis.New(redis.Config{Client: client, Name: "clicks"})
//
// A pipeline writes to the [Sink], which is also the [tumble.Reader] of all that is
// stored. A program that only reads makes one of its own from the same name and
// a client, before or after the first count is stored.
//
// # The promise, and its price
//
// A batch is one script on one shard: the increments and the checkpoint they
// reach are stored both or neither, whatever error the script meets, for it
// reads all that it needs before it writes anything. Redis may lose the last
// seconds of acknowledged writes, when it crashes or a replica takes over:
// counts go together with their checkpoints, and a pipeline counts that stretch
// again. While a slot moves from one master to another its shard may refuse
// calls, reads of pages too, until it has moved. What must not happen is that
// Redis drops some keys and keeps others.
// No key here has a time to live, and Open refuses a server whose
// maxmemory-policy begins with "allkeys". Nothing else may write to the keys.
//
// A count is exact up to 2^53 - 1. A batch that goes beyond is refused as a whole.
// Redis needs to be version 6 or later.
//
// Reads go to the master, also through a client that sends other reads to
// replicas, so that a window that is seen to be closed has all its counts.
// Definition, Count and Range read through the client's cache, of which the
// server keeps track: the counts of a closed window are fetched once. That a key
// has no count in a closed window is asked for each time. Top and Scan read whole
// windows and do not fill the cache.
//
// How long counts are kept may change: each process asks for the Retention of each
// level when it loads, and in force is the longest that was asked for within the last
// minute of the server's clock. So in a rolling update a process that asks for
// less deletes nothing that others still want.
//
// A call whose context has no deadline ends after Config.Timeout. After a write
// that ended with an error other than [tumble.ErrConflict], [tumble.ErrPassed],
// [tumble.ErrObjected] and [tumble.ErrDefinition] nobody knows whether it took place, and a late one may
// still: the same batch is to be sent again.
//
// # Permissions
//
// A user who counts, under the name clicks, needs no more than
//
//	ACL SETUSER counter reset on >SECRET ~clicks:* -@all
//		+eval +evalsha +info +client|tracking +client|caching +multi +exec +pttl
//		+hgetall +hget +hmget +hset +hlen +hdel +get +set +del +unlink +time
//		+zadd +zcard +zscore +zrem +zrange +zrevrange +zrangebyscore
//
// and one who only reads no more than
//
//	ACL SETUSER reader reset on >SECRET %R~clicks:* -@all
//		+client|tracking +client|caching +multi +exec +pttl
//		+hgetall +hget +hmget +get +zrangebyscore
//
// where Redis 6 knows ~clicks:* alone. In a cluster both need +cluster|slots,
// from Redis 8 on +cluster|shards, and +asking while slots move. What is not
// allowed comes back as an error.
//
// TLS is the client's matter (rueidis.ClientOption.TLSConfig). A server that
// wants a certificate of the client may hang up on one without before it has
// heard why.
//
// # Layout
//
// This is version 5 of the layout. A name under which an earlier one is stored is
// refused: count under another name, or delete its keys.
//
// Each shard has a hash tag of its own, so that all its keys are in one slot. The
// tag of shard i is the smallest decimal number whose slot, divided by 64, is i
// with its 8 bits reversed: 460, 16, 461, 17 and so on. For a name NAME and a tag
// TAG the keys are
//
//	NAME:{TAG}                hash: the definition of the counts
//	NAME:{TAG}:checkpoints    hash: partition -> checkpoint
//	NAME:{TAG}:live           sorted set: watermarks of the partitions that go on
//	NAME:{TAG}:ended          sorted set: watermarks of those that have ended
//	NAME:{TAG}:finality       string: which windows are closed and past retention
//	NAME:{TAG}:tainted        string, if another writer has written since the term was drawn
//	NAME:{TAG}:announced      hash: partition -> token of who is about to end it
//	NAME:{TAG}:retentions     hash: retentions -> when a process asked for them last
//	NAME:{TAG}:windows        sorted set: the windows that are stored, by their end
//	NAME:{TAG}:totals         hash: window -> number of its keys and sum of its counts
//	NAME:{TAG}:START:BUCKET   hash: field -> count
//
// and for the roll-up of level N, counted from 1 in the order of
// [tumble.Definition.Levels],
//
//	NAME:{TAG}:rN:windows       as above
//	NAME:{TAG}:rN:totals
//	NAME:{TAG}:rN:START:BUCKET
//
// A window is written as its START, a mark as the END of a window, and a moment
// of the server's clock as itself, all in milliseconds since the Unix epoch. Where
// there is none "-" stands.
//
// The first hash has these fields. Only the retention ever changes.
//
//	version    of the layout
//	id         random, another one if all was lost and is written again
//	window     as [tumble.ParseWindow] reads it
//	grace      in milliseconds
//	droplate   true or false
//	sum        true or false
//	maxkey     the length of the longest key in bytes
//	rollups    the windows of levels 1 and on, with commas between
//	shards     their number
//	shard      the number of this one, from 0
//	tags       of all shards, with spaces between
//	retention  those in force in milliseconds, 0 for ever, by level with spaces between
//
// # Layout: counts
//
// A key belongs to shard [tumble.Hash](key) % shards. Its field is the key, or
// if that begins with a zero byte, a zero byte and the key. In each window the
// fields are spread over buckets of about 48, few enough for Redis to store
// them compactly. The field of one zero byte in bucket 0 says how many buckets
// there are. Where it is missing there is one. With h, a hash of the field, n,
// the number of buckets, and p, the largest power of two that is at most n, the
// field is in bucket
//
//	h mod 2p        if that is less than n,
//	h mod 2p - p    else.
//
// The hash begins as 0 and becomes (h + b) * 1664525 mod 2^32 for each byte b of
// the field. At the end its upper and its lower 16 bits change places, it becomes
// h * 1664525 mod 2^32, and they change places again. That of "alice" is
// 0x19945554. Of a field longer than 64 bytes it is the first 32 bits of its
// SHA-1.
//
// Buckets are split one by one, in turn, as keys get more. A bucket other than 0
// that has been split has the field of one zero byte too: how many buckets
// there were after that. If that number leads to another bucket than the one
// that was read, the field has moved there meanwhile.
//
// # Layout: finality
//
// The finality key holds
//
//	CLOSED TERM SHARDS ID FLOOR ...
//
// with a FLOOR for each level. A window is closed if its END <= CLOSED, whatever its
// level, and past retention if its END <= its level's FLOOR, which never falls. Windows past
// retention are deleted, a piece with every batch and every load. TERM, a random
// number in hexadecimal digits, is another one after the store has lost something
// and counts again. The key changes only when a window closes or the floor moves,
// and is missing until the first window closes.
//
// To rely on a count being final, read the finality key and the count in one
// MULTI, the number of the buckets with them. Or read the finality key, then the
// count, then the finality key again, to find the same ID and TERM, and the window
// closed both times and not past retention the second time. A count of 0 needs
// the MULTI.
//
// # Layout: checkpoints
//
// A checkpoint is
//
//	CLOSED WRITER OFFSET ORIGIN EPOCH WATERMARK live|ended LOG
//
// with the watermark in nanoseconds since the Unix epoch, "-" for none. WRITER is
// the number, in hexadecimal digits, of the process and call that stored it, 0 if
// a load did. CLOSED is the shard's closed mark if all partitions were where this
// one is, so that a script needs no calendar. These two are no part of what a
// batch compares.
//
// In the sorted sets live and ended all scores are 0, and the members, one for
// each partition, are
//
//	WATERMARK PARTITION
//
// with the watermark in nanoseconds plus 2^63, as 16 hexadecimal digits, or "-",
// which sorts before all of them. So the shard's frontier is the watermark of the
// first member of live, or if that is empty of the last one of ended, and CLOSED
// of the finality key is that in this partition's checkpoint.
//
// A token is written in hexadecimal digits, and " objected" comes after it once
// somebody has objected. A retention that was asked for within the last 70
// seconds, for it is noted every 4 seconds only, keeps one that is shorter from
// being in force.
//
// # Layout: an example
//
// With one shard, in redis-cli:
//
//	> HMGET clicks:{460} version window grace retention shards
//	1) "5"
//	2) "1m0s"
//	3) "0"
//	4) "3600000"
//	5) "1"
//	> HGET clicks:{460}:checkpoints clicks/0
//	"1714564860000 c0ffee 118 0 7 1714564890000000000 live log-1"
//	> ZRANGE clicks:{460}:live 0 0
//	1) "97cb5baeecce8400 clicks/0"
//	> ZRANGE clicks:{460}:windows 0 -1 WITHSCORES
//	1) "1714564800000"
//	2) "1714564860000"
//	3) "1714564860000"
//	4) "1714564920000"
//	> GET clicks:{460}:finality
//	"1714564860000 2a8f3c51e07b94d6 1 d1f05a7733e9c284 1714561260000"
//	> HGET clicks:{460}:1714564800000:0 "\x00"
//	(nil)
//	> HGET clicks:{460}:1714564800000:0 alice
//	"3"
package redis
