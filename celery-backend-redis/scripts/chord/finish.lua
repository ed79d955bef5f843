-- Ends a chord whose claim the caller holds.
--
-- ARGV[1]  chord_id  id of the chord's group
-- ARGV[2]  token     identifies the claim
-- ARGV[3]  outcome   "failed", or any other text if the body was sent
-- ARGV[4]  done_ttl  seconds in which a result that arrives again is recognized as late
-- Returns 1, or 0 if the claim is not the caller's.

local chord_id, token, outcome, done_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if redis.call('GET', claim_key) ~= token then return 0 end
if outcome == 'failed' then
  -- As in Celery, the results stay, and without a size the chord never completes.
  redis.call('DEL', size_key)
  if redis.call('EXISTS', counted_key) == 1 then redis.call('SADD', counted_key, FAILED) end
else
  redis.call('DEL', results_key, added_key, size_key, counted_key)
  redis.call('SET', claim_key, 'done', 'EX', done_ttl)
end
redis.call('DEL', body_key)
redis.call('ZREM', index_key, chord_id)
return 1
