-- Ends an unacked delivery and pushes its message to lists in one atomic step. Does
-- nothing if another worker has settled or restored the delivery already.
--
-- KEYS[1]     deliveries     hash  tag -> entry or raw bytes: `unacked` or a quarantine hash
-- KEYS[2]     unacked_index  zset  tag -> time of delivery, in seconds
-- KEYS[3...]  lists          list  the targets
-- ARGV[1]     tag            delivery tag
-- ARGV[2]     push           "RPUSH" delivers the message next, "LPUSH" last
-- ARGV[3]     message        envelope
-- ARGV[4]     latest         highest score at which the delivery may be ended; empty for any
-- Returns 1 if the message was pushed, else 0.

local deliveries, unacked_index = KEYS[1], KEYS[2]
local lists = { unpack(KEYS, 3) }
local tag, push, message, latest = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local undo = push == 'RPUSH' and 'RPOP' or 'LPOP'

if latest then
  -- A higher score means that the delivery was fetched again, deferred or extended
  -- since it was read.
  local score = redis.call('ZSCORE', unacked_index, tag)
  if score and tonumber(score) > latest then return 0 end
end
local failure = check_removal(deliveries, unacked_index)
if failure then return failure end
local exists = redis.call('HEXISTS', deliveries, tag) == 1
if exists then
  for position, list in ipairs(lists) do
    local _, failure = try(push, list, message)
    if failure then
      for pushed = 1, position - 1 do redis.pcall(undo, lists[pushed]) end
      return failure
    end
  end
end
redis.call('ZREM', unacked_index, tag)
redis.call('HDEL', deliveries, tag)
return exists and 1 or 0
