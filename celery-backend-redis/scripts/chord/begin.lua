-- Starts a chord: stores its size and the result tree of its header.
--
-- ARGV[1]  chord_id  id of the chord's group
-- ARGV[2]  size      count of members
-- ARGV[3]  expires   seconds; "0" for no expiry
-- ARGV[4]  tree      encoded result tree, or empty
-- Returns 1.

local chord_id, size, expires, tree = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

-- Results of an earlier chord with this id do not count.
if is_over() then
  redis.call('DEL', results_key, added_key, counted_key, body_key)
  redis.call('ZREM', index_key, chord_id)
end
-- A stale claim would prevent every worker from sending the body.
redis.call('DEL', claim_key)

local function set(key, value)
  if expires == '0' then
    redis.call('SET', key, value)
  else
    redis.call('SET', key, value, 'EX', expires)
  end
end
set(size_key, size)
if tree ~= '' then set(tree_key, tree) end
return 1
