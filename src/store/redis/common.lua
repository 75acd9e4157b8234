-- The beginning of both scripts. `scripts.rs` describes keys, arguments and replies.
local FORMAT, CHECKPOINTS, LEASES, WORKERS, FLEET, STEPS = unpack(KEYS)

local function argument_of(text)
  return text and '=' .. text or ''
end

-- Returns the difference between the keys that exist and the listed ones. If it is negative, a key
-- was evicted or deleted.
local function count_keys(listed)
  local count = select(2, string.gsub(listed or '', '%S+', ''))
  return redis.call('EXISTS', FORMAT, CHECKPOINTS, LEASES, WORKERS) - count
end

local function list_keys()
  local found = {}
  for index, name in ipairs({ 'format', 'checkpoints', 'leases', 'workers' }) do
    found[#found + 1] = redis.call('EXISTS', KEYS[index]) == 1 and name or nil
  end
  redis.call('HSET', FLEET, 'keys', table.concat(found, ' '))
end

local format = redis.call('GET', FORMAT) or '1'
if format ~= '1' then
  return redis.error_reply('KINESTREAMFORMAT ' .. format)
end
