-- Moves an entry that cannot be parsed from the unacked deliveries to a quarantine
-- hash. In `unacked` it would make kombu's restore raise.
--
-- KEYS[1]  unacked         hash  tag -> entry
-- KEYS[2]  unacked_index   zset  tag -> time of delivery
-- KEYS[3]  quarantine      hash  tag -> raw bytes
-- ARGV[1]  tag             tag in `unacked`
-- ARGV[2]  quarantine_tag  tag in `quarantine`
-- Returns 1 if the entry was moved, 0 if there was none.

local unacked, unacked_index, quarantine = KEYS[1], KEYS[2], KEYS[3]
local tag, quarantine_tag = ARGV[1], ARGV[2]

local entry = redis.call('HGET', unacked, tag)
redis.call('ZREM', unacked_index, tag)
if not entry then return 0 end
redis.call('HSET', quarantine, quarantine_tag, entry)
redis.call('HDEL', unacked, tag)
return 1
