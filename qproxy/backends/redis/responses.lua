-- The responses of one conversation.
-- KEYS[1]: a hash, from the id of a response to its sealed body, and from "<id>:m" to "<last use> <bytes>
-- <previous id>"; 'bytes' is their sum, 'pruned' when expired ones were last looked for.
-- ARGV: 'save', max age, id, previous id, body, max bytes of the conversation -> 1, 0 if that would be exceeded
--     | 'get', max age, id -> previous id, body
--     | 'walk', max age, id, seconds between two updates of the last use, bytes -> previous id, body of the
--       response, of the one before it, and so on: until one is not here, or the bytes are exceeded
--     | 'delete', max age, id -> 1, 0 if there is none
--     | 'clear' -> how many there were
-- Times are Unix seconds by this server's clock.
local key, action, max_age, id = KEYS[1], ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = math.floor(time[1])

local function parse(meta)
  local used, bytes, previous = string.match(meta, '^(%d+) (%d+) (.*)$')
  return tonumber(used), tonumber(bytes), previous
end

local function find(id)
  local meta = redis.call('HGET', key, id .. ':m')
  if meta then
    local used, bytes, previous = parse(meta)
    if now - used < max_age then return used, bytes, previous end
  end
end

local function touch(id, bytes, previous)
  redis.call('HSET', key, id .. ':m', string.format('%d %d %s', now, bytes, previous))
  redis.call('EXPIRE', key, math.ceil(max_age))
end

local function drop(id)
  local meta = redis.call('HGET', key, id .. ':m')
  if not meta then return 0 end
  local _, bytes = parse(meta)
  redis.call('HSET', key, 'bytes', (redis.call('HGET', key, 'bytes') or 0) - bytes)
  redis.call('HDEL', key, id, id .. ':m')
  return 1
end

local function ids()
  local found = {}
  for _, name in ipairs(redis.call('HKEYS', key)) do
    found[#found + 1] = string.match(name, '^(.*):m$')
  end
  return found
end

if action == 'save' then
  if now - (redis.call('HGET', key, 'pruned') or 0) >= 3600 then
    for _, old in ipairs(ids()) do
      if not find(old) then drop(old) end
    end
    redis.call('HSET', key, 'pruned', now)
  end
  drop(id)
  local total = (redis.call('HGET', key, 'bytes') or 0) + #ARGV[5]
  if total > ARGV[6] + 0 then return 0 end
  redis.call('HSET', key, id, ARGV[5], 'bytes', total)
  touch(id, #ARGV[5], ARGV[4])
  return 1
elseif action == 'delete' then
  return drop(id)
elseif action == 'clear' then
  local count = #ids()
  redis.call('DEL', key)
  return count
end

local reply, size, seconds, limit = {}, 0, tonumber(ARGV[4]), tonumber(ARGV[5] or 0)
repeat
  local used, bytes, previous = find(id)
  if not used then break end
  if seconds and now - used >= seconds then touch(id, bytes, previous) end
  reply[#reply + 1] = previous
  reply[#reply + 1] = redis.call('HGET', key, id)
  size, id = size + bytes, previous
until id == '' or size >= limit
return reply
