-- One conversation. KEYS[1]: a hash with 'created', 'metadata' (sealed), 'last' (the place of the last item), 'bytes' (of
-- all items), and for each item "i:<name>" (sealed), "n:<name>" (its place) and "p:<place>" (its name).
-- ARGV: action, max age in seconds, and
--   'create', created, metadata, max bytes, (name, item)...  -> 1, -1 if it would be too large
--   'append', max bytes, (name, item)...                     -> 1, -1, 0 if there is no conversation
--   'get'                                                    -> created, metadata
--   'update', metadata                                       -> 1, 0
--   'items', first place, bytes                              -> the place that follows, name, item, name, item...
--   'remove', name                                           -> 1, -1 without such an item, 0
--   'delete'                                                 -> 1, 0
local key, action, max_age = KEYS[1], ARGV[1], math.ceil(ARGV[2])

local function use()
  if redis.call('TTL', key) < max_age - 3600 or action ~= 'items' then redis.call('EXPIRE', key, max_age) end
end

local function append(first, limit)
  local bytes, added, names = tonumber(redis.call('HGET', key, 'bytes') or 0), {}, {}
  for n = first, #ARGV, 2 do
    local name = ARGV[n]
    if not names[name] and redis.call('HEXISTS', key, 'n:' .. name) == 0 then
      names[name] = true
      added[#added + 1] = n
      bytes = bytes + #ARGV[n + 1]
    end
  end
  if bytes > limit then return -1 end
  local place = tonumber(redis.call('HGET', key, 'last') or 0)
  for _, n in ipairs(added) do
    place = place + 1
    redis.call('HSET', key, 'i:' .. ARGV[n], ARGV[n + 1], 'n:' .. ARGV[n], place, 'p:' .. place, ARGV[n])
  end
  redis.call('HSET', key, 'last', place, 'bytes', bytes)
  return 1
end

if action == 'create' then
  redis.call('DEL', key)
  local outcome = append(6, tonumber(ARGV[5]))
  if outcome == 1 then
    redis.call('HSET', key, 'created', ARGV[3], 'metadata', ARGV[4])
    use()
  end
  return outcome
end

if redis.call('EXISTS', key) == 0 then return 0 end
if action == 'delete' then return redis.call('DEL', key) end
if action == 'get' then return redis.call('HMGET', key, 'created', 'metadata') end
use()
if action == 'append' then return append(4, tonumber(ARGV[3])) end
if action == 'update' then
  redis.call('HSET', key, 'metadata', ARGV[3])
  return 1
end
if action == 'remove' then
  local name = ARGV[3]
  local place, item = unpack(redis.call('HMGET', key, 'n:' .. name, 'i:' .. name))
  if not place then return -1 end
  redis.call('HDEL', key, 'i:' .. name, 'n:' .. name, 'p:' .. place)
  redis.call('HSET', key, 'bytes', redis.call('HGET', key, 'bytes') - #item)
  return 1
end

local place, last, size = tonumber(ARGV[3]), tonumber(redis.call('HGET', key, 'last')), 0
local reply = {0}
while place <= last and size < tonumber(ARGV[4]) do
  local name = redis.call('HGET', key, 'p:' .. place)
  if name then
    local item = redis.call('HGET', key, 'i:' .. name)
    reply[#reply + 1] = name
    reply[#reply + 1] = item
    size = size + #item
  end
  place = place + 1
end
reply[1] = place <= last and place or 0
return reply
