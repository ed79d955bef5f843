-- Closes a mailbox. An empty element keeps the list for its time to live, so that late
-- messages do not create a list without one.
--
-- KEYS[1]  list       list  the mailbox
-- KEYS[2]  bindings   set   optional: the bindings of the exchange
-- KEYS[3]  deadlines  zset  with KEYS[2]: exchange -> deadline
-- ARGV[1]  ttl        milliseconds
-- ARGV[2]  binding    with KEYS[2]: member of `bindings`
-- ARGV[3]  exchange   with KEYS[2]: name
-- Returns 1.

local list, bindings, deadlines = KEYS[1], KEYS[2], KEYS[3]
local ttl, binding, exchange = ARGV[1], ARGV[2], ARGV[3]

redis.call('DEL', list)
redis.call('RPUSH', list, '')
redis.call('PEXPIRE', list, ttl)
if bindings then
  redis.call('SREM', bindings, binding)
  if redis.call('EXISTS', bindings) == 0 then
    redis.call('ZREM', deadlines, exchange)
  end
end
return 1
