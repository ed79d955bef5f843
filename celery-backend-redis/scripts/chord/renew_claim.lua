-- Extends the claim of a chord. A claim that has expired is taken again if no other
-- worker holds one.
--
-- ARGV[1]  token      identifies the claim
-- ARGV[2]  claim_ttl  seconds
-- Returns 1 if the caller holds the claim, else 0.

local token, claim_ttl = ARGV[1], ARGV[2]

if is_over() then return 0 end
local holder = redis.call('GET', claim_key)
if holder == token then return redis.call('EXPIRE', claim_key, claim_ttl) end
if holder or redis.call('EXISTS', size_key) == 0 then return 0 end
redis.call('SET', claim_key, token, 'EX', claim_ttl)
return 1
