-- Merge records of API keys unless they are others than expected, and return the version.
-- KEYS[1]: hash of the records as JSON by id, with their version and the installation that they belong to.
-- ARGV: channel, expected version (-1: any), installation, version known to the process; then an id and a record each
--
-- A record changes by its revocation alone: so a record that is absent is added, and a revoked one replaces an active
-- one. Merging is idempotent, and restores what a server has lost.

local function is_revoked(record)
  local revoked = cjson.decode(record).revoked
  return revoked ~= nil and revoked ~= cjson.null
end

local found = redis.call('HMGET', KEYS[1], 'version', 'installation')
local version, expected, known = tonumber(found[1] or 0), tonumber(ARGV[2]), tonumber(ARGV[4])
if found[2] and found[2] ~= ARGV[3] then return version end
if expected >= 0 and expected ~= version then return version end
local changed = version < known
for i = 5, #ARGV, 2 do
  local present = redis.call('HGET', KEYS[1], ARGV[i])
  if not present or (is_revoked(ARGV[i + 1]) and not is_revoked(present)) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
    changed = true
  end
end
if changed then
  version = math.max(version, known) + 1
  redis.call('HSET', KEYS[1], 'version', version, 'installation', ARGV[3])
  redis.call('PUBLISH', ARGV[1], version)
end
return version
