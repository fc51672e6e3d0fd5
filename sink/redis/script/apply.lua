-- Adds increments and moves a checkpoint, both or neither.
--
-- ARGV: partition; the checkpoint it must have, without CLOSED and WRITER; the
-- one it gets, with them; for each of these two 'live' or 'ended' and its member
-- of that sorted set; the token of an announcement or ''; a new term; the
-- definition's id; the number of shards; and the increments, an array in
-- MessagePack. It holds by window: its level, the window, its end, the number of buckets it
-- was thought to have, the number of groups, and these: the bucket under that
-- number, n, n fields, n increments.
--
-- Returns {'conflict', stored or ''}, {'id'}, {'passed', frontier}, {'objected'},
-- {'overflow', window, its end, field}, each of which has changed nothing, or {'ok', 1 if there
-- are more windows to delete, level, window, buckets, keys, ...}.
local partition, from, to = ARGV[1], ARGV[2], ARGV[3]
local was, leaves, becomes, joins = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local token, term, id, shards = ARGV[8], ARGV[9], ARGV[10], ARGV[11]
local most = 9007199254740991 -- 2^53 - 1: Lua's numbers are doubles
local fill = 48              -- fields per bucket, on average; at most twice that
local effort = 131072       -- bytes of fields that one call moves to split buckets

-- Phase one reads.
local known = redis.call('HGET', base, 'id')
if known and known ~= id then return {'id'} end
local record = redis.call('HGET', checkpoints, partition)
if not record then return {'conflict', ''} end
local closed, holder, had = split(record)
if had ~= from then return {'conflict', had and record or ''} end
if not known then return {'id'} end
if token ~= '' and redis.call('HGET', announced, partition) ~= token then return {'objected'} end
local old = published()
local closes, writer = split(to)

-- closedMark returns the closed mark once the partition has moved: that of the
-- record which then has the frontier.
local function closedMark()
	local mark = string.match(joins, '^%S+')
	local low, other = lowest(leaves)
	if becomes == 'live' and not (low and before(low, mark)) then return tonumber(closes) end
	if low then return tonumber((split(stored(other)))) end
	local high, last = highest(leaves)
	if not high or before(high, mark) then return tonumber(closes) end
	return tonumber((split(stored(last))))
end

local now = old.closed
if was ~= becomes then
	redis.call('ZCARD', ended)
	if becomes == 'live' then
		local frontier = lowest() or highest()
		if before(string.match(joins, '^%S+'), frontier) then return {'passed', frontier} end
	end
	now = closedMark()
elseif closes ~= closed then
	now = closedMark()
elseif leaves ~= joins then
	redis.call('ZCARD', becomes == 'live' and live or ended)
end
local on = now and (not old.closed or now > old.closed)
local marked = (on or writer ~= holder) and redis.call('GET', tainted)
local draws = on and (marked or writer ~= holder or not old.term)
local floors = old.floors
if on then floors = raised(floors, now, numbers(redis.call('HGET', base, 'retention'))) end

-- power returns the largest power of two that is at most n.
local function power(n)
	local p = 1
	while 2 * p <= n do p = 2 * p end
	return p
end

-- address returns the bucket, of n, of a hash. It takes a bucket of a larger
-- number of buckets for a hash, too.
local function address(hash, n)
	local p = power(n)
	local i = hash % (2 * p)
	if i >= n then i = i - p end
	return i
end

-- modulus returns by what the hashes in bucket i of n are the same.
local function modulus(i, n)
	local p = power(n)
	if i >= p or i < n - p then return 2 * p end
	return p
end

local function swapped(h)
	local low = h % 65536
	return (h - low) / 65536 + low * 65536
end

-- hash is hashOf of the client, four bytes at a time.
local function hash(field)
	if #field > 64 then return tonumber(string.sub(redis.sha1hex(field), 1, 8), 16) end
	local byte, size, h = string.byte, #field, 0
	for i = 1, size - 3, 4 do
		local a, b, c, d = byte(field, i, i + 3)
		h = (((h + a) * 1664525 % 4294967296 + b) * 1664525 % 4294967296 + c) * 1664525 % 4294967296
		h = (h + d) * 1664525 % 4294967296
	end
	for i = size - size % 4 + 1, size do h = (h + byte(field, i)) * 1664525 % 4294967296 end
	return swapped(swapped(h) * 1664525 % 4294967296)
end

local used, order, writes, fresh = {}, {}, {}, 0

