-- Takes replies from a queue of replies. An empty element stays at the end
-- that is read: so the list exists before the first reply comes and after the
-- last was taken, and what others push into it always has a time to live.
--
-- KEYS  the list
-- ARGV  how many to take; the time to live in milliseconds
--
-- Answers the replies.

local answer = {}
local room = 16 * 1024 * 1024
for _ = 1, ARGV[1] + 1 do
  local reply = redis.call('RPOP', KEYS[1])
  if not reply then break end
  if reply ~= '' then
    if #answer == tonumber(ARGV[1]) then
      redis.call('RPUSH', KEYS[1], reply)
      break
    end
    answer[#answer + 1] = reply
    room = room - #reply
    if room <= 0 then break end
  end
end
redis.call('RPUSH', KEYS[1], '')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
-- Only of keys that were read the server tells when they change.
redis.call('LLEN', KEYS[1])
return answer
