-- Records that the owner of deliveries is alive, and lists owners that are not.
--
-- KEYS[1]  owners        zset  owner -> time of its last renewal, in seconds
-- ARGV[1]  owner         the owner to renew
-- ARGV[2]  rescue_after  seconds without renewal after which an owner counts as dead
-- ARGV[3]  max           count of dead owners to list
-- ARGV[4]  expire        seconds until the key expires when all owners are dead
-- Returns {owner, time, owner, time, ...}: the dead owners, oldest first.

local owners = KEYS[1]
local owner, rescue_after, max, expire = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local _, failure = try('ZADD', owners, now, owner)
if failure then return failure end
redis.pcall('EXPIRE', owners, expire)
local latest = string.format('%.6f', time[1] + time[2] / 1000000 - rescue_after)
return redis.call('ZRANGEBYSCORE', owners, '-inf', latest, 'WITHSCORES', 'LIMIT', 0, max)
