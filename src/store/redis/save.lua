-- Saves checkpoints, all in one step, and none of them backwards.
--
-- KEYS[1]  the format of the application's keys
-- KEYS[2]  the hash of its checkpoints
-- ARGV     shard, checkpoint, shard, checkpoint, …
--
-- Everything is looked at before anything is written. Running it twice changes nothing.

local format = redis.pcall('GET', KEYS[1])
if type(format) == 'table' then
  return format
end
if format and format ~= '1' then
  return redis.error_reply('KINESTREAMFORMAT ' .. format)
end

-- A starting position is 0, a place in the shard 1, the end of the shard 2.
local function parse(text)
  if text == 'TRIM_HORIZON' or string.match(text, '^AT_TIMESTAMP:%d+$') then
    return { rank = 0 }
  end
  if text == 'SHARD_END' then
    return { rank = 2 }
  end
  local number = string.match(text, '^AFTER_SEQUENCE_NUMBER:(%d+)$')
  if number then
    return { rank = 1, number = number }
  end
  local part
  number, part = string.match(text, '^AFTER_SEQUENCE_NUMBER:(%d+):(%d+)$')
  if number then
    return { rank = 1, number = number, part = part }
  end
  return nil
end

-- Numbers of any length, as text without leading zeros.
local function greater(left, right)
  if #left ~= #right then
    return #left > #right
  end
  return left > right
end

local function supersedes(new, stored)
  if new.rank == 0 or stored.rank == 2 then
    return false
  end
  if new.rank == 1 and stored.rank == 1 then
    if new.number ~= stored.number then
      return greater(new.number, stored.number)
    end
    -- A whole record is further than any part of it.
    if not stored.part then
      return false
    end
    return not new.part or greater(new.part, stored.part)
  end
  return true
end

local advanced = {}
for index = 1, #ARGV, 2 do
  local shard, text = ARGV[index], ARGV[index + 1]
  local stored = redis.pcall('HGET', KEYS[2], shard)
  if type(stored) == 'table' then
    return stored
  end
  if stored then
    local place = parse(stored)
    if not place then
      return redis.error_reply('KINESTREAMVALUE ' .. shard)
    end
    if supersedes(parse(text), place) then
      advanced[#advanced + 1] = index
    end
  else
    advanced[#advanced + 1] = index
  end
end

if not format then
  redis.call('SET', KEYS[1], '1')
end
for _, index in ipairs(advanced) do
  redis.call('HSET', KEYS[2], ARGV[index], ARGV[index + 1])
end
return #advanced
