-- Records that the owner of deliveries is alive, and lists owners that are not.
--
-- KEYS[1]  owners        zset  owner -> time until which it counts as alive, in seconds
-- ARGV[1]  owner         the owner to renew
-- ARGV[2]  rescue_after  seconds for which the owner counts as alive
-- ARGV[3]  max           count of dead owners to list
-- ARGV[4]  expire        seconds until the key expires when all owners are dead
-- Returns {owner, time, owner, time, ...}: the dead owners, oldest first; nil if the
-- server's memory is full. No worker can renew its owner then, so none is dead.

local owners = KEYS[1]
local owner, rescue_after, max, expire = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local _, failure = try('ZADD', owners, string.format('%.6f', now + rescue_after), owner)
if failure then
  if string.find(failure.err, '^OOM') then return false end
  return failure
end
redis.pcall('EXPIRE', owners, expire)
local latest = string.format('(%.6f', now)
return redis.call('ZRANGEBYSCORE', owners, '-inf', latest, 'WITHSCORES', 'LIMIT', 0, max)
