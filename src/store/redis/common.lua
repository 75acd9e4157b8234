-- The beginning of both scripts. `scripts.rs` describes keys, arguments and replies.
local FORMAT, CHECKPOINTS, LEASES, WORKERS, FLEET, STEPS = 1, 2, 3, 4, 5, 6
-- The error that the script returns. An error raised by Lua would lose its code.
local refusal

local function refuse(text)
  refusal = redis.error_reply(text)
  error('refused', 0)
end

local function run(work)
  local done, answer = pcall(work)
  if not done and not refusal then
    -- The error of a failed write is a table or a text, with its code after a prefix.
    local text = type(answer) == 'table' and answer.err or tostring(answer)
    return redis.error_reply(string.match(text, '%-?(%u+ .+)$') or 'ERR ' .. text)
  end
  return refusal or answer
end

local function read(command, key, ...)
  local answer = redis.pcall(command, KEYS[key], ...)
  if type(answer) == 'table' and answer.err then
    local text = string.gsub(answer.err, '^-', '')
    refuse(string.match(text, '^WRONGTYPE') and 'KINESTREAMTYPE ' .. key or text)
  end
  return answer
end

local function check_format()
  local format = read('GET', FORMAT) or '1'
  if format ~= '1' then
    refuse('KINESTREAMFORMAT ' .. format)
  end
end

local function argument_of(text)
  return text and '=' .. text or ''
end

-- Returns the difference between the keys that exist and the listed ones. If it is negative, a key
-- was evicted or deleted.
local function count_keys(listed)
  local count = select(2, string.gsub(listed or '', '%S+', ''))
  return redis.call('EXISTS', KEYS[FORMAT], KEYS[CHECKPOINTS], KEYS[LEASES], KEYS[WORKERS]) - count
end

local function list_keys()
  local found = {}
  for key, name in ipairs({ 'format', 'checkpoints', 'leases', 'workers' }) do
    found[#found + 1] = redis.call('EXISTS', KEYS[key]) == 1 and name or nil
  end
  redis.call('HSET', KEYS[FLEET], 'keys', table.concat(found, ' '))
end
