-- Lists unacked deliveries whose visibility timeout has passed, oldest first. Tags
-- without an entry are removed from the index.
--
-- KEYS[1]  unacked_index  zset  tag -> time of delivery, in seconds
-- KEYS[2]  unacked        hash  tag -> entry
-- ARGV[1]  visibility_timeout  seconds
-- ARGV[2]  max                 count of tags to read
-- ARGV[3]  max_bytes           size of the reply; a single entry may be larger
-- Returns {latest, tag, entry, tag, entry, ...}: `latest` is the highest score that
-- counts as expired.

local unacked_index, unacked = KEYS[1], KEYS[2]
local visibility_timeout, max, room = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])

local time = redis.call('TIME')
local latest = string.format('%.6f', time[1] + time[2] / 1000000 - visibility_timeout)
local tags = redis.call('ZRANGEBYSCORE', unacked_index, '-inf', latest, 'LIMIT', 0, max)
local reply = { latest }
for _, tag in ipairs(tags) do
  local entry = redis.call('HGET', unacked, tag)
  if entry then
    if #reply > 1 and #entry > room then break end
    room = room - #entry
    reply[#reply + 1] = tag
    reply[#reply + 1] = entry
  else
    redis.call('ZREM', unacked_index, tag)
  end
end
return reply
