-- What the scripts about chords share; each of them begins with this text.
--
-- KEYS  Celery's six keys of the chord: the parts that were told, how many were
--       added, how many there were at first, which were counted, the results of
--       the header, the claim; and our two: what a sweeper needs to know of the
--       chord, the index of the chords that are under way

local parts, added, size, counted, tree, claim, sweep, index = unpack(KEYS)

-- Milliseconds by the server's clock.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whether a worker has failed the chord. The parts are still there to be looked
-- at then, and this is noted where Celery looks for other names only. A size that
-- is there all the same is that of a new beginning.
local FAILED = ':failed'

local function is_over()
  if redis.call('GET', claim) == 'done' then return true end
  return redis.call('SISMEMBER', counted, FAILED) == 1 and redis.call('EXISTS', size) == 0
end

-- Whether as many parts were told as there are. `ordered` is '1' where they are
-- kept by their index.
local function is_complete(ordered)
  local total = redis.call('GET', size)
  if not total then return false end
  local told = redis.call(ordered == '1' and 'ZCARD' or 'LLEN', parts)
  return told == tonumber(total) + tonumber(redis.call('GET', added) or 0)
end

-- Everything that was told, and the results of the header where they are kept.
local function told(ordered)
  local range = ordered == '1' and 'ZRANGE' or 'LRANGE'
  return redis.call(range, parts, 0, -1), redis.call('GET', tree)
end
