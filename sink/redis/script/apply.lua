-- Adds increments and moves a checkpoint, both or neither.
--
-- ARGV: partition; the checkpoint it must have, without marks; the one it gets;
-- the definition's id; Grace in ms; the number of shards; and the increments, an
-- array in MessagePack. It holds by window: the window, the number of buckets
-- it was thought to have, the number of groups, and these: the bucket under that
-- number, n, n fields, n increments.
--
-- Returns {'conflict', stored or ''}, {'id'}, {'overflow', key, field}, each
-- of which has changed nothing, or {'ok', window, buckets, keys, ...}.
local partition, from, to, id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local grace, shards = tonumber(ARGV[5]), ARGV[6]
local most = 9007199254740991 -- 2^53 - 1: Lua's numbers are doubles
local fill = 48              -- fields per bucket, on average; at most twice that
local marker = '\0'

-- Phase one reads. An error in it ends the script, with nothing changed.
local stored = redis.call('HGET', base, 'id')
if stored and stored ~= id then return {'id'} end
local record = redis.call('HGET', checkpoints, partition)
if not record then return {'conflict', ''} end
local final, expired, had = split(record)
if had ~= from then return {'conflict', had or record} end
if not stored then return {'id'} end
local published = redis.call('GET', finality)
local gone = published and tonumber((select(2, split(published))))

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
	local byte, size, h = string.byte, #field, 0
	for i = 1, size - 3, 4 do
		local a, b, c, d = byte(field, i, i + 3)
		h = (((h + a) * 1664525 % 4294967296 + b) * 1664525 % 4294967296 + c) * 1664525 % 4294967296
		h = (h + d) * 1664525 % 4294967296
	end
	for i = size - size % 4 + 1, size do h = (h + byte(field, i)) * 1664525 % 4294967296 end
	return swapped(swapped(h) * 1664525 % 4294967296)
end

local function bucket(start, i)
	return base .. ':' .. start .. ':' .. i
end

local used, order, writes, fresh = {}, {}, {}, 0

