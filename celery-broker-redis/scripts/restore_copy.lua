-- Returns a message to a list, whether its delivery is still unacked or was
-- acknowledged. Afterwards an acknowledgement of the delivery finds nothing.
--
-- KEYS[1]  unacked        hash  tag -> entry
-- KEYS[2]  unacked_index  zset  tag -> time of delivery, in seconds
-- KEYS[3]  list           list  the target
-- ARGV[1]  tag            delivery tag
-- ARGV[2]  message        envelope
-- Returns 1.

local unacked, unacked_index, list = KEYS[1], KEYS[2], KEYS[3]
local tag, message = ARGV[1], ARGV[2]

local failure = check_removal(unacked, unacked_index)
if failure then return failure end
local _
_, failure = try('RPUSH', list, message)
if failure then return failure end
redis.call('HDEL', unacked, tag)
redis.call('ZREM', unacked_index, tag)
return 1
