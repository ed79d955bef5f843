-- Takes over what a dead consumer left in a holding hash, under a new tag, so
-- that the old one settles nothing any more.
--
-- KEYS  the holding hash
-- ARGV  the old tag; the new tag
--
-- Answers the bytes, or nothing when they are gone.

local raw = redis.call('HGET', KEYS[1], ARGV[1])
if raw then
  redis.call('HSET', KEYS[1], ARGV[2], raw)
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return raw
