-- Lists chords that are due for a check, the earliest first.
--
-- KEYS[1]  index_key  zset  chord id -> time of the next check, in milliseconds
-- ARGV[1]  max        count of ids
-- Returns {chord_id, ...}.

local index_key = KEYS[1]
local max = ARGV[1]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return redis.call('ZRANGEBYSCORE', index_key, '-inf', now, 'LIMIT', 0, max)
