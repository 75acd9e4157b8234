-- Performs one heartbeat of a worker: renews it, applies its changes, and returns the table.
--
-- ARGV  worker, incarnation, duration, capacity, 1 if it leaves, known generation, known version,
--       1 if the changes are applied only to the known table, change, …
--       (generation and version are empty if none is known; a change is its kind and its arguments)
--
-- Returns the worker's membership and whether the changes were applied. Unless the table is the
-- known one, also returns its generation, its version, the time it was cleared, the time of the
-- first poll, and all workers, leases and checkpoints. If nothing has changed, the script reads the
-- workers and the numbers, checks that the other keys exist, and writes one worker: the cost does
-- not depend on the number of shards.

local worker, incarnation, duration, capacity = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local leaving, only_if_unchanged = ARGV[5] == '1', ARGV[8] == '1'

local function is_known()
  return ARGV[6] == digits(fleet.generation) and ARGV[7] == digits(fleet.version)
end

local function live_until(name, expiry)
  if workers[name].expiry ~= expiry then
    workers[name].expiry = expiry
    stale_workers[name] = true
  end
end

-- Removes a worker and frees its leases.
local function remove(name)
  if not workers[name] then
    return
  end
  workers[name] = nil
  stale_workers[name] = true
  changed = true
  read_leases()
  for shard, lease in pairs(leases) do
    if lease and lease.owner == name then
      lease.owner, lease.heir = NONE, NONE
      mark(shard)
    elseif lease and lease.heir == name then
      lease.heir = NONE
      mark(shard)
    end
  end
end

