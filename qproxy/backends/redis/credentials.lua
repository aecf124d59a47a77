-- The tokens of one account: the newest ones, and which process may exchange the refresh token.
-- KEYS[1]: hash with the fields generation, sealed, lease, until, sent, sender, sends.   ARGV: operation, its arguments
local operation, lease = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local found = redis.call('HMGET', KEYS[1], 'generation', 'sealed', 'lease', 'until', 'sent', 'sends', 'sender')
local generation, sealed = tonumber(found[1] or 0), found[2] or ''
local ends, sent, sends = tonumber(found[4] or 0), found[5], tonumber(found[6] or 0)
local is_holder = found[3] == lease

if operation == 'acquire' then    -- lease, milliseconds: {whether it is taken, generation, sealed}
  if found[3] and not is_holder and now < ends then return {0, generation, sealed} end
  redis.call('HSET', KEYS[1], 'lease', lease, 'until', now + tonumber(ARGV[3]))
  return {1, generation, sealed}
elseif operation == 'release' then    -- lease
  if is_holder then redis.call('HDEL', KEYS[1], 'lease', 'until') end
elseif operation == 'send' then
  -- lease, digest of a refresh token, milliseconds that its exchange may take, 1 if it is urgent, lease of an earlier
  -- send of which nothing came: the last step before it is sent.
  -- 0: the lease is lost; 1: send it; 2: another process sent it, with an unknown outcome; 3: never send it again
  if not is_holder or ends - now < tonumber(ARGV[4]) then return 0 end
  if sent == ARGV[3] and found[7] ~= ARGV[6] then
    if sends > 1 then return 3 end
    if ARGV[5] ~= '1' then return 2 end
  else
    sends = 0
  end
  redis.call('HSET', KEYS[1], 'sent', ARGV[3], 'sends', sends + 1, 'sender', lease)
  return 1
elseif operation == 'forget' then    -- lease, digest: the outcome is known; nothing came of it
  if sent == ARGV[3] and found[7] == lease then
    if sends > 1 then
      redis.call('HSET', KEYS[1], 'sends', 1)
    else
      redis.call('HDEL', KEYS[1], 'sent', 'sends', 'sender')
    end
  end
elseif operation == 'reject' then    -- lease, digest: the identity server has rejected it
  if sent == ARGV[3] then redis.call('HSET', KEYS[1], 'sends', 2, 'sender', '') end
elseif operation == 'write' then    -- generation, sealed, channel: the newest ones win, whoever sends them, however often
  if tonumber(lease) > generation then
    redis.call('HSET', KEYS[1], 'generation', lease, 'sealed', ARGV[3])
    redis.call('HDEL', KEYS[1], 'sent', 'sends', 'sender')
    redis.call('PUBLISH', ARGV[4], KEYS[1])
    return {tonumber(lease), ARGV[3]}
  end
  return {generation, sealed}
elseif operation == 'read' then
  return {generation, sealed}
end
return 0
