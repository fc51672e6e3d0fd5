-- Stores the checkpoints that are missing, and returns the shard's state.
--
-- ARGV: a new id; the retentions asked for in ms, by level, 0 for ever; the number of
-- fields of the definition and these as names and values; the number of
-- checkpoints and these as partition, 'live' or 'ended', watermark as the sorted
-- sets hold it, and record; the number of announcements and these as partition
-- and token; objections as partition and token.
--
-- Returns {'definition', the stored fields}, or {'ok', id, frontier in ns or
-- '-', floors in ms or '-' by level, the number of announcements, '1' if there are more
-- windows to delete, the retentions of the last half minute in ms by level, partition,
-- token, ..., partition, checkpoint, ...}.
local id, asked, n = ARGV[1], ARGV[2], tonumber(ARGV[3])

-- Phase one reads.
local definition = redis.call('HGETALL', base)
local have = {}
for i = 1, #definition, 2 do have[definition[i]] = definition[i + 1] end
local shards
for i = 4, 2 + 2 * n, 2 do
	if have.id and have[ARGV[i]] ~= ARGV[i + 1] then return {'definition', unpack(definition)} end
	if ARGV[i] == 'shards' then shards = ARGV[i + 1] end
end
id = have.id or id

local all = redis.call('HGETALL', checkpoints)
local known = {}
for i = 1, #all, 2 do known[all[i]] = all[i + 1] end
local old = published()

-- leader is who the frontier comes from.
local leader
local mark, partition = lowest()
local state = 'live'
if not mark then
	mark, partition = highest()
	state = 'ended'
else
	redis.call('ZCARD', ended)
end
if mark then leader = {mark = mark, state = state, record = stored(partition)} end

-- lead makes the first of two the leader.
local function lead(mark, state, record)
	local l = leader
	if not l or state ~= l.state and state == 'live'
		or state == l.state and (state == 'live' and before(mark, l.mark) or state == 'ended' and before(l.mark, mark)) then
		leader = {mark = mark, state = state, record = record}
	end
end

-- What is missing begins at the frontier, as it was before.
local raise = leader
local closedBy, watermark
if raise then
	closedBy, watermark = string.match(raise.record, '^(%S+) %S+ %S+ %S+ %S+ (%S+)')
end
local here = 4 + 2 * n
local records, members = {}, {live = {}, ended = {}}
for i = here + 1, here + 4 * tonumber(ARGV[here]), 4 do
	local partition, state, mark, record = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
	if not known[partition] then
		if raise and before(mark, raise.mark) then
			local head, tail = string.match(record, '^%S+ (%S+ %S+ %S+ %S+) %S+ (.*)$')
			record = closedBy .. ' ' .. head .. ' ' .. watermark .. ' ' .. tail
			mark = raise.mark
		end
		known[partition] = record
		records[#records + 1], records[#records + 2] = partition, record
		local set = members[state]
		set[#set + 1], set[#set + 2] = 0, mark .. ' ' .. partition
		lead(mark, state, record)
	end
end
here = here + 4 * tonumber(ARGV[here]) + 1

-- A token replaces an earlier one. One that is sent again, because nobody knew
-- whether it had arrived, keeps the objections to it.
local tokens, announce = {}, {}
local had = redis.call('HGETALL', announced)
for i = 1, #had, 2 do tokens[had[i]] = had[i + 1] end
local objections = here + 2 * tonumber(ARGV[here]) + 1
for i = here + 1, #ARGV, 2 do
	local partition, token = ARGV[i], ARGV[i + 1]
	local value = token
	if i >= objections then value = token .. ' objected' end
	local own = tokens[partition]
	if i >= objections and own == token or i < objections and own ~= token and own ~= token .. ' objected' then
		tokens[partition] = value
		announce[#announce + 1], announce[#announce + 2] = partition, value
	end
end

-- In force is the longest retention of the last minute; what is told to the pipeline is
-- the longest of the last half minute. Each is noted every 4 s only, so a note counts for
-- longer.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local longest, lately, note, stale = numbers(asked), numbers(asked), true, {}
local function raise(list, wanted)
	for level, retention in ipairs(wanted) do
		local l = list[level]
		if l and l ~= 0 and (retention == 0 or retention > l) then list[level] = retention end
	end
end
had = redis.call('HGETALL', retentions)
for i = 1, #had, 2 do
	local age = now - tonumber(had[i + 1])
	if had[i] == asked then
		note = math.abs(age) >= 4000
	elseif age > 70000 then
		stale[#stale + 1] = had[i]
	else
		raise(longest, numbers(had[i]))
		if age <= 35000 then raise(lately, numbers(had[i])) end
	end
end
local function joined(list)
	local words = {}
	for i, n in ipairs(list) do words[i] = ms(n) end
	return table.concat(words, ' ')
end
local kept = joined(longest)

local closed = leader and tonumber((split(leader.record)))
local floors = raised(old.floors, closed, longest)
local gone = past(floors, 1024)

-- Phase two writes. What is past retention goes first, so that a server that has
-- no memory left can give some back. If it has none the note is left out: one
-- that only asks must get its answer.
local backlog = not delete(gone, 2048) or #gone == 1024
if note then
	local answer = redis.pcall('HSET', retentions, asked, ms(now))
	if type(answer) == 'table' and answer.err and not string.find(answer.err, 'OOM ', 1, true) then return answer end
end
if #stale > 0 then redis.call('HDEL', retentions, unpack(stale, 1, math.min(#stale, 1000))) end
if not have.id then
	redis.call('HSET', base, 'id', id, 'retention', kept, unpack(ARGV, 4, 3 + 2 * n))
elseif have.retention ~= kept then
	redis.call('HSET', base, 'retention', kept)
end
local function write(command, key, list)
	for i = 1, #list, 1000 do redis.call(command, key, unpack(list, i, math.min(i + 999, #list))) end
end
write('HSET', checkpoints, records)
write('ZADD', live, members.live)
write('ZADD', ended, members.ended)
write('HSET', announced, announce)
publish(old, closed, old.term, shards, id, floors)

local answer = {'ok', id, '-', joined(floors), 0, backlog and '1' or '0', joined(lately)}
if leader then answer[3] = string.match(leader.record, '^%S+ %S+ %S+ %S+ %S+ (%S+)') end
for partition, token in pairs(tokens) do
	if not string.find(token, ' ', 1, true) then
		answer[5] = answer[5] + 1
		answer[#answer + 1], answer[#answer + 2] = partition, token
	end
end
answer[5] = tostring(answer[5])
for _, list in ipairs({all, records}) do
	for _, text in ipairs(list) do answer[#answer + 1] = text end
end
return answer
