-- Sets the time to live of a key if it holds the given value.
--
-- KEYS[1]  key    string
-- ARGV[1]  value  expected content of the key
-- ARGV[2]  ttl    milliseconds
-- Returns 1 if the time to live was set, else 0.

local key = KEYS[1]
local value, ttl = ARGV[1], ARGV[2]

if redis.call('GET', key) ~= value then return 0 end
return redis.call('PEXPIRE', key, ttl)
