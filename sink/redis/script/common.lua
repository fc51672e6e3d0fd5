-- Functions of both scripts. KEYS[1] is the shard's own key, NAME:{TAG}; its
-- other keys begin with it and a colon, and lie in the same slot. KEYS[2] never
-- exists, so that no script runs while the slot is moving.
local base = KEYS[1]
local checkpoints, finality = base .. ':checkpoints', base .. ':finality'
local windows, sizes = base .. ':windows', base .. ':sizes'

-- before compares nanoseconds, which a Lua number does not hold exactly.
local function before(a, b)
	local x, y = tonumber(a), tonumber(b)
	if x ~= y then return x < y end
	if #a ~= #b then return (#a < #b) == (x > 0) end
	if x < 0 then return a > b end
	return a < b
end

-- split takes the marks off a checkpoint: which windows are final and which
-- past retention as far as this partition goes.
local function split(record)
	return string.match(record, '^(%S+) (%S+) (.*)$')
end

-- frontier returns the frontier in nanoseconds and its marks, nil if there is
-- none. all is what HGETALL returned.
local function frontier(all, grace)
	local low, final, expired, ended, gone
	for i = 2, #all, 2 do
		local f, e, mark, state = string.match(all[i], '^(%S+) (%S+) %S+ %S+ (%S+) (%S+)')
		f, e = tonumber(f), tonumber(e) or '-'
		if state == 'ended' then
			if f and (not ended or f > ended) then ended, gone = f, e end
		elseif not f then
			return nil
		else
			if not low or before(mark, low) then low = mark end
			if not final or f < final then final = f end
			if not expired or e ~= '-' and e < expired then expired = e end
		end
	end
	if low then return low, final, expired end
	if ended then
		-- Grace is whole milliseconds; so is the end of a window.
		local ms = ended + grace
		return ms == 0 and '0' or string.format('%.0f000000', ms), ended, gone
	end
end

-- publish stores what readers are told of finality, if it has changed. A window
-- once past retention stays so: it may be deleted already.
local function publish(old, final, expired, shards, id)
	if not final and not old then return end
	local gone = old and tonumber((select(2, split(old))))
	expired = tonumber(expired)
	if gone and (not expired or gone > expired) then expired = gone end
	local function ms(n) return n and string.format('%.0f', n) or '-' end
	local new = ms(final) .. ' ' .. ms(expired) .. ' ' .. shards .. ' ' .. id
	if new ~= old then redis.call('SET', finality, new) end
end
