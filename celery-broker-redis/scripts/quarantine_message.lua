-- Moves the malformed message at the right end of a list to a quarantine hash. Does
-- nothing if another worker has moved it already.
--
-- KEYS[1]  list        list  the queue
-- KEYS[2]  quarantine  hash  tag -> raw bytes
-- ARGV[1]  tag         new tag
-- ARGV[2]  digest      SHA-1 of the message, in hexadecimal
-- Returns the raw bytes, or nil if another message is at the end.

local list, quarantine = KEYS[1], KEYS[2]
local tag, digest = ARGV[1], ARGV[2]

local _, failure = try('LTRIM', list, 0, -1)
if failure then return failure end
local raw = redis.call('LINDEX', list, -1)
if not raw or redis.sha1hex(raw) ~= digest then return false end
_, failure = try('HSET', quarantine, tag, raw)
if failure then return failure end
redis.call('LTRIM', list, 0, -2)
return raw
