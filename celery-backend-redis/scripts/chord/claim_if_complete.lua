-- Looks at a chord, and claims it when all its parts are there and nobody goes on
-- with it. Otherwise it says when to look again.
--
-- ARGV  1 the chord's id; 2 whether parts are kept by their index, 1 or 0;
--       3 the token and 4 the seconds of the claim; 5 the shortest and 6 the
--       longest pause between two looks in milliseconds; 7 the milliseconds
--       after which a chord without a size is none
--
-- Answers the body, its serializer, what was told and the results of the header
-- to who has the claim, else nothing.

local function forget()
  redis.call('DEL', sweep)
  redis.call('ZREM', index, ARGV[1])
end

local function look_again(pause)
  redis.call('ZADD', index, now() + pause, ARGV[1])
end

local about = redis.call('HMGET', sweep, 'body', 'serializer', 'since')
if not about[1] or is_over() then return forget() end

-- Somebody else's; it ends, and he may have died.
if redis.call('EXISTS', claim) == 1 then
  return look_again(math.max(redis.call('PTTL', claim), 0) + 1)
end

if is_complete(ARGV[2]) then
  redis.call('SET', claim, ARGV[3], 'EX', ARGV[4])
  look_again(ARGV[4] * 1000)
  return {about[1], about[2], told(ARGV[2])}
end

-- A chord that has been under way for long is looked at seldom.
local age = now() - about[3]
-- Python leaves one behind like that which it has failed.
if age > tonumber(ARGV[7]) and redis.call('EXISTS', size) == 0 then return forget() end
return look_again(math.min(math.max(age, tonumber(ARGV[5])), tonumber(ARGV[6])))
