-- The table of leases as a script sees it: read when it is asked for, changed here, and written at
-- the end. What src/store/lease/ledger.rs does in memory; the names are the same.

-- Numbers of Lua are exact up to here.
local LIMIT = 9007199254740991
local NONE = '-'

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local millis = math.floor(micros / 1000)

-- The numbers of the table: its generation, its version, and when it was cleared; and the names of
-- the keys that exist beside them.
local fleet = {}
-- Each worker by its name.
local workers = {}
-- For each shard that was read its lease, or false where there is none.
local leases = {}
-- The names and shards for which something else is stored, and whether the version is to rise.
local stale_workers, stale_leases, stale_fleet = {}, {}, false
local changed = false

-- Lua's own way writes large numbers with an exponent.
local function digits(number)
  return string.format('%.0f', number)
end

local function number_of(word)
  local number = string.match(word, '^%d+$') and tonumber(word)
  return number and number <= LIMIT and number
end

-- Calls with each field and value of a hash.
local function each(key, work)
  local answer = read('HGETALL', key)
  for index = 1, #answer, 2 do
    work(answer[index], answer[index + 1])
  end
end

local function read_fleet()
  local values = read('HMGET', FLEET, 'generation', 'version', 'cleared', 'keys')
  for index, field in ipairs({ 'generation', 'version', 'cleared' }) do
    fleet[field] = number_of(values[index] or '0') or garbled(FLEET, field)
  end
  fleet.keys = values[4] or ''
end

