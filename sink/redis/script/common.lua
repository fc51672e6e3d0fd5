-- Functions of both scripts. KEYS[1] is the shard's own key, NAME:{TAG}; its
-- other keys begin with it and a colon, and lie in the same slot. KEYS[2] never
-- exists, so that no script runs while the slot is moving.
--
-- Every script reads all that it needs before it writes: an error in a script
-- keeps what was written before it.
local base = KEYS[1]
local checkpoints, finality = base .. ':checkpoints', base .. ':finality'
local live, ended = base .. ':live', base .. ':ended'
local tainted, announced, retentions = base .. ':tainted', base .. ':announced', base .. ':retentions'
local marker = '\0'

-- at returns what the keys of a level's windows begin with.
local function at(level)
	return level == 0 and base or base .. ':r' .. level
end

local function bucket(at, start, i)
	return at .. ':' .. start .. ':' .. i
end

-- numbers reads numbers with spaces between, false for '-'.
local function numbers(text)
	local list = {}
	for word in string.gmatch(text or '', '%S+') do list[#list + 1] = tonumber(word) or false end
	return list
end

-- ms writes milliseconds, '-' for none.
local function ms(n) return n and string.format('%.0f', n) or '-' end

-- split returns CLOSED and WRITER of a checkpoint, and the rest.
local function split(record)
	return string.match(record, '^(%S+) (%S+) (.*)$')
end

-- before compares watermarks as the sorted sets hold them. It does not compare
-- strings, which Lua does by the server's locale, nor all 16 digits at once,
-- which a Lua number does not hold exactly.
local function before(a, b)
	if a == '-' or b == '-' then return a == '-' and b ~= '-' end
	local x, y = tonumber(string.sub(a, 1, 8), 16), tonumber(string.sub(b, 1, 8), 16)
	if x ~= y then return x < y end
	return tonumber(string.sub(a, 9), 16) < tonumber(string.sub(b, 9), 16)
end

-- first returns watermark and partition of the first of two members that is not
-- the one to leave out.
local function first(members, but)
	for _, member in ipairs(members) do
		if member ~= but then return string.match(member, '^(%S+) (.*)$') end
	end
end

-- lowest returns the lowest watermark of the live partitions and who has it.
local function lowest(but) return first(redis.call('ZRANGE', live, 0, 1), but) end

-- highest returns the highest of those that have ended.
local function highest(but) return first(redis.call('ZREVRANGE', ended, 0, 1), but) end

-- stored returns a partition's checkpoint, which is to be there.
local function stored(partition)
	return redis.call('HGET', checkpoints, partition)
		or error('the checkpoint of ' .. partition .. ' is missing in ' .. checkpoints)
end

-- published returns what readers were told last.
local function published()
	local text = redis.call('GET', finality)
	if not text then return {floors = {}} end
	local closed, term, floors = string.match(text, '^(%S+) (%S+) %S+ %S+ (.+)$')
	if not floors then error(finality .. ' holds ' .. text) end
	return {text = text, closed = tonumber(closed), term = term ~= '-' and term, floors = numbers(floors)}
end

-- publish tells readers, if anything has changed.
local function publish(old, closed, term, shards, id, floors)
	if not closed and not old.text then return end
	local new = ms(closed) .. ' ' .. (term or '-') .. ' ' .. shards .. ' ' .. id
	for _, floor in ipairs(floors) do new = new .. ' ' .. ms(floor) end
	if new ~= old.text then redis.call('SET', finality, new) end
end

-- raised returns the floors, by level, that a closed mark and retentions in ms, 0 for
-- ever, lead to. They never fall: what is past them may be deleted already.
local function raised(old, closed, kept)
	local floors = {}
	for i, retention in ipairs(kept) do
		local floor = old[i] or false
		if closed and retention and retention > 0 and not (floor and floor > closed - retention) then floor = closed - retention end
		floors[i] = floor
	end
	return floors
end

-- past returns some of the windows up to the floors, and their buckets.
local function past(floors, most)
	local old = {}
	for i, floor in ipairs(floors) do
		local at, before = at(i - 1), #old
		if floor and before < most then
			for _, start in ipairs(redis.call('ZRANGEBYSCORE', at .. ':windows', '-inf', ms(floor), 'LIMIT', 0, most - before)) do
				old[#old + 1] = {at, start, tonumber(redis.call('HGET', bucket(at, start, 0), marker) or 1)}
			end
			if #old > before then redis.call('HLEN', at .. ':totals') end
		end
	end
	return old
end

-- delete deletes these windows, but no more than some buckets. It returns whether
-- all are gone.
local function delete(old, room)
	local keys, levels, starts, rest = {}, {}, {}, nil
	for _, o in ipairs(old) do
		local at, start, n = o[1], o[2], o[3]
		while n > 1 and room > 0 do
			n, room = n - 1, room - 1
			keys[#keys + 1] = bucket(at, start, n)
		end
		if room == 0 then
			rest = {at, start, n}
			break
		end
		room = room - 1
		keys[#keys + 1] = bucket(at, start, 0)
		if not starts[at] then
			levels[#levels + 1] = at
			starts[at] = {}
		end
		table.insert(starts[at], start)
	end
	-- Many at once: to call a command costs more than to delete a key.
	local function all(command, list, key)
		for i = 1, #list, 1000 do
			local last = math.min(i + 999, #list)
			if key then redis.call(command, key, unpack(list, i, last)) else redis.call(command, unpack(list, i, last)) end
		end
	end
	all('UNLINK', keys)
	for _, at in ipairs(levels) do
		all('HDEL', starts[at], at .. ':totals')
		all('ZREM', starts[at], at .. ':windows')
	end
	if rest then redis.call('HSET', bucket(rest[1], rest[2], 0), marker, rest[3]) end
	return not rest
end
