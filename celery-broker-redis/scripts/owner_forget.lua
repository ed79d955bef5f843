-- Removes a dead owner of which all deliveries are restored, unless it was renewed.
--
-- KEYS[1]  owners  zset  owner -> time of its last renewal, in seconds
-- ARGV[1]  owner   the owner
-- ARGV[2]  time    its last renewal when its deliveries were listed
-- Returns 1 if the owner was removed, else 0.

local owners = KEYS[1]
local owner, time = ARGV[1], ARGV[2]

local score = redis.call('ZSCORE', owners, owner)
if not score or tonumber(score) ~= tonumber(time) then return 0 end
return redis.call('ZREM', owners, owner)
