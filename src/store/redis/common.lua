-- The beginning of both scripts. `scripts.rs` describes keys, arguments and replies.
local FORMAT, CHECKPOINTS, LEASES, WORKERS, FLEET, STEPS = unpack(KEYS)

local function argument_of(text)
  return text and '=' .. text or ''
end

-- Returns the names of the keys that exist, and true if a listed one does not: it was evicted or
-- deleted.
local function find_keys(listed)
  local found, has_lost = {}, false
  for index, name in ipairs({ 'format', 'checkpoints', 'leases', 'workers' }) do
    local exists = redis.call('EXISTS', KEYS[index]) == 1
    found[#found + 1] = exists and name or nil
    has_lost = has_lost or not exists and string.find(listed or '', name, 1, true) ~= nil
  end
  return table.concat(found, ' '), has_lost
end

local format = redis.call('GET', FORMAT) or '1'
if format ~= '1' then
  return redis.error_reply('KINESTREAMFORMAT ' .. format)
end
