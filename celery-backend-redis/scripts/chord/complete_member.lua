-- Counts the result of a chord member once, and claims the chord if it is complete.
--
-- ARGV[1]   chord_id      id of the chord's group
-- ARGV[2]   task_id       id of the member
-- ARGV[3]   member_index  position in the header, or "+inf"
-- ARGV[4]   result        encoded `[1, task id, state, result]`
-- ARGV[5]   ordered       "1" stores results by index, "0" in order of arrival
-- ARGV[6]   expires       seconds for the chord's keys; "0" for no expiry
-- ARGV[7]   tree_expires  seconds for the result tree of the header; "0" for no expiry
-- ARGV[8]   token         identifies the claim
-- ARGV[9]   claim_ttl     seconds
-- ARGV[10]  body          encoded signature of the body
-- ARGV[11]  serializer    name of the serializer of `body`
-- ARGV[12]  first_check   milliseconds until the first check for a stalled chord
-- Returns {results, tree} if the chord is complete and the claim was taken, else nil.

local chord_id, task_id, member_index, result, ordered = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local expires, tree_expires, token, claim_ttl = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local body, serializer, first_check = ARGV[10], ARGV[11], ARGV[12]

if is_over() then return nil end

local member = task_id .. ':' .. member_index
if redis.call('SISMEMBER', counted_key, member) == 0 then
  if ordered == '1' then
    redis.call('ZADD', results_key, member_index, result)
  else
    redis.call('RPUSH', results_key, result)
  end
  redis.call('SADD', counted_key, member)
end
if redis.call('HSETNX', body_key, 'body', body) == 1 then
  local since = now()
  redis.call('HSET', body_key, 'serializer', serializer, 'since', since)
  redis.call('ZADD', index_key, since + first_check, chord_id)
end
if expires ~= '0' then
  for _, key in ipairs({results_key, added_key, size_key, counted_key, body_key}) do
    redis.call('EXPIRE', key, expires)
  end
  if tree_expires ~= '0' then redis.call('EXPIRE', tree_key, tree_expires) end
end

if not is_complete(ordered) then return nil end
if not redis.call('SET', claim_key, token, 'NX', 'EX', claim_ttl) then
  -- A caller that lost the reply to an earlier call repeats it with the same token.
  if redis.call('GET', claim_key) ~= token then return nil end
  redis.call('EXPIRE', claim_key, claim_ttl)
end
-- If this worker dies now, another one resumes the chord after the claim has expired.
redis.call('ZADD', index_key, now() + claim_ttl * 1000, chord_id)
return {results(ordered)}
