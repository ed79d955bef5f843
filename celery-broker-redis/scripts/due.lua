-- Reads deferred deliveries that are due, and starts their visibility timeout again.
--
-- KEYS[1]     deliveries     hash  tag -> entry or raw bytes: `unacked` or a quarantine hash
-- KEYS[2]     unacked_index  zset  tag -> time of delivery, in seconds
-- ARGV[1]     max_bytes      size of the reply; a single delivery may be larger
-- ARGV[2...]  tags           delivery tags
-- Returns {entry, ...} of the first tags: nil where another worker has settled or
-- restored the delivery.

local deliveries, unacked_index = KEYS[1], KEYS[2]
local room = tonumber(ARGV[1])

local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])

local reply = {}
for position = 2, #ARGV do
  local entry, failure = try('HGET', deliveries, ARGV[position])
  if failure then return failure end
  local size = entry and #entry or 0
  if #reply > 0 and size > room then break end
  if entry then
    -- XX: a malformed message is not in the index.
    local _
    _, failure = try('ZADD', unacked_index, 'XX', now, ARGV[position])
    if failure then return failure end
  end
  reply[#reply + 1] = entry
  room = room - size
end
return reply
