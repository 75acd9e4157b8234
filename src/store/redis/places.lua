-- The checkpoints during a script: each is read on first use, changed in memory, and written at the
-- end.

-- The checkpoint of each shard that was read, or false if it has none.
local places = {}
-- The shards with a checkpoint that differs from the stored one.
local moved = {}
-- The shards with a checkpoint or lease that cannot be parsed, by key. Only the script of an
-- operator's edit changes them.
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

-- Sets the checkpoint of a shard, even backwards; nil removes it.
local function move(shard, new)
  place(shard)
  places[shard] = new or false
  moved[shard] = true
end

-- Sets the checkpoint of a shard if it is further. Returns true if it was set.
local function advance(shard, new)
  local stored = place(shard)
  if stored and not supersedes(new, stored) then
    return false
  end
  move(shard, new)
  return true
end

-- Writes the given fields of a hash from `entries`, and deletes those without an entry.
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
