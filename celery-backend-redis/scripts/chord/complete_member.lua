-- Counts a part of a chord, and claims the chord when it was the last one.
--
-- ARGV  1 the chord's id; 2 the task's id; 3 its index, or +inf; 4 what is told;
--       5 whether parts are kept by their index, 1 or 0;
--       6 the seconds that parts, 7 that the header's results are kept, 0 for
--       ever; 8 the token and 9 the seconds of the claim;
--       10 the body and 11 its serializer; 12 the milliseconds until a sweeper
--       looks
--
-- Answers what was told and the results of the header to who has the claim,
-- else nothing.

if is_over() then return nil end

local member = ARGV[2] .. ':' .. ARGV[3]
if redis.call('SISMEMBER', counted, member) == 0 then
  if ARGV[5] == '1' then
    redis.call('ZADD', parts, ARGV[3], ARGV[4])
  else
    redis.call('RPUSH', parts, ARGV[4])
  end
  redis.call('SADD', counted, member)
end
if redis.call('HSETNX', sweep, 'body', ARGV[10]) == 1 then
  local since = now()
  redis.call('HSET', sweep, 'serializer', ARGV[11], 'since', since)
  redis.call('ZADD', index, since + ARGV[12], ARGV[1])
end
if ARGV[6] ~= '0' then
  for _, key in ipairs({parts, added, size, counted, sweep}) do
    redis.call('EXPIRE', key, ARGV[6])
  end
  if ARGV[7] ~= '0' then redis.call('EXPIRE', tree, ARGV[7]) end
end

if not is_complete(ARGV[5]) then return nil end
if not redis.call('SET', claim, ARGV[8], 'NX', 'EX', ARGV[9]) then
  -- Who has told it before and did not hear the answer tells it again.
  if redis.call('GET', claim) ~= ARGV[8] then return nil end
  redis.call('EXPIRE', claim, ARGV[9])
end
-- Should he die now, somebody else goes on when the claim has ended.
redis.call('ZADD', index, now() + ARGV[9] * 1000, ARGV[1])
return {told(ARGV[5])}
