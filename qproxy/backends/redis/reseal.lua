-- Replace a sealed value by the same one, sealed with another key, unless it has changed; return 1 if it was replaced.
-- KEYS[1]: a string, or a hash; ARGV: field ('' for a string), SHA-1 of the present value, new value
local key, field, digest, value = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local present
if field == '' then present = redis.call('GET', key) else present = redis.call('HGET', key, field) end
if not present or redis.sha1hex(present) ~= digest then return 0 end
if field == '' then redis.call('SET', key, value, 'KEEPTTL') else redis.call('HSET', key, field, value) end
return 1
