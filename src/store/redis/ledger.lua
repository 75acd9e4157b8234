-- The lease table during a script: read on first use, changed in memory, and written at the end.
-- Mirrors src/store/lease/ledger.rs, mostly with the same names.

-- The largest integer that a Lua number represents exactly.
local LIMIT = 9007199254740991
local NONE = '-'
-- Unknown parents.
local UNKNOWN = '?'
local MAX_U32 = '4294967295'

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local millis = math.floor(micros / 1000)

-- The numbers of the table: its generation, its version, the time it was cleared, the last epoch
-- issued, and the time of the first poll (0 if not stored); and the names of the other keys that
-- exist.
local fleet = {}
-- The workers by name.
local workers = {}
-- The lease of each shard that was read, or false if it has none.
local leases = {}
-- The workers and shards to be written, whether the numbers are to be written, and whether the
-- version rises.
local stale_workers, stale_leases, stale_fleet = {}, {}, false
local changed = false

-- Formats an integer without the exponent that Lua uses for large numbers.
local function digits(number)
  return string.format('%.0f', number)
end

local function number_of(word)
  local number = string.match(word, '^%d+$') and tonumber(word)
  return number and number <= LIMIT and number
end

-- Calls `work` with each field and value of a hash.
local function each(key, work)
  local answer = read('HGETALL', key)
  for index = 1, #answer, 2 do
    work(answer[index], answer[index + 1])
  end
end

-- Reads the numbers. Numbers that cannot be parsed are treated as lost, like a missing key.
local function read_fleet()
  local values = read('HMGET', FLEET, 'generation', 'version', 'cleared', 'epoch', 'keys',
    'first_poll')
  fleet.keys = values[5] or ''
  fleet.first_poll = number_of(values[6] or '0') or 0
  for index, field in ipairs({ 'generation', 'version', 'cleared', 'epoch' }) do
    fleet[field] = number_of(values[index] or '0')
    if not fleet[field] then
      fleet.generation, fleet.version, fleet.cleared, fleet.epoch, fleet.keys = 0, 0, 0, 0, ''
      return
    end
  end
end

-- Returns the expiry of a worker that renews now.
local function time_after(duration)
  return math.min(millis + duration, LIMIT)
end

-- The incarnation of a worker of which only the name is known. The next worker of this name that
-- renews gets the entry.
local UNKNOWN_LIFE = '0'

-- Adds a worker that may be alive and of which only the name is known. It is not removed, and its
-- leases are not free, until it has had time to renew.
local function stand_in(name, duration)
  workers[name] = { incarnation = UNKNOWN_LIFE, joined = micros, duration = duration,
    expiry = time_after(duration), capacity = '0' }
  stale_workers[name] = true
  changed = true
end

