-- Moves an entry that cannot be read out of the held deliveries, where it would
-- make kombu's restore raise, into a holding hash.
--
-- KEYS  the held deliveries; their index; the holding hash
-- ARGV  the tag; the tag in the holding hash
--
-- Answers whether it was done.

local entry = redis.call('HGET', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
if not entry then return 0 end
redis.call('HSET', KEYS[3], ARGV[2], entry)
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
