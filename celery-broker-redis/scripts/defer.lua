-- Sets the time of delivery of deferred deliveries, so that other workers restore them
-- only after they are due.
--
-- KEYS[1]    unacked_index  zset  tag -> time of delivery, in seconds
-- ARGV[...]  tag, delay     per delivery: its tag, and the seconds from now to its time
-- Returns {1 or 0, ...}: 0 where another worker has settled or restored the delivery.

local unacked_index = KEYS[1]

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local reply = {}
for position = 1, #ARGV, 2 do
  local tag, delay = ARGV[position], tonumber(ARGV[position + 1])
  local score, failure = try('ZSCORE', unacked_index, tag)
  if not failure and score then
    local _
    _, failure = try('ZADD', unacked_index, 'XX', string.format('%.6f', now + delay), tag)
  end
  if failure then return failure end
  reply[#reply + 1] = score and 1 or 0
end
return reply
