-- Increments a counter that expires a fixed time after its first increment.
--
-- KEYS[1]  counter  string
-- ARGV[1]  ttl      milliseconds
-- Returns the new count.

local counter = KEYS[1]
local ttl = ARGV[1]

local count = redis.call('INCR', counter)
if count == 1 then redis.call('PEXPIRE', counter, ttl) end
return count
