-- Record the schema that a process writes, and return the newest one and the oldest that can read it.
-- KEYS[1]: a hash; ARGV: the schema of this process, the oldest schema whose programs can read it
local found = redis.call('HMGET', KEYS[1], 'schema', 'least_reader')
local schema, least = tonumber(found[1] or 0), tonumber(found[2] or 0)
local own, own_least = tonumber(ARGV[1]), tonumber(ARGV[2])
if own >= least and (own > schema or own_least > least) then
  schema, least = math.max(schema, own), math.max(least, own_least)
  redis.call('HSET', KEYS[1], 'schema', schema, 'least_reader', least)
end
return {schema, least}
