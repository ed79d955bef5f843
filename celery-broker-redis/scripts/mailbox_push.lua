-- Puts a message into a mailbox. Its owner may be gone, so that a list made by
-- this has a time to live, and a shorter one grows. A list that lives for ever
-- is somebody's queue and stays as it is.
--
-- KEYS  the list
-- ARGV  the message; the time to live in milliseconds

local length = redis.call('LPUSH', KEYS[1], ARGV[1])
local left = redis.call('PTTL', KEYS[1])
if length == 1 or (left >= 0 and left < tonumber(ARGV[2])) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return length