local function join()
  -- Collected here and removed after the checks below, not during the iteration.
  local gone = {}
  for name, member in pairs(workers) do
    live_until(name, math.min(member.expiry, time_after(member.duration)))
    if member.expiry <= millis then
      gone[#gone + 1] = name
    end
  end
  local mine = workers[worker]
  if mine and mine.incarnation == UNKNOWN_LIFE then
    mine.incarnation = incarnation
    stale_workers[worker] = true
    changed = true
  end
  local is_mine = mine and mine.incarnation == incarnation
  if mine and not is_mine and mine.expiry > millis then
    return 'OCCUPIED'
  end
  if is_mine and mine.expiry <= millis then
    for name, member in pairs(workers) do
      live_until(name, time_after(member.duration))
    end
  else
    for _, name in ipairs(gone) do
      remove(name)
    end
  end
  if fleet.generation == 0 then
    fleet.generation = micros
    changed = true
  end
  mine = workers[worker]
  if mine then
    changed = changed or mine.capacity ~= capacity
    mine.duration, mine.capacity, mine.expiry = duration, capacity, time_after(duration)
    stale_workers[worker] = true
    return 'RENEWED'
  end
  if not leaving then
    local joined = micros
    for _, member in pairs(workers) do
      joined = math.max(joined, member.joined + 1)
    end
    workers[worker] = { incarnation = incarnation, joined = joined, duration = duration,
      expiry = time_after(duration), capacity = capacity }
    stale_workers[worker] = true
    changed = true
  end
  return 'JOINED'
end

-- Stores the position of a restored lease if it is further than the stored one.
local function advance_restored(shard, position)
  if position and advance(shard, position) then
    changed = true
  end
  if is_finished(shard) then
    end_shard(shard)
  end
end

local function restore(shard, incarnation, known, has_parents, position)
  if fleet.cleared > 0 and known.epoch <= fleet.cleared then
    return
  end
  local finished = position and position.is_end or is_finished(shard)
  local member = workers[known.owner]
  local owner = member and member.incarnation == incarnation and not finished and known.owner or NONE
  local heir = workers[known.heir] and owner ~= NONE and known.heir or NONE
  local lease = lease_at(shard)
  if not lease then
    if has_parents then
      known.owner, known.heir = owner, heir
      leases[shard] = known
      fleet.first_poll = 0
      fleet.epoch = math.max(fleet.epoch, known.epoch)
      mark(shard)
    end
    return advance_restored(shard, position)
  end
  if lease.origin > known.origin then
    lease.origin, lease.start, lease.added = known.origin, known.start, known.added
    move(shard, position)
    return begin_anew(shard, lease.owner)
  end
  if lease.origin < known.origin or lease.epoch > known.epoch then
    return
  end
  local found = lease_line(lease)
  if lease.epoch < known.epoch then
    lease.epoch, lease.state = known.epoch, known.state
    fleet.epoch = math.max(fleet.epoch, known.epoch)
    lease.owner, lease.heir = owner, heir
    lease.start = known.start ~= NONE and known.start or lease.start
    lease.unlisted = known.unlisted
    lease.added = known.added or lease.added
  else
    if known.state == 'LOST' then
      lease.state = 'LOST'
    end
    if lease.start == NONE then
      lease.start = known.start
    end
    if known.added and (not lease.added or known.added < lease.added) then
      lease.added = known.added
    end
    if lease.owner == NONE then
      lease.owner, lease.heir = owner, heir
    end
  end
  if lease_line(lease) ~= found then
    mark(shard)
  end
  advance_restored(shard, position)
end

local argument = 8

local function next_argument()
  argument = argument + 1
  return ARGV[argument]
end

-- Reads a checkpoint; nil if it is left out.
local function next_position()
  local text = next_argument()
  return text ~= '' and parse(text) or nil
end

-- The handlers of changes, by kind. Each consumes all its arguments, even if the change has no
-- effect.
local changes = {}

-- Joins two words of parents: those of the first, then further ones of the second, each once.
local function unite(parents, others)
  if others == NONE then
    return parents
  end
  for id in string.gmatch(others .. ',', '([^,]+),') do
    if parents == NONE then
      parents = id
    elseif not string.find(',' .. parents .. ',', ',' .. id .. ',', 1, true) then
      parents = parents .. ',' .. id
    end
  end
  return parents
end

-- Returns true if the table has no shard and no position, readable or not.
local function is_empty()
  read_leases()
  read_places()
  for _, entries in ipairs({ leases, places, unreadable[LEASES], unreadable[CHECKPOINTS] }) do
    for _, entry in pairs(entries) do
      if entry then
        return false
      end
    end
  end
  return true
end

function changes.BEGIN()
  local first_poll = number_of(next_argument())
  if fleet.first_poll == 0 and first_poll and first_poll > 0 and is_empty() then
    fleet.first_poll = first_poll
    changed = true
  end
end

function changes.ADD()
  local shard, parents, start = next_argument(), next_argument(), next_argument()
  local position = next_position()
  if is_unreadable(shard) then
    return
  end
  local lease = lease_at(shard)
  if lease then
    if lease.parents == UNKNOWN then
      lease.parents = parents
      lease.start = lease.start ~= NONE and lease.start or start
      lease.added = lease.added or millis
      mark(shard)
    elseif lease.epoch == 0 then
      local united = unite(lease.parents, parents)
      if united ~= lease.parents then
        lease.parents = united
        mark(shard)
      end
    end
    if lease.epoch == 0 and position and not place(shard) then
      move(shard, position)
      changed = true
    end
    return
  end
  leases[shard] = { epoch = 0, owner = NONE, heir = NONE, origin = fleet.generation,
    parents = parents, state = NONE, start = start, added = millis }
  fleet.first_poll = 0
  mark(shard)
  if position and not place(shard) then
    move(shard, position)
  end
end

function changes.IDENTIFY()
  local shard, start = next_argument(), next_argument()
  local lease = lease_at(shard)
  if not lease then
    return
  end
  if lease.unlisted then
    lease.unlisted = nil
    mark(shard)
  end
  if not lease.added and not is_finished(shard) then
    lease.added = millis
    mark(shard)
  end
  if lease.start == NONE and start ~= NONE then
    lease.start = start
    mark(shard)
  end
  if lease.state ~= NONE and start ~= NONE and lease.start == start then
    lease.state = NONE
    mark(shard)
  end
end

function changes.REPLACE()
  local shard, parents, start = next_argument(), next_argument(), next_argument()
  local position = next_position()
  local lease = lease_at(shard)
  if not lease or lease.start == start then
    return
  end
  lease.parents, lease.start, lease.state, lease.unlisted = parents, start, NONE, nil
  lease.added = millis
  move(shard, position)
  begin_anew(shard, lease.owner)
end

function changes.ASSIGN()
  local shard, to = next_argument(), next_argument()
  local lease = lease_at(shard)
  if lease and lease.owner ~= NONE and not workers[lease.owner] then
    stand_in(lease.owner, duration)
  end
  if lease and lease.owner == NONE and lease.state == NONE and workers[to]
    and not is_finished(shard) then
    give(shard, to)
  end
end

function changes.OFFER()
  local shard, to = next_argument(), next_argument()
  local lease = lease_at(shard)
  if not lease or lease.owner == NONE or not workers[to] and lease.owner ~= to then
    return
  end
  local heir = lease.owner ~= to and to or NONE
  if lease.heir ~= heir then
    lease.heir = heir
    mark(shard)
  end
end

function changes.RELEASE()
  local shard, epoch = next_argument(), next_argument()
  local lease = lease_at(shard)
  if not lease or digits(lease.epoch) ~= epoch or lease.owner ~= worker then
    return
  end
  if lease.heir ~= NONE then
    give(shard, lease.heir)
  else
    free(shard)
  end
end

function changes.FINISH()
  local shard, epoch = next_argument(), next_argument()
  local lease = lease_at(shard)
  if lease and digits(lease.epoch) == epoch then
    end_shard(shard)
  end
end

function changes.LOSE()
  local shard = next_argument()
  local lease = lease_at(shard)
  if lease and lease.state == NONE then
    lease.state = 'LOST'
    mark(shard)
  end
  if lease and lease.owner ~= NONE then
    give(shard, NONE)
  end
end

function changes.FORGET()
  local shard = next_argument()
  local lease = lease_at(shard)
  if not lease or not is_finished(shard) then
    return
  end
  if not lease.unlisted then
    lease.unlisted = millis
    mark(shard)
  elseif not is_kept(lease.unlisted) then
    leases[shard] = false
    mark(shard)
    move(shard, nil)
  end
end

function changes.VOUCH()
  local name, life, joined, lives, most =
    next_argument(), next_argument(), next_argument(), next_argument(), next_argument()
  if not workers[name] then
    lives = tonumber(lives)
    workers[name] = { incarnation = life, joined = number_of(joined) or garbled(WORKERS, name),
      duration = lives, expiry = time_after(lives), capacity = most }
    stale_workers[name] = true
    changed = true
  end
end

function changes.RESTORE()
  local shard, life, line, has_parents, position =
    next_argument(), next_argument(), next_argument(), next_argument(), next_position()
  local known = parse_lease(line) or garbled(LEASES, shard)
  if not is_unreadable(shard) then
    restore(shard, life, known, has_parents == '1', position)
  end
end

return run(function()
  read_format()
  read_fleet()
  read_workers(duration)
  notice_loss()
  local standing = join()
  if standing == 'OCCUPIED' then
    return { standing, 0 }
  end
  local applied = not only_if_unchanged or not changed and is_known()
  if applied then
    while argument < #ARGV do
      changes[next_argument()]()
    end
  end
  if leaving then
    remove(worker)
    standing = 'LEFT'
  end
  finish_step()
  local answer = { standing, applied and 1 or 0 }
  if not is_known() then
    answer = { standing, applied and 1 or 0, read_whole() }
  end
  return answer
end, write)
