-- Gets ready to count the parts of a chord.
--
-- ARGV  the id; how many parts there are; the seconds that is kept, 0 for ever;
--       the results of the header, or empty

-- A claim that was left behind would keep everybody from running the body.
-- What an earlier chord with this id has told is not of this one.
if is_over() then
  redis.call('DEL', parts, added, counted, sweep)
  redis.call('ZREM', index, ARGV[1])
end
redis.call('DEL', claim)

local function keep(key, value)
  if ARGV[3] == '0' then
    redis.call('SET', key, value)
  else
    redis.call('SET', key, value, 'EX', ARGV[3])
  end
end
keep(size, ARGV[2])
if ARGV[4] ~= '' then keep(tree, ARGV[4]) end
return 1
