-- Deletes a key if it holds the given value.
--
-- KEYS[1]  key    string
-- ARGV[1]  value  expected content of the key
-- Returns 1 if the key was deleted, else 0.

local key = KEYS[1]
local value = ARGV[1]

if redis.call('GET', key) ~= value then return 0 end
return redis.call('DEL', key)
