-- Gives a member of a group its next entries, unless some that the group has not been given are gone: then nothing is given, so that nobody passes
-- the hole before what was in it has been read from the event store.
-- KEYS: the streams. ARGV: the group, the member, the most entries of a stream, 1 to pass holes.
-- Answers 'lost' when a stream or its group is not there; 'hole' when there is one; 'none' with the last entry of each stream that the group was
-- given when nothing is new; or 'read' with a list of a stream and its entries each.
local function parts(id)
  local ms, n = id:match('(%d+)-(%d+)')
  return tonumber(ms), tonumber(n)
end
local given = {'none'}
for _, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 0 then
    return {'lost'}
  end
  local delivered
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local name, last
    for place = 1, #group, 2 do
      if group[place] == 'name' then name = group[place + 1] end
      if group[place] == 'last-delivered-id' then last = group[place + 1] end
    end
    if name == ARGV[1] then delivered = last end
  end
  if not delivered then
    return {'lost'}
  end
  given[#given + 1] = delivered
  local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  if first and ARGV[4] ~= '1' then
    local first_ms, first_n = parts(first[1])
    local ms, n = parts(delivered)
    local is_ahead = first_ms > ms or (first_ms == ms and first_n > n)
    local next_n = 1
    if first_ms == ms then next_n = n + 1 end
    if is_ahead and first_n > next_n then
      return {'hole'}
    end
  end
end
local read = {'read'}
for _, key in ipairs(KEYS) do
  local entries = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', key, '>')
  if entries then
    read[#read + 1] = entries[1]
  end
end
if #read == 1 then
  return given
end
return read
