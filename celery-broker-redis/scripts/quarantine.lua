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

local failure = check_removal(unacked, unacked_index)
if failure then return failure end
local entry = redis.call('HGET', unacked, tag)
if entry then
  local _, failure = try('HSET', quarantine, quarantine_tag, entry)
  if failure then return failure end
end
redis.call('ZREM', unacked_index, tag)
redis.call('HDEL', unacked, tag)
return entry and 1 or 0
