-- Ends a held delivery and puts its message elsewhere, in one step; nothing
-- happens when somebody else ended it before.
--
-- KEYS  the hash that holds it; the index of held deliveries; the lists
-- ARGV  the tag; LPUSH (last) or RPUSH (next); the message; empty, or the
--       latest score at which this may be done
--
-- Answers whether it was done.

local tag, push, message, latest = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if latest then
  -- It was taken again, parked or prolonged meanwhile.
  local score = redis.call('ZSCORE', KEYS[2], tag)
  if score and tonumber(score) > latest then return 0 end
end
redis.call('ZREM', KEYS[2], tag)
if redis.call('HDEL', KEYS[1], tag) == 0 then return 0 end
for list = 3, #KEYS do
  redis.call(push, KEYS[list], message)
end
return 1
