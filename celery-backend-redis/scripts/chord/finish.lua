-- Ends a chord whose claim is ours.
--
-- ARGV  the chord's id; the token; how it ended; the seconds in which a part
--       that is told once more is known to be late

if redis.call('GET', claim) ~= ARGV[2] then return 0 end
if ARGV[3] == 'failed' then
  -- As in Celery, the parts stay, and without a size nothing comes of them.
  redis.call('DEL', size)
  if redis.call('EXISTS', counted) == 1 then redis.call('SADD', counted, FAILED) end
else
  redis.call('DEL', parts, added, size, counted)
  redis.call('SET', claim, 'done', 'EX', ARGV[4])
end
redis.call('DEL', sweep)
redis.call('ZREM', index, ARGV[1])
return 1