-- window reads how a window is stored; guess is what a new one will have.
local function window(start, guess)
	local w = used[start]
	if w then return w end
	w = {start = start, new = 0, prefix = bucket(start, '')}
	local first = bucket(start, 0)
	local n = redis.call('HGET', first, marker)
	if n then
		w.n = tonumber(n)
		w.keys = tonumber(redis.call('HGET', sizes, start) or 0)
	else
		w.keys = redis.call('HLEN', first)
		w.n = 1
		if w.keys == 0 then
			redis.call('ZSCORE', windows, start)
			w.n, w.created = guess, true
		end
	end
	used[start] = w
	order[#order + 1] = w
	return w
end

-- add computes n counts of one bucket, and returns the field of one that would
-- be too large.
local function add(w, i, fields, f, counts, c, n)
	local key = w.prefix .. i
	local old = redis.call('HMGET', key, unpack(fields, f, f + n - 1))
	local set, new = {key, false, false}, 0 -- room for one, as many buckets get
	for j = 1, n do
		local field, sum = fields[f + j - 1], counts[c + j - 1]
		if old[j] then
			local count = tonumber(old[j])
			if not count then error('the count of ' .. field .. ' in ' .. key .. ' is no number') end
			sum = count + tonumber(sum)
			if sum > most then return key, field end
		else
			new = new + 1 -- and stays text: to write a number as text is slow (BenchmarkCatchUp)
		end
		set[2 * j], set[2 * j + 1] = field, sum
	end
	w.new = w.new + new
	writes[#writes + 1] = set
end

local list = cmsgpack.unpack(ARGV[7])
local at = 1
while list[at] do
	local start, guess, groups = list[at], list[at + 1], list[at + 2]
	at = at + 3
	local w
	-- A window that may have been deleted must not come back.
	if not gone or tonumber(start) >= gone then w = window(start, guess) end
	for _ = 1, groups do
		local i, n = list[at], list[at + 1]
		local f, c = at + 2, at + 2 + n
		at = c + n
		local key, field
		if w and guess == w.n then -- nearly always
			key, field = add(w, i, list, f, list, c, n)
		elseif w and (guess > w.n or modulus(tonumber(i), guess) == modulus(tonumber(i), w.n)) then
			key, field = add(w, address(tonumber(i), w.n), list, f, list, c, n)
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
				key, field = add(w, to, g[1], 1, g[2], 1, #g[1])
				if key then break end
			end
		end
		if key then return {'overflow', key, field} end
	end
end
for _, w in ipairs(order) do fresh = fresh + w.new end
if fresh > 0 then redis.call('HLEN', sizes) end
local old = {}
if gone then
	for i, start in ipairs(redis.call('ZRANGEBYSCORE', windows, '-inf', '(' .. string.format('%.0f', gone), 'LIMIT', 0, 32)) do
		old[i] = {start, tonumber(redis.call('HGET', bucket(start, 0), marker) or 1)}
	end
end

-- Phase two writes. What has been past retention goes first, so that a server
-- that has no memory left can give some back.
local room = 64
for _, o in ipairs(old) do
	local start, n = o[1], o[2]
	while n > 1 and room > 0 do
		n, room = n - 1, room - 1
		redis.call('UNLINK', bucket(start, n))
	end
	if room == 0 then
		redis.call('HSET', bucket(start, 0), marker, n)
		break
	end
	room = room - 1
	redis.call('UNLINK', bucket(start, 0))
	redis.call('HDEL', sizes, start)
	redis.call('ZREM', windows, start)
end
for _, w in ipairs(order) do
	if w.created then
		redis.call('ZADD', windows, w.start, w.start)
		if w.n > 1 then redis.call('HSET', bucket(w.start, 0), marker, w.n) end
	end
end
for _, set in ipairs(writes) do redis.call('HSET', unpack(set)) end
redis.call('HSET', checkpoints, partition, to)

-- The counts and their checkpoint are stored. What follows keeps the rest in
-- order: an error now leaves it for a later batch.
local f, e, state = split(to)
if f ~= final or e ~= expired or string.match(state, '^%S+ %S+ %S+ (%S+)') ~= string.match(from, '^%S+ %S+ %S+ (%S+)') then
	local _, lowf, lowe = frontier(redis.call('HGETALL', checkpoints), grace)
	publish(published, lowf, lowe, shards, id)
end

-- grow splits one bucket in two, as linear hashing does: the next in turn.
local function grow(w)
	local p = power(w.n)
	local i = w.n - p
	local source, target = bucket(w.start, i), bucket(w.start, w.n)
	local all = redis.call('HGETALL', source)
	local stay, go = {marker, w.n + 1}, {}
	for j = 1, #all, 2 do
		if all[j] ~= marker then
			local side = stay
			if hash(all[j]) % (2 * p) ~= i then side = go end
			side[#side + 1], side[#side + 2] = all[j], all[j + 1]
		end
	end
	-- First what cannot lose anything: the source still holds all.
	for j = 1, #go, 1000 do redis.call('HSET', target, unpack(go, j, math.min(j + 999, #go))) end
	if i > 0 then redis.call('HSET', bucket(w.start, 0), marker, w.n + 1) end
	redis.call('DEL', source) -- so that it becomes compact again
	for j = 1, #stay, 1000 do redis.call('HSET', source, unpack(stay, j, math.min(j + 999, #stay))) end
	w.n = w.n + 1
end

local splits = 8 + fresh / 32
local answer = {'ok'}
for _, w in ipairs(order) do
	if w.new > 0 then
		w.keys = w.keys + w.new
		while w.keys > fill * (w.n + 1) and splits > 0 do
			grow(w)
			splits = splits - 1
		end
		if w.n > 1 then redis.call('HSET', sizes, w.start, w.keys) end
	end
	local at = #answer
	answer[at + 1], answer[at + 2], answer[at + 3] = w.start, w.n, w.keys
end
return answer
