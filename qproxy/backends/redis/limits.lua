-- One exchange of a process with the limits of one subject (KEYS[1], a hash): count what was used, grant what is
-- wanted. All time is the server's, and never goes back.
--
-- ARGV: process, number, asks (1 or 0), forgotten, processes, count of units,
--   for each unit: name, limit a minute (0: none), needed, wanted, taken (negative: returned), used, held;
--   count of budgets, for each: window, unit, limit (0: not checked), seed
-- Reply: granted (1 or 0), now, for each unit: granted, level; for each budget: used, held, when it resets
--
-- Fields: at (time of the last exchange), l:UNIT (level), h:UNIT (held by all), n:PROCESS (number of its last
-- exchange and what that granted), p:PROCESS (end of its lease and what it holds), next (when a lease may end first),
-- i:WINDOW (which one is counted), u:WINDOW:UNIT (used in it), s:SLOT:UNIT (used in five minutes, for 5h)
local LEASE, KEPT, ROUNDING = 30, 86400, 1e-6
local key, A = KEYS[1], ARGV
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local process, number, asks, forgotten, processes = A[1], A[2] + 0, A[3] == '1', A[4] + 0, A[5] + 0
local units, budgets, by_unit, windows, position = {}, {}, {}, {}, 7
for n = 1, A[6] + 0 do
  local u = {name = A[position], limit = A[position + 1] + 0, need = A[position + 2] + 0, want = A[position + 3] + 0,
    taken = A[position + 4] + 0, used = A[position + 5] + 0, held = A[position + 6] + 0, granted = 0}
  units[n], by_unit[u.name], position = u, u, position + 7
end
for n = 1, A[position] + 0 do
  local first = position + 1 + (n - 1) * 4
  budgets[n] = {window = A[first], unit = A[first + 1], limit = A[first + 2] + 0, seed = A[first + 3] + 0}
end

