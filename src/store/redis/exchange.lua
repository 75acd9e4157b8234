local REMEMBERED_STEPS = 256
-- The largest integer that a Lua number represents exactly.
local LIMIT = 9007199254740991
local HASHES = { F = FLEET, W = WORKERS, L = LEASES, P = CHECKPOINTS }
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local millis = math.floor(micros / 1000)
-- The fields of hashes that were read as a whole, by kind.
local cached, last_argument = { F = fleet }, 0
-- The entries of the reply, and which they are.
local shown, seen = {}, {}

local function digits(number)
  return string.format('%.0f', math.min(number, LIMIT))
end

local function next_argument()
  last_argument = last_argument + 1
  return ARGV[last_argument]
end

local function cache(kind)
  cached[kind] = cached[kind] or read_hash(HASHES[kind])
  return cached[kind]
end

-- Returns the expiry and the lease duration of a worker: 0 if its line cannot be parsed.
local function expiry_of(name)
  local duration, expiry = string.match(cached.W[name] or '', '^%d+ %d+ (%d+) (%d+)')
  return tonumber(expiry or 0), tonumber(duration or 0)
end

local function text_of(kind, field)
  if not cached[kind] then
    return redis.call('HGET', HASHES[kind], field)
  end
  local text = cached[kind][field]
  if kind == 'F' and not text and fleet.generation and field ~= 'further' then
    return '0'
  end
  return text and kind == 'W' and string.gsub(text, '^(%d+ %d+ %d+) %d+', '%1', 1) or text
end

-- Sets a field, or deletes it without a text. A worker gets an expiry.
local function set(kind, field, text, expiry)
  if text and kind == 'W' then
    text = string.gsub(text, '^(%S+ %S+ %S+)', '%1 ' .. digits(expiry or expiry_of(field)), 1)
  end
  redis.call(text and 'HSET' or 'HDEL', HASHES[kind], field, unpack({ text }))
  if cached[kind] then
    cached[kind][field] = text
  end
end

-- Starts a new version and returns the last one.
local function next_version()
  local before = fleet.version or '0'
  set('F', 'version', digits(math.max(micros, tonumber(before) + 1)))
  return before
end

local function show(kind, field)
  if not seen[kind .. field] then
    seen[kind .. field] = true
    shown[#shown + 1] = { kind, field, argument_of(text_of(kind, field)) }
  end
  return kind == 'L' and show('P', field)
end

-- Shows what has changed since a version. Returns false if a step since then is unknown.
local function show_steps_since(version)
  local at = fleet.version or '0'
  for index = 1, version == at and 0 or REMEMBERED_STEPS do
    local is_step, words = pcall(cmsgpack.unpack, redis.call('LINDEX', STEPS, -index) or '')
    if at == version or not is_step or type(words) ~= 'table' or words[2] ~= at then
      break
    end
    at = words[1]
    for place = 3, #words do
      show(string.sub(words[place], 1, 1), string.sub(words[place], 2))
    end
  end
  return at == version
end

cache('W')
for _, field in ipairs({ 'generation', 'version', 'cleared', 'first_poll', 'epoch' }) do
  local number = fleet[field] or '0'
  if not string.match(number, '^%d+$') or tonumber(number) >= LIMIT then
    -- Treated like a lost key.
    set('F', field, '0')
    set('F', 'generation', '0')
  end
end

if fleet.generation and has_lost_key() then
  if string.find(fleet.keys, 'checkpoints') and redis.call('EXISTS', CHECKPOINTS) == 0 then
    -- A lease without its checkpoint would be read from the starting position.
    redis.call('DEL', LEASES)
  end
  -- Workers restore what they know in a new generation. Its version has no step, so that it is read
  -- as a whole.
  next_version()
  set('F', 'generation', digits(math.max(micros, fleet.generation + 1)))
  set('F', 'keys', existing_keys())
end

local expired = {}
for name in pairs(cached.W) do
  local expiry, duration = expiry_of(name)
  if expiry > millis + duration then
    -- The clock went back: a worker expires at most one lease duration later.
    set('W', name, text_of('W', name), millis + duration)
  elseif expiry <= millis then
    expired[#expired + 1] = { name, digits(expiry) }
  end
end

local known, version = next_argument(), next_argument()
local is_made = version == '' or version == (fleet.version or '0')
for _ = 1, tonumber(next_argument()) do
  is_made = digits(expiry_of(next_argument())) == next_argument() and is_made
end
local entries, words = {}, {}
for _ = 1, tonumber(next_argument()) do
  local kind, field, old, new = next_argument(), next_argument(), next_argument(), next_argument()
  is_made = (old == '*' or argument_of(text_of(kind, field)) == old) and is_made
  entries[#entries + 1] = { kind, field, new ~= '' and string.sub(new, 2) or nil }
  words[#words + 1] = new ~= old and kind .. field or nil
end
if is_made and #words > 0 then
  -- A key of another type fails here, before the first write of the step.
  redis.call('LLEN', STEPS)
  redis.call('HLEN', LEASES)
  redis.call('HLEN', CHECKPOINTS)
  for _, entry in ipairs(entries) do
    set(unpack(entry, 1, 3))
  end
  table.insert(words, 1, next_version())
  table.insert(words, 2, fleet.version)
  redis.call('SETNX', FORMAT, '1')
  redis.call('RPUSH', STEPS, cmsgpack.pack(words))
  redis.call('LTRIM', STEPS, -REMEMBERED_STEPS, -1)
  set('F', 'format', '1')
  set('F', 'keys', existing_keys())
end
while last_argument < #ARGV do
  local name, entry, duration = next_argument(), next_argument(), next_argument()
  if text_of('W', name) == entry then
    set('W', name, entry, millis + duration)
  end
end

local is_whole = known == '' or not show_steps_since(known)
if is_whole then
  shown, seen = {}, {}
end
for kind in pairs(is_whole and HASHES or {}) do
  for field in pairs(cache(kind)) do
    show(kind, field)
  end
end
for _, entry in ipairs(is_made and {} or entries) do
  show(entry[1], entry[2])
end
local head = {}
for field, text in pairs(fleet) do
  head[#head + 1], head[#head + 2] = field, text
end
return { is_made and 1 or 0, is_whole and 1 or 0, digits(micros), expired, head, shown }