-- window reads how a window is stored; guess is what a new one will have.
local function window(level, start, stop, guess)
	local at = at(level)
	local prefix = bucket(at, start, '')
	local w = used[prefix]
	if w then return w end
	w = {level = level, at = at, start = start, stop = stop, new = 0, prefix = prefix}
	local total = redis.call('HGET', at .. ':totals', start)
	if total then
		local keys, sum = string.match(total, '^(%d+) (%d+)$')
		if not sum then error('the total of ' .. start .. ' in ' .. at .. ':totals is ' .. total) end
		w.keys, w.sum = tonumber(keys), tonumber(sum)
		w.n = tonumber(redis.call('HGET', prefix .. '0', marker) or 1)
	else
		redis.call('ZSCORE', at .. ':windows', start)
		w.n, w.keys, w.sum, w.created = guess, 0, 0, true
	end
	used[prefix] = w
	order[#order + 1] = w
	return w
end

-- add computes n counts of one bucket, and returns the field of one with which the
-- window's total, which is never below a count of it, would be too large.
local function add(w, i, fields, f, counts, c, n)
	local key = w.prefix .. i
	local old = redis.call('HMGET', key, unpack(fields, f, f + n - 1))
	local set, new = {key, false, false}, 0 -- room for one, as many buckets get
	for j = 1, n do
		local field, sum = fields[f + j - 1], counts[c + j - 1]
		w.sum = w.sum + tonumber(sum)
		if w.sum > most then return field end
		if old[j] then
			local count = tonumber(old[j])
			if not count then error('the count of ' .. field .. ' in ' .. key .. ' is no number') end
			sum = count + tonumber(sum)
		else
			new = new + 1 -- and stays text: to write a number as text is slow (BenchmarkCatchUp)
		end
		set[2 * j], set[2 * j + 1] = field, sum
	end
	w.new = w.new + new
	writes[#writes + 1] = set
end

local list = cmsgpack.unpack(ARGV[12])
local here = 1
while list[here] do
	local level, start, stop, guess, groups = unpack(list, here, here + 4)
	here = here + 5
	local w
	local floor = floors[level + 1]
	-- A window that may have been deleted must not come back.
	if not floor or tonumber(stop) > floor then w = window(level, start, stop, guess) end
	for _ = 1, groups do
		local i, n = list[here], list[here + 1]
		local f, c = here + 2, here + 2 + n
		here = c + n
		local field
		if w and guess == w.n then -- nearly always
			field = add(w, i, list, f, list, c, n)
		elseif w and (guess > w.n or modulus(tonumber(i), guess) == modulus(tonumber(i), w.n)) then
			field = add(w, address(tonumber(i), w.n), list, f, list, c, n)
		elseif w then -- the bucket was split since
			local by = {}
			for j = 0, n - 1 do
				local to = address(hash(list[f + j]), w.n)
				local g = by[to]
				if not g then
					g = {{}, {}}
					by[to] = g
				end
				g[1][#g[1] + 1], g[2][#g[2] + 1] = list[f + j], list[c + j]
			end
			for to, g in pairs(by) do
				field = add(w, to, g[1], 1, g[2], 1, #g[1])
				if field then break end
			end
		end
		if field then return {'overflow', start, stop, field} end
	end
end
local totals, tables = {}, {} -- windows and their totals by turns, by table
for _, w in ipairs(order) do
	fresh = fresh + w.new
	w.keys = w.keys + w.new
	local list = totals[w.at]
	if not list then
		list = {}
		totals[w.at], tables[#tables + 1] = list, w.at
	end
	list[#list + 1] = w.start
	list[#list + 1] = string.format('%.0f %.0f', w.keys, w.sum)
end
local some = 256 + 2 * #order
local gone = past(floors, some)

-- Phase two writes. What has been past retention goes first, so that a server
-- that has no memory left can give some back. It is more than the batch brings.
local backlog = not delete(gone, 512 + 2 * #writes) or #gone == some
for _, w in ipairs(order) do
	if w.created then
		redis.call('ZADD', w.at .. ':windows', w.stop, w.start)
		if w.n > 1 then redis.call('HSET', w.prefix .. '0', marker, w.n) end
	end
end
for _, set in ipairs(writes) do redis.call('HSET', unpack(set)) end
for _, at in ipairs(tables) do
	local list = totals[at]
	for i = 1, #list, 1000 do redis.call('HSET', at .. ':totals', unpack(list, i, math.min(i + 999, #list))) end
end
redis.call('HSET', checkpoints, partition, to)
if was ~= becomes or leaves ~= joins then
	redis.call('ZREM', was == 'live' and live or ended, leaves)
	redis.call('ZADD', becomes == 'live' and live or ended, 0, joins)
end
if token ~= '' then redis.call('HDEL', announced, partition) end
if not draws then
	term = old.term
	if writer ~= holder and not marked then redis.call('SET', tainted, '1') end
elseif marked then
	redis.call('DEL', tainted)
end
if now ~= old.closed then publish(old, now, term, shards, id, floors) end

-- The rest keeps the buckets small: an error now leaves it for a later batch.

-- grow splits one bucket in two, as linear hashing does: the next in turn.
local function grow(w)
	local p = power(w.n)
	local i = w.n - p
	local source, target = w.prefix .. i, w.prefix .. w.n
	local all = redis.call('HGETALL', source)
	local stay, go = {marker, w.n + 1}, {}
	for j = 1, #all, 2 do
		if all[j] ~= marker then
			effort = effort - #all[j]
			local side = stay
			if hash(all[j]) % (2 * p) ~= i then side = go end
			side[#side + 1], side[#side + 2] = all[j], all[j + 1]
		end
	end
	-- First what cannot lose anything: the source still holds all.
	for j = 1, #go, 1000 do redis.call('HSET', target, unpack(go, j, math.min(j + 999, #go))) end
	if i > 0 then redis.call('HSET', w.prefix .. '0', marker, w.n + 1) end
	redis.call('DEL', source) -- so that it becomes compact again
	for j = 1, #stay, 1000 do redis.call('HSET', source, unpack(stay, j, math.min(j + 999, #stay))) end
	w.n = w.n + 1
end

local splits = 8 + fresh / 32
local answer = {'ok', backlog and 1 or 0}
for _, w in ipairs(order) do
	while w.new > 0 and w.keys > fill * (w.n + 1) and splits > 0 and effort > 0 do
		grow(w)
		splits = splits - 1
	end
	local last = #answer
	answer[last + 1], answer[last + 2], answer[last + 3], answer[last + 4] = w.level, w.start, w.n, w.keys
end
return answer
