-- Binds a mailbox as kombu binds queues that expire: kombu may remove the bindings of
-- an exchange after a deadline, which each renewal of a binding moves forward.
--
-- KEYS[1]  bindings   set   the bindings of the exchange
-- KEYS[2]  deadlines  zset  exchange -> deadline, in milliseconds
-- ARGV[1]  binding    member of `bindings`
-- ARGV[2]  exchange   name
-- ARGV[3]  ttl        milliseconds
-- Returns 1.

local bindings, deadlines = KEYS[1], KEYS[2]
local binding, exchange, ttl = ARGV[1], ARGV[2], ARGV[3]

redis.call('SADD', bindings, binding)
local time = redis.call('TIME')
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + ttl
local current = redis.call('ZSCORE', deadlines, exchange)
if not current or tonumber(current) < deadline then
  redis.call('ZADD', deadlines, string.format('%.0f', deadline), exchange)
end
return 1
