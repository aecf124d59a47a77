-- Return which of some commands the present user may not use. KEYS[1]: a key of the installation; ARGV: commands
-- with arguments, separated by spaces
local forbidden = {}
for _, command in ipairs(ARGV) do
  local words = {}
  for word in string.gmatch(command, '%S+') do words[#words + 1] = word end
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if known and not allowed then forbidden[#forbidden + 1] = command end
end
return forbidden
