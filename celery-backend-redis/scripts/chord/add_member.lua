-- Adds a part to a chord that is under way, once.
--
-- ARGV  the task's id; the seconds that parts are kept, 0 for ever

if is_over() then return 0 end
-- Celery's own entries in this set end in an index.
if redis.call('SADD', counted, ARGV[1] .. ':added') == 1 then redis.call('INCR', added) end
if ARGV[2] ~= '0' then
  redis.call('EXPIRE', added, ARGV[2])
  redis.call('EXPIRE', counted, ARGV[2])
end
return 1
