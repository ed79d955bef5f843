-- Adds a member to a running chord. Adding the same task again has no effect.
--
-- ARGV[1]  task_id  id of the new member
-- ARGV[2]  expires  seconds; "0" for no expiry
-- Returns 1, or 0 if the chord has ended.

local task_id, expires = ARGV[1], ARGV[2]

if is_over() then return 0 end
-- Celery's own members of this set end in an index.
if redis.call('SADD', counted_key, task_id .. ':added') == 1 then redis.call('INCR', added_key) end
if expires ~= '0' then
  redis.call('EXPIRE', added_key, expires)
  redis.call('EXPIRE', counted_key, expires)
end
return 1
