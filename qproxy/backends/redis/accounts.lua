-- The state of one account (KEYS[1], a hash): publish what happened in a process, and return what happened in all.
-- All time is the server's.
--
-- ARGV: process, number (0: not numbered), channel, name, version that is known, kind ("offer" to a server that has
-- lost data, "event" for a new version, or "counts"), then operations:
--   cool KEY TEXT, drop KEY, end KEY AT, wake AT, claim KEY TEXT: cooldowns, as "end since probing ..."
--   later FIELD AT TEXT, set FIELD TEXT, remove FIELD, add FIELD AMOUNT, least FIELD AMOUNT: other fields
--   tail TEXT, tailed TEXT: results appended, or put where there are none; sent COUNT: requests; flight COUNT
-- Reply: granted (1 or 0, of the claims), now, born, version; then fields and values, unless the version is known
--
-- Fields: b (when the hash was made), v (version: grows, also over a lost hash), n:PROCESS (number of its last write,
-- and when), c:KEY (cooldown), e:KEY (when a success ended it), woken, f:PROCESS (requests in flight, until when
-- that counts, and since when), m:SLOT (requests of ten seconds), next (when to clean up); others as they are named
local LEASE, KEPT, ENDED, MAX_COOLDOWNS, SLOT = 30, 86400, 60, 400, 10
local key, A = KEYS[1], ARGV
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local process, number, position = A[1], tonumber(A[2]), 7
local function take() position = position + 1 return A[position - 1] end
local function get(field) return redis.call('HGET', key, field) or nil end
local function put(field, value) redis.call('HSET', key, field, value) end
local function add(field, amount)  -- a field that is damaged starts again
  if type(redis.pcall('HINCRBY', key, field, amount)) == 'table' then put(field, amount) end
end
local function leading(text) return text and tonumber(string.match(text, '^%S+')) end
local function parse(text)
  local ends, since, probing, rest = string.match(text or '', '^(%S+) (%S+) (%S+)(.*)$')
  if ends then return {ends = tonumber(ends), since = tonumber(since), probing = probing == '1', rest = rest} end
end
local function number_of(field) return leading(get(field)) or -math.huge end
local function ended_at(name) return math.max(number_of('e:' .. name), number_of('woken')) end
local function end_cooldown(field, at)
  local stored = parse(get(field))
  if stored and stored.since <= at then redis.call('HDEL', key, field) end
end

-- The later deadline counts (`accounts.cooldowns.combine_cooldowns`).
local function cool(name, text)
  local new, stored = parse(text), parse(get('c:' .. name))
  if new.since <= ended_at(name) then return end
  if stored then
    if new.probing then
      local outdated = new.since < stored.since or new.ends <= stored.ends
      if outdated or (stored.probing and now < stored.ends) then return end
    elseif not (stored.probing and new.since > stored.since) then
      local since, kept = math.max(stored.since, new.since), new.ends >= stored.ends and new or stored
      text = string.format('%.6f %.6f %d%s', kept.ends, since, kept.probing and 1 or 0, kept.rest)
    end
  end
  put('c:' .. name, text)
end

local claims, granted = {}, 1
local operations = {
  cool = function() cool(take(), take()) end,
  drop = function() redis.call('HDEL', key, 'c:' .. take()) end,
  ['end'] = function()
    local name, at = take(), take()
    if tonumber(at) > number_of('e:' .. name) then put('e:' .. name, at) end
    end_cooldown('c:' .. name, tonumber(at))
  end,
  wake = function()
    local at = take()
    if tonumber(at) > number_of('woken') then put('woken', at) end
    for _, field in ipairs(redis.call('HKEYS', key)) do
      if string.sub(field, 1, 2) == 'c:' then end_cooldown(field, tonumber(at)) end
    end
  end,
  claim = function()
    local name, text = take(), take()
    local stored = parse(get('c:' .. name))
    if stored and stored.ends > now then granted = 0 end
    claims[#claims + 1] = {name, text}
  end,
  later = function()
    local field, at, text = take(), take(), take()
    if tonumber(at) >= number_of(field) then put(field, at .. ' ' .. text) end
  end,
  set = function() put(take(), take()) end,
  remove = function() redis.call('HDEL', key, take()) end,
  add = function() add(take(), take()) end,
  least = function()
    local field, amount = take(), take()
    if tonumber(amount) > number_of(field) then put(field, amount) end
  end,
  tail = function() put('results', string.sub((get('results') or '') .. take(), -20)) end,
  tailed = function()
    local text = take()
    if (get('results') or '') == '' then put('results', text) end
  end,
  sent = function() add('m:' .. math.floor(now / SLOT), take()) end,
  flight = function()
    local count = take()
    if count == '0' then redis.call('HDEL', key, 'f:' .. process)
    else put('f:' .. process, string.format('%s %.6f %.6f', count, now + LEASE, now)) end
  end,
}

local function clean()
  local all, cooldowns = redis.call('HGETALL', key), {}
  for n = 1, #all, 2 do
    local kind, name = string.match(all[n], '^(%l):(.*)$')
    local value, at = leading(all[n + 1]) or 0, tonumber(string.match(all[n + 1], '^%S+ (%S+)')) or 0
    local gone = kind == 'n' and at < now - KEPT or kind == 'f' and at < now
      or kind == 'm' and (tonumber(name) or 0) < now / SLOT - 7 or kind == 'e' and value < now - ENDED
      or kind == 'c' and value < now - KEPT
    if gone then redis.call('HDEL', key, all[n])
    elseif kind == 'c' then cooldowns[#cooldowns + 1] = {value, all[n]} end
  end
  table.sort(cooldowns, function(one, other) return one[1] < other[1] end)
  for n = 1, #cooldowns - MAX_COOLDOWNS do redis.call('HDEL', key, cooldowns[n][2]) end
end

-- A write is not executed on a hash that lacks what its sender knows: it comes again, after an offer.
local known, changed = A[5], false
local lacking = A[6] ~= 'offer' and number_of('v') < (tonumber(known) or -math.huge)
if position <= #A and not lacking and (number == 0 or number > number_of('n:' .. process)) then
  while position <= #A do operations[take()]() end
  for _, claim in ipairs(granted == 1 and claims or {}) do
    if parse(claim[2]).since > ended_at(claim[1]) then put('c:' .. claim[1], claim[2]) end
  end
  changed = #claims == 0 or granted == 1
end
if changed then
  if number > 0 then put('n:' .. process, string.format('%d %.6f', number, now)) end
  local version = get('v')
  if not get('b') then put('b', string.format('%.6f', now)) end
  if A[6] ~= 'counts' or not version then
    put('v', string.format('%.0f', math.max((tonumber(version) or 0) + 1, math.floor(now * 1e6))))
    redis.call('PUBLISH', A[3], A[4] .. ' ' .. process)
  end
  if now >= number_of('next') then
    clean()
    put('next', string.format('%.6f', now + LEASE))
  end
  redis.call('EXPIRE', key, 7776000)
  known = ''
end

local version = get('v') or ''
local reply = {granted, string.format('%.6f', now), get('b') or '', version}
if version == known then return reply end
local all = redis.call('HGETALL', key)
for n = 1, #all, 2 do
  local kind, value = string.match(all[n], '^(%l):'), all[n + 1]
  local ended = kind == 'f' and (tonumber(string.match(value, '^%S+ (%S+)')) or 0) <= now
  if kind ~= 'n' and not ended then reply[#reply + 1] = all[n] reply[#reply + 1] = value end
end
return reply
