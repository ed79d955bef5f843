-- Shared by the chord scripts: each of them begins with this text.
--
-- KEYS[1]  results_key  zset or list  results of finished members: by index or in order of arrival
-- KEYS[2]  added_key    string        count of members added after the start
-- KEYS[3]  size_key     string        count of members at the start
-- KEYS[4]  counted_key  set           members whose result was counted, and markers
-- KEYS[5]  tree_key     string        result tree of the header
-- KEYS[6]  claim_key    string        token of the worker that sends the body, or "done"
-- KEYS[7]  body_key     hash          this crate only: body, serializer, since (milliseconds)
-- KEYS[8]  index_key    zset          this crate only: chord id -> time of the next check, in milliseconds
--
-- KEYS[1] to KEYS[6] are Celery's.

local results_key, added_key, size_key, counted_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local tree_key, claim_key, body_key, index_key = KEYS[5], KEYS[6], KEYS[7], KEYS[8]

-- Marks a failed chord in `counted_key`. Celery looks up only names of members there.
local FAILED = ':failed'

-- Returns the server's time in milliseconds.
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Returns whether the chord has ended: the body was sent, or a worker has failed the
-- chord. After a failure the results stay readable. A size beside the marker belongs to
-- a new start of the same chord.
local function is_over()
  if redis.call('GET', claim_key) == 'done' then return true end
  return redis.call('SISMEMBER', counted_key, FAILED) == 1 and redis.call('EXISTS', size_key) == 0
end

-- Returns whether every member has a result. `ordered` is "1" where results are stored
-- by index.
local function is_complete(ordered)
  local size = redis.call('GET', size_key)
  if not size then return false end
  local finished = redis.call(ordered == '1' and 'ZCARD' or 'LLEN', results_key)
  return finished == tonumber(size) + tonumber(redis.call('GET', added_key) or 0)
end

-- Returns all results, and the result tree of the header if it is stored.
local function results(ordered)
  local range = ordered == '1' and 'ZRANGE' or 'LRANGE'
  return redis.call(range, results_key, 0, -1), redis.call('GET', tree_key)
end
