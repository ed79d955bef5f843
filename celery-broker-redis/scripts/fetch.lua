-- Takes messages from queues and notes who holds them, in one step: there is
-- no moment at which a message is in no structure.
--
-- KEYS  the index of held deliveries; the held deliveries; the lists, all of
--       one priority step before those of the next; one holding hash a queue
-- ARGV  how many to take; "1" to take from the queues in turns; the beginning
--       of new delivery tags; the number that follows it; how many queues;
--       then for each queue its name and the end of its entries
--
-- Answers a flat list of tag, number of the queue, message.

local most = tonumber(ARGV[1])
local in_turns = ARGV[2] == '1'
local prefix, number = ARGV[3], tonumber(ARGV[4])
local queues = tonumber(ARGV[5])
local steps = (#KEYS - 2 - queues) / queues

-- An answer is one piece in memory on both sides, so it is bounded.
local room = 16 * 1024 * 1024

local answer, index, entries = {}, {}, {}
local failure
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])

-- What is not JSON of the right form must not become an entry: one such entry
-- makes kombu's restore raise, and strands everything that is held by anybody.
-- Measured on Redis 7.0: of 16 microseconds that this script spends on a message
-- of 0.9 kB (taken 100 at a time), 7 are for parsing it; of 720 on one of
-- 100 kB, 390. The server does nothing else meanwhile, so of enormous messages
-- only both ends are looked at: that finds what was cut off. The client parses
-- each of them anyway and settles what is no message at once.
local large = 4 * 1024 * 1024

-- kombu's restore writes into these three, and a list there makes it raise, too.
-- Lua has one type for maps and lists, so of empty ones the text is looked at.
local function is_map(raw, name, value)
  if type(value) ~= 'table' or value[1] ~= nil then return false end
  return next(value) ~= nil or not string.find(raw, '"' .. name .. '"%s*:%s*%[')
end

local function is_envelope(raw)
  if #raw > large and string.byte(raw, 1) == 123 and string.byte(raw, -1) == 125 then
    return true
  end
  local ok, envelope = pcall(cjson.decode, raw)
  return ok and type(envelope) == 'table' and type(envelope.body) == 'string'
    and is_map(raw, 'headers', envelope.headers)
    and is_map(raw, 'properties', envelope.properties)
    and (envelope.properties.delivery_info == nil
      or is_map(raw, 'delivery_info', envelope.properties.delivery_info))
end

-- Nothing may fail between a pop and its record, so types are looked at first.
local function is_ready(queue)
  local checks = { { 'ZCARD', KEYS[1] }, { 'HLEN', KEYS[2] }, { 'HLEN', KEYS[2 + steps * queues + queue] } }
  for _, check in ipairs(checks) do
    local answered = redis.pcall(check[1], check[2])
    if type(answered) == 'table' then
      failure = answered
      return false
    end
  end
  return true
end

local function take(key, queue)
  local raw = redis.call('RPOP', key)
  local tag = prefix .. string.format('%d', number) .. ':' .. ARGV[4 + 2 * queue]
  number = number + 1
  if is_envelope(raw) then
    index[#index + 1] = now
    index[#index + 1] = tag
    entries[#entries + 1] = tag
    entries[#entries + 1] = '[' .. raw .. ARGV[5 + 2 * queue]
  else
    tag = 'raw:' .. tag
    redis.call('HSET', KEYS[2 + steps * queues + queue], tag, raw)
  end
  answer[#answer + 1] = tag
  answer[#answer + 1] = queue
  answer[#answer + 1] = raw
  most = most - 1
  room = room - #raw
end

local function is_full()
  return failure or most <= 0 or room <= 0
end

for step = 0, steps - 1 do
  -- Reading the lengths also makes the server tell us when they change.
  local open = {}
  for queue = 1, queues do
    local key = KEYS[2 + step * queues + queue]
    local length = redis.pcall('LLEN', key)
    if type(length) == 'table' then
      failure = length
    elseif length > 0 and is_ready(queue) then
      open[#open + 1] = { key = key, queue = queue, length = length }
    end
  end
  while #open > 0 and not is_full() do
    local left = {}
    for _, list in ipairs(open) do
      repeat
        if is_full() then break end
        take(list.key, list.queue)
        list.length = list.length - 1
      until in_turns or list.length == 0
      if list.length > 0 then left[#left + 1] = list end
    end
    open = left
  end
  if is_full() then break end
end

if #index > 0 then
  redis.call('ZADD', KEYS[1], unpack(index))
  redis.call('HSET', KEYS[2], unpack(entries))
end
-- What was taken goes out first; the failure comes again with the next call.
if failure and #answer == 0 then return failure end
return answer
