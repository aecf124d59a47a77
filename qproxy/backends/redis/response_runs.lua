-- The run of one response and its events. KEYS[1]: a hash with 'lease' and 'ended' (Unix seconds), 'cancelled', 'next'
-- (number of the next event), 'low' and 'high' (places of the first and last batch), 'bytes' (of all batches), and for each
-- batch "f:<place>" (number of its first event) and "b:<place>" (its events, sealed).
-- ARGV: action, seconds after the end until the events are deleted, and
--   'start', lease, max bytes, (first, count, batch)...   -> 1
--   'save', max bytes, (first, count, batch)...           -> 1, ended at once
--   'append', lease, max bytes, first, (first, count, batch)...  -> 'continue', 'cancel' or 'stop'; events from `first` on that
--       an earlier attempt has appended are replaced
--   'finish'                -> 1, 0 if it was not active
--   'cancel'                -> 1, 0
--   'lost'                  -> 1 if it has ended, now or before, or is not there; 0 if its lease has not expired
--   'read', start, bytes    -> 'active', 'lost' or 'ended'; the next number; first, batch, first, batch...
--   'delete'                -> 1, 0
-- Times are by this server's clock.
local key, action, seconds = KEYS[1], ARGV[1], math.ceil(ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + time[2] / 1e6

local function get(name) return tonumber(redis.call('HGET', key, name) or 0) end

local function drop(place)
  redis.call('HSET', key, 'bytes', get('bytes') - #redis.call('HGET', key, 'b:' .. place))
  redis.call('HDEL', key, 'f:' .. place, 'b:' .. place)
end

local function insert(index, limit)
  for n = index, #ARGV, 3 do
    local high, first, batch = get('high') + 1, ARGV[n], ARGV[n + 2]
    redis.call('HSET', key, 'f:' .. high, first, 'b:' .. high, batch, 'high', high)
    redis.call('HSET', key, 'next', first + ARGV[n + 1], 'bytes', get('bytes') + #batch)
  end
  while get('bytes') > limit and get('low') < get('high') do
    drop(get('low'))
    redis.call('HSET', key, 'low', get('low') + 1)
  end
end

local function live(lease)
  redis.call('HSET', key, 'lease', string.format('%.3f', now + lease))
  redis.call('EXPIRE', key, seconds + math.ceil(lease))
end

local function finish()
  redis.call('HSET', key, 'ended', string.format('%.3f', now))
  redis.call('EXPIRE', key, seconds)
end

if action == 'start' or action == 'save' then
  redis.call('DEL', key)
  redis.call('HSET', key, 'low', 1, 'high', 0, 'next', 0)
  if action == 'start' then
    live(ARGV[3])
    insert(5, tonumber(ARGV[4]))
  else
    insert(4, tonumber(ARGV[3]))
    finish()
  end
  return 1
end

local exists = redis.call('EXISTS', key) == 1
local ended = redis.call('HGET', key, 'ended')
local expired = exists and not ended and get('lease') < now

if action == 'delete' then return redis.call('DEL', key) end
if action == 'append' then
  if not exists or ended then return 'stop' end
  live(ARGV[3])
  if #ARGV > 5 then
    local high = get('high')
    while high >= get('low') and get('f:' .. high) >= tonumber(ARGV[5]) do
      drop(high)
      high = high - 1
    end
    redis.call('HSET', key, 'high', high)
    insert(6, tonumber(ARGV[4]))
  end
  return redis.call('HGET', key, 'cancelled') and 'cancel' or 'continue'
elseif action == 'finish' then
  if not exists or ended then return 0 end
  finish()
  return 1
elseif action == 'cancel' then
  if not exists or ended or expired then return 0 end
  redis.call('HSET', key, 'cancelled', 1)
  return 1
elseif action == 'lost' then
  if expired then finish() end
  return (not exists or ended or expired) and 1 or 0
end

if not exists then return false end
local reply = {ended and 'ended' or expired and 'lost' or 'active', get('next')}
local start, place, high, size = tonumber(ARGV[3]), get('high'), get('high'), 0
while place > get('low') and get('f:' .. place) > start do place = place - 1 end
while place <= high and place >= get('low') and size < tonumber(ARGV[4]) do
  local batch = redis.call('HGET', key, 'b:' .. place)
  reply[#reply + 1] = get('f:' .. place)
  reply[#reply + 1] = batch
  size, place = size + #batch, place + 1
end
return reply