local names, fields = {'at', 'next', 'n:' .. process, 'p:' .. process}, {}
for _, u in ipairs(units) do names[#names + 1] = 'l:' .. u.name names[#names + 1] = 'h:' .. u.name end
for _, b in ipairs(budgets) do
  names[#names + 1] = 'i:' .. b.window
  names[#names + 1] = 'u:' .. b.window .. ':' .. b.unit
end
local values = redis.call('HMGET', key, unpack(names))
for n, name in ipairs(names) do fields[name] = values[n] or nil end
local changes = {}
local function put(name, value)
  if type(value) == 'number' then value = string.format('%.15g', value) end
  changes[#changes + 1] = name changes[#changes + 1] = value
end
local function stored(name, default) return fields[name] and fields[name] + 0 or default end
local function amounts(text)
  local found = {}
  for name, value in string.gmatch(text or '', '(%S+)=(%S+)') do found[name] = value + 0 end
  return found
end
local function packed(first, field)
  local text = {string.format('%.15g', first)}
  for _, u in ipairs(units) do text[#text + 1] = u.name .. '=' .. string.format('%.15g', u[field]) end
  return table.concat(text, ' ')
end

local at = stored('at', now)
now = math.max(now, at)
put('at', string.format('%.6f', now))
local last = tonumber(string.match(fields['n:' .. process] or '0', '^%d+'))
local again = number <= last

-- Levels per minute. A server that forgot all starts with what has been refilled since.
for _, u in ipairs(units) do
  if u.limit > 0 then
    local start = forgotten > 0 and u.limit * math.max(0, now - forgotten) / 60 or u.limit
    local level = fields['l:' .. u.name] and fields['l:' .. u.name] + u.limit * (now - at) / 60 or start
    u.level = math.min(u.limit, level)
    if not again then u.level = math.min(u.limit, u.level - u.taken) end
  end
end

-- What processes hold. Leases of processes that are gone end.
local mine = amounts(fields['p:' .. process])
for _, u in ipairs(units) do u.all = stored('h:' .. u.name, 0) + u.held - (mine[u.name] or 0) end
if now >= stored('next', 0) then
  local all, following = redis.call('HGETALL', key), now + LEASE
  for n = 1, #all, 2 do
    local other = string.match(all[n], '^p:(.+)$')
    if other and other ~= process then
      local ends = tonumber(string.match(all[n + 1], '^%S+'))
      if ends <= now then
        for name, amount in pairs(amounts(all[n + 1])) do
          if by_unit[name] then by_unit[name].all = by_unit[name].all - amount end
        end
        if ends <= now - KEPT then redis.call('HDEL', key, all[n], 'n:' .. other)
        else put(all[n], string.format('%.15g', ends)) end
      else following = math.min(following, ends) end
    end
  end
  put('next', following)
end

-- Budgets: which window it is, what was used in it.
local function month(day)  -- from days since 1970, after Howard Hinnant's civil_from_days
  local z = day + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local mp = math.floor((5 * (doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))) + 2) / 153)
  local m = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (m <= 2 and 1 or 0)) * 12 + m - 1
end
local function index(window)
  if window == 'day' then return math.floor(now / 86400)
  elseif window == 'day-beijing' then return math.floor((now + 28800) / 86400)
  elseif window == 'week' then return math.floor((now - 316800) / 604800)  -- Monday 00:00 in Beijing
  elseif window == 'month' then return month(math.floor(now / 86400))
  elseif window == '5h' then return math.floor(now / 300)
  elseif window == 'in_flight' then return 0 end  -- held while a request runs, never used
  error('unknown window ' .. window)
end
local SLOTS = 60
for _, b in ipairs(budgets) do
  local name, current, was = 'u:' .. b.window .. ':' .. b.unit, index(b.window), stored('i:' .. b.window)
  b.used, b.index = stored(name, 0), current
  if was and was ~= current then
    if b.window ~= '5h' then b.used = 0
    else
      local gone = {}
      for slot = was - SLOTS, math.min(was, current - SLOTS - 1) do gone[#gone + 1] = 's:' .. slot .. ':' .. b.unit end
      for _, amount in ipairs(redis.call('HMGET', key, unpack(gone))) do b.used = b.used - (amount or 0) end
      redis.call('HDEL', key, unpack(gone))
    end
  end
  local added = again and 0 or by_unit[b.unit].used
  if b.seed > b.used + added then added = b.seed - b.used end
  b.used = b.used + added
  if b.window == '5h' and added ~= 0 then redis.call('HINCRBYFLOAT', key, 's:' .. current .. ':' .. b.unit, added) end
  if not windows[b.window] then windows[b.window] = true put('i:' .. b.window, current) end
  put(name, b.used)
end

-- The decision, all or nothing; more than is needed only while much is left.
local granted = 1
if again then
  local flag, text = string.match(fields['n:' .. process], '^%d+:(%d)(.*)$')
  granted = number == last and flag + 0 or 0
  if granted == 1 then for name, amount in pairs(amounts(text)) do
    if by_unit[name] then by_unit[name].granted = amount end
  end end
elseif asks then
  local share = 1
  local function bound(u, left)
    if u.want > 0 then share = math.min(share, left / (4 * processes) / u.want) end
  end
  for _, u in ipairs(units) do
    if u.level then
      if math.min(u.need, u.limit) - u.level > ROUNDING then granted = 0 end
      bound(u, u.level)
    end
  end
  for _, b in ipairs(budgets) do
    if b.limit > 0 then
      local left = b.limit - b.used - by_unit[b.unit].all
      if left <= 0 then granted = 0 end
      bound(by_unit[b.unit], left)
    end
  end
  if granted == 1 then for _, u in ipairs(units) do
    u.granted = math.max(u.need, math.floor(u.want * math.max(0, share)))
  end end
end
for _, u in ipairs(units) do
  if u.level then
    if not again then u.level = u.level - u.granted end
    put('l:' .. u.name, u.level)
  end
  u.all, u.held = u.all + u.granted, u.held + u.granted
  if #budgets > 0 then put('h:' .. u.name, u.all) end
end
if not again then
  local text = {string.format('%d:%d', number, granted)}
  for _, u in ipairs(units) do text[#text + 1] = u.name .. '=' .. string.format('%.15g', u.granted) end
  put('n:' .. process, table.concat(text, ' '))
end
put('p:' .. process, packed(now + LEASE, 'held'))
redis.call('HSET', key, unpack(changes))
redis.call('EXPIRE', key, #budgets > 0 and 3456000 or 7200)

local reply = {granted, string.format('%.6f', now)}
local function add(value) reply[#reply + 1] = string.format('%.15g', value) end
for _, u in ipairs(units) do add(u.granted) add(u.level or 0) end
for _, b in ipairs(budgets) do
  local resets = 0
  if b.window == '5h' and b.limit > 0 and b.used + by_unit[b.unit].all >= b.limit then
    local slots = {}
    for slot = b.index - SLOTS, b.index do slots[#slots + 1] = 's:' .. slot .. ':' .. b.unit end
    local found = redis.call('HMGET', key, unpack(slots))
    for n = 1, #slots do
      if found[n] and found[n] + 0 > 0 then resets = (b.index - SLOTS + n - 1 + SLOTS + 1) * 300 break end
    end
  end
  add(b.used) add(by_unit[b.unit].all) add(resets)
end
return reply
