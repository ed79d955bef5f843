-- Stores a result document and tells those who wait for it, unless the task
-- has succeeded already.
--
-- KEYS  the document's key, which is also the channel
-- ARGV  the document; the seconds it is kept, 0 for ever; what is stored now
--       according to the caller, or empty when he does not know
--
-- Answers nothing when it is done or not needed. Otherwise the answer is what
-- is stored now, in a form that only the caller can read.

local old = redis.call('GET', KEYS[1])
if old and old ~= ARGV[3] then
  -- Celery and we write the status first, so that one look at the start is
  -- enough and no value that looks like a status can deceive.
  if string.find(old, '^{"status": ?"SUCCESS"') then return nil end
  if not string.find(old, '^{"status": ?"') then
    local ok, document = pcall(cjson.decode, old)
    if not ok then return old end
    if type(document) == 'table' and document.status == 'SUCCESS' then return nil end
  end
end
if ARGV[2] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
return nil
