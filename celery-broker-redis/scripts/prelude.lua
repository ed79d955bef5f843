-- The first part of every script that moves messages. Nothing is removed before all that
-- can fail has been done: types and permissions do not change within a script, and a full
-- memory refuses only a script's first write.

-- Runs a command. Returns its reply, or nil and an error that names the key.
local function try(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  local cause = reply.err
  -- Before Redis 7.2 the error of a missing permission has no code.
  if string.find(cause, 'user executing the script') then
    cause = 'NOPERM ' .. string.gsub(cause, '^ERR ', '')
  end
  return nil, { err = cause .. ' (' .. command .. ' ' .. key .. ')' }
end

-- Removes nothing from the hash of deliveries and the index. Returns the error that a
-- removal would have.
local function check_removal(deliveries, unacked_index)
  local _, failure = try('HDEL', deliveries, '\0')
  if not failure then _, failure = try('ZREM', unacked_index, '\0') end
  return failure
end

