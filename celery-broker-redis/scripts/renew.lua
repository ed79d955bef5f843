-- Renews unacked deliveries, so that no worker restores them.
--
-- KEYS[1]    unacked_index  zset  tag -> time of delivery, in seconds
-- KEYS[2]    unacked        hash  tag -> entry
-- ARGV[...]  tags           delivery tags
-- Returns the tags that are not unacked any more.

local unacked_index, unacked = KEYS[1], KEYS[2]

local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local missing = {}
for _, tag in ipairs(ARGV) do
  if redis.call('ZSCORE', unacked_index, tag) and redis.call('HEXISTS', unacked, tag) == 1 then
    redis.call('ZADD', unacked_index, now, tag)
  else
    missing[#missing + 1] = tag
  end
end
return missing
