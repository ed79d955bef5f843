-- Takes replies from a mailbox and renews its time to live. An empty element stays at
-- the right end, where replies are read: the list exists before the first reply and
-- after the last, so a push from any sender always finds a list with a time to live.
--
-- KEYS[1]  list  list  the mailbox
-- ARGV[1]  max   count of replies to take
-- ARGV[2]  ttl   milliseconds
-- Returns {reply, ...}.

local list = KEYS[1]
local max, ttl = tonumber(ARGV[1]), ARGV[2]

-- Server and client each hold the answer in memory as a whole, so its size in bytes is
-- bounded.
local room = 16 * 1024 * 1024

local replies = {}
for _ = 1, max + 1 do
  local reply = redis.call('RPOP', list)
  if not reply then break end
  if reply ~= '' then
    if #replies == max then
      redis.call('RPUSH', list, reply)
      break
    end
    replies[#replies + 1] = reply
    room = room - #reply
    if room <= 0 then break end
  end
end
redis.call('RPUSH', list, '')
redis.call('PEXPIRE', list, ttl)
-- The server notifies only of changes to keys that were read.
redis.call('LLEN', list)
return replies
