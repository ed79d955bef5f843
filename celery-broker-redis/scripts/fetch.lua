-- Moves messages from queues to the unacked deliveries in one atomic step, so that
-- every message is in a key at all times. A message that is not a valid envelope moves
-- to the quarantine hash of its queue.
--
-- KEYS[1]      unacked_index  zset  tag -> time of delivery, in seconds
-- KEYS[2]      unacked        hash  tag -> entry `[envelope, exchange, routing_key]`
-- KEYS[3...]   lists          list  one list per queue of the first priority step, then of the next
-- KEYS[...]    quarantine     hash  tag -> raw bytes: one hash per queue, after all lists
-- ARGV[1]      max            count of messages to take
-- ARGV[2]      round_robin    "1" takes one message per queue in turn; "0" empties them in order
-- ARGV[3]      tag_prefix     text at the start of each new delivery tag
-- ARGV[4]      number         number after the prefix in the first new tag; the next tags count up
-- ARGV[5]      queue_count    count of queues
-- ARGV[6...]   name, suffix   per queue: its name, and the end of its entries after the envelope
-- Returns {tag, queue, message, tag, queue, message, ...}: `queue` counts from 1.

local unacked_index, unacked = KEYS[1], KEYS[2]
local max, round_robin = tonumber(ARGV[1]), ARGV[2] == '1'
local tag_prefix, number = ARGV[3], tonumber(ARGV[4])
local queue_count = tonumber(ARGV[5])
local step_count = (#KEYS - 2 - queue_count) / queue_count

local function list_key(step, queue) return KEYS[2 + (step - 1) * queue_count + queue] end
local function quarantine_key(queue) return KEYS[2 + step_count * queue_count + queue] end
local function queue_name(queue) return ARGV[4 + 2 * queue] end
local function entry_suffix(queue) return ARGV[5 + 2 * queue] end

-- Server and client each hold a reply in memory as a whole, so its size in bytes is
-- bounded.
local room = 16 * 1024 * 1024

-- Envelopes above this size are not parsed, see `is_envelope`.
local max_parsed = 4 * 1024 * 1024

local reply, index, entries = {}, {}, {}
local failure
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])

-- kombu's restore writes into `headers`, `properties` and `delivery_info`, and raises
-- where one is a list. Lua has one type for maps and lists, so for empty ones the text
-- decides.
local function is_map(raw, name, value)
  if type(value) ~= 'table' or value[1] ~= nil then return false end
  return next(value) ~= nil or not string.find(raw, '"' .. name .. '"%s*:%s*%[')
end

-- Only a JSON envelope of the expected form may become an entry: one malformed entry
-- makes kombu's restore raise, and blocks the restore of all unacked deliveries.
-- Measured on Redis 7.0: of the 16 microseconds per message of 0.9 kB (100 per call) 7
-- are for parsing; of the 720 per message of 100 kB, 390. The server runs nothing else
-- meanwhile, so of a very large message only the first and the last byte are checked,
-- which detects truncation. The client parses every message and settles a malformed one
-- immediately.
local function is_envelope(raw)
  if #raw > max_parsed and string.byte(raw, 1) == 123 and string.byte(raw, -1) == 125 then
    return true
  end
  local ok, envelope = pcall(cjson.decode, raw)
  return ok and type(envelope) == 'table' and type(envelope.body) == 'string'
    and is_map(raw, 'headers', envelope.headers)
    and is_map(raw, 'properties', envelope.properties)
    and (envelope.properties.delivery_info == nil
      or is_map(raw, 'delivery_info', envelope.properties.delivery_info))
end

-- No command may fail between a pop and its record, so the types of the target keys are
-- checked first.
local function can_record(queue)
  local quarantine = quarantine_key(queue)
  local checks = { { 'ZCARD', unacked_index }, { 'HLEN', unacked }, { 'HLEN', quarantine } }
  for _, check in ipairs(checks) do
    local checked = redis.pcall(check[1], check[2])
    if type(checked) == 'table' then
      failure = checked
      return false
    end
  end
  return true
end

local function take(key, queue)
  local raw = redis.call('RPOP', key)
  local tag = tag_prefix .. string.format('%d', number) .. ':' .. queue_name(queue)
  number = number + 1
  if is_envelope(raw) then
    index[#index + 1] = now
    index[#index + 1] = tag
    entries[#entries + 1] = tag
    entries[#entries + 1] = '[' .. raw .. entry_suffix(queue)
  else
    tag = 'raw:' .. tag
    redis.call('HSET', quarantine_key(queue), tag, raw)
  end
  reply[#reply + 1] = tag
  reply[#reply + 1] = queue
  reply[#reply + 1] = raw
  max = max - 1
  room = room - #raw
end

local function is_full()
  return failure or max <= 0 or room <= 0
end

for step = 1, step_count do
  -- LLEN also registers the list for client-side caching: the server then notifies this
  -- connection of changes.
  local nonempty = {}
  for queue = 1, queue_count do
    local key = list_key(step, queue)
    local length = redis.pcall('LLEN', key)
    if type(length) == 'table' then
      failure = length
    elseif length > 0 and can_record(queue) then
      nonempty[#nonempty + 1] = { key = key, queue = queue, length = length }
    end
  end
  while #nonempty > 0 and not is_full() do
    local remaining = {}
    for _, list in ipairs(nonempty) do
      repeat
        if is_full() then break end
        take(list.key, list.queue)
        list.length = list.length - 1
      until round_robin or list.length == 0
      if list.length > 0 then remaining[#remaining + 1] = list end
    end
    nonempty = remaining
  end
  if is_full() then break end
end

if #index > 0 then
  redis.call('ZADD', unacked_index, unpack(index))
  redis.call('HSET', unacked, unpack(entries))
end
-- Messages that were taken are returned first; the next call fails with the same error.
if failure and #reply == 0 then return failure end
return reply
