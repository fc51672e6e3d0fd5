-- Stores the checkpoints that are missing, and returns all.
--
-- ARGV: a new id, Grace in ms, the number of fields of the definition and these
-- as names and values; the frontier whose end mark is known, in ns, that end
-- mark and its marks; then partition and checkpoint by turns.
--
-- Returns {'definition', the stored fields}, {'endmark', a frontier} if the
-- script must be called again with the end mark of this frontier, or {'ok', id,
-- partition, checkpoint, ...}.
local id, grace, n = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local at = 4 + 2 * n
local known, endmark, endfinal, endexpired = unpack(ARGV, at, at + 3)
at = at + 4

-- Every read comes before the first write: an error keeps earlier writes.
local stored = redis.call('HGETALL', base)
local have = {}
for i = 1, #stored, 2 do have[stored[i]] = stored[i + 1] end
if have.id then
	id = have.id
	for i = 4, 2 + 2 * n, 2 do
		if have[ARGV[i]] ~= ARGV[i + 1] then return {'definition', unpack(stored)} end
	end
end
local all = redis.call('HGETALL', checkpoints)
local published = redis.call('GET', finality)
local low, final, expired = frontier(all, grace)
local index = {}
for i = 1, #all, 2 do index[all[i]] = i + 1 end

local writes = {}
for i = at, #ARGV, 2 do
	local partition, record = ARGV[i], ARGV[i + 1]
	local old = index[partition]
	local log = string.match(record, '^%S+ %S+ %S+ %S+ %S+ %S+ (.*)$')
	if old then
		local state, its = string.match(all[old], '^%S+ %S+ %S+ %S+ %S+ (%S+) (.*)$')
		if state ~= 'ended' or its == log then record = nil end
	end
	if record then
		local offset, origin, mark, state = string.match(record, '^%S+ %S+ (%S+) (%S+) (%S+) (%S+)')
		if low and (mark == '-' or before(mark, low)) then
			local f, e = string.format('%.0f', final), expired
			if e ~= '-' then e = string.format('%.0f', e) end
			if state == 'ended' then
				-- Lua has no calendar.
				if known ~= low then return {'endmark', low} end
				f, e = endfinal, endexpired
			end
			record = f .. ' ' .. e .. ' ' .. offset .. ' ' .. origin .. ' ' .. low .. ' ' .. state .. ' ' .. log
		end
		writes[#writes + 1] = {partition, record, old}
	end
end

if not have.id then
	redis.call('HSET', base, 'id', id, unpack(ARGV, 4, 3 + 2 * n))
end
for _, w in ipairs(writes) do
	redis.call('HSET', checkpoints, w[1], w[2])
	if w[3] then
		all[w[3]] = w[2]
	else
		all[#all + 1], all[#all + 2] = w[1], w[2]
	end
end
if #writes > 0 then
	local shards = have.shards
	for i = 4, 2 + 2 * n, 2 do
		if ARGV[i] == 'shards' then shards = ARGV[i + 1] end
	end
	local _, final, expired = frontier(all, grace)
	publish(published, final, expired, shards, id)
end
table.insert(all, 1, 'ok')
table.insert(all, 2, id)
return all
