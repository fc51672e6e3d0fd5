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
local windows, sizes = base .. ':windows', base .. ':sizes'
local marker = '\0'

local function bucket(start, i)
	return base .. ':' .. start .. ':' .. i
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
	if not text then return {} end
	local closed, term, floor = string.match(text, '^(%S+) (%S+) %S+ %S+ (%S+)')
	if not floor then error(finality .. ' holds ' .. text) end
	return {text = text, closed = tonumber(closed), term = term ~= '-' and term, floor = tonumber(floor)}
end

-- publish tells readers, if anything has changed.
local function publish(old, closed, term, shards, id, floor)
	if not closed and not old.text then return end
	local new = ms(closed) .. ' ' .. (term or '-') .. ' ' .. shards .. ' ' .. id .. ' ' .. ms(floor)
	if new ~= old.text then redis.call('SET', finality, new) end
end

-- raised returns the floor that a closed mark and a retention in ms, 0 for ever,
-- lead to. It never falls: what is past it may be deleted already.
local function raised(floor, closed, retention)
	if not closed or not retention or retention == 0 then return floor end
	if floor and floor > closed - retention then return floor end
	return closed - retention
end

-- past returns some of the windows up to the floor, and their buckets.
local function past(floor, most)
	local old = {}
	if not floor then return old end
	for i, start in ipairs(redis.call('ZRANGEBYSCORE', windows, '-inf', ms(floor), 'LIMIT', 0, most)) do
		old[i] = {start, tonumber(redis.call('HGET', bucket(start, 0), marker) or 1)}
	end
	if #old > 0 then redis.call('HLEN', sizes) end
	return old
end

-- delete deletes these windows, but no more than some buckets.
local function delete(old, room)
	for _, o in ipairs(old) do
		local start, n = o[1], o[2]
		while n > 1 and room > 0 do
			n, room = n - 1, room - 1
			redis.call('UNLINK', bucket(start, n))
		end
		if room == 0 then
			redis.call('HSET', bucket(start, 0), marker, n)
			return
		end
		room = room - 1
		redis.call('UNLINK', bucket(start, 0))
		redis.call('HDEL', sizes, start)
		redis.call('ZREM', windows, start)
	end
end
