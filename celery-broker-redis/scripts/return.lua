-- Returns unacked deliveries to the head of their queue, without the redelivered flags.
--
-- KEYS[1]     unacked        hash  tag -> entry `[envelope, exchange, routing_key]`
-- KEYS[2]     unacked_index  zset  tag -> time of delivery, in seconds
-- KEYS[3...]  lists          list  the list of priority 0, 1, ... 9
-- ARGV[1]     suffix         the end of the queue's entries after the envelope
-- ARGV[2...]  tags           delivery tags; the delivery of the last one is delivered first
-- Returns the number of tags that are done, in order: 0 if the entry of the first one has
-- another form.

local unacked, unacked_index, suffix = KEYS[1], KEYS[2], ARGV[1]

-- The server runs nothing else meanwhile.
local room = 4 * 1024 * 1024

-- Returns envelope and list of an entry; none for an entry of another form.
local function parse(entry)
  if #entry > room or string.byte(entry, 1) ~= 91 or string.sub(entry, -#suffix) ~= suffix then
    return
  end
  local envelope = string.sub(entry, 2, -#suffix - 1)
  local ok, message = pcall(cjson.decode, envelope)
  if not ok or type(message) ~= 'table' or type(message.properties) ~= 'table' then return end
  local priority = message.properties.priority
  if priority == nil or priority == cjson.null then priority = 0 end
  if type(priority) ~= 'number' or priority % 1 ~= 0 or priority < 0 or priority > 255 then
    return
  end
  return envelope, KEYS[3 + math.min(priority, 9)]
end

local failure = check_removal(unacked, unacked_index)
if failure then return failure end
local count = 0
for position = 2, #ARGV do
  local tag = ARGV[position]
  local entry = redis.call('HGET', unacked, tag)
  if entry then
    if #entry > room and count > 0 then break end
    local envelope, list = parse(entry)
    if not envelope then break end
    local _, failure = try('RPUSH', list, envelope)
    if failure then
      -- What was returned is reported first; the next call fails with the same error.
      if count == 0 then return failure end
      break
    end
    redis.call('HDEL', unacked, tag)
    room = room - #entry
  end
  redis.call('ZREM', unacked_index, tag)
  count = count + 1
end
return count
