local REMEMBERED_STEPS = 256
-- The largest integer that a Lua number represents exactly.
local LIMIT = 9007199254740991
local HASHES = { F = FLEET, W = WORKERS, L = LEASES, P = CHECKPOINTS }
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local millis = math.floor(micros / 1000)
-- The fields of hashes that were read as a whole, by kind.
local cached, next_index = {}, 0

local function digits(number)
  return string.format('%.0f', math.min(number, LIMIT))
end

local function cache(kind)
  local answer = cached[kind] and {} or read('HGETALL', HASHES[kind])
  cached[kind] = cached[kind] or {}
  for index = 1, #answer, 2 do
    cached[kind][answer[index]] = answer[index + 1]
  end
  return cached[kind]
end

-- Returns the expiry and the lease duration of a worker: 0 if its line cannot be parsed.
local function expiry_of(name)
  local duration, expiry = string.match(cached.W[name] or '', '^%d+ %d+ (%d+) (%d+)')
  return tonumber(expiry or 0), tonumber(duration or 0)
end

local function text_of(kind, field)
  if not cached[kind] then
    return read('HGET', HASHES[kind], field)
  end
  local text = cached[kind][field]
  if kind == 'F' and not text and cached.F.generation and field ~= 'further' then
    return '0'
  end
  return text and kind == 'W' and string.gsub(text, '^(%d+ %d+ %d+) %d+', '%1', 1) or text
end

-- Sets a field, or deletes it without a text. A worker gets an expiry.
local function set(kind, field, text, expiry)
  if text and kind == 'W' then
    text = string.gsub(text, '^(%S+ %S+ %S+)', '%1 ' .. digits(expiry or expiry_of(field)), 1)
  end
  redis.call(text and 'HSET' or 'HDEL', KEYS[HASHES[kind]], field, unpack({ text }))
  if cached[kind] then
    cached[kind][field] = text
  end
end

-- Starts a new version and returns the last one.
local function next_version()
  local before = cached.F.version or '0'
  set('F', 'version', digits(math.max(micros, tonumber(before) + 1)))
  return before
end

-- Starts a new generation after a loss. Workers then restore what they know. The version has no
-- step, so that it is read as a whole.
local function notice_loss()
  local listed, generation = cached.F.keys or '', tonumber(cached.F.generation)
  if generation and count_keys(listed) < 0 then
    if string.find(listed, 'ch') and redis.call('EXISTS', KEYS[CHECKPOINTS]) == 0 then
      -- A lease without its checkpoint would be read from the starting position.
      redis.call('DEL', KEYS[LEASES])
    end
    next_version()
    set('F', 'generation', digits(math.max(micros, generation + 1)))
    list_keys()
  end
end

-- Returns the expired workers with their expiries. After the clock went back, workers expire at most
-- one lease duration later.
local function expired_workers()
  local expired = {}
  for name in pairs(cached.W) do
    local expiry, duration = expiry_of(name)
    if expiry > millis + duration then
      set('W', name, text_of('W', name), millis + duration)
    elseif expiry <= millis then
      expired[#expired + 1] = name
      expired[#expired + 1] = digits(expiry)
    end
  end
  return expired
end

-- Returns the kinds and fields that have changed since a version, if all steps since then are known.
local function touched_since(version)
  local touched, at = {}, cached.F.version or '0'
  for index = 1, version == at and 0 or REMEMBERED_STEPS do
    local step = read('LINDEX', STEPS, -index)
    local is_step, words = pcall(cmsgpack.unpack, step or '')
    if at == version or not is_step or type(words) ~= 'table' or words[2] ~= at then
      break
    end
    at = table.remove(words, 1)
    for place = 2, #words do
      touched[words[place]] = true
    end
  end
  return at == version and touched
end

local function next_argument()
  next_index = next_index + 1
  return ARGV[next_index]
end

return run(function()
  check_format()
  cache('F')
  cache('W')
  if tonumber(ARGV[4 + 2 * tonumber(ARGV[3])]) > 0 then
    -- No write below fails after others were made.
    read('LLEN', STEPS)
    read('HLEN', LEASES)
    read('HLEN', CHECKPOINTS)
  end
  for _, field in ipairs({ 'generation', 'version', 'cleared', 'first_poll', 'epoch' }) do
    local number = cached.F[field] or '0'
    if not string.match(number, '^%d+$') or tonumber(number) >= LIMIT then
      -- Treated like a lost key.
      set('F', field, '0')
      set('F', 'generation', '0')
    end
  end
  notice_loss()
  local expired, changes, words, entries = expired_workers(), {}, {}, {}
  local known, version = next_argument(), next_argument()
  local is_made = version == '' or version == (cached.F.version or '0')
  for _ = 1, tonumber(next_argument()) do
    is_made = digits(expiry_of(next_argument())) == next_argument() and is_made
  end
  for _ = 1, tonumber(next_argument()) do
    local kind, field, old, new = next_argument(), next_argument(), next_argument(), next_argument()
    is_made = (old == '*' or argument_of(text_of(kind, field)) == old) and is_made
    entries[kind .. field] = true
    if new ~= old then
      changes[#changes + 1] = { kind, field, new ~= '' and string.sub(new, 2) or nil }
      words[#words + 1] = kind .. field
    end
  end
  if is_made and #words > 0 then
    for _, change in ipairs(changes) do
      set(unpack(change, 1, 3))
    end
    table.insert(words, 1, next_version())
    table.insert(words, 2, cached.F.version)
    redis.call('SETNX', KEYS[FORMAT], '1')
    redis.call('RPUSH', KEYS[STEPS], cmsgpack.pack(words))
    redis.call('LTRIM', KEYS[STEPS], -REMEMBERED_STEPS, -1)
    list_keys()
  end
  while next_index < #ARGV do
    local name, entry, duration = next_argument(), next_argument(), tonumber(next_argument())
    if text_of('W', name) == entry then
      set('W', name, entry, millis + duration)
    end
  end
  local touched = known ~= '' and touched_since(known)
  local is_whole, shown = not touched, {}
  touched = touched or {}
  for word in pairs(is_made and {} or entries) do
    touched[word] = true
  end
  for kind in pairs(is_whole and HASHES or {}) do
    for field in pairs(cache(kind)) do
      touched[kind .. field] = true
    end
  end
  for word in pairs(touched) do
    local kind, field = string.sub(word, 1, 1), string.sub(word, 2)
    local has_position = kind == 'L' and not touched['P' .. field]
    for _, of in ipairs({ kind, has_position and 'P' or nil }) do
      shown[#shown + 1] = of
      shown[#shown + 1] = field
      shown[#shown + 1] = argument_of(text_of(of, field))
    end
  end
  local head = {}
  for index, field in ipairs({ 'generation', 'cleared', 'first_poll', 'epoch', 'further' }) do
    head[index] = text_of('F', field) or ''
  end
  return { is_made and 1 or 0, cached.F.version or '0', is_whole and 1 or 0, digits(micros),
    expired, head, shown }
end)
