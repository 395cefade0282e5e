-- Adds events to the streams of a topic and moves the marker, all or nothing.
-- KEYS: the marker, then the streams.
-- ARGV: the marker as the relay read it ('' for none), the new marker, 1 to begin a new epoch, the most entries of a stream,
--   then for each event: the number of its stream (from 1), its id, how many fields and values follow, and these.
-- Answers 'ok'; 'moved' when somebody else has published; or 'foreign' with a stream, the last id there and the id that it should have at most.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then
  return {'moved'}
end
local number_of_streams = #KEYS - 1
if ARGV[3] == '1' then
  -- What is there of an earlier epoch is read from the event store by whoever has not read it yet.
  for stream = 1, number_of_streams do
    redis.call('UNLINK', KEYS[stream + 1])
  end
end
local function is_less(a, b)
  local a_ms, a_seq = a:match('(%d+)-(%d+)')
  local b_ms, b_seq = b:match('(%d+)-(%d+)')
  -- Compared as texts of numbers, since Lua's own have 53 bits.
  local function less(x, y)
    if #x ~= #y then
      return #x < #y
    end
    return x < y
  end
  if a_ms ~= b_ms then
    return less(a_ms, b_ms)
  end
  return less(a_seq, b_seq)
end
local function last_id(stream)
  if redis.call('EXISTS', KEYS[stream + 1]) == 0 then
    return '0-0'
  end
  local info = redis.call('XINFO', 'STREAM', KEYS[stream + 1])
  for place = 1, #info, 2 do
    if info[place] == 'last-generated-id' then
      return info[place + 1]
    end
  end
  return '0-0'
end
-- First whether every event can be added: a script that fails half way is not undone.
local place, checked = 5, {}
while place <= #ARGV do
  local stream = tonumber(ARGV[place])
  if not checked[stream] then
    local last = last_id(stream)
    if not is_less(last, ARGV[place + 1]) then
      return {'foreign', tostring(stream), last, ARGV[place + 1]}
    end
    checked[stream] = true
  end
  place = place + 3 + tonumber(ARGV[place + 2])
end
place = 5
while place <= #ARGV do
  local arguments = {'XADD', KEYS[tonumber(ARGV[place]) + 1], 'MAXLEN', '~', ARGV[4], ARGV[place + 1]}
  for field = 1, tonumber(ARGV[place + 2]) do
    arguments[#arguments + 1] = ARGV[place + 2 + field]
  end
  redis.call(unpack(arguments))
  place = place + 3 + tonumber(ARGV[place + 2])
end
redis.call('SET', KEYS[1], ARGV[2])
return {'ok'}
