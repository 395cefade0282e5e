-- Gives a member what another one took and never acknowledged. What is not there any more is counted, so that every replica learns of it: Redis
-- forgets here that it was pending.
-- KEYS: the marker, the counter of losses, then the streams. ARGV: the group, the member, for how many milliseconds it must have been idle, the most
-- entries of a stream.
-- Answers the marker ('' for none) and a list of a stream and its entries each.
local claimed = {redis.call('GET', KEYS[1]) or ''}
for place = 3, #KEYS do
  local answer = redis.call('XAUTOCLAIM', KEYS[place], ARGV[1], ARGV[2], ARGV[3], '0-0', 'COUNT', ARGV[4])
  if answer[3] and #answer[3] > 0 then
    redis.call('INCR', KEYS[2])
  end
  if #answer[2] > 0 then
    claimed[#claimed + 1] = {KEYS[place], answer[2]}
  end
end
return claimed
