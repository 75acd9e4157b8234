-- The checkpoints as a script sees them: each is read when it is asked for, changed here, and
-- written at the end.

-- For each shard that was read its checkpoint, or false where there is none.
local places = {}
-- The shards whose checkpoint is no longer the stored one.
local moved = {}
-- The shards of which the checkpoint or the lease cannot be parsed, by key. No script changes them but
-- that of an operator.
local unreadable = { [CHECKPOINTS] = {}, [LEASES] = {} }

local function place_of(shard, text)
  local found = parse(text)
  if not found then
    unreadable[CHECKPOINTS][shard] = true
  end
  return found or false
end

local function place(shard)
  if places[shard] == nil then
    local text = read('HGET', CHECKPOINTS, shard)
    places[shard] = text and place_of(shard, text)
  end
  return places[shard]
end

-- Wherever the shard was; nil takes its checkpoint away.
local function move(shard, new)
  place(shard)
  places[shard] = new or false
  moved[shard] = true
end

-- Whether that is further than it was.
local function advance(shard, new)
  local stored = place(shard)
  if stored and not supersedes(new, stored) then
    return false
  end
  move(shard, new)
  return true
end

-- The fields of a hash that are to be as they are in `entries`.
local function write_fields(key, fields, entries, text_of)
  for field in pairs(fields) do
    if entries[field] then
      redis.call('HSET', KEYS[key], field, text_of(entries[field]))
    else
      redis.call('HDEL', KEYS[key], field)
    end
  end
end

local function write_format()
  if not format then
    redis.call('SET', KEYS[FORMAT], '1')
  end
end

local function write_places()
  write_fields(CHECKPOINTS, moved, places, function(new)
    return new.text
  end)
end
