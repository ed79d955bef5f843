-- Claims a chord that is complete and has no valid claim; otherwise schedules the next
-- check.
--
-- ARGV[1]  chord_id              id of the chord's group
-- ARGV[2]  ordered               "1" where results are stored by index, "0" in order of arrival
-- ARGV[3]  token                 identifies the claim
-- ARGV[4]  claim_ttl             seconds
-- ARGV[5]  min_interval          milliseconds: shortest pause between two checks
-- ARGV[6]  max_interval          milliseconds: longest pause between two checks
-- ARGV[7]  missing_size_timeout  milliseconds after which a chord without a size is forgotten
-- Returns {body, serializer, results, tree} if the claim was taken, else nil.

local chord_id, ordered, token, claim_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local min_interval, max_interval = tonumber(ARGV[5]), tonumber(ARGV[6])
local missing_size_timeout = tonumber(ARGV[7])

local function forget()
  redis.call('DEL', body_key)
  redis.call('ZREM', index_key, chord_id)
end

local function check_again_in(interval)
  redis.call('ZADD', index_key, now() + interval, chord_id)
end

-- Redis keeps what a failed script has written: a chord whose keys cannot be read is
-- postponed.
check_again_in(max_interval)

local stored = redis.call('HMGET', body_key, 'body', 'serializer', 'since')
local body, serializer, since = stored[1], stored[2], stored[3]
if not body or is_over() then return forget() end

-- Another worker holds the claim. Check again when it expires, since that worker may
-- have died.
if redis.call('EXISTS', claim_key) == 1 then
  return check_again_in(math.max(redis.call('PTTL', claim_key), 0) + 1)
end

if is_complete(ordered) then
  redis.call('SET', claim_key, token, 'EX', claim_ttl)
  check_again_in(claim_ttl * 1000)
  return {body, serializer, results(ordered)}
end

-- Python leaves a chord that it has failed without a size.
local age = now() - since
if age > missing_size_timeout and redis.call('EXISTS', size_key) == 0 then return forget() end
-- The interval grows with the age of the chord.
return check_again_in(math.min(math.max(age, min_interval), max_interval))
