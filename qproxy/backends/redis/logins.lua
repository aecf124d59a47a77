-- The login of one account: which process runs it, its progress, and whether it is to be cancelled.
-- KEYS[1]: hash with the fields owner, progress, written, ends, finished, cancelled.   ARGV: operation, its arguments
local operation, owner = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local found = redis.call('HMGET', KEYS[1], 'owner', 'progress', 'written', 'finished', 'cancelled', 'ends')
if now > tonumber(found[6] or 0) then
  found = {}
  redis.call('DEL', KEYS[1])
end
local in_progress = found[1] and found[4] ~= '1'

local function write(finished, seconds)
  redis.call('HSET', KEYS[1], 'owner', owner, 'progress', ARGV[3], 'written', now, 'finished', finished,
    'ends', now + seconds * 1000)
  redis.call('EXPIRE', KEYS[1], seconds)
end

if operation == 'start' then    -- owner, progress, seconds: 1 if this process may run it
  if in_progress and found[1] ~= owner then return 0 end
  if not in_progress then redis.call('DEL', KEYS[1]) end
  write('0', ARGV[4])
  return 1
elseif operation == 'write' then    -- owner, progress, seconds, 1 if it is finished: 1 if it is to be cancelled
  if found[1] and found[1] ~= owner then return 0 end
  write(ARGV[5], ARGV[4])
  return tonumber(found[5] or 0)
elseif operation == 'cancel' then    -- channel, message
  if in_progress then
    redis.call('HSET', KEYS[1], 'cancelled', 1)
    redis.call('PUBLISH', ARGV[2], ARGV[3])
  end
end
return {found[2] or '', found[3] and now - tonumber(found[3]) or 0}    -- progress, its age in milliseconds
