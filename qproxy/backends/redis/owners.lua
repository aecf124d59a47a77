-- The names of what an owner has of one kind. KEYS[1]: a sorted set, from a name to its last use.
-- ARGV: name, seconds after the last use until it is forgotten
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (time[1] - ARGV[2]))
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[2]))
return 1
