-- Pushes a message to a mailbox. Its owner may no longer exist, so a list that this
-- push creates gets a time to live, and a shorter one is extended. A list without a
-- time to live may be a task queue and stays without one.
--
-- KEYS[1]  list     list  the mailbox
-- ARGV[1]  message  envelope
-- ARGV[2]  ttl      milliseconds
-- Returns the length of the list.

local list = KEYS[1]
local message, ttl = ARGV[1], tonumber(ARGV[2])

local length = redis.call('LPUSH', list, message)
local remaining = redis.call('PTTL', list)
if length == 1 or (remaining >= 0 and remaining < ttl) then
  redis.call('PEXPIRE', list, ttl)
end
return length