local function read_workers()
  each(WORKERS, function(name, line)
    local incarnation, joined, duration, expiry, capacity =
      string.match(line, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
    if not incarnation then
      garbled(WORKERS, name)
    end
    workers[name] = {
      -- All 64 bits of it count, so it is never made a number.
      incarnation = incarnation,
      joined = number_of(joined) or garbled(WORKERS, name),
      duration = number_of(duration) or garbled(WORKERS, name),
      expiry = number_of(expiry) or garbled(WORKERS, name),
      capacity = capacity,
    }
  end)
end

local function worker_line(worker)
  local numbers = { worker.incarnation, digits(worker.joined), digits(worker.duration),
    digits(worker.expiry), worker.capacity }
  return table.concat(numbers, ' ')
end

local function lease_of(shard, line)
  local epoch, owner, heir, origin, parents, state, rest =
    string.match(line, '^(%d+) ([^ ]+) ([^ ]+) (%d+) ([^ ]+) ([^ ]+)(.*)$')
  if not epoch or state ~= NONE and state ~= 'LOST' then
    garbled(LEASES, shard)
  end
  -- Lines of before have no start and what follows it; what later versions add is kept.
  local words = {}
  for word in string.gmatch(rest, '[^ ]+') do
    words[#words + 1] = word
  end
  local start, unlisted = words[1] or NONE, words[2] or NONE
  if start ~= NONE and not string.match(start, '^%d+$') then
    garbled(LEASES, shard)
  end
  return {
    epoch = number_of(epoch) or garbled(LEASES, shard),
    owner = owner,
    heir = heir,
    origin = number_of(origin) or garbled(LEASES, shard),
    parents = parents,
    state = state,
    start = start,
    unlisted = unlisted ~= NONE and (number_of(unlisted) or garbled(LEASES, shard)) or nil,
    more = table.concat(words, ' ', 3),
  }
end

local function lease_line(lease)
  local words = { digits(lease.epoch), lease.owner, lease.heir, digits(lease.origin), lease.parents,
    lease.state, lease.start, lease.unlisted and digits(lease.unlisted) or NONE }
  if lease.more and lease.more ~= '' then
    words[#words + 1] = lease.more
  end
  return table.concat(words, ' ')
end

-- How long what was noted is kept, in milliseconds: MARK_KEPT of src/store/lease.rs.
local MARK_KEPT = 365 * 24 * 60 * 60 * 1000

local function is_kept(moment)
  return millis - moment < MARK_KEPT
end

local function lease_at(shard)
  if leases[shard] == nil then
    local line = read('HGET', LEASES, shard)
    leases[shard] = line and lease_of(shard, line)
  end
  return leases[shard]
end

local function read_leases()
  each(LEASES, function(shard, line)
    if leases[shard] == nil then
      leases[shard] = lease_of(shard, line)
    end
  end)
end

local function read_places()
  each(CHECKPOINTS, function(shard, text)
    if places[shard] == nil then
      places[shard] = place_of(shard, text)
    end
  end)
end

-- The lease of this shard, or its absence, is to be stored.
local function mark(shard)
  stale_leases[shard] = true
  changed = true
end

local function is_finished(shard)
  local stored = place(shard)
  return stored and stored.rank == 2
end

-- A new epoch, for this owner or for nobody.
local function give(shard, owner)
  local lease = lease_at(shard)
  if lease then
    lease.epoch = math.max(millis, fleet.cleared + 1, lease.epoch + 1)
    lease.owner, lease.heir = owner, NONE
    mark(shard)
  end
end

-- The same epoch, for nobody.
local function free(shard)
  local lease = lease_at(shard)
  if lease and lease.owner ~= NONE then
    lease.owner, lease.heir = NONE, NONE
    mark(shard)
  end
end

local function end_shard(shard)
  if not is_finished(shard) then
    move(shard, parse('SHARD_END'))
    changed = true
  end
  free(shard)
end

local PARTS = { [FORMAT] = 'format', [CHECKPOINTS] = 'checkpoints', [LEASES] = 'leases',
  [WORKERS] = 'workers' }

local ALL_KEYS = table.concat(PARTS, ' ')

-- Begins a new generation where a key has disappeared that existed after the last change: it was
-- evicted or deleted, while the others may still show the known version. Workers then restore what
-- they know, as after the loss of all keys.
local function notice_loss()
  local listed = {}
  for part, name in pairs(PARTS) do
    if string.find(fleet.keys, name, 1, true) then
      listed[#listed + 1] = KEYS[part]
    end
  end
  if #listed == 0 or redis.call('EXISTS', unpack(listed)) == #listed then
    return
  end
  fleet.generation = math.max(micros, fleet.generation + 1)
  changed = true
  if string.find(fleet.keys, 'checkpoints', 1, true)
    and redis.call('EXISTS', KEYS[CHECKPOINTS]) == 0 then
    -- A lease without its checkpoint would be read from the starting position.
    read_leases()
    for shard in pairs(leases) do
      leases[shard] = false
      mark(shard)
    end
  end
end

local function existing_keys()
  local names = {}
  for part = FORMAT, WORKERS do
    if redis.call('EXISTS', KEYS[part]) == 1 then
      names[#names + 1] = PARTS[part]
    end
  end
  return table.concat(names, ' ')
end

-- When the time of a worker is over that is heard of now.
local function time_after(duration)
  return math.min(millis + duration, LIMIT)
end

local function finish_step()
  if changed then
    fleet.version = math.max(micros, fleet.version + 1)
    stale_fleet = true
  end
end

-- All that is needed for a table of leases: its numbers, its workers, leases and checkpoints.
local function read_whole()
  read_leases()
  read_places()
  local function flat(entries, text_of)
    local fields = {}
    for field, entry in pairs(entries) do
      if entry then
        fields[#fields + 1] = field
        fields[#fields + 1] = text_of(entry)
      end
    end
    return fields
  end
  return digits(fleet.generation), digits(fleet.version), digits(fleet.cleared),
    flat(workers, worker_line), flat(leases, lease_line), flat(places, function(stored)
      return stored.text
    end)
end

local function write_fleet()
  redis.call('HSET', KEYS[FLEET], 'generation', digits(fleet.generation), 'version',
    digits(fleet.version), 'cleared', digits(fleet.cleared), 'keys', fleet.keys)
end

local function write()
  if next(stale_workers) or stale_fleet or next(moved) then
    write_format()
  end
  write_fields(WORKERS, stale_workers, workers, worker_line)
  write_fields(LEASES, stale_leases, leases, lease_line)
  write_places()
  if fleet.generation > 0 and (changed or fleet.keys ~= ALL_KEYS) then
    local found = existing_keys()
    stale_fleet = stale_fleet or found ~= fleet.keys
    fleet.keys = found
  end
  if stale_fleet then
    write_fleet()
  end
end
