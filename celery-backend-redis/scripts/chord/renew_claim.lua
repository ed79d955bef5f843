-- Lets a claim hold longer, also when it has ended and nobody else has claimed.
--
-- ARGV  the token and the seconds of the claim

if is_over() then return 0 end
local holder = redis.call('GET', claim)
if holder == ARGV[1] then return redis.call('EXPIRE', claim, ARGV[2]) end
if holder or redis.call('EXISTS', size) == 0 then return 0 end
redis.call('SET', claim, ARGV[1], 'EX', ARGV[2])
return 1
