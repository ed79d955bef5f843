-- Stores a result document and publishes it, unless the stored document says SUCCESS.
--
-- KEYS[1]  key       string  the document of the task; also the name of the channel
-- ARGV[1]  document  the new document
-- ARGV[2]  expires   seconds; "0" stores without expiry
-- ARGV[3]  known     the stored document that the caller has judged not to be a success, or empty
-- Returns nil if the document was stored or a success is kept; otherwise the stored
-- document, in a form that only the caller can parse.

local key = KEYS[1]
local document, expires, known = ARGV[1], ARGV[2], ARGV[3]

local old = redis.call('GET', key)
if old and old ~= known then
  -- Celery and this crate write the status first, so comparing the start suffices, and
  -- text inside the result is never taken for a status.
  if string.find(old, '^{"status": ?"SUCCESS"') then return nil end
  if not string.find(old, '^{"status": ?"') then
    local ok, stored = pcall(cjson.decode, old)
    if not ok then return old end
    if type(stored) == 'table' and stored.status == 'SUCCESS' then return nil end
  end
end
if expires == '0' then
  redis.call('SET', key, document)
else
  redis.call('SET', key, document, 'EX', expires)
end
redis.call('PUBLISH', key, document)
return nil