-- Parses a worker; nil if the line cannot be parsed.
local function worker_of(line)
  local incarnation, joined, duration, expiry, capacity =
    string.match(line, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
  local found = {
    -- Kept as text: all 64 bits are significant.
    incarnation = incarnation,
    joined = number_of(joined or ''),
    duration = number_of(duration or ''),
    expiry = number_of(expiry or ''),
    capacity = capacity,
  }
  local is_one = incarnation and is_u64(incarnation) and found.joined and found.duration
    and found.expiry and not greater(capacity, MAX_U32)
  return is_one and found or nil
end

-- Reads the workers. A worker that cannot be parsed is replaced, with the lease duration of the
-- caller or, if the caller has none, the longest of the others.
local function read_workers(duration)
  local damaged, longest = {}, 0
  each(WORKERS, function(name, line)
    workers[name] = worker_of(line)
    if workers[name] then
      longest = math.max(longest, workers[name].duration)
    else
      damaged[#damaged + 1] = name
    end
  end)
  for _, name in ipairs(damaged) do
    stand_in(name, duration or longest)
  end
end

local function worker_line(worker)
  local numbers = { worker.incarnation, digits(worker.joined), digits(worker.duration),
    digits(worker.expiry), worker.capacity }
  return table.concat(numbers, ' ')
end

local function are_parents(text)
  if text == NONE or text == UNKNOWN then
    return true
  end
  for id in string.gmatch(text .. ',', '([^,]*),') do
    if #id > 128 or not string.match(id, '^[%w_.-]+$') then
      return false
    end
  end
  return true
end

-- Parses a lease; nil if the line cannot be parsed. Rejects every line that src/store/lease/text.rs
-- rejects.
local function parse_lease(line)
  local epoch, owner, heir, origin, parents, state, rest =
    string.match(line, '^(%d+) ([^ ]+) ([^ ]+) (%d+) ([^ ]+) ([^ ]+)(.*)$')
  if not epoch or state ~= NONE and state ~= 'LOST' or not are_parents(parents) then
    return nil
  end
  -- Lines of earlier versions end before the start; words that later versions add are kept.
  local words = {}
  for word in string.gmatch(rest, '[^ ]+') do
    words[#words + 1] = word
  end
  local start, unlisted, added = words[1] or NONE, words[2] or NONE, words[3] or NONE
  local found = {
    epoch = number_of(epoch),
    owner = owner,
    heir = heir,
    origin = number_of(origin),
    parents = parents,
    state = state,
    start = start,
    unlisted = unlisted ~= NONE and number_of(unlisted) or nil,
    added = added ~= NONE and number_of(added) or nil,
    more = table.concat(words, ' ', 4),
  }
  local is_one = (rest == '' or string.sub(rest, 1, 1) == ' ') and found.epoch and found.origin
    and (start == NONE or is_sequence_number(start)) and (unlisted == NONE or found.unlisted)
    and (added == NONE or found.added)
  return is_one and found or nil
end

local function lease_of(shard, line)
  local found = parse_lease(line)
  if not found then
    unreadable[LEASES][shard] = true
  end
  return found or false
end

local function lease_line(lease)
  local words = { digits(lease.epoch), lease.owner, lease.heir, digits(lease.origin), lease.parents,
    lease.state, lease.start, lease.unlisted and digits(lease.unlisted) or NONE,
    lease.added and digits(lease.added) or NONE }
  if lease.more and lease.more ~= '' then
    words[#words + 1] = lease.more
  end
  return table.concat(words, ' ')
end

-- The time for which a note is kept, in milliseconds: FINISHED_SHARD_RETENTION of src/store/lease.rs.
local FINISHED_SHARD_RETENTION = 365 * 24 * 60 * 60 * 1000

local function is_kept(moment)
  return millis - moment < FINISHED_SHARD_RETENTION
end

-- Returns the lease of a shard, also if its checkpoint cannot be parsed.
local function stored_lease(shard)
  if leases[shard] == nil then
    local line = read('HGET', LEASES, shard)
    leases[shard] = line and lease_of(shard, line)
  end
  return leases[shard]
end

local function is_unreadable(shard)
  place(shard)
  stored_lease(shard)
  return unreadable[CHECKPOINTS][shard] or unreadable[LEASES][shard]
end

-- Returns the lease of a shard if the shard is readable.
local function lease_at(shard)
  return not is_unreadable(shard) and stored_lease(shard)
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

-- Notes that the lease of this shard, or its absence, is to be written.
local function mark(shard)
  stale_leases[shard] = true
  changed = true
end

local function is_finished(shard)
  local stored = place(shard)
  return stored and stored.is_end
end

-- Sets the owner of a lease, or frees it, in a new epoch. The epoch is higher than all earlier
-- ones, since the latest epoch of the lease may have been lost.
local function give(shard, owner)
  local lease = lease_at(shard)
  if lease then
    lease.epoch = math.max(millis, fleet.cleared + 1, fleet.epoch + 1, lease.epoch + 1)
    lease.owner, lease.heir = owner, NONE
    fleet.epoch = lease.epoch
    mark(shard)
  end
end

-- Starts a new epoch after another position was stored. The current owner keeps the lease, so that
-- no other worker starts before the owner has seen the new epoch. A finished shard has no owner.
local function begin_anew(shard, owner)
  give(shard, not is_finished(shard) and owner or NONE)
end

-- Frees a lease in the same epoch.
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

-- Starts a new generation if a key has disappeared that existed after the last change: it was
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
    for shard, lease in pairs(leases) do
      if lease then
        leases[shard] = false
        mark(shard)
      end
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

local function finish_step()
  if changed then
    fleet.version = math.max(micros, fleet.version + 1)
    stale_fleet = true
  end
end

-- Returns all parts of a table: its numbers, workers, leases and checkpoints.
local function read_whole()
  read_leases()
  read_places()
  local function flat(entries, text_of, damaged)
    local fields = {}
    for field in pairs(damaged or {}) do
      fields[#fields + 1] = field
      fields[#fields + 1] = UNKNOWN
    end
    for field, entry in pairs(entries) do
      if entry then
        fields[#fields + 1] = field
        fields[#fields + 1] = text_of(entry)
      end
    end
    return fields
  end
  return digits(fleet.generation), digits(fleet.version), digits(fleet.cleared),
    digits(fleet.first_poll),
    flat(workers, worker_line), flat(leases, lease_line, unreadable[LEASES]),
    flat(places, function(stored)
      return stored.text
    end, unreadable[CHECKPOINTS])
end

local function write_fleet()
  redis.call('HSET', KEYS[FLEET], 'generation', digits(fleet.generation), 'version',
    digits(fleet.version), 'cleared', digits(fleet.cleared), 'epoch', digits(fleet.epoch), 'keys',
    fleet.keys, 'first_poll', digits(fleet.first_poll))
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
