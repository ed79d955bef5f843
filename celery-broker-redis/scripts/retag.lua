-- Gives a message in a quarantine hash a new tag, so that the tag of the earlier
-- consumer no longer settles it.
--
-- KEYS[1]  quarantine  hash  tag -> raw bytes
-- ARGV[1]  old_tag     current tag
-- ARGV[2]  new_tag     new tag
-- Returns the raw bytes, or nil if the old tag does not exist.

local quarantine = KEYS[1]
local old_tag, new_tag = ARGV[1], ARGV[2]

local raw, failure = try('HGET', quarantine, old_tag)
if not raw then return failure or false end
local _
_, failure = try('HDEL', quarantine, new_tag)
if not failure then _, failure = try('HSET', quarantine, new_tag, raw) end
if failure then return failure end
redis.call('HDEL', quarantine, old_tag)
return raw
