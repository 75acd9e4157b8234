-- The beginning of both scripts. `scripts.rs` describes keys, arguments and replies.
local FORMAT, CHECKPOINTS, LEASES, WORKERS, FLEET, STEPS = unpack(KEYS)
-- The keys that the fleet lists once they exist.
local LISTED = { 'format', 'checkpoints', 'leases', 'workers' }

local function argument_of(text)
  return text and '=' .. text or ''
end

local function read_hash(key)
  local texts, answer = {}, redis.call('HGETALL', key)
  for index = 1, #answer, 2 do
    texts[answer[index]] = answer[index + 1]
  end
  return texts
end

local fleet = read_hash(FLEET)

-- Returns the names of the keys that exist.
local function existing_keys()
  local found = {}
  for index, name in ipairs(LISTED) do
    found[#found + 1] = redis.call('EXISTS', KEYS[index]) == 1 and name or nil
  end
  return table.concat(found, ' ')
end

-- Returns true if a listed key does not exist: it was evicted or deleted.
local function has_lost_key()
  local listed = {}
  for index, name in ipairs(LISTED) do
    listed[#listed + 1] = string.find(fleet.keys or '', name, 1, true) and KEYS[index] or nil
  end
  return #listed > 0 and redis.call('EXISTS', unpack(listed)) < #listed
end

-- Another version states its format in the fleet as well, which saves a command of each call.
local format = fleet.format or redis.call('GET', FORMAT) or '1'
if format ~= '1' then
  return redis.error_reply('KINESTREAMFORMAT ' .. format)
end
