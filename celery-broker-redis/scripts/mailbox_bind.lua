-- Binds a mailbox, as kombu binds queues that expire: the binding counts as
-- overdue some time after the last of them was renewed.
--
-- KEYS  the bindings of the exchange; the deadlines of all exchanges
-- ARGV  the binding; the exchange; how long it lasts in milliseconds

redis.call('SADD', KEYS[1], ARGV[1])
local time = redis.call('TIME')
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
local known = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not known or tonumber(known) < deadline then
  redis.call('ZADD', KEYS[2], string.format('%.0f', deadline), ARGV[2])
end
return 1
