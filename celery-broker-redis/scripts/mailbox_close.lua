-- Closes a mailbox. An empty element stays for a while: what is on its way
-- still finds a list with a time to live.
--
-- KEYS  the list; for a bound mailbox the bindings of the exchange and the
--       deadlines of all exchanges
-- ARGV  the time to live in milliseconds; the binding; the exchange

redis.call('DEL', KEYS[1])
redis.call('RPUSH', KEYS[1], '')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
if KEYS[2] then
  redis.call('SREM', KEYS[2], ARGV[2])
  if redis.call('EXISTS', KEYS[2]) == 0 then
    redis.call('ZREM', KEYS[3], ARGV[3])
  end
end
return 1
