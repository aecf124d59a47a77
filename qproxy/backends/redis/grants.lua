-- Grants of one kind. KEYS[1]: a hash, from a digest to "<end> <epoch>".
-- ARGV: 'add', digest, end, epoch, limit | 'has', digest | 'revoke', digest | 'retain', epoch
-- Times are Unix seconds by this server's clock. A hash ends with its last grant.
local key, action = KEYS[1], ARGV[1]
local time = redis.call('TIME')
local now = tonumber(time[1])

local function parse(value) return tonumber(string.match(value, '^%S+')), string.match(value, ' (.*)$') end

if action == 'has' then
  local value = redis.call('HGET', key, ARGV[2])
  return value and parse(value) > now and 1 or 0
end

if action == 'revoke' then return redis.call('HDEL', key, ARGV[2]) end

if action == 'retain' then
  local all = redis.call('HGETALL', key)
  for n = 1, #all, 2 do
    local _, epoch = parse(all[n + 1])
    if epoch ~= ARGV[2] then redis.call('HDEL', key, all[n]) end
  end
  return 1
end

local seconds, limit = math.ceil(ARGV[3] - now), ARGV[5] + 0
if seconds <= 0 then return 0 end
redis.call('HSET', key, ARGV[2], ARGV[3] .. ' ' .. ARGV[4])
if redis.call('TTL', key) < seconds then redis.call('EXPIRE', key, seconds) end
if redis.call('HLEN', key) > limit then  -- a tenth at once: sorting for each grant would cost more
  local all, ends = redis.call('HGETALL', key), {}
  for n = 1, #all, 2 do ends[#ends + 1] = {(parse(all[n + 1])), all[n]} end
  table.sort(ends, function(a, b) return a[1] > b[1] end)
  for n = math.floor(limit * 0.9) + 1, #ends do redis.call('HDEL', key, ends[n][2]) end
end
return 1
