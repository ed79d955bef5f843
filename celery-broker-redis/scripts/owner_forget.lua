-- Removes a dead owner of which all deliveries are restored, unless it was renewed.
--
-- KEYS[1]  owners  zset  owner -> time until which it counts as alive
-- ARGV[1]  owner   the owner
-- ARGV[2]  time    its score when its deliveries were listed
-- Returns 1 if the owner was removed, else 0.

local owners = KEYS[1]
local owner, time = ARGV[1], ARGV[2]

local score = redis.call('ZSCORE', owners, owner)
if not score or tonumber(score) ~= tonumber(time) then return 0 end
return redis.call('ZREM', owners, owner)
