-- Takes the definition away from a shard that nobody counts into, so that nobody
-- begins to while its keys are deleted.
--
-- ARGV: for how long nobody must have asked for a retention, in ms, 'none' only to
-- ask.
--
-- Returns how long ago somebody did, in ms, -1 if nobody ever has. If that is not
-- long enough it has changed nothing.
local quiet = tonumber(ARGV[1])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local newest = -1
local notes = redis.call('HVALS', retentions)
for _, at in ipairs(notes) do
	local age = math.max(now - tonumber(at), 0)
	if newest < 0 or age < newest then newest = age end
end
if quiet and (newest < 0 or newest >= quiet) and redis.call('EXISTS', base) == 1 then redis.call('HSET', base, 'version', 'dropped', 'id', '') end
return newest
