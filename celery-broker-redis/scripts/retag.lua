-- Gives a message in a quarantine hash a new tag, so that the tag of the earlier
-- consumer no longer settles it.
--
-- KEYS[1]  quarantine  hash  tag -> raw bytes
-- ARGV[1]  old_tag     current tag
-- ARGV[2]  new_tag     new tag
-- Returns the raw bytes, or nil if the old tag does not exist.

local quarantine = KEYS[1]
local old_tag, new_tag = ARGV[1], ARGV[2]

local raw = redis.call('HGET', quarantine, old_tag)
if raw then
  redis.call('HSET', quarantine, new_tag, raw)
  redis.call('HDEL', quarantine, old_tag)
end
return raw
