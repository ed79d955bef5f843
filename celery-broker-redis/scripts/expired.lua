-- Lists held deliveries whose visibility timeout has passed, the oldest first.
--
-- KEYS  the index of held deliveries; the held deliveries
-- ARGV  the visibility timeout in seconds; how many at most
--
-- Answers the latest score that counts as passed, then tag and entry of each;
-- tags without an entry are forgotten on the way.

local time = redis.call('TIME')
local latest = time[1] + time[2] / 1000000 - tonumber(ARGV[1])
local text = string.format('%.6f', latest)
local tags = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', text, 'LIMIT', 0, ARGV[2])
local answer = { text }
for _, tag in ipairs(tags) do
  local entry = redis.call('HGET', KEYS[2], tag)
  if entry then
    answer[#answer + 1] = tag
    answer[#answer + 1] = entry
  else
    redis.call('ZREM', KEYS[1], tag)
  end
end
return answer
