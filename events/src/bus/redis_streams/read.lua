-- Gives a member of a group its next entries, unless some that the group has not been given are gone and have not been read from the event store:
-- then nothing is given, so that nobody passes the hole before that.
-- KEYS: the marker, the hash of what groups were given, the counter of losses, then the streams.
-- ARGV: the group, the member, the most entries of a stream, then for each stream the id up to which the event store was read.
-- Answers 'unmarked' when there is no marker; 'lost' when a stream or its group is not there; 'hole' when there is one; 'none' with the last entry of
-- each stream that the group was given when nothing is new; or 'read' with the marker and a list of a stream and its entries each.
local function parts(id)
  local ms, n = id:match('^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(n)
end
local function is_less(a_ms, a_n, b_ms, b_n)
  return a_ms < b_ms or (a_ms == b_ms and a_n < b_n)
end
local marker = redis.call('GET', KEYS[1])
local epoch = marker and tonumber(marker:match('^%S+ (%d+)'))
if not epoch then
  return {'unmarked'}
end
local group, given = ARGV[1], {'none'}
for place = 4, #KEYS do
  local key = KEYS[place]
  local delivered
  if redis.call('EXISTS', key) == 1 then
    for _, info in ipairs(redis.call('XINFO', 'GROUPS', key)) do
      local name, last
      for field = 1, #info, 2 do
        if info[field] == 'name' then name = info[field + 1] end
        if info[field] == 'last-delivered-id' then last = info[field + 1] end
      end
      if name == group then delivered = last end
    end
  end
  if not delivered then
    -- Every replica is to learn of it, also if this one dies now.
    redis.call('INCR', KEYS[3])
    return {'lost'}
  end
  -- The last id that this script gave the group in this epoch. Whoever has set the group forward has given nothing.
  local kept = string.format('%.0f-0', epoch)
  local noted = redis.call('HGET', KEYS[2], key)
  if noted then
    local of, id = noted:match('^(%d+) (%S+)$')
    if tonumber(of) == epoch then kept = id end
  end
  local ms, n = parts(delivered)
  local kept_ms, kept_n = parts(kept)
  if is_less(kept_ms, kept_n, ms, n) then
    redis.call('XGROUP', 'SETID', key, group, kept)
    delivered, ms, n = kept, kept_ms, kept_n
  end
  given[#given + 1] = delivered
  if ms < epoch then
    ms, n = epoch, 0
  end
  local covered_ms, covered_n = parts(ARGV[place])
  if ms == epoch and covered_ms == epoch and covered_n > n then
    n = covered_n
  end
  local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
  if first then
    local first_ms, first_n = parts(first[1])
    if ms == epoch and first_ms == epoch and first_n > n + 1 then
      return {'hole'}
    end
  end
end
local read = {'read', marker}
for place = 4, #KEYS do
  local key = KEYS[place]
  local entries = redis.call('XREADGROUP', 'GROUP', group, ARGV[2], 'COUNT', ARGV[3], 'STREAMS', key, '>')
  if entries then
    read[#read + 1] = entries[1]
    local of_stream = entries[1][2]
    redis.call('HSET', KEYS[2], key, string.format('%.0f', epoch) .. ' ' .. of_stream[#of_stream][1])
  end
end
if #read == 2 then
  return given
end
return read
