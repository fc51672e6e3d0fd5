package main

import "strings"

const (
	applyLua  = "sink/redis/script/apply.lua"
	loadLua   = "sink/redis/script/load.lua"
	commonLua = "sink/redis/script/common.lua"
)

// rules returns a pattern for rules of sinktest, by the beginning of their names.
func rules(subtest string, names ...string) string {
	var all []string
	for _, name := range names {
		all = append(all, "TestRules/"+subtest+"/"+name)
	}
	return strings.Join(all, "|")
}

var ofSinks = []directed{
	{rules("1_shards", "Apply"), mutation{"whole checkpoint", "sink/memory/memory.go", "if !have.Same(b.From) {", "if false {", "counts what a rival counted"}},
	{rules("1_shards", "Apply"), mutation{"none stored", "sink/memory/memory.go", "\tif !ok {\n\t\treturn fmt.Errorf(\"memory: %s: %w: none", "\tif !ok && s == nil {\n\t\treturn fmt.Errorf(\"memory: %s: %w: none", "counts for a partition that nobody registered"}},
	{rules("1_shards", "Load"), mutation{"stored ones stay", "sink/memory/memory.go", "ok && (!have.Ended || have.Log == c.Log) {", "ok && have.Ended && have.Log == c.Log {", "forgets how far counts reach"}},
	{rules("1_shards", "Load"), mutation{"ended under another log", "sink/memory/memory.go", "(!have.Ended || have.Log == c.Log)", "(have.Log != \"\")", "never counts a source again that had ended"}},
	{rules("1_shards", "Load"), mutation{"ended under the same log", "sink/memory/memory.go", "(!have.Ended || have.Log == c.Log)", "!have.Ended", "counts again what has ended"}},
	{rules("1_shards", "Load"), mutation{"raised to the frontier", "sink/memory/memory.go", "if c.Watermark.Before(frontier) {", "if false {", "takes finality back when a partition joins"}},
	{rules("1_shards", "Load"), mutation{"frontier before the call", "sink/memory/memory.go", "\t\tif c.Watermark.Before(frontier) {", "\t\tif frontier = s.def.Frontier(s.checkpoints); c.Watermark.Before(frontier) {", "raises those that begin together by each other"}},
	{rules("1_shards", "Load"), mutation{"another definition at Load", "sink/memory/memory.go", "\tif err := s.define(s.def, s.text); err != nil {\n\t\treturn nil, err\n\t}\n", "\t_ = s.define(s.def, s.text)\n", "registers in a store of other windows"}},
	{rules("1_shards", "Apply/refuses"), mutation{"another definition at Apply", "sink/memory/memory.go", "\tif err := s.differs(s.text); err != nil {\n\t\treturn err\n\t}\n", "", "counts windows of one kind among those of another"}},
	{rules("1_shards", "Open", "Load"), mutation{"another definition at Open", "sink/memory/memory.go", "st.text != \"\" && st.text != text {", "false {", "counts windows of one kind among those of another"}},
	{rules("4_shards", "Open"), mutation{"a refused Open changes nothing", "sink/memory/memory.go", "\t\terr := st.differs(text)\n\t\tst.mu.RUnlock()\n", "\t\terr := error(nil)\n\t\tst.mu.RUnlock()\n", "writes two definitions to the shards of one store"}},
	{rules("1_shards", "Load"), mutation{"its own map", "sink/memory/memory.go", "return maps.Clone(s.checkpoints), nil", "_ = maps.Clone(s.checkpoints)\n\treturn s.checkpoints, nil", "lets a caller change what is stored"}},
	{rules("1_shards", "Reader", "Apply"), mutation{"the frontier moves", "sink/memory/memory.go", "\tif !have.Watermark.Equal(b.To.Watermark) || have.Ended != b.To.Ended {\n\t\ts.advance()\n\t}\n", "", "never closes a window"}},
	{rules("1_shards", "Reader", "Apply"), mutation{"an end moves the frontier", "sink/memory/memory.go", " || have.Ended != b.To.Ended {", " {", "waits for a partition that has ended"}},
	{rules("1_shards", "Reader", "Apply"), mutation{"keeps what is within retention", "sink/memory/memory.go", "; !expired {\n\t\t\tbreak", "; !expired && st == nil {\n\t\t\tbreak", "deletes counts before their time"}},
	{rules("4_shards", "Reader"), mutation{"final in every shard", "sink/memory/reader.go", "\t\tif !final {\n\t\t\treturn false\n\t\t}\n\t}\n\treturn true\n", "\t\tif final {\n\t\t\treturn true\n\t\t}\n\t}\n\treturn false\n", "calls a page final that lacks counts"}},
	{rules("4_shards", "Reader"), mutation{"expired in some shard", "sink/memory/reader.go", "\t\tif expired {\n\t\t\treturn true\n\t\t}\n\t}\n\treturn false\n", "\t\tif !expired {\n\t\t\treturn false\n\t\t}\n\t}\n\treturn true\n", "calls a page final of which a part was deleted"}},
	{rules("4_shards", "Reader"), mutation{"finality first", "sink/memory/reader.go", "\tpage.Final = page.Final && !page.Expired\n", "\tpage.Final = final(stores, def, end) && !page.Expired\n", "calls a page final that was read before"}},
	{rules("4_shards", "Reader"), mutation{"not final once expired", "sink/memory/reader.go", "page.Final = page.Final && !page.Expired", "_ = 0", "calls a page final of which a part was deleted"}},

	{rules("single", "Apply/conflict_in"), mutation{"whole checkpoint", applyLua, "if had ~= from then return", "if false then return", "counts what a rival counted"}},
	{rules("single", "Apply/conflict_in"), mutation{"the offset alone", applyLua, "if had ~= from then return", "if string.match(had, '%S+') ~= string.match(from, '%S+') then return", "counts what a rival counted"}},
	{rules("single", "Apply/conflict_with"), mutation{"none stored", applyLua, "if not record then return {'conflict', ''} end", "if not record then record = '- - ' .. from end", "counts for a partition that nobody registered"}},
	{"TestHeals", mutation{"the definition's id", applyLua, "if stored and stored ~= id then return {'id'} end\n", "", "counts windows of one kind among those of another"}},
	{"TestHeals", mutation{"the definition is there", applyLua, "if not stored then return {'id'} end\n", "", "counts what nobody can read"}},
	{"TestHeals", mutation{"another definition", "sink/redis/shard.go", "\t\t\tif _, err := s.Load(ctx, nil); err != nil {\n\t\t\t\treturn err\n\t\t\t}\n", "\t\t\ts.id = \"third\"\n", "counts windows of one kind among those of another"}},
	{"TestOverflow", mutation{"2^53", applyLua, "\t\t\tif sum > most then return key, field end\n", "", "rounds counts"}},
	{"TestOverflow|TestErrorInTheMiddle", mutation{"counts are written last", applyLua, "\twrites[#writes + 1] = set\n", "\tredis.call('HSET', unpack(set))\n", "leaves counts of a batch that was refused"}},
	{"TestErrorInTheMiddle", mutation{"reads before writes: checkpoint", applyLua, "local published = redis.call('GET', finality)\n", "redis.call('HSET', checkpoints, partition, to)\nlocal published = redis.call('GET', finality)\n", "moves a checkpoint without its counts"}},
	{"TestErrorInTheMiddle", mutation{"reads before writes: sizes", applyLua, "if fresh > 0 then redis.call('HLEN', sizes) end\n", "", "stops in the middle of a batch"}},
	{"TestRetention/single", mutation{"a deleted window does not come back", applyLua, "if not gone or tonumber(start) >= gone then", "if true then", "revives windows that were deleted"}},
	{"TestRetention/single", mutation{"deleted by the frontier only", applyLua, "local gone = published and tonumber((select(2, split(published))))", "local gone = published and tonumber((select(2, split(to))))", "deletes what other partitions still add to"}},
	{"TestRetention/single", mutation{"deletes a piece at a time", applyLua, "while n > 1 and room > 0 do", "while n > 1 do", "holds up the server"}},
	{"TestWritersOutOfDate", mutation{"a bucket that was split", applyLua, "elseif w and (guess > w.n or modulus(tonumber(i), guess) == modulus(tonumber(i), w.n)) then", "elseif w then", "counts where nobody looks"}},
	{"TestWritersOutOfDate|TestModel/single", mutation{"modulus", applyLua, "if i >= p or i < n - p then return 2 * p end", "if i >= p then return 2 * p end", "counts where nobody looks"}},
	{"TestWritersOutOfDate|TestModel/single", mutation{"linear hashing", applyLua, "\tif i >= n then i = i - p end\n", "", "counts where nobody looks"}},
	{"TestModel/single", mutation{"a split moves", applyLua, "if hash(all[j]) % (2 * p) ~= i then side = go end", "", "leaves counts where nobody looks"}},
	{"TestModel/single", mutation{"a split takes away", applyLua, "\tredis.call('DEL', source) -- so that it becomes compact again\n", "", "shows a count twice"}},
	{"TestModel/single", mutation{"the number of buckets", applyLua, "\tif i > 0 then redis.call('HSET', bucket(w.start, 0), marker, w.n + 1) end\n", "", "counts where nobody looks"}},
	{"TestModel/single|TestReaderOutOfDate", mutation{"a split bucket says so", applyLua, "local stay, go = {marker, w.n + 1}, {}", "local stay, go = {}, {}\n\tif i == 0 then stay = {marker, w.n + 1} end", "does not find a count that has moved"}},
	{"TestMarkers", mutation{"the marker is no count", applyLua, "\t\tif all[j] ~= marker then\n", "\t\tif true then\n", "forgets how many buckets there are"}},
	{"TestLarge/single", mutation{"one hash", "sink/redis/script/apply.lua", "h = (h + d) * 1664525", "h = (h + d) * 1664523", "looks for a count in another bucket"}},
	{"TestLarge/single", mutation{"large batches", "sink/redis/shard.go", "n < groupSize && ", "", "refuses a batch of many keys for ever"}},
	{rules("single", "Apply/keys_of_any"), mutation{"keys like the marker", "sink/redis/shard.go", "list.text(fieldOf(deltas[uint32(place)].Key))", "list.text(deltas[uint32(place)].Key)", "takes a count for the number of buckets"}},
	{rules("single", "Apply/keys_of_any"), mutation{"lengths in one byte", "sink/redis/packed.go", "case n < 32:", "case n <= 32:", "garbles keys"}},
	{rules("single", "Apply/keys_of_any"), mutation{"lengths in two bytes", "sink/redis/packed.go", "case n < 1<<16:", "case n <= 1<<16:", "garbles keys"}},
	{"TestCompact", mutation{"numbers in one byte", "sink/redis/packed.go", "if n < 0x80 {", "if n <= 0x80 {", "garbles batches"}},
	{"TestEncode", mutation{"increments are positive", "sink/redis/shard.go", "if d.N <= 0 || d.N > maxCount {", "if false {", "rounds counts"}},
	{"TestReshardingInAnyOrder", mutation{"a slot that moves", "sink/redis/shard.go", "return []string{base, base + \":none\"}", "return []string{base}", "takes what has moved for missing"}},

	{rules("single", "Reader/final_and", "Apply/keeps"), mutation{"finality is told", applyLua, "if f ~= final or e ~= expired or", "if", "never calls a window final"}},
	{rules("single", "Reader/final_without"), mutation{"an end is told", applyLua, " or string.match(state, '^%S+ %S+ %S+ (%S+)') ~= string.match(from, '^%S+ %S+ %S+ (%S+)') then", " then", "waits for a partition that has ended"}},
	{"TestRetention/single", mutation{"once expired, always", commonLua, "\tif gone and (not expired or gone > expired) then expired = gone end\n", "", "shows a window that was deleted in part"}},
	{"TestReplacedWhileRead", mutation{"finality has the id", commonLua, ".. shards .. ' ' .. id\n", ".. shards .. ' id'\n", "calls a count final that is of another life"}},
	{rules("single", "Apply/forgets", "Load"), mutation{"one without a watermark", commonLua, "\t\telseif not f then\n\t\t\treturn nil\n", "\t\telseif not f then\n", "does not wait for a partition that has just begun"}},
	{rules("single", "Apply/forgets", "Load"), mutation{"the smallest watermark", commonLua, "before(mark, low) then low = mark", "before(low, mark) then low = mark", "raises partitions too far"}},
	{rules("single", "Apply/forgets", "Load"), mutation{"the smallest marks", commonLua, "f < final then final = f", "f > final then final = f", "closes windows that are still added to"}},
	{rules("single", "Apply/forgets", "Load"), mutation{"the smallest marks of retention", commonLua, "e < expired then expired = e", "e > expired then expired = e", "deletes windows that are still added to"}},
	{rules("single", "Apply/forgets", "Load"), mutation{"the largest end", commonLua, "(not ended or f > ended)", "(not ended or f < ended)", "takes finality back"}},
	{rules("single", "Apply/forgets", "Load"), mutation{"nobody waits for an end", commonLua, "if state == 'ended' then", "if false then", "waits for a partition that has ended"}},
	{rules("single", "Load"), mutation{"Grace after an end", commonLua, "local ms = ended + grace", "local ms = ended", "takes finality back"}},
	{rules("single", "Load"), mutation{"nanoseconds", commonLua, "if x ~= y then return x < y end", "if true then return x < y end", "raises partitions too far"}},

	{rules("single", "Load"), mutation{"raised to the frontier", loadLua, "if low and (mark == '-' or before(mark, low)) then", "if false then", "takes finality back when a partition joins"}},
	{rules("single", "Load"), mutation{"one without a watermark is raised", loadLua, "(mark == '-' or before(mark, low))", "(mark ~= '-' and before(mark, low))", "takes finality back when a partition joins"}},
	{rules("single", "Load"), mutation{"raised only", loadLua, "(mark == '-' or before(mark, low))", "true", "moves a watermark back"}},
	{rules("single", "Load"), mutation{"stored ones stay", loadLua, "if state ~= 'ended' or its == log then record = nil end", "", "forgets how far counts reach"}},
	{rules("single", "Load"), mutation{"ended under another log", loadLua, "if state ~= 'ended' or its == log then record = nil end", "record = nil", "never counts a source again that had ended"}},
	{rules("single", "Load"), mutation{"ended under the same log", loadLua, "if state ~= 'ended' or its == log then", "if state ~= 'ended' then", "counts again what has ended"}},
	{"TestDefinitions/single|" + rules("single", "Open", "Load"), mutation{"another definition", loadLua, "if have[ARGV[i]] ~= ARGV[i + 1] then", "if false then", "counts windows of one kind among those of another"}},
	{"TestEndedIsRaised", mutation{"an end that is raised", loadLua, "if state == 'ended' then", "if false then", "closes windows too early"}},
	{rules("single", "Reader/final_where"), mutation{"finality is told at Load", loadLua, "\tpublish(published, final, expired, shards, id)\n", "", "is slow to call a window final"}},
	{"TestRetention/single", mutation{"once expired, always, at Load", loadLua, "local published = redis.call('GET', finality)\n", "local published\n", "brings expired windows back"}},

	{"TestMarks", mutation{"Grace", "sink/redis/checkpoint.go", "return mark(def.Grace) + \" \" + mark(def.Grace+def.Retention)", "return mark(0) + \" \" + mark(def.Grace+def.Retention)", "closes windows that are still added to"}},
	{"TestMarks", mutation{"Grace and retention", "sink/redis/checkpoint.go", "mark(def.Grace+def.Retention)", "mark(def.Retention)", "deletes counts before their time"}},
	{"TestMarks|" + rules("single", "Load"), mutation{"the mark of an end", "sink/redis/checkpoint.go", "\t\tfrontier = def.EndMark(frontier)\n", "", "takes finality back"}},
	{rules("single", "Apply/conflict", "Apply/moves"), mutation{"no watermark is not the epoch", "sink/redis/checkpoint.go", "\tif f[4] != \"-\" {", "\tif f[4] != \"-\" && f[4] != \"0\" {", "takes a promise for none"}},

	{"TestClosesWhileRead/count", mutation{"finality first: Count", "sink/redis/reader.go", "\t\tn, err := s.lookup(ctx, base, ms, fieldOf(key))\n", "\t\tn, err := s.lookup(ctx, base, ms, fieldOf(key))\n\t\tbefore, _ = s.finality(ctx, base)\n", "calls a count final that was read before"}},
	{"TestClosesWhileRead/range", mutation{"finality first: Range", "sink/redis/reader.go", "\t\t\tfor i, n := range ns {\n", "\t\t\tbefore, _ = s.finality(ctx, base)\n\t\t\tfor i, n := range ns {\n", "calls a count final that was read before"}},
	{"TestClosesWhileRead", mutation{"finality first: Top and Scan", "sink/redis/page.go", "window < before[i].final", "window < after[i].final", "calls a page final that was read before"}},
	{"TestExpiresWhileRead", mutation{"expiry last", "sink/redis/reader.go", "< after.expired", "< before.expired", "calls a count final that was deleted"}},
	{"TestExpiresWhileRead", mutation{"expiry last: Top and Scan", "sink/redis/page.go", "< after[i].expired", "< before[i].expired", "calls a page final of which a part was deleted"}},
	{rules("single", "Reader"), mutation{"not final once expired", "sink/redis/reader.go", "c.Final = c.Final && !c.Expired", "_ = c", "calls a count final that was deleted"}},
	{rules("single", "Reader"), mutation{"a page is not final once expired", "sink/redis/page.go", "page.Final = page.Final && !page.Expired", "_ = 0", "calls a page final of which a part was deleted"}},
	{rules("single", "Reader/a_page"), mutation{"final in every shard", "sink/redis/page.go", "page.Final = page.Final && window", "page.Final = window", "calls a page final that lacks counts"}},
	{rules("single", "Reader/a_page"), mutation{"expired in some shard", "sink/redis/page.go", "page.Expired = page.Expired || window", "page.Expired = window", "calls a page final of which a part was deleted"}},
	{"TestReplacedWhileRead", mutation{"one life", "sink/redis/reader.go", "if err != nil || after.id != before.id {", "if err != nil {", "calls a count final that is of another life"}},
	{"TestReplacedWhileRead", mutation{"one life of a page", "sink/redis/page.go", "\t\tif after[i].id != before[i].id {\n\t\t\treturn false, nil\n\t\t}\n", "", "calls a page final that is of another life"}},
	{"TestLayoutOutOfDate", mutation{"one layout: Count", "sink/redis/reader.go", "before.shards != 0 && before.shards != l.shards {\n\t\t\treturn false, err\n\t\t}\n\t\tms", "false {\n\t\t\treturn false, err\n\t\t}\n\t\tms", "looks for a count in the wrong shard"}},
	{"TestLayoutOutOfDate", mutation{"one layout: Range", "sink/redis/reader.go", "before.shards != 0 && before.shards != l.shards {\n\t\t\treturn false, err\n\t\t}\n\t\tstarts", "false {\n\t\t\treturn false, err\n\t\t}\n\t\tstarts", "looks for a count in the wrong shard"}},
	{"TestLayoutOutOfDate", mutation{"one layout: Top and Scan", "sink/redis/page.go", "if all[i].shards != 0 && all[i].shards != l.shards {", "if false {", "looks for counts in the wrong shards"}},
	{"TestFlushAll", mutation{"the layout that is stored", "sink/redis/layout.go", "l != nil && l.id == id {", "l != nil && id != \"\" {", "looks for a count in the wrong shard"}},
	{"TestReaderOutOfDate", mutation{"a bucket that was split: Count", "sink/redis/reader.go", "if now <= n || bucketOf(hash, now) == i {", "if true {", "does not find a count that has moved"}},
	{"TestReaderOutOfDate", mutation{"a bucket that was split: Range", "sink/redis/reader.go", "if now > ns[i] && bucketOf", "if now < ns[i] && bucketOf", "does not find a count that has moved"}},
	{"TestGrowsWhileRead", mutation{"buckets that came", "sink/redis/page.go", "\tif n, err = s.countBuckets(ctx, base, window); err != nil || to >= n {\n\t\treturn 0, err\n\t}\n\treturn to, nil\n", "\treturn 0, nil\n", "misses counts that have moved"}},
	{"TestHighest", mutation{"a key that comes twice", "sink/redis/page.go", "\tcase ok:\n", "\tcase ok && n < 0:\n", "shows a count twice"}},
	{"TestReplicasAreNotRead", mutation{"the master is read", "sink/redis/layout.go", "Args(args...).Build().ToRetryable()", "Args(args...).ReadOnly()", "calls a window final without all its counts"}},
	{"TestReplicasAreNotRead|TestReaderOutOfDate", mutation{"the master is read through the cache", "sink/redis/layout.go", "Args(args...).Build())", "Args(args...).ReadOnly())", "calls a window final without all its counts"}},
	{"TestDefinitions/single", mutation{"the number of shards", "sink/redis/redis.go", "if s.cfg.Shards != 0 && s.cfg.Shards != stored.shards {", "if false {", "keeps quiet about a wrong number"}},
	{"TestDefinitions/single", mutation{"the number of shards that is stored", "sink/redis/redis.go", "\t\t\tn = stored.shards\n", "", "cannot open what it has stored"}},
	{"TestOpenComesSecond", mutation{"an Open that comes second", "sink/redis/redis.go", "&& stored == nil && try == 0 {", "&& try < 0 {", "fails when two start at once"}},
	{"TestEviction$", mutation{"eviction", "sink/redis/redis.go", "case strings.HasPrefix(policy, \"allkeys\"):", "case false:", "counts in a store that drops keys"}},
}
